"""A run that ends with its evaluation: on the way, at the end, after a crash, and shown again."""

import importlib.util
import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import replace, run

from jaxunlearn import cli
from jaxunlearn.config import Objective
from jaxunlearn.evaluate import tofu, tofu_log
from jaxunlearn.run import assess_steps, assess_table, closing, models, recipe, step, tables
from jaxunlearn.run.prepare import prepare

pytestmark = pytest.mark.slow

CONFIG = replace(
    finetune={"retrained": True},
    objectives={"ga": Objective()},
    measure={"pg_steps": (), "token_steps": ()},
    evaluate={"suites": ("tofu", "memorization", "uwc"), "generate": 0, "every": 2},
    relearn={"samples": (1,), "steps": 2},
)
ONE = jax.devices()[:1]
STAGES = ("base", "retrained")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run, and what it said."""
    out, said = tmp_path_factory.mktemp("runs") / "tiny", io.StringIO()
    recipe.run(CONFIG, out, Console(file=said, width=80), ONE)
    return out, said.getvalue()


@pytest.fixture(scope="module")
def finished(ended):
    return ended[0]


def forbidden(*args, **kwargs):
    raise AssertionError("computed again")


def rows_at(out, at):
    table = tables.read(out, assess_steps.TABLE)
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return [row for row in rows if row["step"] == at]


def value(rows, metric, over, definition=None):
    (found,) = [
        row["value"]
        for row in rows
        if (row["metric"], row["set"]) == (metric, over) and definition in (None, row["definition"])
    ]
    return found


def strength(rows, over):
    return value(rows, "extraction_strength", over, "extraction_strength.suffix")


def test_a_run_ends_with_one_table(ended):
    out, said = ended
    last = said[said.rindex("evaluation") :]
    assert max(map(len, said.splitlines())) <= 80 and "…" not in last
    for word in ("quality", "utility", "forget", "retain", "UWC", "relearn", "(1)"):
        assert word in last, last
    for model in ("before", "retrained", "ga"):
        assert f"\n {model} " in last
    written = (out / "summary.md").read_text()
    assert "| model | forget quality | partial utility | forget ES | retain ES |" in written
    assert (out / "figures" / "relearn.png").exists()
    assert not list(out.rglob("*.tmp"))


def test_the_retrained_twin_never_sees_the_forget_set(finished):
    """It trains as many epochs as the base, on the rest."""
    prepared = prepare(CONFIG, ONE)
    texts = lambda rows: {tuple(row.tokens.tolist()) for row in rows}
    assert not texts(prepared.retrain) & texts(prepared.forget)
    assert texts(prepared.retrain) | texts(prepared.forget) == texts(prepared.finetune)
    models = json.loads((finished / "evaluation.json").read_text())["models"]
    assert list(models) == ["before", "retrained", "ga"]
    assert models["retrained"]["forget_nll"] != models["before"]["forget_nll"]
    assert (finished / "retrained" / "model.safetensors").exists()
    log = tables.records(finished / "metrics.jsonl")
    last = {name: max(r["step"] for r in log if r["objective"] == name) for name in STAGES}
    assert last == {"base": 6, "retrained": 4}  # 12 and 9 rows in batches of 4: two epochs each


def test_the_suites_measure_on_the_way_what_the_run_measures(finished):
    """The run's own extraction strengths, packed otherwise; and the forget quality of the logs."""
    table = tables.read(finished, "samples")
    columns = [np.array(table[name]) for name in ("step", "split", "extraction_strength")]
    twin = tofu_log.read_log(finished / "tofu_logs" / "retrained.json")
    for at in (2, 4):
        rows = rows_at(finished, at)
        for over in ("forget", "retain"):
            own = columns[2][(columns[0] == at) & (columns[1] == over)].mean()
            assert strength(rows, over) == pytest.approx(own, abs=1e-6)
        log = tofu_log.read_log(finished / "tofu_logs" / f"ga-{at:06d}.json")
        expected = value(tofu.table(log, twin), "forget_quality", "forget")
        assert value(rows, "forget_quality", "forget") == pytest.approx(expected)
    assert rows_at(finished, 0) == rows_at(finished, 6) == []  # before's, and the result


def test_the_last_and_the_best_step_are_named(finished):
    record = json.loads((finished / assess_table.FILE).read_text())
    ends = {n: record["models"][n]["memorization"]["results"] for n in ("before", "ga")}
    by_step = {2: rows_at(finished, 2), 4: rows_at(finished, 4), 6: ends["ga"]}
    found = record["steps"]["ga"]
    assert found["evaluated"] == [2, 4, 6] and found["last"] == 6
    least = 0.95 * strength(ends["before"], "retain")
    kept = {t: strength(r, "forget") for t, r in by_step.items() if strength(r, "retain") >= least}
    named = found["least_forget_es"]
    assert (named is None) == (not kept)
    if kept:
        assert named["forget_es"] == kept[named["step"]] == min(kept.values())


def test_what_is_there_is_not_computed_again(finished, monkeypatch):
    names = (assess_table.FILE, "relearn.json", "evaluation.json", "evaluation_steps.parquet")
    before = [(finished / name).read_bytes() for name in names]
    monkeypatch.setattr(step, "train_step", forbidden)
    monkeypatch.setattr(models, "stage_params", forbidden)
    run(CONFIG, finished)
    assert [(finished / name).read_bytes() for name in names] == before


def test_the_commands_take_what_the_configuration_says(finished, monkeypatch, capsys):
    """Nothing is left to do, and both tables are shown; a report draws all anew."""
    monkeypatch.setattr(jax, "devices", lambda *a, real=jax.devices: real(*a)[:1])
    monkeypatch.setattr(models, "stage_params", forbidden)
    before = (finished / assess_table.FILE).read_bytes()
    assert cli.main(["evaluate", str(finished)]) == 0
    assert "partial" in capsys.readouterr().out
    assert (finished / assess_table.FILE).read_bytes() == before
    assert cli.main(["relearn", str(finished), "--mesh", "1", "1", "1"]) == 0
    assert "1 shown" in capsys.readouterr().out
    shutil.rmtree(finished / "figures")
    assert cli.main(["report", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "peak e_u" in said and "UWC" in said
    assert (finished / "figures" / "relearn.png").exists()


def test_a_crash_on_the_way_changes_nothing(finished, tmp_path, monkeypatch):
    """After the evaluation of step 4 and its checkpoint: it is measured again, and stands once."""
    real, calls = step.train_step, []

    def crashing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6 + 4 + 5 + 1:  # fine-tuning, its twin, and five steps of ga
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    out = tmp_path / "run"
    monkeypatch.setattr(step, "train_step", crashing)
    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, out)
    assert (out / "parts" / assess_steps.TABLE / "ga-000004.parquet").exists()
    run(CONFIG, out)
    for name in ("evaluation_steps.parquet", assess_table.FILE, "relearn.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


REFUSED = {
    "negative steps": ({"evaluate": {"every": -1}}, "evaluate.every: -1 must not be negative"),
    "nothing to measure": (
        {"evaluate": {"suites": ("uwc",), "every": 2}},
        "evaluate.every: needs one of tofu, memorization in evaluate.suites",
    ),
    "negative count": (
        {"evaluate": {"suites": ("tofu",), "generate": -2}},
        r"evaluate.generate \(--generate\): -2 must not be negative",
    ),
    "more than there are": (
        {"relearn": {"samples": (9,)}},
        r"relearn.samples \(--samples\): 9 is neither 'all' nor in 1..3",
    ),
    "no log": (
        {"evaluate": {"suites": ("tofu",), "generate": 0, "retain_log": "nowhere.json"}},
        "nowhere.json",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_stop_the_run_at_its_end_is_found_before(tmp_path, case):
    sections, told = REFUSED[case]
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        recipe.begin(replace(**sections), tmp_path / "run", ONE)
    assert not (tmp_path / "run").exists()


def test_text_is_refused_at_the_start_where_rouge_is_missing(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rouge_score" else find(name)
    )
    config = replace(evaluate={"suites": ("tofu",), "generate": 1})
    with pytest.raises(ValueError, match=r"rouge-score: install jaxunlearn\[evaluate\], or set"):
        recipe.begin(config, tmp_path / "run", ONE)
    assert not (tmp_path / "run").exists()
    recipe.begin(replace(evaluate={"suites": ("tofu",), "generate": 0}), tmp_path / "run", ONE)


def evaluated(forget, retain, quality):
    """Rows of one step."""
    numbers = (
        ("memorization", *assess_steps.STRENGTH, "forget", forget),
        ("memorization", *assess_steps.STRENGTH, "retain", retain),
        ("tofu", *assess_steps.QUALITY, "forget", quality),
    )
    keys = ("suite", "metric", "definition", "set", "value")
    return [dict(zip(keys, values, strict=True)) | {"version": 1} for values in numbers]


def by_suite(rows):
    names = ("memorization", "tofu")
    return {name: {"results": [row for row in rows if row["suite"] == name]} for name in names}


def test_the_best_step_keeps_what_is_to_be_kept(tmp_path):
    steps = {
        "ga": {10: (0.6, 0.95, 0.2), 20: (0.3, 0.96, 0.4), 30: (0.1, 0.80, 0.4)},
        "npo": {10: (0.6, 0.90, None), 20: (0.3, 0.85, None), 30: (0.1, 0.80, None)},
    }
    for name, of_model in steps.items():
        for at in (10, 20):
            tables.write_part(tmp_path, assess_steps.TABLE, name, at, evaluated(*of_model[at]))
        tables.write_json(tmp_path / "objectives" / name / "result.json", {"steps": 30})
    tables.merge(tmp_path, list(steps))
    ends = {name: by_suite(evaluated(*of_model[30])) for name, of_model in steps.items()}
    found = assess_steps.summarise(tmp_path, {"before": by_suite(evaluated(1, 1, 0.1))} | ends)
    assert found["ga"] == {
        "evaluated": [10, 20, 30],
        "last": 30,
        "least_forget_es": {"step": 20, "forget_es": 0.3, "retain_es": 0.96},
        "best_forget_quality": {"step": 20, "value": 0.4},  # the earlier of equals
    }
    assert found["npo"]["least_forget_es"] is None is found["npo"]["best_forget_quality"]
    shown = assess_table.steps_sheet(found)
    assert shown.rows == [
        ("ga", "30", "0.300 (20)", "0.960", "0.400 (20)"),
        ("npo", "30", "none", "-", "-"),
    ]


def test_the_table_of_six_objectives_fits_80_columns(finished):
    record = json.loads((finished / assess_table.FILE).read_text())["models"]
    attacked = json.loads((finished / "relearn.json").read_text())
    names = ("before", "retrained", "ga", "wga", "npo", "tnpo", "po", "rmu")
    texts = [
        {"metric": "rouge", "set": over, "definition": "rouge.rougeL_recall", "value": 0.5}
        for over in ("forget", "retain")
    ]
    with_text = record["ga"] | {"tofu": {"results": record["ga"]["tofu"]["results"] + texts}}
    attacked["models"] = {name: attacked["models"]["ga"] for name in names}
    shown = assess_table.sheet({name: with_text for name in names}, attacked)
    said = io.StringIO()
    Console(file=said, width=80).print(assess_table.drawn(shown, "demo"))
    assert "…" not in said.getvalue() and len(shown.columns) == 9


def test_nothing_asked_nothing_shown(tmp_path):
    said = io.StringIO()
    closing.show(tmp_path, CONFIG, Console(file=said))
    assert said.getvalue() == ""
