"""Directions in parameter space: exact gradients over a whole dataset."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks
from jaxunlearn.effects._precision import Precision, products
from jaxunlearn.effects._trainable import Trainable, combine, partition

LossFn = Callable[[Tree, Any], tuple[jax.Array, jax.Array]]
"""(params, batch) -> (sum, count): both are added over batches, and divided once at the end."""

LossesFn = Callable[[Tree, Any], Mapping[str, tuple[jax.Array, jax.Array]]]
"""(params, batch) -> {name: (sum, count)}: several losses that share a forward pass."""


class Gradient(NamedTuple):
    """A loss over a dataset and its gradient.

    Attributes:
      value: sum / count, a scalar in float32 or wider.
      gradient: tree like the parameters, in float32 or wider, sharded as they are; None at frozen
        leaves.
    """

    value: jax.Array
    gradient: Tree


def dataset_gradient(
    loss_fn: LossFn,
    params: Tree,
    batches: Iterable[Any],
    *,
    trainable: Trainable = None,
    precision: Precision = "highest",
) -> Gradient:
    """The exact gradient of a loss over a dataset: grad [sum_batches sum / sum_batches count].

    No batch is left out and none is weighted by its position (no running mean): the value is that
    of one huge batch, whatever the batches. The order is that of `batches`, the sum float32.

    Args:
      loss_fn: pure function (params, batch) -> (sum, count), both scalars. It is a static argument
        of a compiled function: pass the same object again to reuse the compilation.
      params: pytree of arrays; leaves may be sharded, the gradient is sharded like them.
      batches: pytrees of one static shape, in a list or any other iterable.
      trainable: which leaves have a gradient, see `Trainable`; by default all of a floating type.
        The others are frozen: arguments of the compiled program, without a gradient.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      Gradient(value, gradient).

    Raises:
      ValueError: no batches, batches of different leaves, a count of zero over all of them, no
        trainable leaf, or another precision.
      TypeError: the loss function returns something else than (sum, count), one batch instead of
        several, a trainable leaf that has no gradient, or a call under `jax.jit`.
    """
    losses_fn = SingleLoss(loss_fn)
    found = _gradients("dataset_gradient", losses_fn, params, batches, trainable, precision)
    return found["loss"]


def dataset_gradients(
    losses_fn: LossesFn,
    params: Tree,
    batches: Iterable[Any],
    *,
    trainable: Trainable = None,
    precision: Precision = "highest",
) -> dict[str, Gradient]:
    """Exact gradients of several losses that share one forward pass over a dataset.

    Args:
      losses_fn: pure function (params, batch) -> {name: (sum, count)}; static, see
        `dataset_gradient`.
      params: pytree of arrays.
      batches: pytrees of one static shape.
      trainable: as in `dataset_gradient`.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      {name: Gradient}. Each costs one backward pass; the forward pass is shared.

    Raises:
      ValueError, TypeError: as in `dataset_gradient`.
    """
    return _gradients("dataset_gradients", losses_fn, params, batches, trainable, precision)


def _gradients(
    caller: str,
    losses_fn: LossesFn,
    params: Tree,
    batches: Iterable[Any],
    trainable: Trainable,
    precision: Precision,
) -> dict[str, Gradient]:
    """`dataset_gradients`, with errors that name the function that was called."""
    names = caller, "effects.programs.gradient_sums"
    _checks.check_host(*names, params)
    remaining = _checks.each_batch(*names, batches)
    params, frozen = partition(params, trainable)
    options = {"losses_fn": losses_fn, "shardings": trees.named_shardings(params)}
    # Two batches are looked at: a single one needs no running sums, which take a gradient's memory.
    first = list(itertools.islice(remaining, 2))
    if not first:
        raise ValueError("a gradient over a dataset needs at least one batch, got none")
    with products(precision):
        totals: Any = zero_sums(params, first[0], frozen, **options) if len(first) > 1 else None
        for batch in itertools.chain(first, remaining):
            totals = gradient_sums(params, batch, totals, frozen, **options)
            _checks.check_results(*names, totals)
    sums, counts, gradients = totals
    _checks.check_counts(counts)
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


@partial(jax.jit, static_argnames=("losses_fn", "shardings"), donate_argnames="totals")
def gradient_sums(params, batch, totals=None, frozen=None, *, losses_fn, shardings):
    """Sums, counts and gradients of sums, {name: ...} each, of all batches so far.

    Running sums differ from gradients of separate programs, added up, by the last rounding alone: a
    product that is added at once is rounded with its sum, and a leaf that is read by index, such as
    a table of embeddings, gets the terms of a batch one by one.

    Args:
      params: pytree of arrays, of which the gradients are taken.
      batch: one pytree.
      totals: the result for the batches before, to which this batch is added, or `zero_sums`;
        donated, so that the result takes its place in memory. None: the batch alone.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.
      losses_fn: a `LossesFn`; one loss goes in a `SingleLoss`.
      shardings: those of `params`, as `trees.named_shardings` gives them.
    """
    values, counts, pull = _forward(params, batch, frozen, losses_fn)
    if totals is None:
        return _placed((values, counts, {name: pull(name) for name in values}), shardings)
    value_totals, count_totals, gradient_totals = totals
    gradients = {}
    for name in values:
        # The reverse pass adds to the running sum wherever it finishes a part of the gradient, such
        # as one layer: the gradient of the batch is never whole in memory.
        running = jax.tree.map(jax.new_ref, gradient_totals[name])
        pull(name, running)
        gradients[name] = jax.tree.map(jax.freeze, running)
    values, counts = jax.tree.map(jnp.add, (value_totals, count_totals), (values, counts))
    return _placed((values, counts, gradients), shardings)


@partial(jax.jit, static_argnames=("losses_fn", "shardings"), keep_unused=True)
def zero_sums(params, batch, frozen=None, *, losses_fn, shardings):
    """The zeros to which `gradient_sums` adds the first of several batches.

    Args:
      params, batch, frozen, losses_fn, shardings: as in `gradient_sums`; the arrays' shapes and
        places are read, not their values.
    """
    sums_of = lambda p, b, f: _forward(p, b, f, losses_fn)[:2]
    shapes = jax.eval_shape(sums_of, params, batch, frozen)
    zeros = lambda tree: jax.tree.map(lambda x: trees.wide(jnp.zeros(x.shape, x.dtype)), tree)
    values, counts = zeros(shapes)
    sums = (values, counts, {name: zeros(params) for name in values})
    return _placed(sums, shardings)


def _forward(params, batch, frozen, losses_fn):
    """The forward pass of a batch: sums, counts, and the pullback of each sum.

    Returns:
      ({name: sum}, {name: count}, pull). `pull(name)` gives the gradient of one sum, like the
      parameters but in float32 or wider. `pull(name, refs)` adds it to a tree of `jax.Ref` instead.
    """

    def sums(wide_params):
        # The gradient is taken with respect to wide parameters, so that it is wide itself.
        pairs = losses_fn(combine(trees.like(wide_params, params), frozen), batch)
        _checks.check_sums(pairs)
        values = {n: trees.wide(s) for n, (s, _) in pairs.items()}
        # Counts are data: a count that depends on the parameters must not add to the gradient.
        counts = {
            n: jax.lax.stop_gradient(jnp.asarray(c).astype(values[n].dtype))
            for n, (_, c) in pairs.items()
        }
        return values, counts

    # One forward pass; each loss then pulls back a cotangent that is 1 for itself and 0 for others.
    vjp: Any
    values, vjp, counts = jax.vjp(sums, jax.tree.map(trees.wide, params), has_aux=True)

    def pull(name, refs=None):
        cotangents = {
            n: jnp.ones_like(v) if n == name else jnp.zeros_like(v) for n, v in values.items()
        }
        (gradient,) = (vjp if refs is None else vjp.with_refs(refs))(cotangents)
        return gradient

    return values, counts, pull


def _placed(sums, shardings):
    """Sums with fixed shardings: gradients like the parameters, scalars on every device.

    The partitioner would replicate a gradient that only feeds a dot. And running sums must be where
    the program that adds to them leaves them, or it is compiled again for each place.
    """
    values, counts, gradients = sums
    mesh = next((s.mesh for s in shardings if s is not None), None)
    replicated = None if mesh is None else jax.NamedSharding(mesh, jax.P())
    scalars = (replicated,) * len(jax.tree.leaves((values, counts)))
    values, counts = trees.pin((values, counts), scalars)
    return values, counts, {n: trees.pin(grad, shardings) for n, grad in gradients.items()}


@partial(jax.jit, donate_argnums=0)
def _scale(tree, factor):
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)
