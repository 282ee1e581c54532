"""Directions in parameter space: exact gradients over a whole dataset."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks
from jaxunlearn.effects._precision import Precision, products

LossFn = Callable[[Tree, Any], tuple[jax.Array, jax.Array]]
"""(params, batch) -> (sum, count): both are added over batches, and divided once at the end."""

LossesFn = Callable[[Tree, Any], Mapping[str, tuple[jax.Array, jax.Array]]]
"""(params, batch) -> {name: (sum, count)}: several losses that share a forward pass."""


class Gradient(NamedTuple):
    """A loss over a dataset and its gradient.

    Attributes:
      value: sum / count, a scalar in float32 or wider.
      gradient: tree like the parameters, in float32 or wider, sharded as they are.
    """

    value: jax.Array
    gradient: Tree


def dataset_gradient(
    loss_fn: LossFn,
    params: Tree,
    batches: Iterable[Any],
    *,
    precision: Precision = "highest",
) -> Gradient:
    """The exact gradient of a loss over a dataset: grad [sum_batches sum / sum_batches count].

    No batch is left out and none is weighted by its position (no running mean): the value is that
    of one huge batch, whatever the batches. The order is that of `batches`, the sum float32.

    Args:
      loss_fn: pure function (params, batch) -> (sum, count), both scalars. It is a static argument
        of a compiled function: pass the same object again to reuse the compilation.
      params: pytree of arrays; leaves may be sharded, the gradient is sharded like them.
      batches: pytrees of one static shape.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      Gradient(value, gradient).

    Raises:
      ValueError: no batches, a count of zero over all of them, or another precision.
      TypeError: the loss function returns something else than (sum, count).
    """
    return dataset_gradients(SingleLoss(loss_fn), params, batches, precision=precision)["loss"]


def dataset_gradients(
    losses_fn: LossesFn,
    params: Tree,
    batches: Iterable[Any],
    *,
    precision: Precision = "highest",
) -> dict[str, Gradient]:
    """Exact gradients of several losses that share one forward pass over a dataset.

    Args:
      losses_fn: pure function (params, batch) -> {name: (sum, count)}; static, see
        `dataset_gradient`.
      params: pytree of arrays.
      batches: pytrees of one static shape.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      {name: Gradient}. Each costs one backward pass; the forward pass is shared.

    Raises:
      ValueError: no batches, a count of zero, or another precision.
      TypeError: a loss is something else than (sum, count).
    """
    shardings = trees.named_shardings(params)
    totals = None
    for batch in batches:
        with products(precision):
            sums = gradient_sums(params, batch, losses_fn=losses_fn, shardings=shardings)
        totals = sums if totals is None else _add(totals, sums)
    if totals is None:
        raise ValueError("a gradient over a dataset needs at least one batch, got none")
    sums, counts, gradients = totals
    for name, count in counts.items():
        if count == 0:
            raise ValueError(f"{name}: nothing to average over (a count of 0 in every batch)")
    # The one division: sums of batches are exact parts of the whole only before it.
    return {
        name: Gradient(sums[name] / counts[name], _scale(gradients[name], 1 / counts[name]))
        for name in sums
    }


@dataclasses.dataclass(frozen=True)
class SingleLoss:
    """One loss as a set of losses: (params, batch) -> {"loss": (sum, count)}.

    Equal for equal functions, so that it is the same static argument of a compiled function each
    time it is made.
    """

    loss_fn: LossFn

    def __call__(self, params: Tree, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {"loss": self.loss_fn(params, batch)}


@partial(jax.jit, static_argnames=("losses_fn", "shardings"))
def gradient_sums(params, batch, *, losses_fn, shardings):
    """Sums, counts and gradients of sums, {name: ...} each, of one batch.

    Args:
      params: pytree of arrays.
      batch: one pytree.
      losses_fn: a `LossesFn`; one loss goes in a `SingleLoss`.
      shardings: those of the parameters, as `trees.named_shardings` gives them.
    """

    def sums(p):
        pairs = losses_fn(p, batch)
        _checks.check_sums(pairs)
        # Counts are data: a count that depends on the parameters must not add to the gradient.
        counts = {
            n: jax.lax.stop_gradient(trees.wide(jnp.asarray(c))) for n, (_, c) in pairs.items()
        }
        return {n: trees.wide(s) for n, (s, _) in pairs.items()}, counts

    # One forward pass; each loss then pulls back a cotangent that is 1 for itself and 0 for others.
    values, pull, counts = jax.vjp(sums, params, has_aux=True)

    def gradient(name):
        cotangents = {
            n: jnp.ones_like(v) if n == name else jnp.zeros_like(v) for n, v in values.items()
        }
        (grad,) = pull(cotangents)
        # Pinned: the partitioner would replicate a gradient that only feeds a dot.
        return trees.pin(jax.tree.map(trees.wide, grad), shardings)

    return values, counts, {name: gradient(name) for name in values}


@partial(jax.jit, donate_argnums=0)
def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


@partial(jax.jit, donate_argnums=0)
def _scale(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)
