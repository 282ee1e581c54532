"""Whole runs that train a part of the parameters: adapters, or what patterns choose."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxunlearn import cli, effects
from jaxunlearn.config import Lora, Objective
from jaxunlearn.measurement.interval import Interval
from jaxunlearn.models import hf
from jaxunlearn.pipeline import inputs, recipe, stored
from jaxunlearn.pipeline.export import export
from jaxunlearn.pipeline.origin import starting_params
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting.report import write_report
from jaxunlearn.training.checkpoint import newest
from tests.pipeline.test_recipe import Crash, digests, select
from tests.pipeline.tiny import reconfigure, replace, run

ADAPTERS = Lora(rank=2, targets=("q", "v", "down_proj"))
# No measurement: a run that the fast tests can afford.
PLAIN = replace(
    train={"lora": ADAPTERS},
    finetune={"epochs": 1},
    unlearn={"epochs": 2, "lr": 1e-2},
    objectives={"npo": Objective()},
    measure={"every": 0, "steps": None, "pg_steps": (), "token_steps": ()},
)
MEASURED = replace(
    train={"lora": ADAPTERS},
    objectives={"ga": Objective(), "npo": Objective(retain="kl", hyper={"beta": 0.5})},
)
ONLY = replace(train={"only": ("down", "^norm"), "frozen_dtype": "bfloat16"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    run(PLAIN, out)
    return out


def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def saved(out, objective):
    """The leaves of the newest checkpoint, by their names."""
    from orbax.checkpoint import v1 as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was saved by this machine, with these devices
        state = ocp.load(str(newest(out / "objectives" / objective / "checkpoints").absolute()))
    params = state["params"] if isinstance(state, dict) else state.params
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): x
        for path, x in jax.tree.leaves_with_path(params)
    }


# ---- adapters -----------------------------------------------------------------------------------


def test_checkpoints_hold_adapters_alone(plain):
    names = {f"blocks.{name}.lora_{key}" for name in ("q", "v", "down") for key in "ab"}
    assert set(saved(plain, "npo")) == names


def test_the_final_model_is_the_base_with_adapters_in_it(plain, tmp_path):
    """What is exported differs from the base in the targets alone, and in those by s A B."""
    export(plain, "npo", tmp_path / "merged")
    merged, base, own = tensors(tmp_path / "merged"), tensors(plain / "base"), saved(plain, "npo")
    assert merged.keys() == base.keys()
    changed = {name for name in base if not np.array_equal(merged[name], base[name])}
    module = "model.layers.{}.{}.weight"
    paths = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"}
    assert changed == {module.format(i, path) for path in paths.values() for i in (0, 1)}
    for name, path in paths.items():
        a, b = (np.asarray(own[f"blocks.{name}.lora_{key}"], np.float64) for key in "ab")
        assert np.abs(b).max() > 1e-4
        expected = base[module.format(1, path)] + 2 * (a[1] @ b[1]).T
        np.testing.assert_allclose(merged[module.format(1, path)], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_its_adapter_is_a_folder_of_peft(plain, tmp_path, capsys):
    """The adapter on the base computes what the merged export does."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft", reason="peft is in the extra `oracle`")
    import transformers

    folder = tmp_path / "adapter"
    assert cli.main(["export", str(plain), "npo", str(folder), "--adapter"]) == 0
    capsys.readouterr()
    raw = json.loads((folder / "adapter_config.json").read_text())
    assert (raw["r"], raw["lora_alpha"]) == (2, 4)
    assert raw["base_model_name_or_path"] == str(plain / "base")
    export(plain, "npo", tmp_path / "merged")
    load = transformers.AutoModelForCausalLM.from_pretrained
    base = load(raw["base_model_name_or_path"]).eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, folder).eval()(ids).logits
        merged = load(tmp_path / "merged").eval()(ids).logits
    np.testing.assert_allclose(adapted, merged, atol=1e-5)
    assert (adapted - before).abs().max() > 1e-4


@pytest.mark.slow
def test_an_adapter_names_the_model_that_was_fine_tuned(plain, tmp_path):
    """Of a run that fine-tunes a given model, adapters do not belong to the given one."""
    run(dataclasses.replace(PLAIN, model=str(plain / "base")), tmp_path / "second")
    export(tmp_path / "second", "npo", tmp_path / "adapter", adapter=True)
    raw = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(tmp_path / "second" / "base")


@pytest.mark.nightly
def test_the_types_in_which_parameters_are_read(plain, tmp_path):
    """An adapter from a folder is float32, and a frozen model is read as bfloat16 at once."""
    export(plain, "npo", tmp_path / "adapter", adapter=True)
    config = beginning_from(plain, tmp_path / "adapter", frozen_dtype="bfloat16")
    prepared = prepare(config, jax.devices()[:1])
    initial = prepared.initial()
    assert {x.dtype.name for x in jax.tree.leaves(initial)} == {"bfloat16"}
    params = starting_params(prepared, initial)
    assert params["blocks"]["q"]["kernel"] is initial["blocks"]["q"]["kernel"]
    own = saved(plain, "npo")
    np.testing.assert_array_equal(params["blocks"]["v"]["lora_b"], own["blocks.v.lora_b"])


def beginning_from(plain, adapter, **train):
    """The configuration of a run that goes on from an adapter on the base of another."""
    train = {"lora": Lora(start=str(adapter)), **train}
    return replace(PLAIN, model=str(plain / "base"), train=train, finetune={"epochs": 0})


@pytest.mark.nightly
def test_a_run_begins_from_an_adapter(plain, tmp_path):
    """Its model before unlearning is the one after unlearning of the run that wrote the adapter."""
    export(plain, "npo", tmp_path / "adapter", adapter=True)
    config = beginning_from(plain, tmp_path / "adapter")
    run(config, tmp_path / "run")
    before, after = (
        json.loads((out / "results.json").read_text())["models"]
        for out in (plain, tmp_path / "run")
    )
    for key in ("forget_nll", "retain_nll", "forget_es"):
        np.testing.assert_allclose(after["base"][key], before["npo"][key], rtol=1e-5)
    assert after["npo"]["forget_nll"] > after["base"]["forget_nll"]
    prepared = prepare(config, jax.devices()[:1])
    theta_0 = stored.stage_params(RunFolder(tmp_path / "run"), prepared, "base")
    export(plain, "npo", tmp_path / "merged")
    merged = hf.load_params(tmp_path / "merged", prepared.model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), theta_0, merged)
    # The folder of the adapter is an input of the run.
    shutil.rmtree(tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match=r"adapter: no such folder"):
        run(config, tmp_path / "run")
    export(plain, "npo", tmp_path / "adapter", "bfloat16", adapter=True)
    with pytest.raises(ValueError, match=r"other contents of train\.lora\.start"):
        run(config, tmp_path / "run")


def test_what_has_no_adapter_is_refused(plain, tmp_path, capsys):
    code = cli.main(["export", str(plain), "base", str(tmp_path / "free"), "--adapter"])
    error = capsys.readouterr().err
    assert code == 2 and "base has no adapters; name an objective" in error
    other = shutil.copytree(plain, tmp_path / "other")
    reconfigure(other, replace(PLAIN, train={"lora": Lora()}))
    code = cli.main(["export", str(other), "npo", str(tmp_path / "free"), "--adapter"])
    error = capsys.readouterr().err
    assert code == 2 and "the run has no adapters (train.lora)" in error
    assert not (tmp_path / "free").exists()


def test_a_frozen_model_that_changed_is_not_exported(plain, tmp_path):
    """The checkpoints hold adapters alone: those would be merged into other matrices."""
    model = shutil.copytree(plain / "base", tmp_path / "model")
    out = shutil.copytree(plain, tmp_path / "run")
    config = replace(PLAIN, model=str(model), finetune={"epochs": 0})
    reconfigure(out, config)
    (out / "inputs.json").write_text(json.dumps(inputs.of_weights(config)))
    export(out, "npo", tmp_path / "whole")
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    for adapter in (False, True):
        with pytest.raises(ValueError, match="begun with other contents of model"):
            export(out, "npo", tmp_path / "other", adapter=adapter)
    assert not (tmp_path / "other").exists()


def test_the_model_of_a_run_must_not_be_an_adapter(plain, tmp_path):
    export(plain, "npo", tmp_path / "adapter", adapter=True)
    config = replace(PLAIN, model=str(tmp_path / "adapter"), finetune={"epochs": 0})
    with pytest.raises(ValueError, match=r"is a PEFT adapter of .*base and no model; write model:"):
        recipe.begin(config, tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_another_part_is_another_run(plain):
    with pytest.raises(ValueError, match=r"train\.lora\.rank: 2 -> 3"):
        recipe.begin(
            replace(PLAIN, train={"lora": Lora(rank=3, targets=ADAPTERS.targets)}),
            plain,
            jax.devices()[:1],
        )


# ---- measurements, resume, devices --------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "measured"
    run(MEASURED, out)
    return out


@pytest.fixture(scope="module")
def only(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "only"
    run(ONLY, out)
    return out


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["measured", "only"])
def test_effects_are_those_on_what_trains(name, request):
    out = request.getfixturevalue(name)
    table = tables.read(out, "g_effect")
    blocks = {"block_0", "block_1", "total"}
    assert set(table["layer"]) == (blocks | {"norm"} if name == "only" else blocks)
    for row in select(table, layer="total"):
        key = {k: row[k] for k in ("objective", "risk", "step")}
        parts = [r["value"] for r in select(table, **key) if r["layer"] != "total"]
        scale = row["risk_norm"] * row["objective_norm"]
        np.testing.assert_allclose(sum(parts), row["value"], rtol=1e-4, atol=1e-6 * scale)
        # What the frozen rest does not do is not predicted: the forecast is as good as elsewhere.
        if abs(row["interval_change"]) > 1e-3:
            np.testing.assert_allclose(row["interval_predicted"], row["interval_change"], rtol=0.3)
    for row in select(table, objective="ga", risk="unlearn", layer="total"):
        np.testing.assert_allclose(row["value"], -(row["risk_norm"] ** 2), rtol=1e-4)
    pg = tables.read(out, "pg_effect")
    assert set(pg["layer"]) == {"total"} and len(pg["layer"]) > 0
    write_report(out)
    assert "trains: " in (out / "summary.md").read_text()


@pytest.mark.slow
def test_the_effect_at_the_start_is_that_of_the_dense_gradients(measured):
    """At B = 0 adapters have dL/dA = 0 and dL/dB = s A^T dL/dW."""
    prepared = prepare(MEASURED, jax.devices()[:1])
    folder = RunFolder(measured)
    base = stored.stage_params(folder, prepared, "base")
    params = starting_params(prepared, base)
    from jaxunlearn.training.losses import Risk

    split = prepared.layout.split(prepared.sets.forget)
    risk = Risk(prepared.model, "sequence_sum")
    dense = effects.dataset_gradient(risk, base, split.batches).gradient["blocks"]
    by_hand = np.zeros(2)
    for name in prepared.unlearn_model.lora.targets:
        a = np.asarray(params["blocks"][name]["lora_a"], np.float64)
        by_hand -= ((2 * a.swapaxes(1, 2) @ np.asarray(dense[name]["kernel"])) ** 2).sum((1, 2))
    table = tables.read(measured, "g_effect")
    rows = select(table, objective="ga", risk="unlearn", step=0)
    found = [row["value"] for row in rows if row["layer"] != "total"]
    np.testing.assert_allclose(found, by_hand, rtol=1e-4)


@pytest.mark.slow
def test_frozen_parameters_stay_what_they_were(only):
    """In bfloat16 they are those of the base model, rounded once."""
    prepared = prepare(ONLY, jax.devices()[:1])
    base = stored.stage_params(RunFolder(only), prepared, "base")
    assert {x.split(".")[-2] for x in saved(only, "ga")} == {"down", "norm"}
    for name in ("ga", "npo"):
        final = stored.stage_params(RunFolder(only), prepared, name)
        for leaf in prepared.model.leaves():
            own, before = leaf.get(final), leaf.get(base)
            if leaf.path[-2] in ("down", "norm"):
                assert not np.array_equal(own, before)
            else:
                rounded = before.astype("bfloat16").astype("float32")
                np.testing.assert_array_equal(own, rounded)


@pytest.mark.nightly
def test_adapters_that_diverge_leave_their_last_finite_state(tmp_path):
    """Steps are taken again from a checkpoint of adapters, beside the frozen model."""
    config = replace(PLAIN, unlearn={"epochs": 4, "lr": 3e38, "warmup_epochs": 0})
    run(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "results.json").read_text())["models"]["npo"]
    assert 0 < result["diverged"]["step"] == result["steps"] + 1 < result["of_steps"]
    assert np.isfinite(result["forget_nll"])
    assert all(np.isfinite(x).all() for x in saved(tmp_path / "run", "npo").values())


@pytest.mark.nightly
def test_a_run_of_which_no_block_trains_has_a_report(tmp_path):
    """The groups of layers are those that have effects."""
    objectives = {"ga": Objective()}
    measure = {"every": 3, "pg_steps": (0,), "token_steps": (), "layer_cuts": (1, 2)}
    config = replace(
        train={"only": ("^norm",)}, measure=measure, objectives=objectives, finetune={"epochs": 1}
    )
    run(config, tmp_path / "run", report=True)
    assert set(tables.read(tmp_path / "run", "g_effect")["layer"]) == {"norm", "total"}
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_other(measured, tmp_path, monkeypatch):
    """Killed between two measurements of the second objective, the run repeats itself bitwise."""
    deaths, real = [], Interval.close

    def dying(self, step, params, stats):
        if step == 4 and self.measurer.name == "npo" and not deaths:
            deaths.append(step)
            raise Crash
        real(self, step, params, stats)

    monkeypatch.setattr(Interval, "close", dying)
    with pytest.raises(Crash):
        run(MEASURED, tmp_path / "run")
    run(MEASURED, tmp_path / "run")
    assert deaths == [4]
    assert digests(tmp_path / "run") == digests(measured)
    for name, leaf in saved(tmp_path / "run", "npo").items():
        np.testing.assert_array_equal(leaf, saved(measured, "npo")[name])


@pytest.mark.nightly
def test_a_run_on_eight_devices_gives_the_same_numbers(measured, tmp_path):
    config = replace(MEASURED, compute={"data": 2, "fsdp": 2, "tensor": 2})
    run(config, tmp_path / "run", jax.devices())
    one, eight = (tables.read(out, "g_effect") for out in (measured, tmp_path / "run"))
    for a, b in zip(select(one, layer="total"), select(eight, layer="total"), strict=True):
        scale = a["risk_norm"] * a["objective_norm"]
        np.testing.assert_allclose(b["value"], a["value"], rtol=2e-3, atol=1e-4 * scale)


@pytest.mark.nightly
def test_gates_tensors_evaluation_and_attacks(measured, tmp_path):
    """Offloaded, without risk gradients, with suites on the way and relearning at the end."""
    config = replace(
        MEASURED,
        compute={"offload": True},
        measure={"gradients": "gates", "pg_by": ("sample", "layer", "tensor")},
        evaluate={"suites": ("memorization", "uwc"), "generate": 0, "every": 3},
        relearn={"samples": (1,), "steps": 2},
    )
    out = tmp_path / "run"
    run(config, out)
    full, gated = (
        select(tables.read(folder, "g_effect"), layer="total") for folder in (measured, out)
    )
    for exact, row in zip(full, gated, strict=True):
        scale = exact["risk_norm"] * exact["objective_norm"]
        for column in ("value", "update_effect", "interval_predicted"):
            np.testing.assert_allclose(row[column], exact[column], rtol=1e-3, atol=1e-4 * scale)
    pg = tables.read(out, "pg_effect")
    assert {"block_0", "block_1", "block_1.v.lora_b", "total"} <= set(pg["layer"])
    assert not {"embed", "norm", "block_0.k.kernel"} & set(pg["layer"])
    models = json.loads((out / "evaluation.json").read_text())["models"]
    assert {"base", "ga", "npo"} <= set(models)
    # The last evaluation on the way and the one of the stored model are of one model.
    assert json.loads((out / "relearn.json").read_text())
