"""G-effect: how an objective's gradient moves a risk.

    e(D) = grad R(D; theta) . grad L_u(D_u; theta)        (arXiv 2502.19301, definition 1)

A gradient step of size eta on L_u changes R(D) by about -eta e(D): e < 0 on the data to forget
removes, e >= 0 on the data to retain keeps.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.effects import directions as directions_lib
from jaxunlearn.effects import layers, probes, trees

Tree = Any
By = Literal["layer", "tensor", "total"]
Rows = Literal["layer", "tensor"]


class GEffect(NamedTuple):
    """A G-effect; `cosine` and the norms only where the gradients concerned were formed."""

    value: jax.Array  # [] or [rows]
    cosine: jax.Array | None  # like value
    risk_norm: jax.Array | None  # like value
    direction_norm: jax.Array  # like value
    rows: tuple[str, ...] | None  # their names, None for the total


def g_effect(
    risk_fn: Callable[..., tuple[jax.Array, jax.Array]],
    params: Tree,
    batches: Iterable[Any],
    direction: Tree,
    *,
    by: By = "layer",
    method: Literal["gates", "full"] = "full",
    stacked: tuple[str, ...] = layers.STACKED,
) -> GEffect:
    """The exact G-effect of a direction on a risk over a dataset.

    Args:
      risk_fn: (params, batch) -> (sum, count), and for method="gates" also `probe=None`.
      params: mapping of layers (see `layers`).
      batches: the whole dataset in pytrees of one static shape.
      direction: tree like `params`: the gradient of the objective (or an optimiser's update).
      by: one value per layer or per tensor (named by `.rows`), or the total alone.
      method: "full" forms the risk's gradient and so knows cosine and norms; "gates" never forms it
        (one scalar per layer or tensor in the reverse pass): the lean way for large models.

    Returns:
      GEffect; the rows' values sum to the total.

    Raises:
      ValueError: another `by` or `method`, no batches, or a count of zero.
      TypeError: method="gates" and `risk_fn` has no argument `probe`.
    """
    _check(by, method)
    if method == "full":
        risk = directions_lib.dataset_gradient(risk_fn, params, batches)
        return between(risk.direction, direction, by=by, stacked=stacked)
    probes.require(risk_fn, "g_effect", "method='full'")
    rows: Rows = "tensor" if by == "tensor" else "layer"
    values = _by_gates(risk_fn, params, batches, direction, rows, stacked)
    norms = _norms(direction, rows, stacked)
    if by == "total":
        return GEffect(values.sum(), None, None, trees.norm(norms), None)
    return GEffect(values, None, None, norms, _names(params, rows, stacked))


def between(
    risk_gradient: Tree,
    direction: Tree,
    *,
    by: By = "layer",
    stacked: tuple[str, ...] = layers.STACKED,
) -> GEffect:
    """The G-effect of two gradients that are already formed.

    Args:
      risk_gradient: grad R(D).
      direction: grad L_u, or an update.

    Returns:
      GEffect with cosine and both norms; the cosine of a zero gradient is 0.
    """
    rows: Rows = "tensor" if by == "tensor" else "layer"
    value = _dots(risk_gradient, direction, rows, stacked)
    risk_norm, direction_norm = (_norms(t, rows, stacked) for t in (risk_gradient, direction))
    if by == "total":
        value, risk_norm, direction_norm = (
            value.sum(),
            trees.norm(risk_norm),
            trees.norm(direction_norm),
        )
    still = (risk_norm == 0) | (direction_norm == 0)
    cosine = jnp.where(still, 0, value / jnp.where(still, 1, risk_norm)) / jnp.where(
        still, 1, direction_norm
    )
    names = None if by == "total" else _names(direction, rows, stacked)
    return GEffect(value, cosine, risk_norm, direction_norm, names)


def objective_effects(
    losses_fn: directions_lib.LossesFn, params: Tree, batches: Iterable[Any], risk_gradient: Tree
) -> dict[str, jax.Array]:
    """K objectives' total G-effects at one theta, by one forward-mode pass.

    e_k = d/da L_k(theta + a grad R) at a = 0: the derivative of the vector of objectives along one
    direction. It costs three forward passes however many objectives there are, and forms none of
    their gradients.

    Args:
      losses_fn: (params, batch) -> {name: (sum, count)}, the objectives on one batch.
      params: pytree of arrays.
      batches: the dataset the objectives are averaged over.
      risk_gradient: grad R(D), like `params`.

    Returns:
      {name: e}.
    """
    tangent = jax.tree.map(lambda v, p: v.astype(p.dtype), risk_gradient, params)
    totals: dict[str, tuple[jax.Array, jax.Array]] = {}
    for batch in batches:
        for name, pair in _push(params, batch, tangent, losses_fn=losses_fn).items():
            seen = totals.get(name, (0.0, 0.0))
            totals[name] = (seen[0] + pair[0], seen[1] + pair[1])
    if not totals:
        raise ValueError("objective_effects needs at least one batch, got none")
    return {name: total / count for name, (total, count) in totals.items()}


def _by_gates(risk_fn, params, batches, direction, by, stacked):
    pairs = [
        gate_gradient(params, batch, direction, risk_fn=risk_fn, by=by, stacked=stacked)
        for batch in batches
    ]
    if not pairs:
        raise ValueError("g_effect needs at least one batch, got none")
    sums, counts = jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *pairs)
    if counts == 0:
        raise ValueError("g_effect: nothing to average over (a count of 0 in every batch)")
    return sums / counts


@partial(jax.jit, static_argnames=("risk_fn", "by", "stacked"))
def gate_gradient(params, batch, direction, *, risk_fn, by, stacked):
    """[rows], count: grad (sum of a batch's risk) . direction by layer or tensor, never formed."""
    probe = probes.make(params, (direction,), by=by, stacked=stacked)

    def risk(gates):
        return risk_fn(params, batch, probe={"directions": probe["directions"], "gates": gates})

    gates, count = jax.grad(risk, has_aux=True)(probe["gates"])
    return layers.to_rows(gates, stacked=stacked)[:, 0, 0], count


@partial(jax.jit, static_argnames=("by", "stacked"))
def _dots(a, b, by, stacked):
    return layers.to_rows(trees.dots(a, b, by=by, stacked=stacked), stacked=stacked)


@partial(jax.jit, static_argnames=("by", "stacked"))
def _norms(a, by, stacked):
    return layers.to_rows(trees.norms(a, by=by, stacked=stacked), stacked=stacked)


def _names(params: Tree, by: Rows, stacked: tuple[str, ...]) -> tuple[str, ...]:
    named = layers.tensor_names if by == "tensor" else layers.layer_names
    return tuple(named(params, stacked=stacked))


def _check(by: str, method: str) -> None:
    if by not in By.__args__ or method not in ("gates", "full"):
        raise ValueError(
            f"g_effect: by={by!r}, method={method!r}; by is 'layer', 'tensor' or 'total', method"
            " 'gates' or 'full'"
        )


@partial(jax.jit, static_argnames="losses_fn")
def _push(params, batch, tangent, *, losses_fn):
    def sums(p):
        pairs = losses_fn(p, batch)
        return {n: trees.wide(s) for n, (s, _) in pairs.items()}, {
            n: c for n, (_, c) in pairs.items()
        }

    _, tangents, counts = jax.jvp(sums, (params,), (tangent,), has_aux=True)
    return {n: (tangents[n], trees.wide(jnp.asarray(counts[n]))) for n in tangents}
