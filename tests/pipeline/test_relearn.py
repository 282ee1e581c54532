"""Relearning on a tiny run: what it records, what the numbers must satisfy, how it resumes."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.config import Objective, load
from jaxunlearn.core import files
from jaxunlearn.data.order import attack_ids
from jaxunlearn.evaluation.attacks import FineTuneOn
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics.relearning import int8_rounded
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.pipeline.relearn import relearn, request
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.tables import FIGURE_COLUMNS
from jaxunlearn.reporting import relearn_table
from jaxunlearn.reporting.figures import relearn as relearn_figures
from jaxunlearn.training import step
from jaxunlearn.training.losses import FineTuning, Risk
from tests.pipeline.tiny import reconfigure, replace, run

pytestmark = pytest.mark.slow

CONFIG = replace(
    finetune={"epochs": 3},
    unlearn={"epochs": 2},
    objectives={"npo": Objective(hyper={"beta": 0.5})},
    measure={"every": 0, "steps": None, "pg_steps": (), "token_steps": ()},
)
MODELS = ("npo", "retrained")
STEPS = 3


def attack(out, **arguments):
    relearn(out, **{"steps": STEPS, "devices": jax.devices()[:1]} | arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run; its retrained model is a copy of the one before unlearning, which forgot nothing."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(CONFIG, out)
    shutil.copytree(out / "base", out / "retrained")
    return out


@pytest.fixture(scope="module")
def attacked(finished):
    attack(finished)
    return finished


@pytest.fixture(scope="module")
def benign(attacked, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "copy"
    shutil.copytree(attacked, out)
    attack(out, samples=[1], benign=True)
    return out


def records(out, **wanted):
    found = files.records(out / "relearn.jsonl")
    return [r for r in found if all(r[key] == value for key, value in wanted.items())]


def test_every_model_under_every_attack(attacked):
    """3 samples to forget: of the default attacks 1 and all differ; and int8."""
    for model in MODELS:
        for attack, shown in (("1", 1), ("all", 3)):
            rows = records(attacked, model=model, attack=attack)
            assert [row["step"] for row in rows] == list(range(STEPS + 1))
            assert {row["samples"] for row in rows} == {shown}
        assert [row["step"] for row in records(attacked, model=model, attack="int8")] == [0, 1]
    assert [row["step"] for row in records(attacked, model="base")] == [0, 1]
    report = json.loads((attacked / "relearn.json").read_text())
    assert list(report["models"]) == ["base", *MODELS]
    assert report["settings"] == {"steps": STEPS, "lr": 1e-3, "batch_size": 4}  # lr of unlearning
    assert not list(attacked.rglob("*.tmp"))


def test_step_zero_is_the_unlearned_model(attacked):
    evaluated = json.loads((attacked / "results.json").read_text())["models"]
    for model, told in {"npo": evaluated["npo"], "retrained": evaluated["base"]}.items():
        for row in records(attacked, model=model, step=0):
            np.testing.assert_allclose(row["forget_nll"], told["forget_nll"], rtol=1e-6)
            np.testing.assert_allclose(row["forget_es"], told["forget_es"], atol=1e-6)
    report = json.loads((attacked / "relearn.json").read_text())
    np.testing.assert_allclose(
        report["models"]["base"]["forget_es"], evaluated["base"]["forget_es"], atol=1e-6
    )


def test_fine_tuning_on_all_lowers_the_loss_it_follows(attacked):
    for model in MODELS:
        rows = records(attacked, model=model, attack="all")
        assert rows[-1]["forget_nll"] < rows[0]["forget_nll"]
        for row in rows:  # all of D_u are shown: R(D_u) is the loss, and e its squared gradient
            np.testing.assert_allclose(row["loss"], row["forget_nll"], rtol=1e-5)
            np.testing.assert_allclose(row["cosine"], 1, rtol=1e-5)
            assert row["unseen_es"] is None and row["effect"] > 0


def test_the_unseen_are_the_rest(attacked):
    out, prepared = attacked, prepare(CONFIG, jax.devices()[:1])
    (shown,) = attack_ids(CONFIG.seed, 3, 1)
    with jax.set_mesh(prepared.mesh):
        params = stored.stage_params(RunFolder(out), prepared, "npo")
        found = statistics.statistics(
            params, prepared.layout.split(prepared.sets.forget), prepared.model
        )
    row, *_ = records(out, model="npo", attack="1", step=0)
    rest = np.delete(found.extraction_strength, shown)
    np.testing.assert_allclose(row["unseen_es"], rest.mean(), atol=1e-6)
    logp, mask = (np.delete(x, shown, axis=0) for x in (found.logp, found.mask))
    np.testing.assert_allclose(row["unseen_nll"], -logp.sum() / mask.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        row["loss"], -found.logp[shown].sum() / found.mask[shown].sum(), rtol=1e-5
    )


def test_layers_sum_to_the_effect(attacked):
    layers = files.records(attacked / "relearn_layers.jsonl")
    assert {r["layer"] for r in layers} == {"embed", "block_0", "block_1", "norm", "lm_head"}
    for row in records(attacked):
        if row["attack"] != "int8":
            keys = ("model", "attack", "step")
            mine = [r for r in layers if all(r[k] == row[k] for k in keys)]
            norms = np.prod([np.linalg.norm([r[n] for r in mine]) for n in NORMS])
            np.testing.assert_allclose(
                sum(r["value"] for r in mine), row["effect"], rtol=1e-4, atol=1e-6 * norms
            )
            np.testing.assert_allclose(row["cosine"] * norms, row["effect"], rtol=1e-3, atol=1e-6)


NORMS = ("risk_norm", "loss_norm")


@pytest.mark.parametrize("name", ["1", pytest.param("benign", marks=pytest.mark.slow)])
def test_the_effect_is_what_a_gradient_step_does_to_the_risk(request, name):
    """d/dh R(theta - h grad L) at h = 0 is - e, by central differences along another path."""
    out = request.getfixturevalue("benign" if name == "benign" else "attacked")
    row, *_ = records(out, model="npo", attack=name, step=0)
    prepared = prepare(CONFIG, jax.devices()[:1])
    model = prepared.model
    pool = prepared.retain_eval if name == "benign" else prepared.sets.forget
    shown = [pool[i] for i in attack_ids(CONFIG.seed, len(pool), row["samples"])]
    with jax.set_mesh(prepared.mesh):
        params = stored.stage_params(RunFolder(out), prepared, "npo")
        rows, all_rows = (
            prepared.layout.split(samples).batches[0] for samples in (shown, prepared.sets.forget)
        )
        slope = jax.jit(jax.grad(lambda p: FineTuning(model)(p, rows)[0]))(params)

        @jax.jit
        def risk(size):
            moved = jax.tree.map(lambda p, g: p - size * g, params, slope)
            total, count = Risk(model, "token_mean")(moved, all_rows)
            return total / count

        size = 1e-2
        difference = (risk(jnp.float32(size)) - risk(jnp.float32(-size))) / (2 * size)
    np.testing.assert_allclose(-difference, row["effect"], rtol=2e-2, atol=2e-4)


def test_int8_is_the_rounded_model(attacked):
    prepared = prepare(CONFIG, jax.devices()[:1])
    with jax.set_mesh(prepared.mesh):
        forget = prepared.layout.split(prepared.sets.forget)
        for name in ("base", "npo"):
            params = int8_rounded(stored.stage_params(RunFolder(attacked), prepared, name))
            found = statistics.statistics(params, forget, prepared.model)
            row, *_ = records(attacked, model=name, attack="int8", step=1)
            np.testing.assert_allclose(row["forget_nll"], found.nll, rtol=1e-4)


def test_the_summary_says_what_the_records_say(attacked):
    report = json.loads((attacked / "relearn.json").read_text())
    before = report["models"]["base"]["forget_es"]
    for model, found in report["models"].items():
        for attack, result in found["attacks"].items():
            rows = records(attacked, model=model, attack=attack)
            start = rows[0]["forget_es"]
            back = [r["step"] for r in rows if r["forget_es"] >= start + 0.5 * (before - start)]
            whole = result["whole"]
            assert whole["tried"] == rows[-1]["step"]
            assert result["final_forget_es"] == rows[-1]["forget_es"]
            if before - start < 0.01:
                assert whole["status"] == "nothing forgotten" and whole["step"] is None
            else:
                assert whole["step"] == (back[0] if back else None)
            assert (result["unseen"] is None) == (attack == "all")


def test_what_is_there_is_not_computed_again(attacked, monkeypatch, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(attacked, out)
    monkeypatch.setattr(step, "train_step", forbidden)
    monkeypatch.setattr(stored, "stage_params", forbidden)
    names = ("relearn.jsonl", "relearn_layers.jsonl", "relearn.json")
    texts = [(out / name).read_bytes() for name in names]
    for name in names:
        (out / name).unlink()
    attack(out)
    assert [(out / name).read_bytes() for name in names] == texts
    (out / "relearn" / "npo-1.json").unlink()
    with pytest.raises(AssertionError, match="computed again"):
        attack(out)


def forbidden(*args, **kwargs):
    raise AssertionError("computed again")


@pytest.mark.slow
def test_data_to_retain(benign):
    """As many as there are to forget; none of D_u is shown, so all of it is unseen."""
    for model in MODELS:
        rows = records(benign, model=model, attack="benign")
        assert [(row["samples"], row["step"]) for row in rows] == [(3, t) for t in range(STEPS + 1)]
        assert all(row["unseen_es"] == row["forget_es"] for row in rows)
        assert all(row["loss"] != row["forget_nll"] for row in rows)
    told = json.loads((benign / "relearn.json").read_text())["models"]["npo"]["attacks"]
    assert list(told) == ["1", "all", "benign", "int8"]  # those of the call before as well


@pytest.mark.slow
def test_an_interrupted_call_goes_on_to_the_same_bytes(attacked, monkeypatch, tmp_path):
    out, true = tmp_path / "copy", FineTuneOn.run
    shutil.copytree(attacked, out, ignore=shutil.ignore_patterns("npo-*.json"))

    def crash(self, *arguments):
        if self.name == "all":
            raise KeyboardInterrupt
        return true(self, *arguments)

    monkeypatch.setattr(FineTuneOn, "run", crash)
    with pytest.raises(KeyboardInterrupt):
        attack(out)
    assert {f.name for f in (out / "relearn").glob("npo-*")} == {"npo-1.json"}
    monkeypatch.setattr(FineTuneOn, "run", true)
    attack(out)
    for name in ("relearn.jsonl", "relearn_layers.jsonl", "relearn.json"):
        assert (out / name).read_bytes() == (attacked / name).read_bytes()


@pytest.mark.slow
def test_other_settings_are_other_results(attacked, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(attacked, out)
    attack(out, only=["npo"], samples=["1"], steps=1, lr=1e-4)
    report = json.loads((out / "relearn.json").read_text())
    assert report["settings"] == {"steps": 1, "lr": 1e-4, "batch_size": 4}
    assert set(report["models"]["npo"]["attacks"]) == {"1", "int8"}
    assert [row["step"] for row in records(out, model="npo", attack="1")] == [0, 1]
    assert not records(out, attack="all")  # made with other settings


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"only": ["npoo"]}, r"no objective 'npoo'; there are: .*perhaps you meant 'npo'"),
        ({"only": ["retrained"]}, "--only: 'retrained' is no objective"),
        ({"samples": [4]}, r"relearn\.samples \(--samples\): 4 is neither 'all' nor in 1\.\.3"),
        ({"samples": ["half"]}, r"relearn\.samples \(--samples\): 'half' is neither"),
        ({"steps": 0}, r"relearn\.steps \(--steps\): 0 must be in 1\.\.10000000"),
        ({"lr": 0.0}, r"relearn\.lr \(--lr\): 0.0 must be positive"),
    ],
)
def test_bad_arguments(finished, arguments, told):
    with pytest.raises(ValueError, match=told):
        attack(finished, **arguments)


def test_without_benign_the_usual_attacks_are_made():
    asked = request(replace(relearn={"benign": True}), 40, benign=False)
    assert asked.counts and not asked.benign
    assert not request(replace(relearn={"benign": True}), 40).counts


def test_nothing_to_attack(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        attack(tmp_path / "nowhere")
    shutil.copy(finished / "config.yaml", tmp_path)
    with pytest.raises(FileNotFoundError, match="'npo' is not finished"):
        attack(tmp_path)
    with pytest.raises(FileNotFoundError, match="'npo' is not finished"):
        attack(tmp_path, only=["npo"])


def test_the_table_and_the_figure(attacked, capsys):
    attack(attacked, console=Console(width=100, force_terminal=False))
    told = capsys.readouterr().out
    for word in ("before", "npo", "retrained", "kept", "1 shown", "all", "int8 ES"):
        assert word in told, told
    found = json.loads((attacked / "relearn.json").read_text())
    figure = relearn_figures.relearn(relearn_table.figure_tables(attacked, CONFIG, found))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert [" ".join(t.split()) for t in titles] == [
        "on 1 forget sample",
        "on all 3 forget samples",
    ]
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == STEPS + 1]
    expected = [r["forget_es"] for r in records(attacked, model="npo", attack="1")]
    np.testing.assert_array_equal(drawn[0].get_ydata(), expected)
    assert relearn_figures.relearn({}) is None
    with pytest.raises(ValueError, match="no column 'effect'"):
        relearn_figures.relearn({"relearn": {name: [1] for name in FIGURE_COLUMNS["relearn"][:-1]}})


@pytest.mark.slow
def test_a_mesh_computes_the_same(tmp_path, attacked):
    """On two devices, parameters and rows split."""
    out = tmp_path / "copy"
    shutil.copytree(attacked, out, ignore=shutil.ignore_patterns("relearn*"))
    config = load(out / "config.yaml")
    compute = dataclasses.replace(config.compute, fsdp=2)
    reconfigure(out, dataclasses.replace(config, compute=compute))
    attack(out, only=["npo"], samples=[1], devices=jax.devices()[:2])
    for mine, theirs in zip(
        records(out, model="npo", attack="1"),
        records(attacked, model="npo", attack="1"),
        strict=True,
    ):
        for key in ("forget_nll", "unseen_nll", "effect", "loss"):
            np.testing.assert_allclose(mine[key], theirs[key], rtol=2e-3, atol=1e-4)


def test_a_start_of_some_objectives_keeps_the_attacks_of_the_others(tmp_path):
    """As when each of several jobs runs one of them in the same folder."""
    relearning = {"samples": (1,), "steps": 1}
    for name in ("ga", "npo"):
        run(replace(CONFIG, objectives={name: Objective()}, relearn=relearning), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "relearn.json").read_text())
    assert list(report["models"]) == ["base", "ga", "npo"]
    assert {row["model"] for row in records(tmp_path / "run")} == {"base", "ga", "npo"}
