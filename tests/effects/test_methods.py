"""Which method gives what, on a real (tiny) Llama: by tensor, in bfloat16, without forward mode."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import unpack
from jaxunlearn.effects import programs
from jaxunlearn.models import decoder

MODEL = decoder.DecoderConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    context=32,
)
LENGTHS = (9, 14, 5, 11)
TENSORS = 2 * 9 + 3
# The model's blocks are stacked; nothing in `effects` knows that.
BLOCKS = effects.Grouping(stacked=decoder.STACKED)
pg_effect = functools.partial(effects.pg_effect, grouping=BLOCKS)
g_effect = functools.partial(effects.g_effect, grouping=BLOCKS)
layer_names = functools.partial(effects.layer_names, grouping=BLOCKS)
tensor_names = functools.partial(effects.tensor_names, grouping=BLOCKS)
choose_pg_method = functools.partial(effects.choose_pg_method, grouping=BLOCKS)


@dataclasses.dataclass(frozen=True)
class SampleLogProbs:
    """log p of every sample, [B]; the logits pass through `kernel`, which has a rule of its own."""

    model: decoder.DecoderConfig
    fused: bool = False

    def __call__(self, params, packed, probe=None):
        head = fused_log_probs if self.fused else decoder.label_log_probs
        out = decoder.forward(params, packed, self.model, head=head, probe=probe)
        return unpack(out.labels, packed).sum(-1)


@jax.custom_vjp
def kernel(logits):
    """What a fused kernel looks like to JAX: a reverse rule, and no forward one."""
    return logits * 1.0


kernel.defvjp(lambda x: (kernel(x), None), lambda _, dy: (dy,))


def fused_log_probs(logits, labels):
    return decoder.label_log_probs(kernel(logits), labels)


@dataclasses.dataclass(frozen=True)
class Ungated:
    """The same without `probe`."""

    inner: SampleLogProbs

    def __call__(self, params, packed):
        return self.inner(params, packed)


@dataclasses.dataclass(frozen=True)
class Risk:
    model: decoder.DecoderConfig

    def __call__(self, params, packed, probe=None):
        losses = -SampleLogProbs(self.model)(params, packed, probe)
        return losses.sum(), jnp.asarray(float(len(LENGTHS)))


@pytest.fixture(scope="module")
def setting():
    keys = jax.random.split(jax.random.key(0), 4)
    noisy = lambda key, x: x + 0.3 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape)
    params = jax.tree.map(lambda x: noisy(keys[1], x), decoder.init_params(keys[0], MODEL))
    directions = {
        name: jax.tree.map(lambda x, key=key: noisy(key, jnp.zeros_like(x)), params)
        for name, key in (("unlearn", keys[2]), ("retain", keys[3]))
    }
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, MODEL.vocab_size, n).astype(np.int32) for n in LENGTHS]
    packed = packing.padded([planning.Sample(text, 2) for text in texts])
    return params, jax.tree.map(jnp.asarray, packed), directions


def close(found, expected, directions, tolerance=1e-5):
    for name, direction in directions.items():
        scale = float(trees.norm(direction)) * np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance * scale, rtol=0)


def test_gates_by_tensor_are_the_definition(setting):
    params, packed, directions = setting
    logp = SampleLogProbs(MODEL)
    by = dict(by="tensor")
    gates = pg_effect(logp, params, [packed], directions, method="gates", **by)
    exact = pg_effect(logp, params, [packed], directions, method="vmap", **by)
    assert gates["retain"].shape == (len(LENGTHS), TENSORS)
    close(gates, exact, directions)


def test_tensors_sum_to_their_layer(setting):
    params, packed, directions = setting
    values_of = lambda by: pg_effect(SampleLogProbs(MODEL), params, [packed], directions, by=by)
    tensors, rows = values_of("tensor"), values_of("layer")
    names = [name.rpartition(".")[0].split(".")[0] for name in tensor_names(params)]
    for k, layer in enumerate(layer_names(params)):
        mine = tensors["retain"][:, np.array(names) == layer].sum(1)
        np.testing.assert_allclose(mine, rows["retain"][:, k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["gates", "full"])
def test_g_effect_by_tensor(setting, method):
    params, packed, directions = setting
    risk, direction = Risk(MODEL), directions["retain"]
    result = g_effect(risk, params, [packed], direction, by="tensor", method=method)
    total = g_effect(risk, params, [packed], direction, by="total", method="full")
    assert result.rows == tuple(tensor_names(params)) and len(result.rows) == TENSORS
    assert result.rows[0] == "block_0.attn_norm.scale" and result.rows[-1] == "norm.scale"
    np.testing.assert_allclose(result.value.sum(), total.value, rtol=1e-4)
    full = g_effect(risk, params, [packed], direction, by="tensor", method="full")
    scale = np.asarray(full.risk_norm * full.direction_norm)
    np.testing.assert_allclose(result.value / scale, full.value / scale, atol=1e-5)


def test_remat_changes_no_gate(setting):
    params, packed, directions = setting
    values_of = lambda model: pg_effect(
        SampleLogProbs(model), params, [packed], directions, by="layer", method="gates"
    )
    close(values_of(dataclasses.replace(MODEL, remat="full")), values_of(MODEL), directions, 1e-6)


@pytest.mark.parametrize("method", ["jvp", "gates", "vmap"])
def test_bfloat16_products_keep_two_digits(setting, method):
    """Parameters and directions in float32, matrix products in bfloat16: 1 % of the scale."""
    params, packed, directions = setting
    exact = pg_effect(SampleLogProbs(MODEL), params, [packed], directions, method="vmap")
    half = SampleLogProbs(dataclasses.replace(MODEL, dtype="bfloat16"))
    # JAX's own reverse rule of a half-precision product that is summed in float32 mixes the two.
    with jax.numpy_dtype_promotion("standard"):
        result = pg_effect(half, params, [packed], directions, method=method)
    scale = {name: np.abs(values).max() for name, values in exact.items()}
    for name in directions:
        np.testing.assert_allclose(result[name], exact[name], atol=0.05 * scale[name])


class TestWithoutForwardMode:
    def test_gates_and_vmap_pass_through_a_custom_vjp(self, setting):
        params, packed, directions = setting
        plain = pg_effect(SampleLogProbs(MODEL), params, [packed], directions)
        fused = SampleLogProbs(MODEL, fused=True)
        for method in ("gates", "vmap", "auto"):
            result = pg_effect(fused, params, [packed], directions, method=method)
            close(result, plain, directions)

    def test_jvp_says_what_works(self, setting):
        params, packed, directions = setting
        fused = SampleLogProbs(MODEL, fused=True)
        with pytest.raises(TypeError, match="no forward mode; use method='gates' or 'vmap'"):
            pg_effect(fused, params, [packed], directions, method="jvp")
        for fn, by in ((fused, "token"), (Ungated(fused), "sample")):
            with pytest.raises(TypeError, match="use method='vmap'"):
                pg_effect(fn, params, [packed], directions, by=by, method="jvp")


class TestChoice:
    @pytest.mark.parametrize(
        ("fused", "gated", "by", "directions", "memory", "method", "reason"),
        [
            (False, True, "sample", 1, None, "jvp", "no activations"),
            (False, True, "sample", 2, None, "jvp", "the least memory"),
            (False, True, "sample", 2, 2**30, "gates", "they fit"),
            (False, True, "sample", 2, 10, "jvp", "do not fit"),
            (False, False, "sample", 2, 2**30, "jvp", "no activations"),
            (False, True, "token", 2, None, "jvp", "all tokens"),
            (False, True, "layer", 1, None, "gates", "whole table"),
            (False, False, "layer", 1, None, "vmap", "without an argument `probe`"),
            (False, True, "tensor", 2, None, "gates", "whole table"),
            (True, True, "sample", 1, None, "gates", "no forward mode"),
            (True, True, "token", 1, None, "vmap", "no forward mode"),
            (True, False, "sample", 1, None, "vmap", "no forward mode"),
        ],
    )
    def test_what_auto_takes_and_why(
        self, setting, fused, gated, by, directions, memory, method, reason
    ):
        params, packed, _ = setting
        fn = SampleLogProbs(MODEL, fused)
        abstract = decoder.abstract_params(MODEL)
        along = {f"v{k}": abstract for k in range(directions)}
        fn = fn if gated else Ungated(fn)
        choice = choose_pg_method(fn, abstract, packed, along, by=by, memory=memory)
        assert choice.method == method and reason in choice.reason

    def test_every_method_says_what_it_gives(self):
        for method, forms in programs.GIVES.items():
            assert set(forms) <= {"sample", "token", "layer", "tensor"}, method

    def test_unknown_by_is_named(self, setting):
        params, packed, directions = setting
        with pytest.raises(ValueError, match="by='head'; it is 'sample', 'token'"):
            pg_effect(SampleLogProbs(MODEL), params, [packed], directions, by="head", method="jvp")
