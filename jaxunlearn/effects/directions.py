"""Directions in parameter space: exact gradients over a whole dataset."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.effects import trees

Tree = Any
# loss(params, batch) -> (sum, count): both are added over batches, and divided once at the end.
LossFn = Callable[[Tree, Any], tuple[jax.Array, jax.Array]]
# losses(params, batch) -> {name: (sum, count)}: several losses that share a forward pass.
LossesFn = Callable[[Tree, Any], Mapping[str, tuple[jax.Array, jax.Array]]]


class Gradient(NamedTuple):
    """A loss over a dataset and its gradient."""

    value: jax.Array  # [] float32: sum / count
    direction: Tree  # like the parameters, float32 (or wider), sharded as they are


def dataset_gradient(loss_fn: LossFn, params: Tree, batches: Iterable[Any]) -> Gradient:
    """The exact gradient of a loss over a dataset: grad [sum_batches sum / sum_batches count].

    No batch is left out and none is weighted by its position (no running mean): the value is that
    of one huge batch, whatever the batches. The order is that of `batches`, the sum float32.

    Args:
      loss_fn: pure function (params, batch) -> (sum, count), both scalars. It is a static argument
        of a compiled function: pass the same object again to reuse the compilation.
      params: pytree of arrays; leaves may be sharded, the gradient is sharded like them.
      batches: pytrees of one static shape.

    Returns:
      Gradient(value, direction).

    Raises:
      ValueError: no batches, or a count of zero over all of them.
    """
    named = dataset_gradients(Single(loss_fn), params, batches)
    return named["loss"]


def dataset_gradients(
    losses_fn: LossesFn, params: Tree, batches: Iterable[Any]
) -> dict[str, Gradient]:
    """Exact gradients of several losses that share one forward pass over a dataset.

    Args:
      losses_fn: pure function (params, batch) -> {name: (sum, count)}; static, see
        `dataset_gradient`.
      params: pytree of arrays.
      batches: pytrees of one static shape.

    Returns:
      {name: Gradient}. Each costs one backward pass; the forward pass is shared.

    Raises:
      ValueError: no batches, or a count of zero.
    """
    shardings = trees.named_shardings(params)
    totals = None
    for batch in batches:
        new = gradient_sums(params, batch, losses_fn=losses_fn, shardings=shardings)
        totals = new if totals is None else _add(totals, new)
    if totals is None:
        raise ValueError("a gradient over a dataset needs at least one batch, got none")
    sums, counts, gradients = totals
    for name, count in counts.items():
        if count == 0:
            raise ValueError(f"{name}: nothing to average over (a count of 0 in every batch)")
    return {
        name: Gradient(sums[name] / counts[name], _scale(gradients[name], 1 / counts[name]))
        for name in sums
    }


class Single:
    """One loss as a set of one; equal for equal functions, so that compilations are shared."""

    def __init__(self, loss_fn: LossFn):
        self.loss_fn = loss_fn

    def __call__(self, params: Tree, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {"loss": self.loss_fn(params, batch)}

    def __hash__(self) -> int:
        return hash(self.loss_fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Single) and self.loss_fn == other.loss_fn


@partial(jax.jit, static_argnames=("losses_fn", "shardings"))
def gradient_sums(params, batch, *, losses_fn, shardings):
    def sums(p):
        pairs = losses_fn(p, batch)
        counts = {
            n: jax.lax.stop_gradient(trees.wide(jnp.asarray(c))) for n, (_, c) in pairs.items()
        }
        return {n: trees.wide(s) for n, (s, _) in pairs.items()}, counts

    values, pull, counts = jax.vjp(sums, params, has_aux=True)

    def gradient(name):
        cotangents = {
            n: jnp.ones_like(v) if n == name else jnp.zeros_like(v) for n, v in values.items()
        }
        (grad,) = pull(cotangents)
        return trees.pin(jax.tree.map(trees.wide, grad), shardings)

    return values, counts, {name: gradient(name) for name in values}


@partial(jax.jit, donate_argnums=0)
def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


@partial(jax.jit, donate_argnums=0)
def _scale(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)
