"""The operation to blame for a value that is not finite: its primitive and its line are known."""

import inspect
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxunlearn.training.nonfinite import first_operation
from jaxunlearn.training.step import Trainer, init_state

ONES = jnp.ones((2, 3))


def line_of(function, text):
    """The line of this file on which the source of a function has a text."""
    source, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(source) if text in line)


def named(function, *args):
    """(primitive, line, "NaN" or "inf") of the operation that is named."""
    words = first_operation(function, *args)
    assert words is not None
    found = re.fullmatch(
        r"(\S+) at tests/training/test_nonfinite\.py:(\d+) makes the first (\S+)", words
    )
    assert found, words
    return found[1], int(found[2]), found[3]


def negative(x):
    below = x - 5.0
    return jnp.log(below).sum()


def overflow(x):
    large = jnp.exp(200.0 * x)
    return large.sum()


def infinite_slope(x):
    root = jnp.sqrt(x - x)
    return root.sum()


def looped(function):
    """A function in all that a model puts around it: a scan under remat, a jit, a branch."""

    def body(total, row):
        value = jax.lax.cond(row[0] > 0, jax.jit(function), lambda row: 0.0, row)
        return total + value, value

    return lambda x: jax.lax.scan(jax.checkpoint(body), 0.0, x)[0]


@pytest.mark.parametrize("wrap", [lambda function: function, looped], ids=["plain", "looped"])
@pytest.mark.parametrize(
    ("function", "text", "value"),
    [(negative, "jnp.log", "NaN"), (overflow, "jnp.exp", "inf"), (infinite_slope, "sqrt", "inf")],
)
def test_the_line_is_named(function, text, value, wrap):
    _, line, problem = named(jax.value_and_grad(wrap(function)), ONES)
    assert (line, problem) == (line_of(function, text), value)


def test_the_primitive_is_named():
    assert named(negative, ONES)[0] == "log" and named(overflow, ONES)[0] == "exp"


def test_what_is_finite_names_nothing():
    finite = lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y + jnp.sin(x), x).sum()
    assert first_operation(jax.value_and_grad(looped(finite)), ONES) is None


def masked(x):
    scores = jnp.where(x > 2, x, -jnp.inf).at[:, 0].set(0.0)
    weights = jax.nn.softmax(scores)
    return (weights * jnp.log(x)).sum()


def test_infinities_that_mask_are_not_to_blame():
    """Softmax takes -inf as a weight of zero; the logarithm of zero is what breaks the sum."""
    assert first_operation(masked, ONES) is None
    primitive, line, _ = named(masked, jnp.zeros((2, 3)))
    assert (primitive, line) == ("log", line_of(masked, "jnp.log"))


def masked_overflow(x):
    scores = jnp.where(jnp.arange(3) > 0, jnp.exp(200 * x), -jnp.inf)
    return jax.nn.softmax(scores).sum()


def test_an_overflow_is_to_blame_beside_a_mask():
    primitive, line, value = named(masked_overflow, ONES)
    assert (primitive, line, value) == ("exp", line_of(masked_overflow, "jnp.exp"), "inf")


def trained(params, batch):
    return (jnp.log(params["x"]) * batch).sum(), {}


def test_a_trainer_names_the_update_that_breaks_and_applies_those_before():
    """One step of SGD leads from 1 to -1, whose logarithm is none."""
    trainer = Trainer(init_state({"x": jnp.ones(3)}, optax.sgd(1.0)), trained, optax.sgd(1.0))
    words = trainer.blame((jnp.ones(3), 2.0) for _ in range(2))
    assert words == (
        f"log at tests/training/test_nonfinite.py:{line_of(trained, 'log')} makes the first NaN"
    )
    assert int(trainer.state.step) == 1
    assert "all values are finite" in trainer.blame([])
