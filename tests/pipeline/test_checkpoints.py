"""Checkpoints that no run made: their evaluation, and the effects of the step between two.

The oracle is a run: its models as folders must give the numbers that the run gives itself.
"""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jaxunlearn.config import Config, Objective, reader, schema
from jaxunlearn.core import trees
from jaxunlearn.measurement import statistics
from jaxunlearn.models import hf
from jaxunlearn.pipeline.checkpoint_effects import checkpoint_effects
from jaxunlearn.pipeline.evaluate import evaluate
from jaxunlearn.pipeline.export import export
from jaxunlearn.pipeline.subject import open_subject
from jaxunlearn.record import step_tables, tables
from jaxunlearn.record.folder import MODEL, RunFolder
from tests.pipeline.tiny import TINY, replace, run

ONE = {"devices": jax.devices()[:1]}
CONFIG = replace(
    finetune={"retrained": True, "epochs": 4},
    new_model={"context": 160},
    unlearn={"epochs": 2},
    objectives={"wga": Objective()},
    measure={"every": 2, "steps": (0,), "pg_steps": (), "token_steps": ()},
)


def record_of(folder):
    return json.loads(RunFolder(folder).evaluation.read_text())["models"]


def reasons(record, suite):
    return {row["reason"] for row in record[MODEL][suite]["results"] if row["value"] is None}


# ------------------------------------------------------------------------- models of a real run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that measures at step 0 alone, so that one interval covers it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(CONFIG, out)
    return out


@pytest.fixture(scope="module")
def exported(finished):
    """The unlearned model as a folder."""
    return export(finished, "wga", finished.parent / "wga")


@pytest.mark.slow
def test_a_runs_models_as_folders_give_the_runs_numbers(finished, exported, tmp_path):
    evaluate(finished, suites=["all"], generate=2, recite=1, **ONE)
    said = io.StringIO()
    evaluate(
        exported,
        config=reader.load(finished / "config.yaml"),
        out=tmp_path / "out",
        retrained=finished / "retrained",
        base=finished / "base",
        suites=["all"],
        generate=2,
        recite=1,
        console=Console(file=said, width=160),
        **ONE,
    )
    of_run, alone = record_of(finished), record_of(tmp_path / "out")
    assert list(alone) == ["retrained", "base", MODEL]
    for name, in_run in ((MODEL, "wga"), ("base", "base"), ("retrained", "retrained")):
        assert alone[name] == of_run[in_run]
    assert {suite for suite in alone[MODEL]} == {"tofu", "memorization", "mia", "uwc"}
    logs = [RunFolder(path).tofu_log(name).read_text() for path, name in
            ((finished, "wga"), (tmp_path / "out", MODEL))]  # fmt: skip
    assert logs[0] == logs[1]
    assert "wga: evaluation" in said.getvalue() and "UWC" in said.getvalue()
    assert f"data: {TINY.data.source}, forget {TINY.data.forget}, retain " in said.getvalue()
    # A second call measures nothing, and what is written is a configuration for the next.
    before = RunFolder(tmp_path / "out").evaluation.read_bytes()
    again = reader.load(tmp_path / "out" / "measured_as.yaml")
    others = {"retrained": finished / "retrained", "base": finished / "base"}
    evaluate(exported, config=again, out=tmp_path / "out", suites=["all"], generate=2, recite=1,
             **others, **ONE)  # fmt: skip
    assert RunFolder(tmp_path / "out").evaluation.read_bytes() == before
    with pytest.raises(ValueError, match="begun with other contents of base; choose another --out"):
        others["base"] = finished / "retrained"
        evaluate(exported, config=again, out=tmp_path / "out", **others, **ONE)


@pytest.fixture(scope="module")
def step(finished, exported, tmp_path_factory):
    """The step of the whole run at every resolution, and the folder of its tables."""
    config = replace(
        reader.load(finished / "config.yaml"),
        measure={"pg_by": ("sample", "token", "layer", "tensor")},
    )
    out = tmp_path_factory.mktemp("effects") / "step"
    return checkpoint_effects(finished / "base", exported, config=config, out=out, **ONE), out


@pytest.mark.slow
def test_the_step_of_a_run_has_the_runs_prediction(finished, step):
    """A run of one interval measures the same gradient along the same step."""
    table = tables.read(finished, "g_effect")
    columns = ("risk", "layer", "interval_predicted", "interval_change", "risk_norm", "risk_value")
    of_run = {(r, layer): rest for r, layer, *rest in zip(*map(table.get, columns), strict=True)}
    assert {(row["risk"], row["layer"]) for row in step[0].g_effect} == of_run.keys()
    for row in step[0].g_effect:
        expected = of_run[row["risk"], row["layer"]]
        for column, number in zip(columns[2:], expected, strict=True):
            assert row.get(column) == (number and pytest.approx(number, rel=1e-5, abs=1e-6))
        assert abs(row["step_cosine"]) <= 1
        product = row["step_cosine"] * row["step_norm"] * row["risk_norm"]
        assert row["interval_predicted"] == pytest.approx(product, rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_samples_add_up_to_their_risk_and_parts_to_samples(step):
    found, _ = step
    for risk, split in (("unlearn", "forget"), ("retain", "retain")):
        (total,) = [r for r in found.g_effect if r["risk"] == risk and r["layer"] == "total"]
        rows = [r for r in found.pg_effect if r["split"] == split]
        samples = [r for r in rows if r["layer"] == "total"]
        for of_sample, of_risk in (("log_prob_predicted", "interval_predicted"),
                                   ("log_prob_change", "interval_change"),
                                   ("log_prob", "risk_value")):  # fmt: skip
            mean = np.mean([row[of_sample] for row in samples])
            assert -mean == pytest.approx(total[of_risk], rel=1e-4, abs=1e-5)
        tokens = [r for r in found.token_effect if r["split"] == split]
        for row in samples:
            of_row = [t for t in tokens if t["sample"] == row["sample"]]
            assert [t["position"] for t in of_row] == list(range(len(of_row)))
            for column in ("log_prob", "log_prob_predicted", "log_prob_change"):
                whole = pytest.approx(row[column], rel=1e-4, abs=1e-5)
                assert sum(t[column] for t in of_row) == whole
            parts = [r for r in rows if r["sample"] == row["sample"] and r["layer"] != "total"]
            layers = [r for r in parts if "." not in r["layer"]]
            for kind in (layers, [r for r in parts if "." in r["layer"]]):
                whole = pytest.approx(row["log_prob_predicted"], rel=1e-4, abs=1e-5)
                assert sum(r["log_prob_predicted"] for r in kind) == whole


@pytest.mark.nightly
def test_the_real_change_is_that_of_each_model_alone(finished, exported, step):
    """Statistics of the two folders, read one by one."""
    config = reader.load(finished / "config.yaml")
    logp = {}
    for folder in (finished / "base", exported):
        subject = open_subject(replace(config, model=str(folder)), **ONE)
        with jax.set_mesh(subject.mesh):
            rows = subject.sources.require("forget", "data.forget")
            samples = subject.encoder.encode(rows, "forget")[0]
            stats = statistics.statistics(
                subject.initial(), subject.layout.split(samples), subject.model
            )
        logp[folder] = stats.logp.sum(-1)
    found = [r for r in step[0].pg_effect if r["split"] == "forget" and r["layer"] == "total"]
    change = logp[exported] - logp[finished / "base"]
    np.testing.assert_allclose([r["log_prob_change"] for r in found], change, atol=1e-4)
    assert np.abs(change).max() > 0.01


@pytest.mark.slow
def test_tables_are_written_as_they_are_described(step):
    found, out = step
    for name, rows in found._asdict().items():
        table = pq.read_table(out / f"{name}.parquet")
        assert table.schema == step_tables.SCHEMAS[name] and table.num_rows == len(rows)


@pytest.mark.slow
def test_the_tables_of_other_data_are_not_overwritten(finished, exported, step):
    out = step[1]
    earlier = {file.name: file.read_bytes() for file in out.glob("*.parquet")}
    config = reader.load(finished / "config.yaml")
    data = dataclasses.replace(config.data, forget="retain_perturbed", measured_retain="forget")
    other = dataclasses.replace(config, data=data)
    with pytest.raises(ValueError, match=r"holds results with data\.forget: .* another --out"):
        checkpoint_effects(finished / "base", exported, config=other, out=out, **ONE)
    assert {file.name: file.read_bytes() for file in out.glob("*.parquet")} == earlier


@pytest.mark.nightly
def test_neither_gates_nor_a_mesh_change_the_prediction(finished, exported, step, tmp_path):
    config = reader.load(finished / "config.yaml")
    gated = replace(config, measure={"gradients": "gates"})
    arguments = {"config": gated, "out": tmp_path / "eight", "mesh": (2, 2, 2)}
    found = checkpoint_effects(finished / "base", exported, **arguments)
    for row, other in zip(step[0].g_effect, found.g_effect, strict=True):
        scale = row["risk_norm"] * row["step_norm"]
        expected = pytest.approx(row["interval_predicted"], abs=1e-5 * scale)
        assert other["interval_predicted"] == expected and other.get("step_cosine") is None
    samples = [r["log_prob_predicted"] for r in step[0].pg_effect if r["layer"] == "total"]
    again = [r["log_prob_predicted"] for r in found.pg_effect]
    np.testing.assert_allclose(again, samples, rtol=1e-3, atol=1e-4)
    # This call asked for samples alone: no table of tokens stays behind.
    shutil.copy(step[1] / "token_effect.parquet", tmp_path / "eight")
    checkpoint_effects(finished / "base", exported, **arguments)
    assert not (tmp_path / "eight" / "token_effect.parquet").exists()


@pytest.mark.nightly
def test_checkpoints_in_bfloat16(finished, tmp_path):
    for name in ("base", "wga"):
        export(finished, name, tmp_path / name, "bfloat16")
    config = reader.load(finished / "config.yaml")
    found = checkpoint_effects(
        tmp_path / "base", tmp_path / "wga", config=config, out=tmp_path / "out", **ONE
    )
    model = hf.load_config(tmp_path / "base")
    old, new = (hf.load_params(tmp_path / name, model) for name in ("base", "wga"))
    norm = float(trees.norm(trees.subtract(new, old)))
    assert found.g_effect[-1]["step_norm"] == pytest.approx(norm, rel=1e-6)
    assert found.g_effect[-1]["interval_predicted"] != 0


# ------------------------------------------------------------------------- without any training


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model with random weights."""
    subject = open_subject(TINY, **ONE)
    folder = tmp_path_factory.mktemp("models") / "random"
    with jax.set_mesh(subject.mesh):
        params = subject.initial()
        hf.save_params(folder, params, subject.model, tokenizer=subject.tokenizer)
    return folder


@pytest.fixture
def folder_of(tmp_path):
    """A maker of a folder of data: {split: rows} -> configuration."""

    def make(**splits):
        source = tmp_path / "data"
        source.mkdir()
        for name, rows in splits.items():
            (source / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        return Config(data=schema.Data(source=str(source)))

    return make


ROWS = [{"question": f"Who is {i}?", "answer": f"The author {i}."} for i in range(3)]


def test_suites_without_their_data_say_why(model, folder_of, tmp_path):
    """Nothing that they read is there, and no suite refuses the others."""
    config = folder_of(something=ROWS)
    said = io.StringIO()
    console = Console(file=said, width=200)
    evaluate(model, config=config, out=tmp_path / "out", suites=["all"], console=console, **ONE)
    record = record_of(tmp_path / "out")
    assert list(record[MODEL]) == ["tofu", "memorization", "mia", "uwc"]
    for suites in record[MODEL].values():
        assert suites["results"] and all(row["value"] is None for row in suites["results"])
    source = config.data.source
    assert reasons(record, "memorization") == {
        f"no split 'forget' in {source} (data.forget)",
        f"no split 'retain_perturbed' in {source} (data.measured_retain)",
    }
    assert "no split 'holdout'" in next(iter(reasons(record, "mia")))
    assert reasons(record, "uwc") == {"needs the model before unlearning: --base for a model"}
    assert "uwc_extraction_strength: needs the model before" in said.getvalue()


def test_a_set_that_is_named_must_be_there(model, folder_of, tmp_path):
    config = replace(folder_of(forget=ROWS), data={"measured_retain": "retained"})
    with pytest.raises(FileNotFoundError, match=r"data.measured_retain: .* no split 'retained'"):
        evaluate(model, config=config, out=tmp_path / "out", suites=["memorization"], **ONE)
    assert not (tmp_path / "out").exists()


def test_one_set_is_measured_without_the_other(model, folder_of, tmp_path):
    config = folder_of(forget=ROWS, holdout=[{"question": "Why?", "answer": "So."}])
    evaluate(model, config=config, out=tmp_path / "out", suites=["memorization"], **ONE)
    rows = record_of(tmp_path / "out")[MODEL]["memorization"]["results"]
    known = {row["set"] for row in rows if row["value"] is not None}
    assert known == {"forget"} and {row["set"] for row in rows} == {"forget", "retain"}


def test_options_of_the_other_kind_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"only \(--only\): is for a run, and .* is a model"):
        evaluate(model, only=["ga"], **ONE)
    (tmp_path / "config.yaml").write_text(reader.dump(TINY))
    for option in ("out", "retrained", "base"):
        with pytest.raises(ValueError, match=rf"{option} \(--{option}\): is for a model, and"):
            evaluate(tmp_path, **{option: "x"}, **ONE)


def test_a_model_that_is_mended_goes_into_the_folder_of_the_attempt(model, folder_of, tmp_path):
    """A broken download measures nothing, so the whole one is no other model."""
    config, broken = folder_of(forget=ROWS[1:], retain_perturbed=ROWS[:1]), tmp_path / "broken"
    shutil.copytree(model, broken)
    (weights,) = broken.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    arguments = {"config": config, "out": tmp_path / "out", "suites": ["memorization"], **ONE}
    with pytest.raises(ValueError, match=r"broken: the weights of .* are not all finite"):
        evaluate(broken, **arguments)
    weights.write_bytes(whole)
    evaluate(broken, **arguments)
    assert record_of(tmp_path / "out")[MODEL]["memorization"]["results"]
    # Other data, or another precision, would stand next to these results in one table.
    evaluate(broken, **arguments | {"suites": ["uwc"]})
    earlier = RunFolder(tmp_path / "out").measured_as.read_text()
    data = dataclasses.replace(config.data, forget="retain_perturbed", measured_retain="forget")
    compute = dataclasses.replace(config.compute, dtype="bfloat16")
    for changes, key in (({"data": data}, "data.forget"), ({"compute": compute}, "compute.dtype")):
        changed = {"config": dataclasses.replace(config, **changes)}
        with pytest.raises(ValueError, match=f"holds results with {key}: .* choose another --out"):
            evaluate(broken, **arguments | changed)
    assert RunFolder(tmp_path / "out").measured_as.read_text() == earlier
    weights.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(ValueError, match="begun with other contents of model"):
        evaluate(broken, **arguments)


def test_runs_and_adapters_are_no_models(model, tmp_path):
    run_folder, adapter = tmp_path / "run", tmp_path / "adapter"
    for folder, name in ((run_folder, "config.yaml"), (adapter, "adapter_config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    for key, pair in {"before": (run_folder, model), "after": (model, run_folder)}.items():
        with pytest.raises(ValueError, match=rf"{key}: .*run is a run; .*jaxunlearn export"):
            checkpoint_effects(*pair, out=tmp_path / "out", **ONE)
    for call in (lambda: evaluate(adapter, **ONE), lambda: checkpoint_effects(adapter, model)):
        with pytest.raises(
            ValueError, match=r"adapter: is a PEFT adapter of BASE and no model; name a"
        ):
            call()
    assert not (tmp_path / "out").exists()


def test_models_and_folders_that_do_not_do(model, folder_of, tmp_path):
    config = folder_of(forget=ROWS[1:], retain_perturbed=ROWS[:1])
    with pytest.raises(FileNotFoundError, match=r"neither a run .* nor a model"):
        evaluate(tmp_path, config=config, **ONE)
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        evaluate(tmp_path / "nothing", config=config, **ONE)
    with pytest.raises(ValueError, match=r"not empty and no results .*another --out"):
        evaluate(model, config=config, out=tmp_path, suites=["mia"], **ONE)
    other = tmp_path / "other"
    subject = open_subject(replace(TINY, new_model={"num_layers": 1}), **ONE)
    with jax.set_mesh(subject.mesh):
        hf.save_params(other, subject.initial(), subject.model, tokenizer=subject.tokenizer)
    words = "another architecture than .*random: num_layers is 1, not 2"
    with pytest.raises(ValueError, match=rf"base \(--base\): {other} has {words}"):
        evaluate(model, config=config, base=other, out=tmp_path / "out", **ONE)
    with pytest.raises(ValueError, match=f"after: {other} has {words}"):
        checkpoint_effects(model, other, config=config, out=tmp_path / "out", **ONE)
    with pytest.raises(ValueError, match=r"no 'token_men'; there are: .* meant 'token_mean'"):
        checkpoint_effects(model, model, config=config, reduction="token_men", **ONE)
    assert not (tmp_path / "out").exists()
