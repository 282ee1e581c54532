"""Projected updates: inside the half-space, nearest to the update, unchanged where inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import effects

# The model's blocks are stacked; nothing in `effects` knows that.
BLOCKS = effects.Grouping(stacked={"blocks": "block"})
layer_dots = functools.partial(effects.layer_dots, grouping=BLOCKS)
spare_update = functools.partial(effects.spare_update, grouping=BLOCKS)


def tree(seed, scale=1.0):
    draw = np.random.default_rng(seed)
    return {
        "embed": {"w": jnp.asarray(scale * draw.normal(size=3), jnp.float32)},
        "blocks": {"w": jnp.asarray(scale * draw.normal(size=(2, 4)), jnp.float32)},
    }


def rows(a, b):
    return np.asarray(layer_dots(a, b))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-20, 1.0, 1e20]))
def test_no_layer_and_no_total_rises(seed, scale):
    update, gradient = tree(seed), tree(seed + 1, scale)
    norms = np.sqrt(rows(update, update) * rows(tree(seed + 1), tree(seed + 1)))
    along = lambda projected: rows(projected, tree(seed + 1))
    assert along(spare_update(update, gradient)).sum() <= 1e-5 * norms.sum()
    assert np.all(along(spare_update(update, gradient, by="layer")) <= 1e-5 * norms)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_the_bent_update_is_the_nearest(seed):
    """What is taken away is along grad R, and no more of it than must be."""
    update, gradient = tree(seed), tree(seed + 1)
    projected = spare_update(update, gradient)
    total = rows(update, gradient).sum()
    if total <= 0:
        assert all(
            jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), projected, update))
        )
        return
    share = total / rows(gradient, gradient).sum()
    expected = jax.tree.map(lambda u, g: u - share * g, update, gradient)
    for a, b in zip(jax.tree.leaves(projected), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_zero_gradient_bends_nothing():
    update = tree(0)
    for by in ("total", "layer"):
        projected = spare_update(update, jax.tree.map(jnp.zeros_like, update), by=by)
        np.testing.assert_array_equal(projected["blocks"]["w"], update["blocks"]["w"])


def test_unknown_ways_are_named():
    with pytest.raises(ValueError, match="'total' or 'layer'"):
        spare_update(tree(0), tree(1), by="tensor")  # pyright: ignore[reportArgumentType]
