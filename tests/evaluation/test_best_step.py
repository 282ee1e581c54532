"""Evaluation during unlearning: the rows of a step, and the best of the steps."""

import jax.numpy as jnp
import pytest

from jaxunlearn.core import files
from jaxunlearn.data.digests import of_json
from jaxunlearn.evaluation import best_step
from jaxunlearn.evaluation.suite import Evaluation, Suite
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import evaluation_table

SETTINGS = {"retain_log": "a.json"}


def rows_of(forget, retain, quality):
    """The rows of one step."""
    numbers = (
        ("memorization", *best_step.STRENGTH, "forget", forget),
        ("memorization", *best_step.STRENGTH, "retain", retain),
        ("tofu", *best_step.QUALITY, "forget", quality),
    )
    keys = ("suite", "metric", "definition", "set", "value")
    more = {"version": 1, "settings": of_json(SETTINGS)}
    return [dict(zip(keys, values, strict=True)) | more for values in numbers]


def by_suite(rows, settings=SETTINGS):
    of = lambda name: [row for row in rows if row["suite"] == name]
    return {n: {"settings": settings, "results": of(n)} for n in ("memorization", "tofu")}


def test_the_best_step_keeps_what_is_to_be_kept(tmp_path):
    folder = RunFolder(tmp_path)
    steps = {
        "ga": {10: (0.6, 0.95, 0.2), 20: (0.3, 0.96, 0.4), 30: (0.1, 0.80, 0.4)},
        "npo": {10: (0.6, 0.90, None), 20: (0.3, 0.85, None), 30: (0.1, 0.80, None)},
    }
    for name, of_model in steps.items():
        for at in (10, 20):
            tables.write_part(tmp_path, best_step.TABLE, name, at, rows_of(*of_model[at]))
        ends = dict.fromkeys(("forget_nll", "forget_es", "retain_nll", "retain_es"), 0.5)
        files.write_json(folder.result(name), ends | {"steps": 30, "of_steps": 30})
    tables.merge(tmp_path, list(steps))
    evaluated = {name: by_suite(rows_of(*of_model[30])) for name, of_model in steps.items()}
    summary, unlike = best_step.summarise(
        folder, {"base": by_suite(rows_of(1, 1, 0.1))} | evaluated
    )
    assert not unlike
    assert summary["ga"] == {
        "evaluated": [10, 20, 30],
        "last": 30,
        "least_forget_es": {"step": 20, "forget_es": 0.3, "retain_es": 0.96},
        "best_forget_quality": {"step": 20, "value": 0.4},  # the earlier of equals
    }
    assert summary["npo"]["least_forget_es"] is None is summary["npo"]["best_forget_quality"]
    assert evaluation_table.best_steps_table(summary).rows == [
        ("ga", "30", "0.300 (20)", "0.960", "0.400 (20)"),
        ("npo", "30", "none", "-", "-"),
    ]
    assert evaluation_table.best_steps_table(summary).captions[0] == (
        "The best of the steps 10, 20, 30, in brackets."
    )
    # The final model was measured again: with more text, then with another log to compare with.
    evaluated["npo"] = by_suite(rows_of(0.1, 0.8, None), SETTINGS | {"generated": {"forget": 4}})
    assert best_step.summarise(folder, {"base": by_suite(rows_of(1, 1, 0.1))} | evaluated) == (
        (summary, [])
    )
    evaluated["npo"] = by_suite(rows_of(0.1, 0.8, None), {"retain_log": "b.json"})
    again, unlike = best_step.summarise(folder, {"base": by_suite(rows_of(1, 1, 0.1))} | evaluated)
    assert list(again) == ["ga"] and unlike == ["npo"]
    # An objective that was added to the run later.
    summary["wga"] = summary["ga"] | {"evaluated": [15, 30]}
    assert evaluation_table.best_steps_table(summary).captions[0] == (
        "The best of the steps of ga, npo: 10, 20, 30; of wga: 15, 30, in brackets. The best of"
        " more steps looks better."
    )
    del summary["wga"]
    # An objective that was removed, to be computed again, keeps no other from being summarised.
    folder.result("npo").unlink()
    models = {"base": by_suite(rows_of(1, 1, 0.1))} | evaluated
    assert best_step.summarise(folder, models) == ({"ga": summary["ga"]}, [])


@pytest.mark.parametrize("retained_before", [None, 0.0])
def test_without_anything_to_keep_there_is_no_least_forget_es(retained_before):
    best = best_step.best_of({5: rows_of(0.5, 1.0, 0.2)}, retained_before)
    assert best["least_forget_es"] is None and best["best_forget_quality"]["step"] == 5


def test_of_equal_steps_the_earliest_is_the_best():
    steps = {20: rows_of(0.2, 1.0, 0.5), 10: rows_of(0.2, 1.0, 0.5), 5: rows_of(0.9, 1.0, 0.1)}
    best = best_step.best_of(steps, 1.0)
    assert best["least_forget_es"]["step"] == best["best_forget_quality"]["step"] == 10
    assert best["evaluated"] == [5, 10, 20]


def test_the_last_step_is_not_the_best_where_it_alone_was_compared():
    steps = {2: rows_of(0.5, 1.0, None), 4: rows_of(0.4, 1.0, 0.9)}
    assert best_step.best_of(steps, 1.0)["best_forget_quality"] is None


def suite_of(rows, calls):
    return Suite({}, lambda name, params: calls.append(name) or rows)


def test_a_step_is_measured_by_the_cheap_suites_alone(tmp_path, context_of):
    folder, calls = RunFolder(tmp_path), []
    rows = [{key: value for key, value in row.items() if key != "suite"} | {"parts": ["a"]}
            for row in rows_of(0.2, 0.9, 0.5)]  # fmt: skip
    suites = {name: suite_of(rows, calls) for name in ("tofu", "mia", "uwc")}
    best_step.evaluate(Evaluation(context_of(), suites), folder, "ga", 7, {"w": jnp.ones(2)})
    assert calls == ["ga-000007"]
    tables.merge(tmp_path, ["ga"])
    table = tables.read(tmp_path, best_step.TABLE)
    assert table["suite"] == ["tofu"] * 3 and table["step"] == [7] * 3
    assert table["value"] == [0.2, 0.9, 0.5]


def test_parameters_that_are_not_finite_have_no_rows(tmp_path, context_of):
    calls = []
    evaluation = Evaluation(context_of(), {"tofu": suite_of([], calls)})
    best_step.evaluate(evaluation, RunFolder(tmp_path), "ga", 7, {"w": jnp.array([1.0, jnp.nan])})
    assert not calls
    tables.merge(tmp_path, ["ga"])
    assert tables.read(tmp_path, best_step.TABLE)["step"] == []


def test_steps_without_extraction_strength_leave_no_best_one():
    """The last step, which a later evaluation measured, would be the best of itself."""
    only_quality = [row for row in rows_of(0.9, 1.0, 0.2) if row["metric"] == "forget_quality"]
    steps = {5: only_quality, 10: rows_of(0.2, 1.0, 0.1)}
    best = best_step.best_of(steps, 1.0)
    assert best["least_forget_es"] is None and best["best_forget_quality"]["step"] == 5
