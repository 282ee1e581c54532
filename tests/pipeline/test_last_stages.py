"""A run that ends with its evaluation: on the way, at the end, after a crash, and shown again."""

import importlib.util
import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn import cli
from jaxunlearn.config import Objective
from jaxunlearn.core import files
from jaxunlearn.evaluation import best_step
from jaxunlearn.metrics import tofu, tofu_log
from jaxunlearn.pipeline import evaluation_stage, recipe, stored
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import evaluation_table, report, terminal
from jaxunlearn.training import step
from tests.pipeline.tiny import replace, run

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
    recipe.run(CONFIG, out, console=Console(file=said, width=80), devices=ONE)
    return out, said.getvalue()


@pytest.fixture(scope="module")
def finished(ended):
    return ended[0]


def forbidden(*args, **kwargs):
    raise AssertionError("computed again")


def rows_at(out, at):
    table = tables.read(out, best_step.TABLE)
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
    last = said[said.rindex(": evaluation") :]
    # Its rows fit the console; sentences and paths are unbroken.
    rows = [line for line in last.splitlines() if line.startswith(" ")]
    assert len(rows) > 5 and max(map(len, rows)) <= 80 and "…" not in last
    for word in ("quality", "utility", "forget", "retain", "UWC", "relearn", "(1)"):
        assert word in last, last
    for model in ("before", "retrained", "ga"):
        assert f"\n {model} " in last
    written = (out / "summary.md").read_text()
    assert "| model | forget quality | partial utility | forget ES | retain ES |" in written
    assert (out / "figures" / "relearn.png").exists()
    assert not list(out.rglob("*.tmp"))


def test_the_retrained_model_never_sees_the_forget_set(finished):
    """It trains as many epochs as the base, on the rest."""
    prepared = prepare(CONFIG, ONE)
    texts = lambda rows: {tuple(row.tokens.tolist()) for row in rows}
    assert not texts(prepared.retrain) & texts(prepared.sets.forget)
    assert texts(prepared.retrain) | texts(prepared.sets.forget) == texts(prepared.finetune)
    models = json.loads((finished / "results.json").read_text())["models"]
    assert list(models) == ["base", "retrained", "ga"]
    assert models["retrained"]["forget_nll"] != models["base"]["forget_nll"]
    assert (finished / "retrained" / "model.safetensors").exists()
    log = files.records(finished / "metrics.jsonl")
    last = {name: max(r["step"] for r in log if r["objective"] == name) for name in STAGES}
    assert last == {"base": 6, "retrained": 4}  # 12 and 9 rows in batches of 4: two epochs each


def test_the_suites_measure_on_the_way_what_the_run_measures(finished):
    """The run's own extraction strengths, packed otherwise; and the forget quality of the logs."""
    table = tables.read(finished, "samples")
    columns = [np.array(table[name]) for name in ("step", "split", "extraction_strength")]
    retrained = tofu_log.read_log(finished / "tofu_logs" / "retrained.json")
    for at in (2, 4):
        rows = rows_at(finished, at)
        for over in ("forget", "retain"):
            own = columns[2][(columns[0] == at) & (columns[1] == over)].mean()
            assert strength(rows, over) == pytest.approx(own, abs=1e-6)
        log = tofu_log.read_log(finished / "tofu_logs" / f"ga-{at:06d}.json")
        expected = value(tofu.table(log, retrained), "forget_quality", "forget")
        assert value(rows, "forget_quality", "forget") == pytest.approx(expected)
    assert rows_at(finished, 0) == rows_at(finished, 6) == []  # before's, and the result


def test_the_last_and_the_best_step_are_named(finished):
    record = json.loads(RunFolder(finished).evaluation.read_text())
    ends = {n: record["models"][n]["memorization"]["results"] for n in ("base", "ga")}
    by_step = {2: rows_at(finished, 2), 4: rows_at(finished, 4), 6: ends["ga"]}
    found = record["steps"]["ga"]
    assert found["evaluated"] == [2, 4, 6] and found["last"] == 6
    least = 0.95 * strength(ends["base"], "retain")
    kept = {t: strength(r, "forget") for t, r in by_step.items() if strength(r, "retain") >= least}
    named = found["least_forget_es"]
    assert (named is None) == (not kept)
    if kept:
        assert named["forget_es"] == kept[named["step"]] == min(kept.values())


def test_what_is_there_is_not_computed_again(finished, monkeypatch):
    names = ("evaluation.json", "relearn.json", "results.json", "evaluation_steps.parquet")
    before = [(finished / name).read_bytes() for name in names]
    monkeypatch.setattr(step, "train_step", forbidden)
    monkeypatch.setattr(stored, "stage_params", forbidden)
    made, make_suites = [], evaluation_stage.make_suites
    monkeypatch.setattr(
        evaluation_stage, "make_suites", lambda *a: made.append(a) or make_suites(*a)
    )
    run(CONFIG, finished)
    assert len(made) == 1  # data are read and encoded before anything is computed, and once
    assert [(finished / name).read_bytes() for name in names] == before


def test_the_commands_take_what_the_configuration_says(finished, monkeypatch, capsys):
    """Nothing is left to do, and both tables are shown; a report draws all anew."""
    monkeypatch.setattr(jax, "devices", lambda *a, real=jax.devices: real(*a)[:1])
    monkeypatch.setattr(stored, "stage_params", forbidden)
    before = RunFolder(finished).evaluation.read_bytes()
    assert cli.main(["evaluate", str(finished)]) == 0
    assert "partial" in capsys.readouterr().out
    assert RunFolder(finished).evaluation.read_bytes() == before
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
        if len(calls) == 6 + 4 + 5 + 1:  # fine-tuning, retraining, and five steps of ga
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    out = tmp_path / "run"
    monkeypatch.setattr(step, "train_step", crashing)
    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, out)
    assert (out / "parts" / best_step.TABLE / "ga-000004.parquet").exists()
    run(CONFIG, out)
    for name in ("evaluation_steps.parquet", "evaluation.json", "relearn.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


REFUSED = {
    "negative steps": ({"evaluate": {"every": -1}}, "evaluate.every: -1 must not be negative"),
    "nothing to measure": (
        {"evaluate": {"suites": ("uwc",), "every": 2}},
        "evaluate.every: needs one of tofu, memorization in evaluate.suites",
    ),
    "no such suite": (
        {"evaluate": {"suites": ("tofu", "memorisation")}},
        r"evaluate.suites \(--suites\): no suite 'memorisation'; .* meant 'memorization'",
    ),
    "negative count": (
        {"evaluate": {"suites": ("tofu",), "generate": -2}},
        "evaluate.generate: -2 must not be negative",
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


def test_the_table_of_six_objectives_fits_80_columns(finished):
    record = json.loads(RunFolder(finished).evaluation.read_text())["models"]
    attacked = json.loads((finished / "relearn.json").read_text())
    names = ("base", "retrained", "ga", "wga", "npo", "tnpo", "po", "rmu")
    texts = [
        {"metric": "rouge", "set": over, "definition": "rouge.rougeL_recall", "value": 0.5}
        for over in ("forget", "retain")
    ]
    with_text = record["ga"] | {"tofu": {"results": record["ga"]["tofu"]["results"] + texts}}
    attacked["models"] = {name: attacked["models"]["ga"] for name in names}
    shown = evaluation_table.evaluation_table({name: with_text for name in names}, attacked)
    said = io.StringIO()
    Console(file=said, width=80).print(terminal.rich_table(shown, "demo"))
    assert "…" not in said.getvalue() and len(shown.columns) == 9


def test_nothing_asked_nothing_shown(tmp_path):
    said = io.StringIO()
    report.print_evaluation(tmp_path, CONFIG, Console(file=said))
    assert said.getvalue() == ""
