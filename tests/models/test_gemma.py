"""A tiny Gemma: what differs from layer to layer, what is capped and scaled, and its effects."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.data import packing
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import modules
from tests.models.small_models import (
    GEMMA,
    UNTIED,
    by_id,
    layer_dots,
    pack,
    random_params,
    random_sequences,
    sample_log_probs,
)

SEQUENCES = random_sequences((7, 5, 9, 12, 6, 3), 32)
GROUPING = effects.Grouping(stacked=decoder.STACKED)


def values(config, batch, seed=0):
    forward = jax.jit(sample_log_probs, static_argnames="config")
    return by_id(forward(random_params(config, seed), batch, config=config), batch)


# Effects


@dataclasses.dataclass(frozen=True)
class LogProbs:
    """log p of every sample, [B]."""

    def __call__(self, params, batch, probe=None):
        return sample_log_probs(params, batch, GEMMA, probe=probe)


@dataclasses.dataclass(frozen=True)
class Risk:
    """The negative log-likelihood of all samples, and their number."""

    def __call__(self, params, batch, probe=None):
        return -LogProbs()(params, batch, probe).sum(), jnp.float32(len(SEQUENCES))


@pytest.fixture(scope="module")
def gradients():
    """The gradient of every sample's log p by itself, by layer: the definition's first factor."""
    alone, params = packing.padded(SEQUENCES), random_params(GEMMA)

    def one(example):
        example = jax.tree.map(lambda x: x[None], example)
        return jax.grad(lambda p: LogProbs()(p, example)[0])(params)

    return jax.jit(jax.vmap(one))(alone)


def dots(gradients, direction, names):
    """<gradient of a layer, direction> for each of the names, [sample, layer]."""
    columns = {}
    for leaf in GEMMA.leaves():
        product = np.asarray(leaf.get(gradients)) * np.asarray(leaf.get(direction))
        for layer in range(GEMMA.num_layers) if leaf.stacked else [0]:
            name = f"block_{layer}" if leaf.stacked else leaf.path[0]
            part = product[:, layer] if leaf.stacked else product
            columns[name] = columns.get(name, 0) + part.reshape(len(SEQUENCES), -1).sum(1)
    return np.stack([columns[name] for name in names], 1)


def test_pg_effects_are_the_definition(gradients):
    """By gates and in forward mode, of packed rows: a gradient a sample, then a dot."""
    params, direction, batch = random_params(GEMMA), random_params(GEMMA, 7), pack(SEQUENCES, 24)
    expected = dots(gradients, direction, effects.layer_names(params, grouping=GROUPING))
    scale = np.sqrt(sum(np.sum(np.square(leaf.get(gradients))) for leaf in GEMMA.leaves()))
    scale *= float(trees.norm(direction)) / np.sqrt(len(SEQUENCES))
    measure = functools.partial(effects.pg_effect, LogProbs(), params, [batch], grouping=GROUPING)
    layers = measure({"v": direction}, by="layer", method="gates")["v"]
    np.testing.assert_allclose(by_id(layers, batch), expected, atol=1e-5 * scale)
    samples = measure({"v": direction}, method="jvp")["v"]
    np.testing.assert_allclose(by_id(samples, batch), expected.sum(1), atol=1e-5 * scale)


def test_g_effects_are_the_definition(gradients):
    params, direction, batch = random_params(GEMMA), random_params(GEMMA, 7), pack(SEQUENCES, 24)
    names = effects.layer_names(params, grouping=GROUPING)
    expected = -dots(gradients, direction, names).sum(0) / len(SEQUENCES)
    for method in ("gates", "full"):
        result = effects.g_effect(
            Risk(), params, [batch], direction, by="layer", method=method, grouping=GROUPING
        )
        scale = float(trees.norm(direction)) * np.abs(expected).max()
        assert result.rows == tuple(names)
        np.testing.assert_allclose(result.value, expected, atol=1e-5 * scale)


def test_remat_and_half_precision():
    """Under remat the same; in bfloat16 gates are the gradient's, which is 5 % from float32's."""
    params, direction, batch = random_params(GEMMA), random_params(GEMMA, 7), pack(SEQUENCES, 24)

    @functools.partial(jax.jit, static_argnums=0)
    def quantities(config):
        gates = {k: jnp.zeros((3, 1, 1) if k == "blocks" else (1, 1)) for k in params}
        probe = lambda gates: {"directions": (direction,), "gates": gates}
        gated = lambda g: sample_log_probs(params, batch, config, probe=probe(g)).sum()
        gradient = jax.grad(lambda p: sample_log_probs(p, batch, config).sum())(params)
        gates = jax.grad(gated)(gates)
        return gradient, jnp.concatenate([gates[key].ravel() for key in sorted(gates)])

    change = functools.partial(dataclasses.replace, GEMMA)
    gradient, gates = quantities(GEMMA)
    for config, most in ((change(remat="full"), 1e-5), (change(dtype="bfloat16"), 0.05)):
        result, its_gates = quantities(config)
        difference = jax.tree.map(lambda a, b: a - b, result, gradient)
        assert trees.norm(difference) < most * trees.norm(gradient)
        scale = float(trees.norm(direction) * trees.norm(gradient))
        np.testing.assert_allclose(its_gates, gates, atol=0.05 * most * scale)
        dots = layer_dots(result, direction)
        np.testing.assert_allclose(its_gates, dots, atol=0.01 * most * scale)


# Layers that differ


def test_the_window_reaches_the_layers_that_have_one():
    """A sequence longer than the window tells which layers have it; a shorter one cannot."""
    batch = packing.padded(SEQUENCES)
    change = functools.partial(dataclasses.replace, GEMMA, local_rope_theta=None)
    first, last, none = (
        values(change(sliding_window=window, full_layers=full), batch)
        for window, full in ((3, (1, 2)), (3, (0, 1)), (None, ()))
    )
    longer = np.array([len(sequence.tokens) for sequence in SEQUENCES]) > 4
    for a, b in ((first, last), (first, none), (last, none)):
        np.testing.assert_array_equal(np.abs(a - b) > 1e-5, longer)


def test_a_window_wider_than_the_text_and_one_theta_are_equal_layers():
    batch = packing.padded(SEQUENCES)
    change = functools.partial(dataclasses.replace, GEMMA)
    mixed = change(sliding_window=100, local_rope_theta=GEMMA.rope_theta)
    equal = change(sliding_window=None, full_layers=(), local_rope_theta=None)
    np.testing.assert_array_equal(values(mixed, batch), values(equal, batch))


def test_rotary_frequencies_of_both_kinds():
    config = dataclasses.replace(
        UNTIED, local_rope_theta=16.0, rope_scaling=decoder.LinearRopeScaling(4.0)
    )
    np.testing.assert_allclose(modules.rope_frequencies(config), [0.25, 0.0025])
    np.testing.assert_allclose(modules.rope_frequencies(config, windowed=True), [1, 0.25])


def test_the_work_of_both_kinds():
    """FLOPs by hand: of 10 tokens with a window of 3, 1 + 2 + 8 * 3 pairs meet; in full, 55."""
    change = functools.partial(dataclasses.replace, UNTIED)
    of = lambda config, **rest: decoder.forward_flops(config, np.array([10]), np.array([4]), **rest)
    pair = 2 * 2 * 4 * 4  # a score and its mix, 4 heads of width 4, 2 FLOPs each
    full, mixed = of(UNTIED), of(change(sliding_window=3, full_layers=(1,)))
    np.testing.assert_array_equal(full - mixed, 2 * (55 - 27) * pair)
    np.testing.assert_array_equal(full - of(change(sliding_window=3)), 3 * (55 - 27) * pair)
    first, second = (
        of(UNTIED, blocks=n) - of(change(sliding_window=3, full_layers=(1,)), blocks=n)
        for n in (1, 2)
    )
    np.testing.assert_array_equal([first, second], [[(55 - 27) * pair]] * 2)


# What is scaled and capped


def test_the_factor_of_the_embedding_is_rounded():
    """To the type of the computation, as transformers does to that of the weights."""
    config = dataclasses.replace(GEMMA, hidden_size=3072, dtype="bfloat16")
    table = {"params": {"embedding": jnp.ones((1, 3072), jnp.float32)}}
    half = modules.Embed(config).apply(table, jnp.zeros((1, 1), jnp.int32))
    assert (half == 55.5).all()
    full = dataclasses.replace(config, dtype="float32")
    full = modules.Embed(full).apply(table, jnp.zeros((1, 1), jnp.int32))
    assert (full == np.float32(np.sqrt(3072))).all()


def test_an_offset_of_norms_is_a_scale():
    """norm(x) * (1 + w) is what a model without the offset computes with the scale 1 + w."""
    batch, offset = packing.padded(SEQUENCES), dataclasses.replace(UNTIED, norm_offset=True)
    plain = random_params(UNTIED)
    shift = lambda path, x: x - 1 if path[-1].key == "scale" else x
    shifted = jax.tree_util.tree_map_with_path(shift, plain)
    result = sample_log_probs(shifted, batch, offset)
    np.testing.assert_allclose(result, sample_log_probs(plain, batch, UNTIED), atol=1e-5)


def test_a_new_model_begins_with_norms_that_change_nothing():
    params = decoder.init_params(jax.random.key(0), GEMMA)
    scales = [leaf.get(params) for leaf in GEMMA.leaves() if leaf.path[-1] == "scale"]
    assert len(scales) == 7 and all((scale == 0).all() for scale in scales)


def test_no_logit_exceeds_the_cap():
    batch, keep = packing.padded(SEQUENCES), lambda logits, labels: logits
    config = dataclasses.replace(GEMMA, logit_softcap=0.5)
    logits = decoder.forward(random_params(config), batch, config, head=keep).labels
    assert 0.3 < jnp.abs(logits).max() <= 0.5
