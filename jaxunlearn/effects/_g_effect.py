"""G-effect: how an objective's gradient moves a risk.

    e(D) = grad R(D; theta) . grad L_u(D_u; theta)        (arXiv 2502.19301, definition 1)

A gradient step of size eta on L_u changes R(D) by about -eta e(D): e < 0 on the data to forget
removes, e >= 0 on the data to retain keeps.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks, _gradients, _grouping, _probes, _rounding, _rows
from jaxunlearn.effects._grouping import BY_PATH, Grouping
from jaxunlearn.effects._precision import Precision, products
from jaxunlearn.effects._trainable import Trainable, combine, partition

By = Literal["layer", "tensor", "total"]


class GEffect(NamedTuple):
    """A G-effect: one value, or one value a row of a table by layer or tensor.

    Attributes:
      value: grad R . direction, [] or [rows].
      cosine: of the angle between the two, like `value`; 0 where either is 0, or
        below about 1e-19 of the largest entry of the tree. None where grad R was
        never formed (method="gates").
      risk_norm: ||grad R||, like `value`; None where grad R was never formed.
      direction_norm: ||direction||, like `value`.
      rows: the names of the rows; None for the total.
    """

    value: jax.Array
    cosine: jax.Array | None
    risk_norm: jax.Array | None
    direction_norm: jax.Array
    rows: tuple[str, ...] | None

    def total(self) -> "GEffect":
        """The G-effect of the whole parameters, from that of their rows.

        Values add up, norms by their squares, and cosines by the shares of their rows in both
        norms. From rows by layer these are the numbers of by="total", to the last bit.
        """
        if self.rows is None:
            return self
        value, direction_norm = self.value.sum(), trees.norm(self.direction_norm)
        if self.risk_norm is None or self.cosine is None:
            return GEffect(value, None, None, direction_norm, None)
        risk_norm = trees.norm(self.risk_norm)
        # Shares of norms neither overflow nor vanish, as their products may.
        shares = [
            norms / jnp.where(of == 0, 1, of)
            for norms, of in ((self.risk_norm, risk_norm), (self.direction_norm, direction_norm))
        ]
        cosine = jnp.sum(self.cosine * shares[0] * shares[1])
        return GEffect(value, cosine, risk_norm, direction_norm, None)


def g_effect(
    risk_fn: Callable[..., tuple[jax.Array, jax.Array]],
    params: Tree,
    batches: Iterable[Any],
    direction: Tree,
    *,
    by: By = "layer",
    method: Literal["gates", "full"] = "full",
    grouping: Grouping = BY_PATH,
    trainable: Trainable = None,
    precision: Precision = "highest",
) -> GEffect:
    """The exact G-effect of a direction on a risk over a dataset.

    Args:
      risk_fn: (params, batch) -> (sum, count), and for method="gates" also `probe=None`.
      params: pytree of arrays; for method="gates" a mapping whose keys are layers.
      batches: the whole dataset in pytrees of one static shape.
      direction: tree like `params`, None at frozen leaves: the gradient of the objective (or an
        optimiser's update).
      by: one value per layer or per tensor (named by `.rows`), or the total alone.
      method: "full" forms the risk's gradient and so knows cosine and norms; "gates" never forms it
        (one scalar per layer or tensor in the reverse pass): the lean way for large models.
      grouping: how leaves form rows, and which leaves are stacked over layers; by default rows
        follow from the paths of leaves and nothing is stacked.
      trainable: which leaves take part, see `Trainable`; by default all of a floating type. For
        method="gates" the function gets a probe whose directions are None at frozen leaves.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      GEffect; the rows' values sum to the total.

    Raises:
      ValueError: another `by`, `method` or `precision`, no batches, a direction that is not like
        the parameters, a count of zero, or a grouping that does not fit the parameters.
      TypeError: method="gates", and `risk_fn` has no argument `probe` or `params` is no mapping;
        and as in `dataset_gradient`.
    """
    _checks.check_choice("g_effect", "by", by, get_args(By))
    _checks.check_choice("g_effect", "method", method, ("full", "gates"))
    names = "g_effect", "effects.programs.gradient_sums or g_by_gates"
    _checks.check_host(*names, params, direction)
    batches = _checks.each_batch(*names, batches)
    chosen, frozen = partition(params, trainable)
    _checks.check_direction("direction", direction, chosen, frozen)
    if method == "full":
        options: Any = dict(trainable=trainable, precision=precision)
        risk = _gradients.dataset_gradient(risk_fn, params, batches, **options)
        return g_effect_between(risk.gradient, direction, by=by, grouping=grouping)
    _probes.require(risk_fn, "g_effect", "method='full'")
    # The total is the sum of the layers, so that both have the same rounding.
    rows: _rows.By = "tensor" if by == "tensor" else "layer"
    with products(precision):
        values = _by_gates(risk_fn, (chosen, frozen), batches, direction, rows, grouping)
    norms = _norms(direction, rows, grouping)
    row_names = tuple(_grouping.row_names(chosen, by=rows, grouping=grouping))
    effect = GEffect(values, None, None, norms, row_names)
    return effect.total() if by == "total" else effect


def g_effect_between(
    risk_gradient: Tree,
    direction: Tree,
    *,
    by: By = "layer",
    grouping: Grouping = BY_PATH,
) -> GEffect:
    """The G-effect of two gradients that are already formed.

    Args:
      risk_gradient: grad R(D), a pytree (the `.gradient` of a `Gradient`).
      direction: grad L_u, or an update; a tree like `risk_gradient`.
      by: one value per layer or per tensor (named by `.rows`), or the total alone.
      grouping: how leaves form rows, and which leaves are stacked over layers; by default rows
        follow from the paths of leaves and nothing is stacked.

    Returns:
      GEffect with cosine and both norms; the cosine of a zero gradient is 0. The total of a result
      by layer is its `total()`: no second call is needed.

    Raises:
      TypeError: a `Gradient` in place of its tree.
      ValueError: another `by`, trees that are not like each other, or a grouping that does not fit
        them.
    """
    _checks.check_choice("g_effect_between", "by", by, get_args(By))
    _checks.check_tree("risk_gradient", risk_gradient)
    _checks.check_like("direction", direction, risk_gradient, "risk_gradient")
    rows: _rows.By = "tensor" if by == "tensor" else "layer"
    value, cosine = _dots(risk_gradient, direction, rows, grouping)
    risk_norm, direction_norm = (_norms(t, rows, grouping) for t in (risk_gradient, direction))
    names = tuple(_grouping.row_names(direction, by=rows, grouping=grouping))
    effect = GEffect(value, cosine, risk_norm, direction_norm, names)
    return effect.total() if by == "total" else effect


def g_effects_of(
    losses_fn: _gradients.LossesFn,
    params: Tree,
    batches: Iterable[Any],
    risk_gradient: Tree,
    *,
    trainable: Trainable = None,
    precision: Precision = "highest",
) -> dict[str, jax.Array]:
    """K objectives' total G-effects at one theta, by one forward-mode pass.

    e_k = d/da L_k(theta + a grad R) at a = 0: the derivative of the vector of objectives along one
    direction. It costs three forward passes however many objectives there are, and forms none of
    their gradients.

    Args:
      losses_fn: (params, batch) -> {name: (sum, count)}, the objectives on one batch.
      params: pytree of arrays.
      batches: the dataset the objectives are averaged over.
      risk_gradient: grad R(D), like `params`, None at frozen leaves; rounded to the parameters' own
        types, which forward mode takes.
      trainable: which leaves take part, see `Trainable`; by default all of a floating type.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      {name: e}, scalars.

    Raises:
      ValueError: no batches, a count of zero over all of them, a risk gradient that is not like the
        parameters, or another precision.
      TypeError: as in `dataset_gradient`.
    """
    names = "g_effects_of", "effects.programs.g_by_jvp"
    _checks.check_host(*names, params, risk_gradient)
    batches = _checks.each_batch(*names, batches)
    params, frozen = partition(params, trainable)
    _checks.check_direction("risk_gradient", risk_gradient, params, frozen)
    totals: dict[str, tuple[jax.Array, jax.Array]] = {}
    with products(precision):
        for batch in batches:
            pairs = g_by_jvp(params, batch, risk_gradient, frozen, losses_fn=losses_fn)
            _checks.check_results(*names, pairs)
            for name, (effect, count) in pairs.items():
                sums = totals.get(name, (0.0, 0.0))
                totals[name] = (sums[0] + effect, sums[1] + count)
    if not totals:
        raise ValueError("g_effects_of needs at least one batch, got none")
    _checks.check_counts({name: count for name, (_, count) in totals.items()})
    return {name: total / count for name, (total, count) in totals.items()}


@partial(jax.jit, static_argnames="losses_fn")
def g_by_jvp(params, batch, direction, frozen=None, *, losses_fn):
    """{name: (derivative of the sum along the direction, count)} of one batch, in forward mode.

    Args:
      params: pytree of arrays, along which the direction goes.
      batch: one pytree.
      direction: tree like `params`.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.
      losses_fn: as in `g_effects_of`.
    """

    def sums(p):
        pairs = losses_fn(combine(p, frozen), batch)
        _checks.check_sums(pairs)
        values = {name: trees.wide(total) for name, (total, _) in pairs.items()}
        return values, {name: count for name, (_, count) in pairs.items()}

    tangent, restore = _rounding.rounded((direction,), params)
    _, tangents, counts = jax.jvp(sums, (params,), tangent, has_aux=True)
    tangents = {name: restore(value[None])[0] for name, value in tangents.items()}
    return {n: (t, jnp.asarray(counts[n]).astype(t.dtype)) for n, t in tangents.items()}


@partial(jax.jit, static_argnames=("risk_fn", "by", "grouping"))
def g_by_gates(params, batch, direction, frozen=None, *, risk_fn, by, grouping):
    """[rows], count: grad (sum of a batch's risk) . direction by layer or tensor, never formed.

    Args:
      params: mapping of layers, along which the direction goes.
      batch, direction, risk_fn: as in `g_effect`, for one batch.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.
      by: "layer" or "tensor".
      grouping: how leaves form rows.
    """
    directions, restore = _rounding.rounded((direction,), params)
    probe = _probes.make(params, directions, by=by, grouping=grouping)
    _probes.check_rows(params, by, grouping)
    _probes.check_read(risk_fn, params, batch, probe, "method='full'", frozen=frozen)

    def risk(gates):
        own = {"directions": probe["directions"], "gates": gates}
        return risk_fn(combine(params, frozen), batch, probe=own)

    gates, count = jax.grad(risk, has_aux=True)(probe["gates"])
    # One direction, and one gate for all samples.
    values = trees.wide(_probes.to_rows(gates, params, by, grouping)[:, 0, 0])
    # Counts are added up over batches: their own type may be too narrow for the sum.
    return restore(values[None])[0], jnp.asarray(count).astype(values.dtype)


def _by_gates(
    risk_fn: Callable[..., Any],
    parts: tuple[Tree, Tree],
    batches: Iterable[Any],
    direction: Tree,
    by: _rows.By,
    grouping: Grouping,
) -> jax.Array:
    """[rows]: sums and counts are added over batches, and divided once."""
    params, frozen = parts
    options: dict[str, Any] = dict(risk_fn=risk_fn, by=by, grouping=grouping)
    pairs = [g_by_gates(params, batch, direction, frozen, **options) for batch in batches]
    _checks.check_results("g_effect", "effects.programs.g_by_gates", pairs)
    if not pairs:
        raise ValueError("g_effect needs at least one batch, got none")
    sums, counts = jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *pairs)
    _checks.check_counts({"g_effect": counts})
    return sums / counts


@partial(jax.jit, static_argnames=("by", "grouping"))
def _dots(a, b, by, grouping):
    """Inner products row by row, and cosines: of trees scaled so that these do not vanish."""
    dots = partial(_rows.layer_dots, by=by, grouping=grouping)
    unit_a, unit_b = (trees.scaled(tree)[0] for tree in (a, b))
    norms = [jnp.sqrt(dots(unit, unit)) for unit in (unit_a, unit_b)]
    zero = (norms[0] == 0) | (norms[1] == 0)
    a_norm, b_norm = (jnp.where(zero, 1, norm) for norm in norms)
    return dots(a, b), jnp.where(zero, 0, dots(unit_a, unit_b) / a_norm / b_norm)


@partial(jax.jit, static_argnames=("by", "grouping"))
def _norms(a, by, grouping):
    return _rows.layer_norms(a, by=by, grouping=grouping)
