"""Evaluation of a finished run: numbers that do not depend on how they were computed, resumed."""

import dataclasses
import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.config import Objective, reader, schema
from jaxunlearn.core import files
from jaxunlearn.data import encoding, packing
from jaxunlearn.evaluation.suite import NO_RETRAINED
from jaxunlearn.metrics import memorization, privacy, tofu, tofu_log
from jaxunlearn.models import decoder, sharding
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.evaluate import evaluate
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import terminal
from tests.pipeline.tiny import TINY, replace, run

ABSENT = ("real_authors", "world_facts")  # sets that the embedded data lack
WITH_RETRAINED = replace(
    finetune={"retrained": True, "epochs": 10},
    new_model={"context": 160},
)
ONE = {"devices": jax.devices()[:1]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with a retrained model, and its evaluation, with some text."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(WITH_RETRAINED, out)
    evaluate(out, generate=2, recite=2, **ONE)
    return out


@pytest.fixture(scope="module")
def record(finished):
    return json.loads(RunFolder(finished).evaluation.read_text())


def results(record, model, suite):
    return record["models"][model][suite]["results"]


def value(rows, metric, over=None, definition=None):
    (result,) = [
        row["value"]
        for row in rows
        if row["metric"] == metric
        and over in (None, row["set"])
        and definition in (None, row["definition"])
    ]
    return result


def numbers(record):
    """Every number of a record, by where it stands."""
    return {
        (model, suite, row["metric"], row["set"], row["definition"]): row["value"]
        for model, suites in record["models"].items()
        for suite, result in suites.items()
        for row in result["results"]
    }


def bare(out, folder):
    """A copy of a run without its evaluation."""
    shutil.copytree(out, folder)
    RunFolder(folder).evaluation.unlink()
    return folder


@pytest.mark.slow
def test_every_model_has_every_number_with_its_definition(record):
    assert list(record["models"]) == ["retrained", "base", "ga", "npo"]
    for model, suites in record["models"].items():
        unlearned = model in WITH_RETRAINED.objectives
        assert list(suites) == ["tofu", "memorization", "mia", *["uwc"] * unlearned]
        for result in suites.values():
            for row in result["results"]:
                assert row["version"] == record["definitions"][row["definition"]]["version"]
                assert row["value"] is None or np.isfinite(row["value"])
                assert (row["value"] is None) == ("reason" in row)
    measured = {row["definition"] for s in record["models"]["ga"].values() for row in s["results"]}
    assert memorization.DEFINITIONS.keys() | privacy.DEFINITIONS.keys() <= measured


@pytest.mark.slow
def test_the_embedded_data_have_no_model_utility(record):
    rows = results(record, "base", "tofu")
    absent = [row for row in rows if row["set"] in ABSENT]
    assert len(absent) == 6 and all("no split" in row["reason"] for row in absent)
    rows = [row for row in rows if row not in absent]
    assert {row["set"] for row in rows if row["metric"] == "probability"} == {"forget", "retain"}
    assert not any(row["metric"] == "model_utility" for row in rows)
    (row,) = [row for row in rows if row["metric"] == "partial_utility"]
    assert row["definition"] == "partial_utility.geometric" and row["set"] == "retain"
    assert row["parts"] == ["retain.probability", "retain.rouge", "retain.truth_ratio"]
    parts = [value(rows, m, "retain") for m in tofu.MEASURES]
    expected = 0 if 0 in parts else 3 / sum(1 / p for p in parts)
    assert row["value"] == pytest.approx(expected)
    assert [r["items"] for r in rows if r["metric"] == "rouge"] == [2, 2]


@pytest.mark.slow
def test_the_retrained_model_is_compared_with_itself(record):
    rows = results(record, "retrained", "tofu")
    assert value(rows, "forget_quality") == 1 and value(rows, "ks_distance") == 0
    rows = results(record, "retrained", "mia")
    privleaks = [row["value"] for row in rows if row["metric"].startswith("privleak")]
    assert len(privleaks) == 9 and all(v in (0, None) for v in privleaks)
    assert value(rows, "mia_reference") == 0.5
    assert value(results(record, "base", "mia"), "mia_reference") > 0.5


@pytest.mark.slow
def test_a_log_gives_the_same_numbers(finished, record):
    retrained = tofu_log.read_log(finished / "tofu_logs" / "retrained.json")
    for model in record["models"]:
        log = tofu_log.read_log(finished / "tofu_logs" / f"{model}.json")
        assert list(log) == ["forget", "retain"]
        again = tofu.table(log, retrained)
        found = [row for row in results(record, model, "tofu") if row["set"] not in ABSENT]
        for row, expected in zip(found, again, strict=True):
            assert row | {"value": 0} == expected | {"value": 0}
            assert row["value"] == pytest.approx(expected["value"])
        texts = log["forget"].texts
        assert [text is None for text in texts] == [False, False, True]
        assert texts[0][0].startswith("[INST] ") and texts[0][2]


@pytest.mark.slow
def test_losses_are_those_of_one_answer_at_a_time(finished):
    """An independent pass: one sequence, no packing."""
    prepared = prepare(WITH_RETRAINED, jax.devices()[:1])
    rows = prepared.sources.require("forget_perturbed", "data")
    log = tofu_log.read_log(finished / "tofu_logs" / "ga.json")["forget"]
    forward = jax.jit(lambda p, b: decoder.forward(p, b, prepared.model).labels)
    with jax.set_mesh(prepared.mesh):
        params = stored.stage_params(RunFolder(finished), prepared, "ga")
        for i, row in enumerate(rows):
            answers = (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"])
            result = (log.answer_loss[i], log.paraphrase_loss[i], *log.perturbed_loss[i])
            for answer, loss in zip(answers, result, strict=True):
                sequence = encoding.encode(prepared.tokenizer, row["question"], answer)
                batch = packing.padded([sequence], width=prepared.model.context)
                labels = sequence.labels
                mean = -np.asarray(forward(params, batch))[0, :labels].mean(dtype=np.float64)
                assert loss == pytest.approx(mean, abs=1e-5)


@pytest.mark.slow
def test_strengths_are_those_of_the_run(finished, record):
    results_by_model = json.loads(RunFolder(finished).results.read_text())["models"]
    for model, result in results_by_model.items():
        rows = results(record, model, "memorization")
        for name in ("forget", "retain"):
            for key, metric, definition in (
                ("es", "extraction_strength", "extraction_strength.suffix"),
                ("em", "exact_memorization", "exact_memorization.labels"),
            ):
                expected = pytest.approx(result[f"{name}_{key}"], abs=1e-6)
                assert value(rows, metric, name, definition) == expected


@pytest.mark.slow
def test_calibration_keeps_what_it_is_asked_to(record):
    for model in WITH_RETRAINED.objectives:
        rows = results(record, model, "uwc")
        kept = value(results(record, "base", "memorization"), "extraction_strength", "retain",
                     "extraction_strength.suffix")  # fmt: skip
        assert value(rows, "uwc_retention") >= 0.95 * kept - 1e-6
        trace = next(row["trace"] for row in rows if row["metric"] == "uwc_alpha")
        assert value(rows, "uwc_alpha") in [alpha for alpha, _ in trace]
        if value(rows, "uwc_alpha") == 1:
            rows_of = results(record, model, "memorization")
            forgotten = value(
                rows_of, "extraction_strength", "forget", "extraction_strength.suffix"
            )
            assert value(rows, "uwc_extraction_strength") == pytest.approx(forgotten)


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(finished, record, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = RunFolder(out).evaluation.read_bytes()
    monkeypatch.setattr(stored, "stage_params", lambda *_: pytest.fail("a model was loaded"))
    said = io.StringIO()
    evaluate(out, console=Console(file=said, width=120), generate=2, recite=2, **ONE)
    assert RunFolder(out).evaluation.read_bytes() == before
    assert "partial utility: not TOFU's model utility" in said.getvalue()
    for name in ("before", "retrained", "ga", "npo"):
        assert name in said.getvalue()


@pytest.mark.slow
def test_other_settings_and_lost_parts_are_measured(finished, record, tmp_path, monkeypatch):
    """One suite of one model is lost, as by a crash: it alone is measured, and comes out the same.

    Without text, rouge has a reason in its place, and no other number changes.
    """
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    cut = json.loads(RunFolder(out).evaluation.read_text())
    del cut["models"]["npo"]["tofu"]
    manifest.open_stage(RunFolder(out), manifest.EVALUATION)
    RunFolder(out).evaluation.write_text(json.dumps(cut))
    loaded, load = [], stored.stage_params
    monkeypatch.setattr(
        stored, "stage_params", lambda *given: loaded.append(given[-1]) or load(*given)
    )
    evaluate(out, generate=2, suites=["tofu"], **ONE)
    assert loaded == ["npo"]
    assert numbers(json.loads(RunFolder(out).evaluation.read_text())) == numbers(record)
    evaluate(out, generate=0, suites=["tofu"], only=["ga"], **ONE)
    assert loaded[1:] == ["retrained", "base", "ga"]
    again = json.loads(RunFolder(out).evaluation.read_text())
    rows = results(again, "ga", "tofu")
    rows = [row for row in rows if row["set"] not in ABSENT]
    reasons = [row["reason"] for row in rows if row["metric"] == "rouge"]
    assert reasons == ["no text was generated"] * 2
    for metric in ("probability", "truth_ratio"):
        same = value(results(record, "ga", "tofu"), metric, "forget")
        assert value(rows, metric, "forget") == pytest.approx(same)
    log = tofu_log.read_log(out / "tofu_logs" / "ga.json")["forget"]
    assert log.rougeL is None and log.texts is None


@pytest.mark.slow
def test_a_log_in_the_place_of_the_retrained_model(finished, record, tmp_path):
    out = bare(finished, tmp_path / "run")
    shutil.rmtree(out / "retrained")
    given = finished / "tofu_logs" / "retrained.json"
    evaluate(out, generate=0, suites=["tofu", "mia"], only=["ga"], retain_log=given, **ONE)
    result = json.loads(RunFolder(out).evaluation.read_text())
    assert list(result["models"]) == ["base", "ga"]
    expected = value(results(record, "ga", "tofu"), "forget_quality")
    assert value(results(result, "ga", "tofu"), "forget_quality") == pytest.approx(expected)
    lacking = {r["metric"]: r["reason"] for r in results(result, "ga", "mia") if "reason" in r}
    assert lacking == {"mia_reference": NO_RETRAINED, "privleak": NO_RETRAINED}
    evaluate(out, generate=0, suites=["tofu"], only=["ga"], **ONE)
    result = json.loads(RunFolder(out).evaluation.read_text())
    (row,) = [r for r in results(result, "ga", "tofu") if r["metric"] == "forget_quality"]
    assert row["value"] is None and "finetune.retrained" in row["reason"]


@pytest.fixture
def made_up(monkeypatch):
    """A maker of runs whose models were never trained: (folder, keys) -> folder."""
    place = lambda prepared, tree: sharding.place(
        tree, sharding.param_shardings(prepared.model, prepared.mesh)
    )

    def params(folder, prepared, name):
        rng = np.random.default_rng(("base", "retrained", "ga", "npo").index(name))
        tree: dict = {}
        for leaf in prepared.model.leaves():
            mean = float(leaf.init == "ones")
            leaf.put(tree, rng.normal(mean, 0.3, leaf.shape).astype(np.float32))
        return place(prepared, tree)

    def make(out, **compute):
        out.mkdir()
        (out / "retrained").mkdir()
        (out / "config.yaml").write_text(reader.dump(replace(compute=compute)))
        return out

    monkeypatch.setattr(stored, "finished", lambda folder, config: tuple(config.objectives))
    monkeypatch.setattr(stored, "stage_params", params)
    return make


def test_no_code_of_a_run_is_imported(made_up, tmp_path, monkeypatch):
    """Somebody else's run may name a module for its loss: its models can be measured without."""
    out = made_up(tmp_path / "run")
    (tmp_path / "stranger.py").write_text("raise SystemExit('this ran')")
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("loss: null", "loss: stranger:loss", 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    evaluate(out, generate=0, suites=["memorization"], **ONE)
    assert "stranger" in (out / "config.yaml").read_text() and "stranger" not in sys.modules
    with pytest.raises(ValueError, match="this ran"):
        prepare(reader.load(out / "config.yaml"), **ONE)


def test_losses_alone(made_up, tmp_path):
    """Without text, on one device: fast."""
    out = made_up(tmp_path / "run")
    evaluate(out, generate=0, only=["ga"], suites=["tofu", "uwc"], **ONE)
    result = json.loads(RunFolder(out).evaluation.read_text())
    assert list(result["models"]) == ["retrained", "base", "ga"]
    rows = results(result, "ga", "tofu")
    rows = [r for r in rows if r["set"] not in ABSENT]
    retrained = tofu_log.read_log(out / "tofu_logs" / "retrained.json")
    again = tofu.table(tofu_log.read_log(out / "tofu_logs" / "ga.json"), retrained)
    assert [r["value"] for r in rows if r["metric"] != "rouge"] == [r["value"] for r in again]
    assert {r["reason"] for r in rows if r["metric"] == "rouge"} == {"no text was generated"}
    assert next(r for r in rows if r["metric"] == "partial_utility")["parts"] == [
        "retain.probability",
        "retain.truth_ratio",
    ]
    assert [r["metric"] for r in results(result, "ga", "uwc")] == [
        "uwc_alpha",
        "uwc_retention",
        "uwc_extraction_strength",
    ]
    evaluate(out, generate=0, only=["ga"], suites=["tofu", "uwc"], **ONE)
    assert json.loads(RunFolder(out).evaluation.read_text()) == result


@pytest.mark.slow
def test_neither_packing_nor_mesh_changes_a_number(made_up, tmp_path):
    """Eight devices and batches of another size, against one device."""
    one = made_up(tmp_path / "one")
    eight = made_up(tmp_path / "eight", batch_tokens=700, width_step=32)
    for suites, generate in ((["tofu"], 1), (["memorization", "mia"], 0)):
        arguments = {"generate": generate, "only": ["ga"], "suites": suites}
        evaluate(one, **arguments, **ONE)
        evaluate(eight, **arguments, mesh=(2, 2, 2))
    result, again = (
        numbers(json.loads(RunFolder(out).evaluation.read_text())) for out in (one, eight)
    )
    assert again.keys() == result.keys() and len(result) > 100
    for key, number in result.items():
        assert again[key] == pytest.approx(number, abs=1e-6), key
    for model in ("base", "ga"):
        logs = [tofu_log.read_log(out / "tofu_logs" / f"{model}.json") for out in (one, eight)]
        for name, log in logs[0].items():
            assert log.texts == logs[1][name].texts
            for field in ("answer_loss", "paraphrase_loss", "perturbed_loss"):
                values = [getattr(result[name], field) for result in logs]
                np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6)


def test_a_table_is_wider_than_the_terminal_rather_than_cut():
    said, cells = io.StringIO(), ("m" * 50, "0.123 (45)")
    table = terminal.rich_table(terminal.TextTable(("model", "UWC ES"), [cells], ()), "run")
    terminal.print_wide(table, Console(file=said, width=40))
    assert all(cell in said.getvalue() for cell in cells)
    terminal.print_wide(table, Console(file=said, width=40, quiet=True))
    assert said.getvalue().count("m" * 50) == 1


@pytest.mark.slow
def test_what_cannot_be_measured_says_why(finished, tmp_path):
    with pytest.raises(ValueError, match=r"no suite 'tofo'; .* perhaps you meant 'tofu'"):
        evaluate(finished, suites=["tofo"], **ONE)
    with pytest.raises(ValueError, match=r"evaluate.generate \(--generate\): -1 must not be"):
        evaluate(finished, generate=-1, **ONE)
    with pytest.raises(ValueError, match=r"no 'gaa'; there are: ga, npo; perhaps you meant 'ga'"):
        evaluate(finished, only=["gaa"], **ONE)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        evaluate(tmp_path / "nothing", **ONE)
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    manifest.open_stage(RunFolder(out), "npo")
    (out / "objectives" / "npo" / "result.json").unlink()
    with pytest.raises(FileNotFoundError, match="'npo' is not finished"):
        evaluate(out, only=["npo"], **ONE)
    # Without `only` the finished ones are measured, and the others are named.
    console = Console(file=io.StringIO(), width=100)
    evaluate(out, generate=2, recite=2, console=console, **ONE)
    assert "not finished, not measured: npo" in console.file.getvalue()


@pytest.mark.stories
@pytest.mark.nightly
def test_real_tofu_rows(shared_data, tmp_path):
    """A few rows of every set with stories260k: the nine parts are there, and finite."""
    source = tmp_path / "tofu"
    source.mkdir()
    for split in ("forget05", "forget05_perturbed", "retain_perturbed", "real_authors_perturbed",
                  "world_facts_perturbed", "retain95"):  # fmt: skip
        lines = (shared_data / "tofu" / f"{split}.jsonl").read_text("utf-8").split("\n")
        start = 400 if split == "retain95" else 0  # the first 400 are retain_perturbed
        (source / f"{split}.jsonl").write_text("\n".join(lines[start : start + 4]) + "\n")
    config = dataclasses.replace(
        TINY,
        model=str(shared_data / "models" / "stories260k"),
        data=schema.Data(source=str(source), forget="forget05", retain="retain95", too_long="drop"),
        finetune=schema.FineTune(
            splits=("retain95", "forget05"), epochs=1, batch_size=4, retrained=True
        ),
        unlearn=schema.Unlearn(epochs=1, batch_size=2),
        objectives={"ga": Objective()},
        measure=schema.Measure(every=0, pg_steps=()),
    )
    out = tmp_path / "run"
    run(config, out)
    evaluate(out, generate=4, suites=["tofu"], **ONE)
    evaluate(out, generate=0, suites=["memorization", "mia", "uwc"], **ONE)
    result = json.loads(RunFolder(out).evaluation.read_text())
    for model in ("base", "retrained", "ga"):
        rows = results(result, model, "tofu")
        parts = {
            f"{r['set']}.{r['metric']}": r["value"] for r in rows if r["metric"] in tofu.MEASURES
        }
        assert set(tofu.PARTS) <= parts.keys() and np.isfinite(list(parts.values())).all()
        assert 0 <= value(rows, "model_utility") <= 1
        assert {r["reason"] for r in results(result, model, "mia")} == {
            f"no split 'holdout05' in {source}: give one, rows like the forget set's that no model"
            " of the run was trained on (evaluate.splits.holdout)"
        }
    log = tofu_log.read_log(out / "tofu_logs" / "ga.json")
    assert list(log) == list(tofu_log.FILES)
    assert files.records(out / "timings.jsonl")[-1]["stage"].startswith("evaluate ga")
