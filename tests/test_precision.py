"""Where float32 is claimed, no matrix product of a program is left to the device's default.

Programs are lowered for CUDA and TPU, which needs neither, and the text is read.
"""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects, objectives
from jaxunlearn.config import Config, Objective
from jaxunlearn.data import packing, planning
from jaxunlearn.forecasting import programs
from jaxunlearn.forecasting.sketch import sketch
from jaxunlearn.models import decoder, sharding
from jaxunlearn.models.decoder.decode import generate
from tests.models.small_models import TIED, UNTIED, pack, random_params, random_sequences
from tests.pipeline.tiny import replace

ACCELERATORS = ("cuda", "tpu")
PRODUCT = re.compile(r"stablehlo\.dot_general .*?: \((tensor<[^>]*>), (tensor<[^>]*>)\)")
PRECISION = re.compile(r"precision = \[(\w+), (\w+)\]")


def float32_products(lowered) -> list[str]:
    """The precision of every product of float32 factors in a lowered program."""
    found = []
    for match in PRODUCT.finditer(lowered.as_text()):
        if all(kind.endswith("f32>") and not kind.endswith("bf16>") for kind in match.groups()):
            stated = PRECISION.search(match.group(0))
            assert stated is None or stated.group(1) == stated.group(2)
            found.append(stated.group(1) if stated else "DEFAULT")
    return found


def lower(function, *args, platform, **static):
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return jitted.trace(*args, **static).lower(lowering_platforms=(platform,))


def every_objective(**compute) -> Config:
    """A run of all objectives and retain terms, with measurements by layer and guided weights."""
    names = objectives.registry.names()
    terms = [*objectives.registry.retain_names(), None]
    specs = {name: Objective(retain=terms[i % len(terms)]) for i, name in enumerate(names)}
    measure = {"pg_by": ("sample", "token", "layer"), "token_steps": (2,), "pg_steps": (2,)}
    return replace(compute=compute, objectives=specs, measure=measure)


@pytest.fixture(scope="module")
def run_programs():
    prepared = sketch(every_objective(), jax.devices()[:1])
    gated = sketch(replace(every_objective(), measure={"gradients": "gates"}), jax.devices()[:1])
    return [*programs.programs(prepared), *programs.measuring(gated)]


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_every_program_of_a_run_states_highest(run_programs, platform):
    names = {type(p.static.get("loss", None)).__name__ for p in run_programs}
    assert {"UnlearnLoss", "FineTuning"} <= names
    for program in run_programs:
        with jax.set_mesh(program.mesh):
            lowered = lower(program.function, *program.args, platform=platform, **program.static)
        found = float32_products(lowered)
        assert found, program.name
        assert set(found) == {"HIGHEST"}, program.name


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("model", [TIED, UNTIED], ids=["tied", "untied"])
def test_generated_text_states_highest(model, platform):
    make = lambda params, prompts, lengths: generate(
        params, prompts, lengths, model, max_new_tokens=3, eos_token_id=None
    )
    lengths = jnp.array([4, 2])
    lowered = lower(make, random_params(model), jnp.ones((2, 4), int), lengths, platform=platform)
    assert set(float32_products(lowered)) == {"HIGHEST"}


@pytest.mark.parametrize(
    ("precision", "stated"), [("high", "HIGH"), ("default", "DEFAULT"), ("highest", "HIGHEST")]
)
def test_the_setting_is_what_the_program_states_whatever_the_global_flag(precision, stated):
    model = dataclasses.replace(UNTIED, precision=precision)
    batch = pack(random_sequences([7, 9], model.vocab_size))
    risk = lambda params: decoder.forward(params, batch, model).labels.sum()
    for flag in ("bfloat16", "float32"):
        with jax.default_matmul_precision(flag):
            lowered = lower(jax.grad(risk), random_params(model), platform="cuda")
        assert set(float32_products(lowered)) == {stated}


def test_a_configuration_reaches_the_programs():
    prepared = sketch(replace(compute={"precision": "default"}), jax.devices()[:1])
    (program, *_) = programs.training(prepared, prepared.tasks)
    with jax.set_mesh(program.mesh):
        lowered = lower(program.function, *program.args, platform="tpu", **program.static)
    assert set(float32_products(lowered)) == {"DEFAULT"}


def test_bfloat16_products_have_no_float32_factors_on_the_way_forward():
    model = dataclasses.replace(UNTIED, dtype="bfloat16")
    batch = pack(random_sequences([7, 9], model.vocab_size))
    risk = lambda params: decoder.forward(params, batch, model).labels.sum()
    assert float32_products(lower(risk, random_params(model), platform="cuda")) == []


class TestEffectsOfForeignFunctions:
    """A function that states nothing gets `highest` inside an effect, and the caller's choice."""

    params: ClassVar = {"w": np.ones((3, 2), np.float32)}
    batches: ClassVar = [np.arange(12, dtype=np.float32).reshape(4, 3)]

    def logp(self, seen):
        def logp(params, x):
            seen.append(jax.config.jax_default_matmul_precision)
            return -jnp.square(x @ params["w"]).sum(-1)

        return logp

    def loss(self, seen):
        logp = self.logp(seen)
        return lambda params, x: (-logp(params, x).sum(), len(x))

    @pytest.mark.parametrize("precision", ["highest", "default"])
    def test_every_public_function(self, precision):
        params, batches, along = self.params, self.batches, {"v": self.params}
        options = {} if precision == "highest" else {"precision": precision}
        losses = lambda loss: lambda params, batch: {"loss": loss(params, batch)}
        pg = lambda logp, method: effects.pg_effect(
            logp, params, batches, along, method=method, **options
        )
        calls = [
            lambda loss, _: effects.dataset_gradient(loss, params, batches, **options),
            lambda loss, _: effects.g_effect(loss, params, batches, params, **options),
            lambda loss, _: effects.g_effects_of(losses(loss), params, batches, params, **options),
            lambda _, logp: pg(logp, "jvp"),
            lambda _, logp: pg(logp, "vmap"),
            lambda _, logp: effects.choose_pg_method(logp, params, batches[0], along, **options),
        ]
        for call in calls:
            seen: list = []  # fresh functions: one that is compiled already is not traced again
            with jax.default_matmul_precision("bfloat16"):  # a user's global choice
                call(self.loss(seen), self.logp(seen))
            assert seen and set(seen) == {precision}

    def test_gates_too(self):
        seen: list = []

        def logp(params, batch, probe=None):
            seen.append(jax.config.jax_default_matmul_precision)
            return decoder_logp(params, batch, probe)

        batch = pack(random_sequences([7, 9], UNTIED.vocab_size))
        params = random_params(UNTIED)

        def decoder_logp(params, batch, probe):
            return decoder.forward(params, batch, UNTIED, probe=probe).labels.sum(-1)

        def risk(params, batch, probe=None):
            return -logp(params, batch, probe).sum(), 2

        grouping = effects.Grouping(stacked=decoder.STACKED)
        effects.g_effect(risk, params, [batch], params, method="gates", grouping=grouping)
        assert set(seen) == {"highest"}

    def test_another_precision_is_an_error(self):
        with pytest.raises(ValueError, match="precision='exact'; it is 'highest'"):
            effects.dataset_gradient(self.loss([]), self.params, self.batches, precision="exact")


def test_unknown_settings_are_errors():
    with pytest.raises(ValueError, match="precision='tf32' is not one of 'highest'"):
        dataclasses.replace(UNTIED, precision="tf32")
    with pytest.raises(ValueError, match="reduce='fp16' is not one of 'float32'"):
        dataclasses.replace(UNTIED, reduce="fp16")


class TestWeightGradientsOfBfloat16:
    """They leave their product in float32, or in bfloat16 where the run asks for that."""

    def gradient(self, reduce, model=UNTIED):
        model = dataclasses.replace(model, dtype="bfloat16", reduce=reduce)
        batch = pack(random_sequences([7, 9, 12], model.vocab_size))
        risk = lambda params: decoder.forward(params, batch, model).labels.sum()
        return jax.jit(jax.grad(risk))(random_params(model))

    @staticmethod
    def bits_below_bfloat16(leaf) -> float:
        """The share of numbers that bfloat16 could not hold."""
        leaf = np.asarray(leaf, np.float32)
        return float(np.mean(leaf.view(np.uint32) & 0xFFFF != 0))

    @pytest.mark.parametrize("model", [TIED, UNTIED], ids=["tied", "untied"])
    def test_their_numbers_are_float32(self, model):
        gradient = self.gradient("float32", model)
        for name in ("q", "o", "gate", "down"):
            assert self.bits_below_bfloat16(gradient["blocks"][name]["kernel"]) > 0.5, name

    def test_or_bfloat16(self):
        gradient = self.gradient("bfloat16")
        for name in ("q", "o", "gate", "down"):
            assert self.bits_below_bfloat16(gradient["blocks"][name]["kernel"]) == 0, name

    @pytest.mark.parametrize("reduce", ["float32", "bfloat16"])
    def test_forward_and_reverse_mode_agree(self, reduce):
        """Along one direction, by jvp and by the gradient: to bfloat16's precision."""
        model = dataclasses.replace(UNTIED, dtype="bfloat16", reduce=reduce)
        batch = pack(random_sequences([7, 9, 12], model.vocab_size))
        risk = lambda params: decoder.forward(params, batch, model).labels.sum()
        params, direction = random_params(model), random_params(model, seed=1)
        _, forward = jax.jvp(risk, (params,), (direction,))
        gradient = jax.grad(risk)(params)
        scale = effects.layer_dots(gradient, gradient).sum() ** 0.5
        scale *= effects.layer_dots(direction, direction).sum() ** 0.5
        reverse = effects.layer_dots(gradient, direction).sum()
        assert abs(forward - reverse) / scale < 3e-3


class TestReductionOverDevices:
    """What bfloat16 sums over 8 devices do to e_u and e_r, as docs/precision.md says."""

    @staticmethod
    def effects_on(devices: int, reduce: str) -> np.ndarray:
        """[(e_u, scale), (e_r, scale)]; the scale is the product of both gradients' norms."""
        model = dataclasses.replace(
            UNTIED, hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=256
        )
        params = random_params(model)
        model = dataclasses.replace(model, dtype="bfloat16", reduce=reduce)
        mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])

        def risk(params, rows):
            return -decoder.forward(params, rows, model).labels.sum(), len(rows.tokens)

        def objective(params, rows):
            logp = decoder.forward(params, rows, model).labels
            return (jnp.exp(0.1 * logp) * logp).sum(), len(rows.tokens)

        with jax.set_mesh(mesh):
            params = jax.device_put(params, sharding.param_shardings(model, mesh))
            place = lambda seed: jax.device_put(_rows(seed), sharding.batch_sharding(mesh))
            forget, retain = place(0), place(3)
            direction = effects.dataset_gradient(objective, params, [forget]).gradient
            found = []
            for rows in (forget, retain):
                gradient = effects.dataset_gradient(risk, params, [rows]).gradient
                effect = effects.g_effect_between(gradient, direction, by="total")
                found.append((effect.value, effect.risk_norm * effect.direction_norm))
            return np.array(found)

    def test_float32_sums_do_not_depend_on_the_devices(self):
        alone, split = self.effects_on(1, "float32"), self.effects_on(8, "float32")
        assert np.max(np.abs(alone - split)[:, 0] / alone[:, 1]) < 1e-6

    def test_bfloat16_sums_move_effects_by_1e_5_to_1e_4_of_the_norms(self):
        exact, rounded = self.effects_on(1, "float32"), self.effects_on(8, "bfloat16")
        errors = np.abs(exact - rounded)[:, 0] / exact[:, 1]
        assert errors.min() > 2e-6 and errors.max() < 1e-4


def _rows(seed):
    """32 sequences in 32 rows or fewer, a multiple of 8."""
    lengths = [7, 9, 12, 14, 15, 11, 16, 13] * 4
    samples = random_sequences(lengths, vocab_size=256, seed=seed)
    options = {"width": 16, "max_width": 16, "target_tokens": 10**6, "row_multiple": 8}
    (rows,) = packing.dataset_batches(samples, planning.plan_dataset(samples, **options))
    return rows
