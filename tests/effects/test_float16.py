"""Parameters in float16, whose range ends at 65504: directions of any length give effects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from tests.effects import test_definitions as small

LENGTHS = (2.0**-30, 1.0, 2.0**30, 2.0**90)
pg_effect = functools.partial(effects.pg_effect, grouping=small.BLOCKS)


def scaled(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)


@pytest.fixture(scope="module")
def setting():
    """Parameters in float16, batches, and directions in float32."""
    keys = jax.random.split(jax.random.key(7), 4)
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float16), tree)
    batches = [small.make_batch(key) for key in keys[1:2]]
    batches = [batch | {"x": batch["x"].astype(jnp.float16)} for batch in batches]
    directions = {"a": small.make_params(keys[2]), "b": small.make_params(keys[3])}
    return half(small.make_params(keys[0])), batches, directions


def gated(params, batch, probe=None):
    """Gates are float32, and the small model computes in the type of its parameters."""
    if probe:
        gates = jax.tree.map(lambda x: x.astype(jnp.float16), probe["gates"])
        probe = probe | {"gates": gates}
    return small.logp(params, batch, probe)


def truth(params, batches, direction):
    """By sample, of the parameters as they are, in float32 and by reverse mode."""
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    batches = [batch | {"x": batch["x"].astype(jnp.float32)} for batch in batches]
    along = {"v": direction}
    return pg_effect(small.no_probe, wide(params), batches, along, method="vmap")["v"]


@pytest.mark.parametrize(
    ("fn", "method", "by"),
    [
        (small.no_probe, "jvp", "sample"),
        (small.no_probe, "jvp", "token"),
        (gated, "jvp", "sample"),
        (gated, "gates", "layer"),
    ],
)
def test_the_length_of_a_direction_scales_the_effects_and_nothing_else(setting, fn, method, by):
    """Powers of two do so to the last bit; one direction may be long and another short."""
    params, batches, directions = setting
    of = lambda along: pg_effect(fn, params, batches, along, method=method, by=by)
    unit = of(directions)
    for length in LENGTHS:
        found = of({"a": scaled(directions["a"], length), "b": directions["b"]})
        np.testing.assert_array_equal(found["a"], np.float32(length) * unit["a"])
        np.testing.assert_array_equal(found["b"], unit["b"])
        assert np.isfinite(found["a"]).all()
    for name, direction in directions.items():
        samples = unit[name] if by == "sample" else unit[name].sum(-1)
        close = truth(params, batches, direction)
        np.testing.assert_allclose(samples, close, rtol=2e-2, atol=5e-3 * np.abs(close).max())


def test_a_long_direction_through_gates_of_a_risk(setting):
    params, batches, directions = setting
    fn = lambda p, batch, probe=None: (-gated(p, batch, probe).sum(), batch["x"].shape[0])
    of = lambda v: (
        effects.g_effect(fn, params, batches, v, method="gates", grouping=small.BLOCKS).value
    )
    unit, long = of(directions["a"]), of(scaled(directions["a"], 2.0**30))
    np.testing.assert_array_equal(long, np.float32(2.0**30) * unit)
    assert np.isfinite(long).all() and unit.any()


def test_several_objectives_along_a_long_gradient(setting):
    params, batches, directions = setting
    of = lambda v: effects.g_effects_of(small.both, params, batches, v)
    unit, long = of(directions["a"]), of(scaled(directions["a"], 2.0**30))
    for name in unit:
        assert float(long[name]) == float(unit[name]) * 2.0**30


def test_directions_that_are_zero_or_broken_stay_so(setting):
    params, batches, directions = setting
    along = {"none": scaled(directions["a"], 0.0), "inf": scaled(directions["a"], jnp.inf)}
    found = pg_effect(small.no_probe, params, batches, along, method="jvp")
    assert not found["none"].any() and not np.isfinite(found["inf"]).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_types_are_not_scaled(setting, dtype):
    """Their programs have no operation more: what they gave before they give to the last bit."""
    params, batches, directions = setting
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    call = functools.partial(
        effects.programs.pg_by_jvp, fn=small.no_probe, by="sample", grouping=small.BLOCKS
    )
    text = str(jax.make_jaxpr(call)(params, batches[0], (directions["a"],)))
    assert "frexp" not in text and "abs" not in text
