"""Products in bfloat16, with a weight and pair by pair: every derivative, and every form."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.effects import count_flops
from jaxunlearn.models.decoder import forward
from jaxunlearn.models.decoder.products import paired, product
from tests.models.small_models import UNTIED, pack, random_params, random_sequences

ROWS, TOKENS, SIZE, OUT = 2, 5, 6, 3
CASES = [
    pytest.param(axis, wide, reduce, id=f"axis{axis}-{'wide' if wide else 'half'}-{reduce}")
    for axis in (0, 1)
    for wide in (False, True)
    for reduce in ("float32", "bfloat16")
]


def model(reduce="float32", **changes):
    return dataclasses.replace(UNTIED, dtype="bfloat16", reduce=reduce, **changes)


def arrays(axis, seed=0, batch=()):
    """x, a weight, a tangent of each and a cotangent."""
    keys = jax.random.split(jax.random.key(seed), 5)
    weight = (SIZE, OUT) if axis == 0 else (OUT, SIZE)
    shapes = ((ROWS, TOKENS, SIZE), weight, (ROWS, TOKENS, SIZE), weight, (ROWS, TOKENS, OUT))
    dtypes = (jnp.bfloat16, jnp.float32, jnp.bfloat16, jnp.float32, jnp.float32)
    return [
        jax.random.normal(key, (*batch, *shape), dtype)
        for key, shape, dtype in zip(keys, shapes, dtypes, strict=True)
    ]


def rounded(x):
    """A float64 array of the values that remain in bfloat16."""
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


def close(ours, theirs, dtype):
    """Equal but for the order of float32 sums, and one rounding to bfloat16 where that is kept."""
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("axis", "wide", "reduce"), CASES)
def test_value_and_derivatives_in_float64(axis, wide, reduce):
    apply = partial(product, config=model(reduce), axis=axis, wide=wide)
    x, weight, dx, d_weight, g = arrays(axis)
    out = jnp.float32 if wide else jnp.bfloat16
    x64, w64, dx64, dw64, g64 = map(rounded, (x, weight, dx, d_weight, g))
    if axis == 1:
        w64, dw64 = w64.T, dw64.T
    close(apply(x, weight), x64 @ w64, out)
    _, tangent = jax.jvp(apply, (x, weight), (dx, d_weight))
    terms = (dx64 @ w64, x64 @ dw64)
    # Each term of a tangent is rounded before they are added.
    close(tangent, sum(terms if wide else map(rounded, terms)), out)
    _, back = jax.vjp(apply, x, weight)
    to_x, to_weight = back(g.astype(out))
    close(to_x, g64 @ w64.T, jnp.bfloat16)
    expected = np.einsum("rta,rtb->ab", x64, g64)
    expected = expected if axis == 0 else expected.T
    if reduce == "float32":
        close(to_weight, expected, jnp.float32)
    else:
        # Rounded on its way between devices.
        np.testing.assert_array_equal(to_weight, rounded(to_weight))
        np.testing.assert_allclose(to_weight, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("axis", "wide", "reduce"), CASES)
@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0), (1, 0)], ids=str)
def test_batched_is_one_by_one(axis, wide, reduce, in_axes):
    apply = partial(product, config=model(reduce), axis=axis, wide=wide)
    x, weight, _, _, g = arrays(axis, batch=(4,))
    gradients = jax.grad(lambda x, w, g: jnp.sum(apply(x, w) * g), (0, 1))
    batch = [x if in_axes[0] is not None else x[0], weight if in_axes[1] is not None else weight[0]]
    if in_axes[0] == 1:
        batch[0] = jnp.moveaxis(batch[0], 0, 1)
    together = jax.vmap(gradients, in_axes=(*in_axes, 0))(*batch, g)
    at = lambda array, i, where: array if where is None else jnp.take(array, i, where)
    for i in range(4):
        one = gradients(at(batch[0], i, in_axes[0]), at(batch[1], i, in_axes[1]), g[i])
        for a, b in zip(together, one, strict=True):
            np.testing.assert_allclose(
                np.float32(a[i]), np.float32(b), rtol=2**-7, atol=2**-7 if wide else 2**-6
            )


def test_a_second_derivative():
    apply = partial(product, config=model(), wide=True)
    x, weight, dx, *_ = arrays(0)
    loss = lambda x, w: jnp.sum(apply(x, w) ** 2) / 2
    # d/dx of |x w|^2 / 2 is x w w^T, whose derivative along dx is dx w w^T.
    _, along = jax.jvp(jax.grad(loss), (x, weight), (dx, jnp.zeros_like(weight)))
    w64 = rounded(weight)
    np.testing.assert_allclose(
        np.float64(along), rounded(rounded(dx) @ w64) @ w64.T, rtol=2**-6, atol=2**-5
    )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_the_cpu_copies_a_factor_for_the_gradient_of_a_weight(platform):
    x, weight, *_ = arrays(0)
    apply = partial(product, config=model())
    gradient = jax.grad(lambda x, w: jnp.sum(apply(x, w)), (0, 1))
    text = jax.jit(gradient).trace(x, weight).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.concatenate" in text) == (platform == "cpu")
    # Nothing but the gradient of the weight is wider than bfloat16 elsewhere.
    wide = text.count("dot_general") if platform == "cpu" else 1
    assert (
        sum(
            "f32>" in line.split("->")[-1].replace("bf16", "")
            for line in text.splitlines()
            if "dot_general" in line
        )
        == wide
    )


def pairs(axis, seed=0, batch=()):
    """Two stacks of matrices, a tangent of each and a cotangent."""
    keys = jax.random.split(jax.random.key(seed), 5)
    other = (ROWS, 4, SIZE, OUT) if axis == 0 else (ROWS, 4, OUT, SIZE)
    shapes = [(ROWS, 4, TOKENS, SIZE), other] * 2 + [(ROWS, 4, TOKENS, OUT)]
    return [
        jax.random.normal(key, (*batch, *shape), jnp.bfloat16)
        for key, shape in zip(keys, shapes, strict=True)
    ]


@pytest.mark.parametrize("wide", [False, True], ids=["half", "wide"])
@pytest.mark.parametrize("axis", [0, 1])
def test_pairs_and_their_derivatives_in_float64(axis, wide):
    apply = partial(paired, config=model(), axis=axis, wide=wide)
    a, b, da, db, g = pairs(axis)
    out = jnp.float32 if wide else jnp.bfloat16
    a64, b64, da64, db64, g64 = map(rounded, (a, b, da, db, g))
    if axis == 1:
        b64, db64 = b64.mT, db64.mT
    close(apply(a, b), a64 @ b64, out)
    _, tangent = jax.jvp(apply, (a, b), (da, db))
    terms = (da64 @ b64, a64 @ db64)
    close(tangent, sum(terms if wide else map(rounded, terms)), out)
    _, back = jax.vjp(apply, a, b)
    to_a, to_b = back(g.astype(out))
    close(to_a, g64 @ b64.mT, jnp.bfloat16)
    expected = a64.mT @ g64
    close(to_b, expected if axis == 0 else expected.mT, jnp.bfloat16)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0), (2, 0)], ids=str)
def test_batched_pairs_are_one_by_one(axis, in_axes):
    apply = partial(paired, config=model(), axis=axis, wide=True)
    a, b, _, _, g = pairs(axis, batch=(3,))
    gradients = jax.grad(lambda a, b, g: jnp.sum(apply(a, b) * g), (0, 1))
    batch = [a if in_axes[0] is not None else a[0], b if in_axes[1] is not None else b[0]]
    if in_axes[0] == 2:
        batch[0] = jnp.moveaxis(batch[0], 0, 2)
    together = jax.vmap(gradients, in_axes=(*in_axes, 0))(*batch, g)
    at = lambda array, i, where: array if where is None else jnp.take(array, i, where)
    for i in range(3):
        one = gradients(at(batch[0], i, in_axes[0]), at(batch[1], i, in_axes[1]), g[i])
        for x, y in zip(together, one, strict=True):
            np.testing.assert_allclose(np.float32(x[i]), np.float32(y), rtol=2**-7, atol=2**-7)


def test_no_product_of_a_cpu_is_in_float32_or_over_first_axes():
    """The forms that XLA's CPU compiler multiplies slowly, in attention as with a weight."""
    config = model()
    batch = pack(random_sequences([5, 7], config.vocab_size))
    loss = lambda params: jnp.sum(forward(params, batch, config).labels)
    text = jax.jit(jax.grad(loss)).trace(random_params(config)).lower().as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert any("batching_dims" in line for line in dots)
    for line in dots:
        over = re.search(r"contracting_dims = \[(\d)\] x \[(\d)\]", line)
        types = re.search(r": \(tensor<(.*?)>, tensor<(.*?)>\)", line)
        assert over and types, line
        assert all(factor.endswith("xbf16") for factor in types.groups()), line
        stacked = types[1].count("x") - 2
        assert over.groups() != (str(stacked), str(stacked)), line


def test_its_flops_are_counted():
    x, weight, *_ = arrays(0)
    one = 2 * ROWS * TOKENS * SIZE * OUT
    apply = partial(product, config=model())
    assert count_flops(apply, x, weight) == one
    gradient = jax.grad(lambda x, w: jnp.sum(apply(x, w)), (0, 1))
    assert count_flops(gradient, x, weight) == 2 * one  # the value itself is not needed


def test_remat_of_dots_computes_no_product_of_a_block_again():
    """Its FLOPs are those of no remat, but for the products of attention."""

    def flops(remat):
        config = model(remat=remat)
        batch = pack(random_sequences([5, 7], config.vocab_size))
        loss = lambda params: jnp.sum(forward(params, batch, config).labels)
        return count_flops(jax.grad(loss), random_params(config))

    none, dots, full = map(flops, ("none", "dots", "full"))
    assert none <= dots < full
    assert dots - none < (full - none) / 3
