"""bfloat16 parameters: what the rounding of directions and gradients costs, and what avoids it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects

SAMPLES, WIDTH, CLASSES = 64, 32, 8


def logp(params, x):
    """[B], in float32 whatever the parameters are: their type is all that differs."""
    wide = jax.tree.map(lambda p: p.astype(x.dtype), params)
    return jax.nn.log_softmax(jnp.tanh(x @ wide["w"]) @ wide["v"])[:, 0]


def losses(params, x):
    return {"nll": (-logp(params, x).sum(), len(x))}


def draw(seed):
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "v": jax.random.normal(first, (WIDTH, CLASSES)),
        "w": jax.random.normal(second, (WIDTH, WIDTH)) / WIDTH**0.5,
    }


@pytest.fixture(scope="module")
def setting():
    """Parameters that are bfloat16 numbers, a float32 direction, rows, and the exact effects."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(0))
    direction, rows = draw(1), jax.random.normal(jax.random.key(2), (SAMPLES, WIDTH))
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
        at, along, x = wide(params), wide(direction), wide(rows)
        exact = jax.jvp(lambda p: logp(p, x), (at,), (along,))[1]
    return params, direction, rows, np.asarray(exact)


def error(found, exact):
    """The root mean square of the differences over that of the effects."""
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize("method", ["jvp", "vmap"])
def test_bfloat16_parameters_cost_two_digits(setting, method):
    """jvp rounds the direction, vmap the gradient of a sample: 2^-9 of every number at most."""
    params, direction, rows, exact = setting
    found = effects.pg_effect(logp, params, [rows], {"v": direction}, method=method)["v"]
    assert 1e-5 < error(found, exact) < 2**-8


def test_so_do_objectives_in_forward_mode(setting):
    params, direction, rows, exact = setting
    found = effects.g_effects_of(losses, params, [rows], direction)["nll"]
    assert abs(found + exact.mean()) < 2**-8 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize("method", ["jvp", "vmap"])
def test_the_same_numbers_in_float32_parameters_cost_nothing(setting, method):
    """The way that docs/precision.md gives: it doubles the bytes of the parameters."""
    params, direction, rows, exact = setting
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    found = effects.pg_effect(logp, wide, [rows], {"v": direction}, method=method)["v"]
    assert error(found, exact) < 1e-6
    found = effects.g_effects_of(losses, wide, [rows], direction)["nll"]
    assert abs(found + exact.mean()) < 1e-6 * np.sqrt(np.mean(exact**2))


def test_float32_leaves_keep_their_directions_next_to_frozen_bfloat16(setting):
    """LoRA in float32 on a base in bfloat16 loses nothing."""
    params, direction, rows, _ = setting
    mixed = {**params, "w": params["w"].astype(jnp.float32)}
    along = {"v": {**direction, "v": None}}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, direction, rows))
        push = lambda w: logp({**wide[0], "w": w}, wide[2])
        exact = jax.jvp(push, (wide[0]["w"],), (wide[1]["w"],))[1]
    found = effects.pg_effect(logp, mixed, [rows], along, method="jvp", trainable="w")["v"]
    assert error(found, np.asarray(exact)) < 1e-6


def test_the_choice_takes_directions_of_another_type(setting):
    params, direction, rows, _ = setting
    shapes = jax.eval_shape(lambda: direction)
    assert effects.choose_pg_method(logp, params, rows, {"v": shapes}).method == "jvp"
