"""The study's rules on curves made for them, and its facts from a run."""

import copy
import shutil

import jax
import numpy as np
import pytest

import jaxunlearn
from benchmarks.study import __main__ as study
from benchmarks.study import beyond, collect, estimates, estimators, figures, page, rules, units
from benchmarks.study.claims import CLAIMS
from benchmarks.study.facts import SIX, Facts, Missing, load
from jaxunlearn.config import Config, schema

STEPS = [0, 5, 10, 15]
SHARES = {"embed": 0.02, "shallow": 0.5, "middle": 0.3, "deep": 0.1, "lm": 0.08}


def effect(values, scale=1.0):
    """The columns of one risk."""
    values = np.array(values, float) * scale
    return {
        **{column: values.tolist() for column in collect.CURVES},
        "cosine": (values / 400).tolist(),
        "update_effect": (-values / 1000).tolist(),
        "groups": {group: (share * values).tolist() for group, share in SHARES.items()},
    }


def entry(loss, removal, harm, term=None, layer=None, scale=5.0, **hyper):
    """An objective with these curves of e_u and e_r."""
    return {
        "loss": loss,
        "hyper": hyper,
        "retain_term": term,
        "layer": layer,
        "scale": scale,
        "lr": 1e-5,
        "steps": STEPS,
        "rates": [0.0, 1e-5, 1e-5, 1e-5],
        "unlearn": effect(removal),
        "retain": effect(harm),
        "inverse_confidence": [0.0, 0.5, 2.0, 2.1],
        "samples": {},
        "profiles": {},
        "tokens": {},
    }


def model(forget, retain, **more):
    numbers = {"forget_nll": forget, "retain_nll": retain, "forget_es": 0.2, "retain_es": 0.8}
    result = {**numbers, **more, "steps": 15, "of_steps": 15}
    attacks = {
        "5": {"final_forget_es": 0.6, "final_unseen_es": 0.5},
        "int8": {"final_forget_es": 0.2, "final_unseen_es": 0.2},
    }
    return {"result": result, "evaluation": {}, "relearn": attacks, "distance": forget}


def as_in_the_paper():
    """Curves of which every claim on the six methods holds that can be judged."""
    objectives = {
        "ga": entry("ga", [-1, -2, -90, -175], [-1, -2, -90, -353]),
        "wga": entry("wga", [-1, -50, -10, -0.1], [-1, -8, -1, 0.0], alpha=1.0),
        "npo": entry("npo", [-1, -40, -0.1, 0.0], [-1, -50, -0.2, 0.0], beta=0.1),
        "npo_1": entry("npo", [-20, -1, 0, 0], [-10, 0, 0, 0], beta=1.0),
        "npo_2": entry("npo", [-9, -1, 0, 0], [-5, 0, 0, 0], beta=2.0),
        "tnpo": entry("tnpo", [-1, -30, -9, -0.1], [-1, -2, -1, 0.0], beta=1.0),
        "po": entry("po", [-9, -1, 5, 16], [-11, -1, 2, 11]),
        "rmu": entry("rmu", [-1, -30, -9, -8], [-1, -20, -9, -8], layer=2),
    }
    ends = {
        "ga": (9, 6),
        "wga": (3, 1.5),
        "npo": (5, 1.2),
        "npo_1": (4, 1.1),
        "npo_2": (3, 1.1),
        "tnpo": (6, 1.05),
        "po": (2, 2),
        "rmu": (4, 5),
    }
    models = {name: model(forget, 0.1 + retain) for name, (forget, retain) in ends.items()}
    return {
        "about": {"date": "2026-01-01", "cores": 2, "processor": "-", "versions": {"jax": "-"}},
        "study": "made",
        "seed": 0,
        "minutes": 1.0,
        "samples": {"forget": 4, "retain": 4},
        "labels": {"forget": 20.0, "retain": 25.0},
        "models": {"base": model(0.1, 0.1, forget_es=1.0)} | models,
        "objectives": objectives,
    }


def changed(objective, **curves):
    """The facts with the curves of one objective replaced."""
    content = as_in_the_paper()
    for risk, values in curves.items():
        content["objectives"][objective][risk] = effect(values)
    return Facts(content)


def verdict(key, run):
    (claim,) = (claim for claim in CLAIMS if claim.key == key)
    return claim.verdict(run)[0]


def test_claims_have_their_own_keys():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)


KEPT = "G1 G2 G3 G4 G5 L1 L2 W1 W2 T1 T2 N1 N2 N3 P1 P2 S1 S2 S5 S6 S12 S13 S14 S15 S17"


@pytest.mark.parametrize("key", KEPT.split())
def test_the_papers_curves_bear_its_claims_out(key):
    assert verdict(key, Facts(as_in_the_paper())) == rules.HOLDS


@pytest.mark.parametrize("key", ["N4", "N5", "R1", "R2", "K1", "S7"])
def test_what_was_not_run_cannot_be_judged(key):
    assert verdict(key, Facts(as_in_the_paper())) == rules.UNKNOWN


@pytest.mark.parametrize(
    ("key", "objective", "curves", "expected"),
    [
        ("G1", "ga", {"retain": [-1, -2, -90, -100]}, rules.FAILS),
        ("G2", "rmu", {"unlearn": [-1, -999, -9, -8]}, rules.PARTLY),
        ("G2", "npo", {"unlearn": [-1, -999, -9, -8]}, rules.FAILS),
        ("G5", "ga", {"unlearn": [-100, -90, -90, -175]}, rules.FAILS),
        ("W1", "wga", {"retain": [-1, -40, -1, 0.0]}, rules.PARTLY),
        ("W1", "wga", {"retain": [-1, -60, -1, 0.0]}, rules.FAILS),
        ("W2", "wga", {"unlearn": [-1, -50, -10, -9]}, rules.FAILS),
        ("N1", "npo", {"unlearn": [-1, -40, -9, -9]}, rules.FAILS),
        ("N1", "npo", {"unlearn": [-1, -40, -9, -0.1]}, rules.PARTLY),
        ("N2", "npo_2", {"unlearn": [-9, -99, 0, 0]}, rules.FAILS),
        ("N3", "npo_2", {"retain": [-10, 0, 0, 0]}, rules.PARTLY),
        ("P1", "po", {"unlearn": [-9, -5, -1, -1]}, rules.FAILS),
        ("P1", "po", {"unlearn": [9, 5, 1, 1]}, rules.FAILS),
        ("P1", "po", {"unlearn": [9, -5, -1, -1]}, rules.FAILS),
        ("P1", "po", {"unlearn": [9, -5, -1, 3]}, rules.HOLDS),
        ("N3", "npo", {"retain": [-1, -20, -0.2, 0]}, rules.FAILS),
        ("S15", "po", {"unlearn": [-9, -5, -1, -1]}, rules.FAILS),
        ("S15", "po", {"unlearn": [-9, -5, -1, 1]}, rules.PARTLY),
        ("S15", "po", {"unlearn": [9, 5, 1, 1]}, rules.FAILS),
    ],
)
def test_other_curves_do_not(key, objective, curves, expected):
    assert verdict(key, changed(objective, **curves)) == expected


def test_confidence_without_growth_does_not_blow_up():
    run = Facts(as_in_the_paper())
    run.content["objectives"]["ga"]["inverse_confidence"] = [0.0, 0.0, 0.1, 0.05]
    assert verdict("G4", run) == rules.PARTLY  # it still goes with the effect


def test_rmu_is_judged_over_layers_and_scales():
    content = as_in_the_paper()
    del content["objectives"]["rmu"]
    for layer in (1, 2, 3):
        for scale in (2.0, 5.0, 10.0):
            name, size = f"rmu_{layer}_{scale:g}", -layer * scale
            rmu = entry("rmu", [size, size, size, 1 if layer == 3 else -1], [1] * 4, layer=layer)
            content["objectives"][name] = rmu | {"scale": scale}
            content["models"][name] = model(4, 5)
    run = Facts(content)
    assert run.one("RMU") == "rmu_2_5"
    assert verdict("R1", run) == verdict("R2", run) == rules.HOLDS
    # A run that was stopped has not every c at every depth.
    stopped = copy.deepcopy(content)
    del stopped["objectives"]["rmu_2_2"]
    assert verdict("R1", Facts(stopped)) == verdict("R2", Facts(stopped)) == rules.UNKNOWN
    # One depth at which c hardly matters, though it does at the others.
    for scale in ("2", "5", "10"):
        content["objectives"][f"rmu_1_{scale}"]["unlearn"] = effect([-2, -2, -2, -2])
    assert verdict("R1", run) == rules.PARTLY


def test_retain_terms_are_ordered_by_what_they_retain():
    content = as_in_the_paper()
    for loss, hyper in (("ga", {}), ("npo", {"beta": 0.1}), ("tnpo", {"beta": 1.0})):
        for term, harm in (("kl", 1), ("gd", 2), ("rr", 3)):
            name = f"{loss}_{term}"
            content["objectives"][name] = entry(loss, [-1] * 4, [-1] * 4, term, **hyper)
            content["models"][name] = model(4, harm)
    assert verdict("K1", Facts(content)) == rules.HOLDS
    content["models"]["ga_kl"] = model(4, 2.5)
    assert verdict("K1", Facts(content)) == rules.PARTLY


def test_weights_in_the_middle_are_judged_where_there_are_some():
    content = as_in_the_paper()
    bins = [
        {"from": low, "samples": 5, "unlearn": -1.0, "retain": harm}
        for low, harm in ((0.2, -1.0), (0.4, -5.0), (0.6, -2.0))
    ]
    facts = {"weight_retain_size": -0.5, "bins": bins}
    content["objectives"]["npo"]["samples"] = {"5": facts}
    assert verdict("N4", Facts(content)) == verdict("N5", Facts(content)) == rules.HOLDS
    bins[0]["retain"] = -9.0
    assert verdict("N5", Facts(content)) == rules.FAILS
    # The mean of one sample decides nothing, and without it no bin is below the middle.
    bins[0]["samples"] = 1
    assert verdict("N5", Facts(content)) == rules.UNKNOWN
    bins.append({"from": 0.0, "samples": 5, "unlearn": -1.0, "retain": -1.0})
    assert verdict("N5", Facts(content)) == rules.HOLDS
    bins[2]["samples"] = 1  # nor above it
    assert verdict("N5", Facts(content)) == rules.UNKNOWN


def test_layers_are_judged_on_the_methods_that_ran_and_unjudged_seeds_are_counted():
    """A seed without TNPO may contradict the one that has it."""
    whole, part = as_in_the_paper(), as_in_the_paper()
    del part["objectives"]["tnpo"], part["models"]["tnpo"]
    groups = part["objectives"]["npo"]["unlearn"]["groups"]
    groups["middle"], groups["shallow"] = groups["shallow"], groups["middle"]
    assert verdict("L1", Facts(part)) == rules.PARTLY
    lines = page.verdicts(load([whole, part | {"seed": 1}]), "paper").splitlines()
    (layers,), (tnpo,) = ([ln for ln in lines if ln.startswith(f"| {k} |")] for k in ("L1", "T1"))
    assert "**holds** (1 of 2), **partly** (1 of 2): GA shallow" in layers
    assert "**holds** (1 of 2), 1 cannot be judged: e_u" in tnpo


def test_every_claim_stands_once_at_a_glance_by_what_its_seeds_say():
    def counted(*contents):
        line = page.glance(load(contents)).splitlines()[-1]
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        keys = [cell.partition(": ")[2].split(", ") if ": " in cell else [] for cell in cells]
        assert [int(cell.partition(":")[0]) for cell in cells] == list(map(len, keys))
        return keys

    one, other = as_in_the_paper(), as_in_the_paper() | {"seed": 1}
    *known, differ, unknown = counted(one, other)
    expected = {claim.key: claim.verdict(Facts(one))[0] for claim in CLAIMS}
    for verdict, keys in zip((*rules.VERDICTS, rules.UNKNOWN), (*known, unknown), strict=True):
        assert keys == [key for key, v in expected.items() if v == verdict]
    assert not differ
    # One seed without GA leaves its claims to the other; one that contradicts makes them differ.
    del other["objectives"]["ga"], other["models"]["ga"]
    assert "G1" in counted(one, other)[0]
    other = as_in_the_paper() | {"seed": 1}
    other["objectives"]["ga"] = entry("ga", [-1, -2, -90, -353], [-1, -2, -90, -175])
    assert "G1" in counted(one, other)[3]


def test_updates_are_compared_with_both_rises():
    content = as_in_the_paper()
    assert verdict("I1", Facts(content)) == rules.PARTLY  # the distance is the forget NLL here
    for place, name in enumerate(content["objectives"]):
        content["models"][name] = model(place, 2 * place) | {"distance": place + 1.0}
    assert verdict("I1", Facts(content)) == rules.HOLDS


def test_peaks_rest_and_relearning():
    run = Facts(as_in_the_paper())
    assert run.peak("ga") == (-175.0, 15) and run.settled("ga") is None
    assert run.settled("npo") == 10
    assert run.shares("ga")["shallow"] == pytest.approx(0.5)
    assert run.relearned("ga") == pytest.approx((0.6 - 0.2) / (1.0 - 0.2))
    with pytest.raises(Missing, match="wga, alpha 3"):
        run.find("wga", alpha=3.0)


def test_what_attacks_bring_back_is_shown_of_the_models_that_were_attacked():
    whole, part = as_in_the_paper(), as_in_the_paper()
    for content in (whole, part):
        for place, name in enumerate(("wga", "tnpo", "po", "rmu")):
            content["models"][name]["relearn"]["5"]["final_forget_es"] = 0.7 + place / 100
    part["models"]["ga"]["relearn"] = {}
    part["models"]["npo"]["relearn"]["5"] |= {"final_forget_es": 0.9, "final_unseen_es": 0.7}
    text = beyond.tables(load([whole | {"seed": 0}, part | {"seed": 1}]))
    assert "| ga | 1 | 0.20 | 0.80 | 0.60 | 0.50 |" in text
    assert "| npo | 2 | 0.20 | 0.80 | 0.75 [0.60, 0.90] | 0.60 [0.50, 0.70] |" in text
    assert "what is known before, over" in text
    for content in (whole, part):
        for found in content["models"].values():
            found["relearn"] = {}
    text = beyond.tables(load([whole | {"seed": 0}, part | {"seed": 1}]))
    assert "No attack was run." in text and "after the attack" not in text


def test_what_is_forgotten_at_equal_retention_is_shown_where_it_was_measured():
    contents = [as_in_the_paper() | {"seed": seed} for seed in range(3)]
    for content in contents:
        for found in content["models"].values():
            found["relearn"] = {}
    assert "The suite `uwc` was not measured." in beyond.tables(load(contents))
    for seed, content in enumerate(contents[:2]):
        numbers = dict.fromkeys(beyond.UWC, 0.5 + seed / 10)
        content["models"]["npo"]["evaluation"] = numbers | {"uwc.uwc_alpha.retain": 0.25}
    text = beyond.tables(load(contents))
    assert "| npo | 2 | 0.25 | 0.55 [0.50, 0.60] | 0.55 [0.50, 0.60] |" in text
    assert "| ga | 3 |" not in text.split("### What is forgotten")[1].split("### Do effects")[0]


def test_units_keep_what_survives_and_drop_the_rest():
    run = Facts(as_in_the_paper())
    assert "GA > WGA" in units.survivors(run)
    run.content["objectives"]["ga"]["unlearn"]["cosine"] = [-0.01] * 4
    assert "GA > WGA" not in units.survivors(run)


def test_a_method_that_was_not_run_is_left_out_of_the_tables(tmp_path):
    content = as_in_the_paper() | {"where": starts_on("NVIDIA H200")}
    for name in ("po", "rmu"):
        del content["objectives"][name], content["models"][name]
    for found in content["objectives"].values():
        found["samples"] = found["tokens"] = found["profiles"] = {}
    for found in content["models"].values():
        found["relearn"] = {}
    studies = load([content])
    assert set(studies["made"][0].ran()) == {"GA", "WGA", "NPO", "TNPO"}
    for make in (page.headline, units.tables, beyond.tables):
        assert "TNPO" in make(studies) and "RMU" not in make(studies)
    assert "2026-02-02, NVIDIA H200, jax 0.11.2" in page.runs(studies)
    assert [verdict(key, studies["made"][0]) for key in ("R1", "R2", "G2")] == [rules.UNKNOWN] * 3
    assert "no run of rmu" in page.verdicts(studies, "paper").split("| R1 |")[1].splitlines()[0]
    assert verdict("S5", studies["made"][0]) == rules.HOLDS  # GA and WGA alone are compared
    figures.draw(studies, [], tmp_path)
    assert (tmp_path / "curves_made.png").stat().st_size > 10_000


def starts_on(device):
    return {"date": "2026-02-02", "device": device, "versions": {"jax": "0.11.2"}}


def test_an_objective_with_its_own_rate_stands_for_no_method():
    content = as_in_the_paper()
    for rate in ("slow", "slower"):
        content["objectives"][f"ga_{rate}"] = entry("ga", [-1] * 4, [-1] * 4) | {"lr": 1e-9}
    assert Facts(content).all_with("ga") == ["ga"] and Facts(content).one("GA") == "ga"


def test_a_part_of_the_page_is_replaced_and_the_rest_stays():
    text = "before\n<!-- runs -->\nold | text\n<!-- end of runs -->\nafter"
    new = page.replaced(text, "runs", r"new \1")
    assert new == "before\n<!-- runs -->\n\nnew \\1\n\n<!-- end of runs -->\nafter"
    with pytest.raises(ValueError, match="<!-- units -->"):
        page.replaced(text, "units", "")


def test_the_running_mean_is_compared_with_the_exact_effect():
    state = {"method": "GA", "place": 0.5, "exact": [-10.0, -5.0], "bfloat16": [-11.0, -5.0]}
    estimates_ = [[-20.0, 4.0], [-40.0, -50.0]]
    content = {
        "about": {"date": "2026-01-01"},
        "study": "made",
        "repeats": 2,
        "states": [state | {"estimates": estimates_}],
    }
    row = estimates.table([content]).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("GA, 0.5", "-10", "-5", "+10.0%", "+0.0%"),
        *("+200%", "+360%", "141%", "764%", "50%", "50%"),
    ]
    figures.estimators(content)


@pytest.mark.slow
def test_a_run_becomes_facts_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *a, real=jax.devices: real(*a)[:1])
    config = Config(
        name="tiny",
        new_model=schema.NewModel(16, 24, 3, 2, 1, 256, vocab_size=300),
        data=schema.Data(fictional=schema.Fictional(4, 3, 0.5)),
        finetune=schema.FineTune(epochs=1, batch_size=4, lr=1e-2),
        unlearn=schema.Unlearn(epochs=3, batch_size=3, lr=1e-3),
        measure=schema.Measure(
            every=2, pg_steps=(2, 4), pg_by=("sample", "layer"), token_steps=(2, 4)
        ),
        evaluate=schema.Evaluate(suites=("memorization",)),
        relearn=schema.Relearn(samples=(2,), steps=2),
    )
    run = jaxunlearn.run(config, tmp_path / "run", report=False)
    content = collect.collect(run, ["run", "tiny"])
    studies = load([content, {**content, "seed": 1}])
    (facts, _) = studies["tiny"]
    # What a stopped run has finished is the same.
    stopped = tmp_path / "stopped"
    left = shutil.ignore_patterns("*.parquet", "results.json", "checkpoints")
    shutil.copytree(run, stopped, ignore=left)
    shutil.copytree(run / "parts", stopped / "parts", dirs_exist_ok=True)
    (stopped / "objectives" / "rmu" / "result.json").unlink()
    collect.merge_finished(stopped)
    kept = collect.collect(stopped, ["keep", "tiny"])
    assert set(content["objectives"]) - set(kept["objectives"]) == {"rmu"}
    assert kept["objectives"]["npo"] == content["objectives"]["npo"]
    assert kept["models"]["base"]["result"] == content["models"]["base"]["result"]
    assert kept["models"]["npo"]["distance"] is None
    # Results of an earlier start do not hide what was finished since.
    shutil.copyfile(run / "objectives/rmu/result.json", stopped / "objectives/rmu/result.json")
    collect.merge_finished(stopped)
    assert set(collect.collect(stopped, [])["objectives"]) == set(content["objectives"])
    assert set(facts.six().values()) == {label.lower() for label in SIX}
    assert len(content["base_sha256"]["model.safetensors"]) == 64
    assert content["labels"]["forget"] > 1 and content["models"]["ga"]["distance"] > 0
    ga = content["objectives"]["ga"]
    total = np.sum(list(ga["unlearn"]["groups"].values()), axis=0)
    np.testing.assert_allclose(total, ga["unlearn"]["value"], rtol=1e-4)
    npo = content["objectives"]["npo"]
    assert sum(b["samples"] for b in npo["samples"]["4"]["bins"]) == content["samples"]["forget"]
    assert sum(npo["profiles"]["2"]["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert "weight_removal" in npo["tokens"]["4"]
    judged = [claim.verdict(facts)[0] for claim in CLAIMS]
    assert judged.count(rules.UNKNOWN) < len(CLAIMS) / 2
    for make in (page.runs, page.headline, units.tables, beyond.tables):
        assert "tiny" in make(studies)
    figures.draw(studies, [], tmp_path)
    # At theta_0 ascent removes by its own gradient: e_u = - |grad R|^2, which a mean of few samples
    # can only make more negative.
    compared = estimators.compare(run, ["tiny"], (0.0,), 3)
    ascent = compared["states"][0]
    assert ascent["method"] == "GA" and ascent["exact"][0] < 0
    np.testing.assert_allclose(ascent["bfloat16"], ascent["exact"], rtol=0.1)
    assert np.mean([e_u for e_u, _ in ascent["estimates"]]) < ascent["exact"][0]
    assert "GA, 0.0" in estimates.table([compared])
    assert (tmp_path / "curves_tiny.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["keep", "estimators"])
def test_a_run_that_is_not_there_is_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        study.main([command, "nothing"])
    assert ended.value.code == 2
    assert "runs/study/nothing-seed0: no run here" in capsys.readouterr().err


def test_numbers_are_rounded_and_plain():
    rounded = collect._rounded({"a": [np.float64(1 / 3), np.int64(3)], "b": None})
    assert rounded == {"a": [0.333333, 3], "b": None} and type(rounded["a"][1]) is int
