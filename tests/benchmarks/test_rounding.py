"""The emulated products: what is rounded, how, and that no product is missed."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks import rounding
from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import SampleLogProbs

DRAW = np.random.default_rng(0)
A = DRAW.normal(size=(9, 33)).astype(np.float32)
B = DRAW.normal(size=(33, 7)).astype(np.float32)
SHAPES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4)
MODEL = decoder.DecoderConfig(**SHAPES, num_kv_heads=2, head_dim=8, context=64)


def numpy_round(x, mantissa_bits):
    """To the nearest number of so many mantissa bits, ties to even, by its integer bits."""
    dropped = 23 - mantissa_bits
    bits = x.view(np.uint32).astype(np.uint64)
    half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    return ((bits + half) >> dropped << dropped).astype(np.uint32).view(np.float32)


def rounded(function, mantissa_bits):
    return rounding.with_products(function, rounding.round_operands(mantissa_bits))


@pytest.mark.parametrize("mantissa_bits", [7, 10])
def test_a_product_is_that_of_rounded_operands(mantissa_bits):
    result = rounded(jnp.matmul, mantissa_bits)(A, B)
    expected = jnp.matmul(numpy_round(A, mantissa_bits), numpy_round(B, mantissa_bits))
    np.testing.assert_array_equal(result, expected)
    assert np.abs(result - A @ B).max() > 2.0 ** -(mantissa_bits + 4)


def test_seven_bits_are_bfloat16():
    np.testing.assert_array_equal(numpy_round(A, 7), A.astype(ml_dtypes.bfloat16).astype("f4"))


def test_three_products_of_split_operands_are_nearly_float32():
    split = rounding.with_products(jnp.matmul, rounding.split_operands)(A, B)
    exact = A.astype(np.float64) @ B
    error = lambda x: np.linalg.norm(x - exact) / np.linalg.norm(exact)
    assert error(split) < 2e-5 < 1e-3 < error(rounded(jnp.matmul, 7)(A, B))


def test_other_types_and_other_arithmetic_stay():
    half = A.astype(jnp.bfloat16), B.astype(jnp.bfloat16)
    np.testing.assert_array_equal(rounded(jnp.matmul, 2)(*half), jnp.matmul(*half))
    np.testing.assert_array_equal(rounded(jnp.multiply, 2)(A, A), A * A)


def nested(x, w):
    """A product in each construct of JAX that holds a program, 8 in all."""

    @jax.custom_jvp
    def custom(x):
        return x @ w[0]

    custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0]))
    block = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))
    x = jax.lax.scan(lambda x, w: (block(x, w), x[0] @ w), x, w)[0]
    x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w[1], lambda x: x @ w[2], x)
    x = jax.lax.while_loop(
        lambda c: jnp.sum(c[1] @ w[0]) > c[0], lambda c: (c[0] + 100, c[1] @ w[1]), (0.0, x)
    )[1]
    return custom(jax.jit(jnp.matmul)(x, w[0]))


def test_products_are_found_in_every_construct():
    x, w = A[:, :8], DRAW.normal(size=(3, 8, 8)).astype(np.float32)
    products = []

    def note(dot, a, b):
        products.append(a.shape)
        return dot(a, b)

    result = jax.jit(rounding.with_products(nested, note))(x, w)
    assert len(products) == rounding.count_products(nested, x, w) == 8
    np.testing.assert_array_equal(result, jax.jit(nested)(x, w))


@pytest.fixture(scope="module")
def gradient():
    """The gradient of a scanned, rematerialised decoder, and its arguments."""
    draw = np.random.default_rng(1)
    samples = [planning.Sample(draw.integers(64, size=n, dtype=np.int32), 4) for n in (9, 12, 7)]
    rows = Rows(jax.tree.map(jnp.asarray, packing.padded(samples)))
    model = decoder.DecoderConfig(**vars(MODEL) | {"remat": "full", "head_chunk": 4})
    logp = SampleLogProbs(model)
    params = decoder.init_params(jax.random.key(0), model)
    return jax.grad(lambda params, rows: logp(params, rows).sum()), params, rows


def test_every_product_of_a_gradient_is_rounded(gradient):
    function, *args = gradient
    products = []

    def note(dot, a, b):
        products.append((a.shape, b.shape))
        return dot(a, b)

    jax.make_jaxpr(rounding.with_products(function, note))(*args)
    count = rounding.count_products(function, *args)
    # 7 linear maps and 2 products of attention a block, in the forward pass and twice in reverse.
    assert len(products) == count >= 3 * (7 + 2)


def test_23_bits_change_nothing(gradient):
    function, *args = gradient
    plain = jax.jit(function)(*args)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(rounded(function, 23))(*args), plain)


def test_fewer_bits_change_the_gradient_more(gradient):
    function, *args = gradient
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    plain = flat(jax.jit(function)(*args))
    error = {
        bits: np.linalg.norm(flat(jax.jit(rounded(function, bits))(*args)) - plain)
        / np.linalg.norm(plain)
        for bits in (7, 10)
    }
    assert 1e-5 < error[10] < error[7] / 4 < 0.02
