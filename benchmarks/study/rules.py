"""The rules by which a run decides a claim: facts in, a verdict and its number out."""

from collections.abc import Callable

import numpy as np

from benchmarks.precision_compare import rank_correlation
from benchmarks.study.facts import SETTLED, SIX, Facts, Missing

VERDICTS = HOLDS, FAILS, PARTLY = "holds", "does not hold", "partly"
UNKNOWN = "cannot be judged"

LIKELIHOODS = ("GA", "WGA", "NPO", "TNPO")
FEWEST = 5  # samples of a bin whose mean is compared with another's
SMALL, LARGE = 0.3, 2.0
"""`|e_r| << |e_u|` is a ratio of at most SMALL; effects that differ do so by a factor of LARGE."""

Judged = tuple[str, str]
"""A verdict and the number that decided it."""


def verdict_of(*conditions: bool) -> str:
    """`HOLDS` where all are true, `PARTLY` where some are."""
    if all(conditions):
        return HOLDS
    return PARTLY if any(conditions) else FAILS


# --------------------------------------------------------------------------- the paper


def outweighs(label: str) -> Callable[[Facts], Judged]:
    def judge(run: Facts) -> Judged:
        name = run.one(label)
        return verdict_of(run.ratio(name) > 1), _peaks(run, name)

    return judge


def keeps_small(label: str) -> Callable[[Facts], Judged]:
    def judge(run: Facts) -> Judged:
        name = run.one(label)
        ratio = run.ratio(name)
        verdict = HOLDS if ratio <= SMALL else PARTLY if ratio < 1 else FAILS
        return verdict, f"{_peaks(run, name)}: ratio {ratio:.2g}"

    return judge


def largest_removal(run: Facts) -> Judged:
    peaks = {label: abs(run.peak(name)[0]) for label, name in run.six().items()}
    first = max(peaks, key=lambda label: peaks[label])
    likelihood = max(LIKELIHOODS, key=lambda label: peaks[label])
    return verdict_of(first == "GA", likelihood == "GA"), _listed(peaks, "{:.2g}")


def worst_retention(run: Facts) -> Judged:
    rises = {label: run.rise(name, "retain") for label, name in run.six().items()}
    return verdict_of(max(rises, key=lambda label: rises[label]) == "GA"), _listed(rises, "{:.2g}")


def late_start(run: Facts) -> Judged:
    name = run.one("GA")
    values, steps = np.abs(run.curve(name)), run.measured(name)
    began = int(steps[values > SETTLED * np.nanmax(values)][0])
    share = began / run.steps
    return verdict_of(share >= 0.25), f"above 5 % of its peak from step {began} of {run.steps}"


def head_at_the_end(run: Facts) -> Judged:
    name = run.one("GA")
    shares = run.shares(name, at=-1)
    if "lm" not in shares:
        raise Missing("embedding and head are one matrix")
    return verdict_of(shares["lm"] >= 0.5), f"lm carries {shares['lm']:.0%} at the last measurement"


def inverse_confidence(run: Facts) -> Judged:
    name = run.one("GA")
    logs = run.entry(name)["inverse_confidence"]
    effect = np.log10(np.abs(run.curve(name)))
    rank = rank_correlation(np.array(logs), effect)
    grown = max(logs) - logs[0]
    found = f"mean 1/p grows by 10^{grown:.1f}; rank correlation with |e_u| {rank:.2f}"
    return verdict_of(grown >= 2, rank >= 0.7), found


def shallow_carries_most(run: Facts) -> Judged:
    firsts = {}
    for label, name in _likelihoods(run).items():
        shares = run.shares(name)
        thirds = {k: shares[k] for k in ("shallow", "middle", "deep")}
        firsts[label] = (max(thirds, key=lambda k: thirds[k]), thirds["shallow"])
    found = ", ".join(f"{label} {first} (shallow {s:.0%})" for label, (first, s) in firsts.items())
    return verdict_of(*(first == "shallow" for first, _ in firsts.values())), found


def embedding_is_small(run: Facts) -> Judged:
    shares = {label: run.shares(name)["embed"] for label, name in _likelihoods(run).items()}
    return verdict_of(*(abs(s) <= 0.05 for s in shares.values())), _listed(shares, "{:.0%}")


def _likelihoods(run: Facts) -> dict[str, str]:
    """The objective that stands for each of the likelihood methods that were run."""
    names = {label: name for label, name in run.ran().items() if label in LIKELIHOODS}
    if not names:
        raise Missing("none of GA, WGA, NPO and TNPO was run")
    return names


def comes_to_rest(label: str) -> Callable[[Facts], Judged]:
    def judge(run: Facts) -> Judged:
        name = run.one(label)
        rest, (_, top) = run.settled(name), run.peak(name)
        found = f"peak at step {top}, " + (f"at rest from {rest}" if rest else "never at rest")
        return verdict_of(rest is not None), found

    return judge


def npo_first(run: Facts) -> Judged:
    rests = {label: run.settled(run.one(label)) for label in ("WGA", "NPO", "TNPO")}
    if not any(rests.values()):
        raise Missing("none of WGA, NPO and TNPO comes to rest within the run")
    times = {label: rest or np.inf for label, rest in rests.items()}
    first = min(times.values())
    alone = list(times.values()).count(first) == 1
    verdict = verdict_of(times["NPO"] == first, alone and times["NPO"] == first)
    return verdict, _rests(rests)


def larger_beta(run: Facts) -> Judged:
    peaks = [run.peak(run.find("npo", beta=beta)) for beta in (0.1, 1.0, 2.0)]
    sizes, steps = [abs(p) for p, _ in peaks], [s for _, s in peaks]
    smaller = sizes[0] > sizes[1] > sizes[2]
    earlier = steps[0] >= steps[1] >= steps[2] and steps[0] > steps[2]
    found = ", ".join(f"{p:.2g} (step {s})" for p, s in peaks)
    return verdict_of(smaller, earlier), f"beta 0.1, 1, 2: {found}"


def beta_turns_the_ratio(run: Facts) -> Judged:
    ratios = [run.ratio(run.find("npo", beta=beta)) for beta in (0.1, 1.0, 2.0)]
    found = "|e_r| / |e_u| for beta 0.1, 1, 2: " + ", ".join(f"{r:.2g}" for r in ratios)
    return verdict_of(*(ratios[0] > 1 and ratio < 1 for ratio in ratios[1:])), found


def _npo_facts(run: Facts) -> dict[str, dict]:
    facts = {
        step: found
        for step, found in run.entry(run.one("NPO"))["samples"].items()
        if "weight_retain_size" in found
    }
    if not facts:
        raise Missing("no PG-effects of NPO with weights that differ")
    return facts


def high_weights_retain(run: Facts) -> Judged:
    ranks = {step: facts["weight_retain_size"] for step, facts in _npo_facts(run).items()}
    found = ", ".join(f"{rank:+.2f} at step {step}" for step, rank in ranks.items())
    conditions = [rank <= -SMALL for rank in ranks.values()]
    return verdict_of(*conditions), f"rank correlation of w and |PG_r|: {found}"


def middle_weights_fail(run: Facts) -> Judged:
    worst = {}
    for step, facts in _npo_facts(run).items():
        bins = [b for b in facts["bins"] if b["samples"] >= FEWEST]
        starts = {b["from"] for b in bins}
        # Without smaller weights "the middle" would only be "the least".
        if 0.4 in starts and min(starts) < 0.4 < max(starts):
            worst[step] = min(bins, key=lambda b: b["retain"])["from"]
    if not worst:
        raise Missing(f"no step has {FEWEST} samples with weights in [.4, .6], below and above")
    found = ", ".join(f"[{low:.1f}, {low + 0.2:.1f}] at step {s}" for s, low in worst.items())
    return verdict_of(*(low == 0.4 for low in worst.values())), f"most negative PG_r: {found}"


def turns_positive(risk: str) -> Callable[[Facts], Judged]:
    def judge(run: Facts) -> Judged:
        name = run.one("PO")
        values, steps = run.curve(name, risk), run.measured(name)
        negative = np.flatnonzero(values < 0)
        after = negative[0] if negative.size else len(values)
        turned = [int(at) for at in np.flatnonzero(values > 0) if at > after]
        found = f"from {values.min():.2g} to {values.max():.2g}"
        if turned:
            found += f", first positive at step {steps[turned[0]]}"
        elif (values > 0).any():
            found += ", positive before it is negative"
        return verdict_of(bool(turned)), found

    return judge


def rmu_depends(run: Facts) -> Judged:
    grid = _rmu_grid(run)
    layers, scales = (sorted({place[i] for place in grid}) for i in (0, 1))
    peaks = {place: abs(run.peak(name)[0]) for place, name in grid.items()}
    by_layer = [_spread([peaks[layer, scale] for layer in layers]) for scale in scales]
    by_scale = [_spread([peaks[layer, scale] for scale in scales]) for layer in layers]
    texts = [f"{min(s):.2g}x to {max(s):.2g}x" for s in (by_layer, by_scale)]
    found = f"peaks differ by {texts[0]} over layers and by {texts[1]} over c"
    return verdict_of(*(spread >= LARGE for spread in (*by_layer, *by_scale))), found


def _rmu_grid(run: Facts) -> dict[tuple[float, float], str]:
    """{(layer, c): objective} of RMU at three depths or more, with three c or more at each.

    Raises:
      Missing: RMU did not run, or not with every c at every depth.
    """
    names = run.all_with("rmu")
    if not names:
        raise Missing("no run of rmu")
    if len(names) == 1:
        raise Missing("RMU ran at one depth and one c alone")
    grid = {(run.entry(n)["layer"] or 0, run.entry(n)["scale"] or 0): n for n in names}
    layers, scales = ({place[i] for place in grid} for i in (0, 1))
    if len(layers) < 3 or len(scales) < 3 or len(grid) < len(layers) * len(scales):
        raise Missing("RMU did not run with three c at three depths each")
    return grid


def _spread(peaks: list[float]) -> float:
    return max(peaks) / min(peaks)


def last_layer_flips(run: Facts) -> Judged:
    grid = _rmu_grid(run)
    last = max(layer for layer, _ in grid)
    flips = {
        f"c {scale:g}": bool((run.curve(name) > 0).any())
        for (layer, scale), name in grid.items()
        if layer == last
    }
    found = ", ".join(f"{c}: {'yes' if flip else 'no'}" for c, flip in flips.items())
    return verdict_of(*flips.values()), f"layer {last} turns positive: {found}"


def retain_terms(run: Facts) -> Judged:
    orders, better = {}, []
    for label in ("GA", "NPO", "TNPO"):
        loss, hyper = SIX[label]
        ends = {t: run.rise(run.find(loss, t, **hyper), "retain") for t in ("kl", "gd", "rr")}
        orders[label] = " < ".join(sorted(ends, key=lambda t: ends[t]))
        better += [ends["kl"] < ends["gd"], ends["gd"] < ends["rr"]]
    return verdict_of(*better), "rise of retain NLL: " + _listed(orders, "{}")


# --------------------------------------------------------------------------- the summary


def strength(label: str, lowest: int, highest: int) -> Callable[[Facts], Judged]:
    """The method's place among the six by the rise of the forget NLL, 1 for the largest."""
    return _place(label, lowest, highest, "forget", most_first=True)


def integrity(label: str, lowest: int, highest: int) -> Callable[[Facts], Judged]:
    """The method's place among the six by the rise of the retain NLL, 1 for the smallest."""
    return _place(label, lowest, highest, "retain", most_first=False)


def _place(
    label: str, lowest: int, highest: int, split: str, *, most_first: bool
) -> Callable[[Facts], Judged]:
    def judge(run: Facts) -> Judged:
        rises = {k: run.rise(name, split) for k, name in run.six().items()}
        order = sorted(rises, key=lambda k: rises[k], reverse=most_first)
        place = order.index(label) + 1
        near = min(abs(place - lowest), abs(place - highest)) == 1
        verdict = HOLDS if lowest <= place <= highest else PARTLY if near else FAILS
        return verdict, f"place {place} of 6, {split} NLL up by {rises[label]:.2g}"

    return judge


def better_than_ascent(run: Facts) -> Judged:
    wga, ga = (run.rise(run.one(label), "retain") for label in ("WGA", "GA"))
    return verdict_of(wga < ga), f"retain NLL up by {wga:.2g}, GA's by {ga:.2g}"


def stops_early(run: Facts) -> Judged:
    wga, ga = run.settled(run.one("WGA")), run.settled(run.one("GA"))
    verdict = verdict_of(wga is not None and (ga is None or wga < ga))
    return verdict, _rests({"WGA": wga, "GA": ga})


def sensitive(run: Facts) -> Judged:
    names = run.all_with("wga")
    if len(names) < 3:
        alphas = " and ".join(f"{run.entry(n)['hyper']['alpha']:g}" for n in names)
        raise Missing(f"WGA ran with alpha {alphas} alone" if names else "no run of wga")
    peaks = {f"alpha {run.entry(n)['hyper']['alpha']:g}": abs(run.peak(n)[0]) for n in names}
    spread = max(peaks.values()) / min(peaks.values())
    return verdict_of(spread >= 10), f"{_listed(peaks, '{:.2g}')}: {spread:.2g}x"


def early_steps_only(run: Facts) -> Judged:
    name = run.one("PO")
    values, steps = run.curve(name), run.measured(name)
    removing, late = values < 0, steps > run.steps / 2
    texts = ", ".join(map(str, steps[removing])) or "none"
    verdict = HOLDS if not removing[late].any() else FAILS if removing[late].all() else PARTLY
    if not removing[~late].any():
        verdict = FAILS
    return verdict, f"e_u is negative at steps {texts} of {run.steps}"


def no_issue(run: Facts) -> Judged:
    rises = {label: run.rise(name, "forget") for label, name in run.six().items()}
    harms = {label: run.rise(name, "retain") for label, name in run.six().items()}
    ahead = [
        label for label in rises if rises[label] > rises["TNPO"] and harms[label] < harms["TNPO"]
    ]
    found = "ahead of it in both: " + (", ".join(ahead) or "none")
    return verdict_of(not ahead), found


def updates_and_harm(run: Facts) -> Judged:
    names = [n for n in run.content["objectives"] if run.content["models"][n].get("distance")]
    if len(names) < 5:
        raise Missing("fewer than five models with a known distance")
    moved = np.array([run.content["models"][n]["distance"] for n in names])
    ranks = {
        split: rank_correlation(moved, np.array([run.rise(n, split) for n in names]))
        for split in ("forget", "retain")
    }
    found = ", ".join(f"{split} {rank:.2f}" for split, rank in ranks.items())
    verdict = verdict_of(*(rank >= 0.7 for rank in ranks.values()))
    return verdict, f"|theta_T - theta_0| and the rise of NLL over {len(names)} objectives: {found}"


# --------------------------------------------------------------------------- texts


def _peaks(run: Facts, name: str) -> str:
    (removal, first), (harm, second) = run.peak(name), run.peak(name, "retain")
    return f"e_u {removal:.2g} (step {first}), e_r {harm:.2g} (step {second})"


def _rests(rests: dict[str, int | None]) -> str:
    texts = (f"{k} {f'from step {v}' if v else 'never'}" for k, v in rests.items())
    return f"at rest: {', '.join(texts)}"


def _listed(values: dict, form: str) -> str:
    return ", ".join(f"{key} {form.format(value)}" for key, value in values.items())
