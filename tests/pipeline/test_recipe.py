"""The whole run on a tiny model: what it leaves, what the numbers must satisfy, how it resumes."""

import hashlib
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxunlearn.config import Objective, load
from jaxunlearn.core import files
from jaxunlearn.measurement.interval import Interval
from jaxunlearn.objectives import names as objective_names
from jaxunlearn.pipeline import recipe
from jaxunlearn.pipeline.evaluate import evaluate
from jaxunlearn.pipeline.relearn import relearn
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.training import step
from jaxunlearn.training.checkpoint import newest
from tests.pipeline.tiny import TINY, replace, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(TINY, out, report=True)
    return out


def select(table, **wanted):
    """Rows of a column table that match."""
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def test_a_run_leaves_its_record(finished):
    for name in (
        *("config.yaml", "metrics.jsonl", "timings.jsonl", "starts.jsonl", "results.json"),
        *("summary.md", "texts.parquet", "report.html"),
    ):
        assert (finished / name).stat().st_size > 0, name
    assert load(finished / "config.yaml") == TINY
    assert (finished / "base" / "model.safetensors").exists()
    assert {p.name for p in (finished / "figures").glob("*.png")} >= {"g_effect.png", "plane.png"}
    _, overview, _, effects = (finished / "summary.md").read_text().split("\n\n")[:4]
    assert len(overview.splitlines()) == 2 + 3  # before, ga, npo
    assert len(effects.splitlines()) == 2 + 2 and "e_u at the last step" in effects
    models = json.loads((finished / "results.json").read_text())["models"]
    assert list(models) == ["base", "ga", "npo"]
    assert not list(finished.rglob("*.tmp"))


def test_tables_hold_every_measured_step_layer_and_risk(finished):
    table = tables.read(finished, "g_effect")
    steps = sorted(set(table["step"]))
    assert steps == [0, 2, 4]  # 3 samples x 4 epochs / 2 = 6 steps
    layers = {"embed", "block_0", "block_1", "norm", "lm_head", "total"}
    for objective in TINY.objectives:
        for risk in ("unlearn", "retain"):
            for at in steps:
                rows = select(table, objective=objective, risk=risk, step=at)
                assert {row["layer"] for row in rows} == layers
    assert set(table["reduction"]) == {"sequence_sum"} and set(table["estimator"]) == {"exact"}


def test_layers_sum_to_the_total(finished):
    table = tables.read(finished, "g_effect")
    for total in select(table, layer="total"):
        key = {k: total[k] for k in ("objective", "risk", "step")}
        parts = [row for row in select(table, **key) if row["layer"] != "total"]
        scale = total["risk_norm"] * total["objective_norm"]
        for column in ("value", "update_effect", "interval_predicted"):
            summed = sum(row[column] for row in parts)
            np.testing.assert_allclose(summed, total[column], rtol=1e-4, atol=1e-6 * scale)


def test_ascent_removes_by_the_squared_gradient(finished):
    """e_u(ga) = -||grad R(D_u)||^2, and npo is ga at theta_0."""
    table = tables.read(finished, "g_effect")
    for row in select(table, objective="ga", risk="unlearn", layer="total"):
        np.testing.assert_allclose(row["value"], -(row["risk_norm"] ** 2), rtol=1e-4)
        np.testing.assert_allclose(row["cosine"], -1, rtol=1e-5)
    start = [
        select(table, objective=name, risk=risk, layer="total", step=0)[0]["value"]
        for risk in ("unlearn", "retain")
        for name in ("ga", "npo")
    ]
    np.testing.assert_allclose(start[0::2], start[1::2], rtol=1e-4)


def test_npo_is_the_weighted_mean_of_its_samples(finished):
    """e_D(npo) = mean_s w_s PG_D(s): the table by sample explains the table by step."""
    g, pg = tables.read(finished, "g_effect"), tables.read(finished, "pg_effect")
    for at in (2, 4):
        for risk in ("unlearn", "retain"):
            samples = select(pg, objective="npo", step=at, risk=risk)
            assert sorted(row["sample"] for row in samples) == [0, 1, 2]
            mean = np.mean([row["weight"] * row["value"] for row in samples])
            total = select(g, objective="npo", step=at, risk=risk, layer="total")[0]
            scale = total["risk_norm"] * total["objective_norm"]
            np.testing.assert_allclose(mean, total["value"], rtol=1e-4, atol=1e-6 * scale)


def test_tokens_sum_to_their_sample(finished):
    pg, tokens = tables.read(finished, "pg_effect"), tables.read(finished, "token_effect")
    assert set(tokens["step"]) == {2}
    for sample in select(pg, objective="ga", step=2, risk="retain"):
        parts = select(tokens, objective="ga", risk="retain", sample=sample["sample"])
        assert [row["position"] for row in parts] == list(range(len(parts)))
        np.testing.assert_allclose(sum(row["value"] for row in parts), sample["value"], rtol=1e-4)


def test_warm_up_moves_nothing_at_step_zero(finished):
    for row in select(tables.read(finished, "g_effect"), step=0, layer="total"):
        assert row["lr"] == 0 and row["update_effect"] == 0 and row["step_change"] == 0


def test_one_small_step_is_predicted(finished):
    """grad R . update is the change of R, up to the curvature of one small step."""
    for row in select(tables.read(finished, "g_effect"), step=4, layer="total"):
        np.testing.assert_allclose(row["step_change"], row["update_effect"], rtol=0.2, atol=2e-3)
        assert row["update_effect"] != 0


def test_intervals_join_up(finished):
    """R(theta_0) plus the realised changes is R at each later measurement."""
    table = tables.read(finished, "g_effect")
    for objective in TINY.objectives:
        rows = select(table, objective=objective, risk="unlearn", layer="total")
        assert [row["interval_steps"] for row in rows] == [2, 2, 2]
        for now, then in itertools.pairwise(rows):
            reached = now["risk_value"] + now["interval_change"]
            np.testing.assert_allclose(reached, then["risk_value"], rtol=1e-5)


def test_weights_and_confidence_start_at_the_reference(finished):
    samples = select(tables.read(finished, "samples"), step=0, split="forget", objective="npo")
    np.testing.assert_allclose([row["weight"] for row in samples], 1, rtol=1e-6)
    for row in tables.read(finished, "samples")["extraction_strength"]:
        assert 0 <= row <= 1
    start = select(tables.read(finished, "confidence"), step=0, objective="ga")
    by_name = {row["statistic"]: row["log10_inverse"] for row in start}
    assert by_name["q05"] <= by_name["q50"] <= by_name["q95"] and by_name["mean"] >= by_name["q05"]


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    before = digests(finished)
    monkeypatch.setattr(step, "train_step", forbidden)
    run(TINY, finished)
    assert digests(finished) == before


def forbidden(*args, **kwargs):
    raise AssertionError("a finished run trained again")


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Of everything but wall clock, and what is derived from it or from the file system."""
    skip = {"timings.jsonl", "starts.jsonl", "manifest.jsonl", "summary.md", "report.html"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in skip
        and "checkpoints" not in path.parts
        and "finetune" not in path.parts
    }


class Crash(RuntimeError):
    """A run's sudden end."""


@pytest.mark.parametrize(
    "at",
    [
        *(pytest.param(at, marks=pytest.mark.nightly) for at in (2, 14)),
        pytest.param(9, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(finished, tmp_path, monkeypatch, at):
    """Crashes after `at` updates: in fine-tuning, in the first and in the second objective."""
    real, calls = step.train_step, []

    def crashing(*args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            raise Crash
        return real(*args, **kwargs)

    monkeypatch.setattr(step, "train_step", crashing)
    with pytest.raises(Crash):
        run(TINY, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    run(TINY, tmp_path / "run", report=True)
    assert digests(tmp_path / "run") == digests(finished)


@pytest.mark.slow
def test_a_run_that_dies_at_its_very_end_loses_no_measurement(finished, tmp_path, monkeypatch):
    """The last interval closes after the last update, and its rows must survive a crash there."""
    real, deaths = Interval.close, []

    def dying(self, step, params, stats):
        if step == 6 and not deaths:
            deaths.append(self.measurer.name)
            raise Crash
        real(self, step, params, stats)

    monkeypatch.setattr(Interval, "close", dying)
    with pytest.raises(Crash):
        run(TINY, tmp_path / "run")
    run(TINY, tmp_path / "run", report=True)
    assert deaths == ["ga"]
    assert tables.read(tmp_path / "run", "g_effect") == tables.read(finished, "g_effect")
    assert digests(tmp_path / "run") == digests(finished)


@pytest.mark.slow
def test_a_run_on_eight_devices_gives_the_same_numbers(finished, tmp_path):
    config = replace(compute={"data": 2, "fsdp": 2, "tensor": 2}, new_model={"vocab_size": 400})
    run(config, tmp_path / "run", jax.devices())
    for objective in config.objectives:
        for risk in ("unlearn", "retain"):
            pick = dict(objective=objective, risk=risk, layer="total")
            one = select(tables.read(finished, "g_effect"), **pick)
            eight = select(tables.read(tmp_path / "run", "g_effect"), **pick)
            for a, b in zip(one, eight, strict=True):
                scale = a["risk_norm"] * a["objective_norm"]
                np.testing.assert_allclose(b["value"], a["value"], rtol=2e-3, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """The same run, whose measurements form no gradient of a risk."""
    out = tmp_path_factory.mktemp("runs") / "gated"
    by = ("sample", "layer", "tensor")
    run(replace(measure={"gradients": "gates", "pg_by": by}), out, report=True)
    return out


def test_gates_measure_what_formed_gradients_do(finished, gated):
    table = tables.read(gated, "g_effect")
    assert set(table["cosine"]) == set(table["risk_norm"]) == {None}
    columns = ("value", "update_effect", "interval_predicted", "risk_value", "interval_change")
    rows = select(tables.read(finished, "g_effect"))
    for exact, row in zip(rows, select(table), strict=True):
        assert (row["layer"], row["risk"], row["step"]) == (
            exact["layer"],
            exact["risk"],
            exact["step"],
        )
        scale = exact["risk_norm"] * exact["objective_norm"]
        for column in columns:
            if exact[column] is not None:
                np.testing.assert_allclose(
                    row[column], exact[column], rtol=1e-3, atol=1e-4 * scale, err_msg=column
                )


def test_effects_by_layer_and_tensor_sum_to_their_sample(gated):
    pg = tables.read(gated, "pg_effect")
    layers = {"embed", "block_0", "block_1", "norm", "lm_head"}
    for total in select(pg, layer="total"):
        key = {k: total[k] for k in ("objective", "step", "risk", "sample")}
        rows = {row["layer"]: row["value"] for row in select(pg, **key)}
        by_layer = sum(rows[layer] for layer in layers)
        tensors = {name: value for name, value in rows.items() if "." in name}
        assert len(tensors) > len(layers)
        size = sum(abs(value) for value in tensors.values())
        np.testing.assert_allclose(by_layer, total["value"], atol=1e-4 * size)
        np.testing.assert_allclose(sum(tensors.values()), total["value"], atol=1e-4 * size)


def test_effects_by_layer_are_drawn(gated):
    assert (gated / "figures" / "pg_layers_npo.png").stat().st_size > 0


def test_another_run_does_not_overwrite(finished):
    other = replace(unlearn={"lr": 0.5})
    with pytest.raises(ValueError, match=r"unlearn\.lr: 0.001 -> 0.5"):
        recipe.begin(other, finished, jax.devices()[:1])


@pytest.mark.slow
def test_what_is_parked_on_the_host_changes_nothing(finished, tmp_path):
    run(replace(compute={"offload": True}), tmp_path / "run")
    for name in ("g_effect", "pg_effect", "token_effect", "samples", "confidence"):
        assert tables.read(tmp_path / "run", name) == tables.read(finished, name), name
    log = files.records(finished / "metrics.jsonl")
    assert files.records(tmp_path / "run" / "metrics.jsonl") == log


@pytest.mark.parametrize("steps", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_trace_ends_with_the_run_at_the_latest(tmp_path, steps):
    config = replace(
        finetune={"epochs": 0},
        objectives={"ga": Objective()},
        measure={"every": 0, "pg_steps": (), "token_steps": ()},
    )
    started = recipe.begin(config, tmp_path / "run", jax.devices()[:1])
    recipe.execute(started, profile=steps)
    traces = list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 0
    assert not (tmp_path / "run" / "g_effect.parquet").exists()  # a run may measure nothing


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no run of ours"):
        recipe.begin(TINY, tmp_path, jax.devices()[:1])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("measured", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_an_objective_that_diverges_keeps_its_last_finite_state(tmp_path, measured):
    """With a rate that no float32 survives; the next objective goes on."""
    schedule = {"steps": (0, 3)} if measured else {"every": 0}
    config = replace(
        finetune={"epochs": 0},
        objectives={"ga": Objective(lr=1e20), "npo": Objective()},
        unlearn={"warmup_epochs": 2.0},
        measure=schedule | {"pg_steps": (), "token_steps": ()},
    )
    folder = RunFolder(tmp_path / "run")
    run(config, folder.path, report=True)
    models = files.read_json(folder.results)["models"]
    ga, npo = models["ga"], models["npo"]
    assert "diverged" not in npo and npo["steps"] == npo["of_steps"] == ga["of_steps"]
    # The rate of step 0 is 0, so that step 1 makes the first change, which step 2 sees.
    assert (ga["steps"], ga["diverged"]["step"]) == (1, 2)
    assert ga["forget_nll"] == models["base"]["forget_nll"]
    assert ga["diverged"]["layer"] in (
        "block_0",
        "block_1 or norm",
    )  # weights of 1e20 meet each other
    assert (ga["diverged"]["sample"], ga["diverged"]["samples"]) == (0, 3)
    assert newest(folder.checkpoints("ga")).name == "1"
    assert "stopped at 1" in folder.summary.read_text()
    for call in (relearn, evaluate):
        with pytest.raises(
            FileNotFoundError, match=r"'ga' diverged after step 1 of .* final model"
        ):
            call(folder.path, only=["ga"])
    before = digests(folder.path)
    run(config, folder.path)  # it is done, and nothing is computed again
    assert digests(folder.path) == before


@pytest.mark.nightly
def test_every_objective_and_retain_term_runs(tmp_path):

    objectives = {name: Objective(retain="gd") for name in objective_names()}
    objectives |= {
        "ga_kl": Objective(loss="ga", retain="kl"),
        "ga_rr": Objective(loss="ga", retain="rr"),
    }
    objectives["mine"] = Objective(loss="tests.pipeline.tiny_losses:mine", hyper={"alpha": 2.0})
    config = replace(
        objectives=objectives,
        finetune={"epochs": 0},
        unlearn={"epochs": 2},
        measure={"pg_steps": (), "token_steps": ()},
        data={"measured_retain": "holdout"},
    )
    run(config, tmp_path / "run")
    table = tables.read(tmp_path / "run", "g_effect")
    for name in objectives:
        rows = select(table, objective=name, layer="total", step=2)
        assert len(rows) == 2 and all(np.isfinite(row["value"]) for row in rows), name
        assert all(row["objective_norm"] > 0 for row in rows), name
