"""What the paper does not ask: tokens, layers of samples, AdamW, relearning, predictions."""

import contextlib
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.precision_compare import rank_correlation
from benchmarks.study.facts import Facts, Missing, Studies, methods
from benchmarks.study.texts import spread, table
from jaxunlearn.record.folder import RETRAINED

UWC = {
    "uwc.uwc_alpha.retain": "share of the unlearned model",
    "uwc.uwc_retention.retain": "retain ES kept",
    "uwc.uwc_extraction_strength.forget": "forget ES",
}
"""Metrics of the suite `uwc`, and what they are called here."""

WEIGHTED = ("wga", "tnpo", "wtnpo", "npo")


def tables(studies: Studies) -> str:
    """All questions, study by study."""
    parts = (
        ("Do the weights of tokens go where removal is, and harm is not?", _tokens),
        ("Where by layer does a sample's harm sit?", _profiles),
        ("What AdamW makes of the effects", _adam),
        ("What is forgotten at equal retention", _calibrated),
        ("Do effects foretell relearning?", _relearning),
        ("Predicted and realised changes from one measurement to the next", _intervals),
    )
    texts = []
    for title, make in parts:
        texts.append(f"### {title}")
        for study, runs in studies.items():
            texts.append(f"`{study}`:\n\n{make(runs)}")
    return "\n\n".join(texts)


def _tokens(runs: Sequence[Facts]) -> str:
    """Rank correlations of weights with the token-wise effects, at each step, over the seeds."""
    rows = []
    for name, entry in runs[0].content["objectives"].items():
        for step, facts in entry["tokens"].items():
            if entry["loss"] in WEIGHTED and "weight_removal" in facts:
                found = [r.entry(name)["tokens"][step] for r in runs if name in _names(r)]
                keys = (
                    *("weight_removal", "weight_harm", "weight_retain_size"),
                    "rank_unlearn_retain",
                )
                ranks = [spread([f[key] for f in found], "{:+.2f}") for key in keys]
                rows.append([name, step, *ranks])
    titles = [
        "objective",
        "step",
        "weight and removal",
        "weight and harm",
        "weight and size of harm",
        "removal and harm",
    ]
    return table(titles, rows) if rows else "No token-wise effects with weights that differ."


def _profiles(runs: Sequence[Facts]) -> str:
    """The mean shares of |PG_r| by group of layers, and the rank correlation with the mean."""
    rows: list[list[str]] = []
    groups: Sequence[str] = ()
    for label, names in methods(runs).items():
        run, name = names[0]
        for step in run.entry(name)["profiles"]:
            found = [r.entry(n)["profiles"][step] for r, n in names]
            groups = list(found[0]["shares"])
            shares = [spread([f["shares"][g] for f in found], "{:.0%}") for g in groups]
            alike = spread([f["rank_with_mean"] for f in found], "{:.2f}")
            both = [r.entry(n)["samples"][step]["rank_unlearn_retain"] for r, n in names]
            rows.append([label, step, *shares, alike, spread(both, "{:+.2f}")])
    alike = "rank correlation of a sample's layers with the mean's, median"
    both = "rank correlation of removal and harm over samples"
    titles = ["method", "step", *groups, alike, both]
    return table(titles, rows)


def _adam(runs: Sequence[Facts]) -> str:
    """Harm over removal by the gradient and by AdamW's updates, and how often the signs agree."""
    rows = []
    for label, names in methods(runs).items():
        ratios, adam, agree = [], [], []
        for run, name in names:
            rates = np.array(run.entry(name)["rates"]) > 0
            curves = {r: -run.curve(name, r, "update_effect") for r in ("unlearn", "retain")}
            sizes = [np.nanmax(np.abs(curves[r])) for r in ("retain", "unlearn")]
            ratios.append(run.ratio(name))
            adam.append(sizes[0] / sizes[1])
            same = [np.sign(curves[r][rates]) == np.sign(run.curve(name, r)[rates]) for r in curves]
            agree.append(float(np.mean(same)))
        texts = spread(ratios, "{:.2g}"), spread(adam, "{:.2g}"), spread(agree, "{:.0%}")
        rows.append([label, *texts])
    return table(["method", "harm / removal, gradient", "by AdamW", "signs that agree"], rows)


PREDICTORS: dict[str, Callable[[Facts, str], float]] = {
    "size of e_u at its peak": lambda run, name: abs(run.peak(name)[0]),
    "size of e_r at its peak": lambda run, name: abs(run.peak(name, "retain")[0]),
    "|e_r| / |e_u|": lambda run, name: run.ratio(name),
    "minus the cosine on D_u, third measurement": lambda run, name: (
        -run.curve(name, column="cosine")[2]
    ),
    "minus the cosine on D_r, third measurement": lambda r, n: -r.curve(n, "retain", "cosine")[2],
    "minus the cosine on D_u, last measurement": lambda run, name: (
        -run.curve(name, column="cosine")[-1]
    ),
    "rise of the forget NLL at the end": lambda run, name: run.rise(name, "forget"),
    "distance from theta_0": lambda run, name: run.distance(name),
}
"""What might foretell how much an attack brings back."""


def _calibrated(runs: Sequence[Facts]) -> str:
    """UWC: how much of each model keeps 95 % of the retain ES, and the forget ES it then has."""

    def numbers(run: Facts, name: str) -> list[float]:
        found = run.content["models"][name]["evaluation"]
        if not found.keys() >= UWC.keys():
            raise Missing("the suite was not measured")
        return [found[key] for key in UWC]

    rows = _spreads(runs, _names, numbers)
    titles = ["objective", "seeds", *UWC.values()]
    return table(titles, rows) if rows else "The suite `uwc` was not measured."


def _relearning(runs: Sequence[Facts]) -> str:
    """What the strongest attack brings back, and rank correlations with what is known before."""
    attacked = _attacked(runs)
    return f"{attacked}\n\n{_predictors(runs)}" if attacked else "No attack was run."


def _attacked(runs: Sequence[Facts]) -> str:
    """Extraction strength of models before and after the strongest attack; "" without any."""
    # The model that never saw the rows says how much an attack teaches in place of bringing back.
    models = lambda run: [*_names(run), *({RETRAINED} & run.content["models"].keys())]

    def numbers(run: Facts, name: str) -> list[float]:
        end = run.strongest_attack(name)
        before = [run.result(name, key) for key in ("forget_es", "retain_es")]
        return [*before, end["final_forget_es"], end["final_unseen_es"]]

    rows = _spreads(runs, models, numbers)
    titles = ["model", "seeds", "forget ES", "retain ES", "forget ES after the attack"]
    return table([*titles, "of rows that it does not show"], rows) if rows else ""


def _spreads(
    runs: Sequence[Facts],
    models: Callable[[Facts], Sequence[str]],
    numbers: Callable[[Facts, str], Sequence[float]],
) -> list[list[str]]:
    """A row for each model: its name, the runs that have its numbers, and their spreads."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in models(run)):
        found = []
        for run in (run for run in runs if name in models(run)):
            with contextlib.suppress(Missing):
                found.append(numbers(run, name))
        if found:
            columns = (spread(column, "{:.2f}") for column in zip(*found, strict=True))
            rows.append([name, str(len(found)), *columns])
    return rows


def _predictors(runs: Sequence[Facts]) -> str:
    """Rank correlations over objectives with the share of forgotten ES that comes back."""
    rows, counts = [], []
    for text, predictor in PREDICTORS.items():
        ranks = []
        for run in runs:
            pairs = []
            for name in _names(run):
                try:
                    pairs.append((predictor(run, name), run.relearned(name)))
                except Missing:
                    continue
            if len(pairs) >= 5:
                ranks.append(rank_correlation(*np.array(pairs).T))
                counts.append(len(pairs))
        if ranks:
            rows.append([text, spread(ranks, "{:+.2f}")])
    if not rows:
        return "Too few objectives forgot anything."
    over = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
    return table([f"what is known before, over {over} objectives", "rank correlation"], rows)


def _intervals(runs: Sequence[Facts]) -> str:
    """How much of a predicted change comes true, and how often its sign does."""
    rows = []
    for label, names in methods(runs).items():
        cells = []
        for risk in ("unlearn", "retain"):
            ratios, signs = [], []
            for run, name in names:
                predicted = run.curve(name, risk, "interval_predicted")
                real = run.curve(name, risk, "interval_change")
                moved = np.abs(predicted) > 0
                ratios += (real[moved] / predicted[moved]).tolist()
                signs += (np.sign(real[moved]) == np.sign(predicted[moved])).tolist()
            low, high = np.quantile(ratios, (0.1, 0.9))
            cells += [f"{statistics.median(ratios):.2g} [{low:.2g}, {high:.2g}]"]
            cells += [f"{np.mean(signs):.0%}"]
        rows.append([label, *cells])
    titles = ["method", "D_u: realised / predicted, median [10 %, 90 %]", "signs right"]
    return table([*titles, "D_r: realised / predicted", "signs right"], rows)


def _names(run: Facts) -> list[str]:
    return list(run.content["objectives"])
