"""Runs compared: what counts as a repeat, spreads, the ranking and its page."""

import dataclasses
import html
import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxunlearn import cli
from jaxunlearn.config import Config, Objective, schema
from jaxunlearn.reporting import compare, report
from jaxunlearn.reporting.compare import Member
from tests.reporting.test_report import write_run

CONFIG = Config(name="mine", data=schema.Data(source="tofu"), objectives={"npo": Objective()})


def member(seed=0, es=0.2, config=CONFIG, samples=(0.1, 0.3), **changes):
    """A run with one objective; its forget ES at equal retention is the mean of the samples."""
    models = {
        "base": {"forget_es": 1.0, "forget_nll": 0.1, "retain_es": 1.0, "retain_nll": 0.1},
        "npo": {"forget_es": es, "forget_nll": 2.0, "retain_es": 0.9, "retain_nll": 0.2},
    }
    row = {"metric": "uwc_extraction_strength", "value": float(np.mean(samples))}
    evaluation = {"npo": {"uwc": {"results": [row | {"by_sample": list(samples)}]}}}
    effects = {
        "objective": ["npo"] * 5,
        "risk": ["unlearn", "unlearn", "retain", "retain", "unlearn"],
        "layer": [*["total"] * 4, "block_0"],
        "step": [0, 5, 0, 5, 0],
        "value": [-1.0 - seed, -10.0, -0.5, float("nan"), -0.5 - 0.5 * seed],
    }
    config = dataclasses.replace(config, seed=seed, **changes)
    groups = {"all": ["block_0"]}
    return Member(Path(f"runs/{seed}"), config, models, evaluation, None, effects, groups, {})


def test_seeds_are_repeats_and_other_keys_are_not():
    groups = compare.grouped([member(2), member(0), member(1, name="other")])
    assert {label: [m.config.seed for m in found] for label, found in groups.items()} == {
        "mine": [0, 2],
        "other": [1],
    }
    longer = schema.Unlearn(epochs=9)
    groups = compare.grouped([member(0), member(0, unlearn=longer)])
    assert list(groups) == ["mine", "mine (2)"]
    assert compare.differences(groups).rows == [("unlearn.epochs", "5", "9")]


def test_objectives_may_differ_between_repeats():
    more = {"npo": Objective(), "ga": Objective()}
    assert len(compare.grouped([member(0), member(1, objectives=more)])) == 1


def test_other_settings_of_an_objective_are_another_configuration():
    """They were once joined as seeds, to a mean of two objectives."""
    other = {"npo": Objective(hyper={"beta": 1.0}, retain="gd"), "ga": Objective()}
    groups = compare.grouped([member(0), member(1, objectives=other), member(2), member(0)])
    assert {label: [m.config.seed for m in found] for label, found in groups.items()} == {
        "mine": [0, 2],
        "mine (2)": [1],
        "mine (3)": [0],  # the seed again, which is no repeat
    }
    assert set(compare.differences(groups).rows) == {
        ("objectives.npo.hyper.beta", "null", "1.0", "null"),
        ("objectives.npo.retain", "null", '"gd"', "null"),
        ("objectives.ga", "null", "true", "null"),
    }


def test_a_table_says_what_diverged():
    """Its numbers are those of a state before, in which nothing may be forgotten."""

    def stopped(seed):
        whole = member(seed)
        npo = whole.models["npo"] | {"steps": 2, "of_steps": 9}
        return whole._replace(models=whole.models | {"npo": npo})

    for members, label in (
        ([stopped(0)], "npo (stopped at 2)"),
        ([stopped(0), member(1)], "npo (1 stopped early)"),
    ):
        groups = compare.grouped(members)
        for table in (compare.models_table(groups), compare.ranking(groups)):
            assert label in [cell for row in table.rows for cell in row]


def test_a_table_has_means_and_deviations():
    groups = compare.grouped([member(0, es=0.2), member(1, es=0.4)])
    table = compare.models_table(groups)
    assert table.columns == (
        *("model", "seeds", "forget NLL", "forget ES", "retain NLL", "retain ES", "UWC ES"),
    )
    before, npo = table.rows
    assert before[0] == "before" and before[-1] == "-"
    assert npo[:2] == ("npo", "2") and npo[3] == "0.300 ± 0.141"


def test_harm_is_compared_with_removal_at_the_last_step():
    one, other = member(0), member(1)
    one.effects["value"][3], other.effects["value"][3] = -5.0, -1.0
    table = compare.models_table(compare.grouped([one, other]))
    place = table.columns.index("|e_r / e_u|")
    assert [row[place] for row in table.rows] == ["-", "0.300 ± 0.283"]
    for value in (None, float("nan")):
        one.effects["value"][1] = value
        assert compare.harm_ratio(one, "npo") is None
    assert compare.harm_ratio(one, "base") is None


def test_a_single_run_has_no_deviation():
    (_, npo) = compare.models_table(compare.grouped([member()])).rows
    assert npo[3] == "0.200"


def test_the_ranking_is_paired_by_sample():
    """Samples differ by far more than the objectives do, and that does not count."""
    samples = np.linspace(0, 1, 50)
    better, worse = member(samples=samples), member(samples=samples + 0.01, name="worse")
    table = compare.ranking(compare.grouped([worse, better]))
    assert [row[1] for row in table.rows] == ["mine: npo", "worse: npo"]
    assert table.rows[0][3] == "-" and table.rows[1][3] == "+0.010 [+0.010, +0.010]"
    low, high = (float(x) for x in table.rows[0][2].split("[")[1].strip("]").split(", "))
    assert low < 0.45 and high > 0.55


def test_seeds_are_joined_by_sample():
    seeds = [member(0, samples=(0.0, 1.0)), member(1, samples=(1.0, 0.0))]
    (row,) = compare.ranking(compare.grouped(seeds)).rows
    assert row[2] == "0.500 [0.500, 0.500]"


def test_other_samples_are_not_paired():
    """As many samples of another forget set, or embedded data of another seed."""
    other = member(name="other", data=schema.Data(source="tofu", forget="forget10"))
    table = compare.ranking(compare.grouped([member(), other]))
    assert [row[3] for row in table.rows] == ["-", "-"]
    embedded = [
        member(name=f"data {seed}", data=schema.Data(fictional=schema.Fictional(seed=seed)))
        for seed in (0, 1)
    ]
    assert [row[3] for row in compare.ranking(compare.grouped(embedded)).rows] == ["-", "-"]


def test_runs_without_samples_have_no_ranking():
    old = member()
    old.evaluation["npo"]["uwc"]["results"][0].pop("by_sample")
    assert compare.ranking(compare.grouped([old])).rows == []
    assert [title for title, _ in compare.compare([old], Path()).tables] == ["models"]


def test_the_page_has_a_point_a_seed_and_bands(tmp_path):
    page = pytest.importorskip("jaxunlearn.reporting.page.comparison", reason="needs the extra")
    compared = compare.compare([member(0), member(1), member(0, name="<i>other</i>")], Path())
    points, means, bands = page._points(compared), page._means(compared), page._bands(compared)
    assert len(points.rows) == 2 * 3 and len(means.rows) == 2 * 2
    at = {tuple(row[:4]): row[4:] for row in bands.rows}
    assert at["mine: npo", "unlearn", 0, "total"] == [-1.5, -2.0, -1.0, 2]
    assert at["mine: npo", "unlearn", 0, "all"] == [-0.75, -1.0, -0.5, 2]
    assert ("mine: npo", "retain", 5, "total") not in at  # not finite
    text = page.render(compared)
    assert html.escape("<i>other</i>") in text and "<i>other</i>" not in text


@pytest.mark.parametrize("broken", [None, math.nan, math.inf])
def test_a_seed_without_a_number_is_not_counted_in_silence(broken):
    """Means of the seeds that went well once stood under the number of all of them."""
    runs = [member(0), member(1), member(2)]
    runs[1].models["npo"]["forget_nll"] = broken
    runs[1].evaluation.clear()
    groups = compare.grouped(runs)
    (_, npo) = compare.models_table(groups).rows
    assert npo[1:4] == ("3", "2.000 ± 0.000 (2 of 3)", "0.200 ± 0.000")
    assert npo[-1] == "0.200 ± 0.000 (2 of 3)"
    assert compare.ranking(groups).rows[0][1] == "npo (2 of 3)"
    for table in (compare.models_table(groups), compare.ranking(groups)):
        assert '"(2 of 3)": the other seeds have no such number' in table.captions[0]
    assert "other seeds" not in compare.models_table(compare.grouped([member()])).captions[0]


def test_no_run_takes_the_label_of_another():
    names = ["a (2)", "a", "a", "b (x)", "b"]
    runs = [member(0, name=name, model=str(i)) for i, name in enumerate(names)]
    assert list(compare.grouped(runs)) == ["a (2)", "a", "a (3)", "b (x)", "b"]


def relearned_after(attack="5", steps=20, es=0.5):
    tries = {"samples": 20, "final_forget_es": es}
    settings = {"steps": steps, "lr": 1e-3, "batch_size": 2}
    return {"models": {"npo": {"attacks": {attack: tries}}}, "settings": settings}


def test_the_table_says_what_was_relearned_from():
    for attack, words in (("5", "5 forget samples"), ("benign", "data to retain")):
        attacked = member()._replace(attacks=relearned_after(attack))
        table = compare.models_table(compare.grouped([attacked]))
        assert table.rows[1][-1] == "0.500"
        words = f"forget ES after 20 steps of fine-tuning on {words} at 0.001."
        assert words in table.captions[0]


@pytest.mark.parametrize("other", [{"steps": 2}, {"attack": "all"}])
def test_only_equal_attacks_are_averaged(other):
    runs = [member(0)._replace(attacks=relearned_after(es=0.9)),
            member(1)._replace(attacks=relearned_after(es=0.1, **other))]  # fmt: skip
    assert compare.models_table(compare.grouped(runs)).rows[1][-1] == "0.900 (1 of 2)"
    # Of two configurations the caption names both attacks.
    apart = [runs[0], runs[1]._replace(config=dataclasses.replace(runs[1].config, name="b"))]
    table = compare.models_table(compare.grouped(apart))
    assert [row[-1] for row in table.rows if "npo" in row[0]] == ["0.900", "0.100"]
    assert " or " in table.captions[0].partition("ES relearned")[2]


def test_repeats_have_read_the_same_data_wherever_they_were():
    moved = {"data": dataclasses.replace(CONFIG.data, source="elsewhere")}
    same, others = {"data.forget": "a"}, {"data.forget": "b"}
    groups = lambda *runs: len(compare.grouped(runs))
    one = member(0)._replace(inputs=same)
    assert groups(one, member(1)._replace(inputs=same)) == 1
    assert groups(one, member(1, **moved)._replace(inputs=same)) == 1
    assert groups(one, member(1)._replace(inputs=others)) == 2
    assert groups(one, member(1, **moved)) == 2
    # Equally many samples that are others: no difference is paired.
    ranked = compare.ranking(compare.grouped([one, member(0, name="b")._replace(inputs=others)]))
    assert [row[-1] for row in ranked.rows] == ["-", "-"]
    ranked = compare.ranking(compare.grouped([one, member(0, name="b")._replace(inputs=same)]))
    assert ranked.rows[1][-1].startswith("+0.000")


def test_a_difference_is_taken_over_the_seeds_that_both_have():
    one = [member(0, samples=(0.1, 0.3)), member(1, samples=(0.0, 0.0))]
    other = [member(0, name="b", samples=(0.3, 0.5))]
    ranked = compare.ranking(compare.grouped([*one, *other]))
    assert ranked.rows[1][-1].startswith("+0.200 [+0.200, +0.200]")
    lone = compare.ranking(compare.grouped([one[0], member(1, name="b", samples=(0.3, 0.5))]))
    assert lone.rows[1][-1] == "-"


def test_marks_are_means_over_seeds():
    page = pytest.importorskip("jaxunlearn.reporting.page.comparison", reason="needs the extra")
    compared = compare.compare([member(0, es=0.2), member(1, es=0.4)], Path())
    at = {row[0]: row[1:] for row in page._means(compared).rows}
    assert at["npo"][:2] == ["unlearned", pytest.approx(0.3)]
    assert at["before"][:2] == ["before", 1.0]
    diverged = member(2)
    diverged.models["npo"]["forget_nll"] = math.nan
    compared = compare.compare([member(0), diverged], Path())
    assert {row[0]: row[4] for row in page._means(compared).rows}["npo"] is None


def test_the_page_links_to_those_of_the_runs(tmp_path):
    page = pytest.importorskip("jaxunlearn.reporting.page.comparison", reason="needs the extra")
    runs = [member(0)._replace(folder=tmp_path / "a b"), member(1)._replace(folder=tmp_path / "c")]
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "report.html").touch()
    compared = compare.compare(runs, tmp_path / "both")
    assert [compared.link(run) for run in runs] == ["../a%20b/report.html", ""]
    assert page.render(compared).count('<a href="../a%20b/report.html">') == 1


def test_the_command(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in "ab"]
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "both")]) == 0
    assert "0.963" in capsys.readouterr().out
    assert "| model | seeds |" in (tmp_path / "both" / "comparison.md").read_text()
    assert cli.main(["report", *map(str, runs)]) == 0
    assert (tmp_path / "comparison" / "comparison.md").exists()
    assert cli.main(["report", str(runs[0]), str(tmp_path / "none")]) == 2
    assert "no finished run here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name the folder of a run"), (["RUN", "--out", "x"], "--out: is for a comparison")],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, arguments, message):
    run = write_run(tmp_path / "run")
    assert cli.main(["report", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_printed_by_default(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in "ab"]
    report.compare_runs(runs, tmp_path)
    assert capsys.readouterr().out == ""
    report.compare_runs(runs, tmp_path, Console(file=io.StringIO()))
