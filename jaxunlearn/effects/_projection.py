"""Projection of updates onto the half-space in which, to first order, a risk does not rise.

To first order an update u changes R by grad R . u. Where that is positive, the nearest update that
does not raise R is

    u' = u - (grad R . u) / ||grad R||^2  grad R        (A-GEM, arXiv 1812.00420, equation 11)
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks
from jaxunlearn.effects._grouping import BY_PATH, Grouping
from jaxunlearn.effects._rows import group_sums, leaf_dots


def spare_update(
    update: Tree,
    risk_gradient: Tree,
    *,
    by: Literal["total", "layer"] = "total",
    grouping: Grouping = BY_PATH,
) -> Tree:
    """The nearest update along which a risk does not rise, to first order.

    Args:
      update: what is added to the parameters, a pytree of arrays.
      risk_gradient: grad R, like `update`; its length does not matter.
      by: "total" projects the update as a whole; "layer" projects each layer by itself, so that no
        layer alone raises the risk, but those whose gradient is below about 1e-19 of the largest.
      grouping: how leaves form layers, and which leaves are stacked over them; by default layers
        follow from the paths of leaves and nothing is stacked.

    Returns:
      The update, unchanged where grad R . u <= 0 or grad R is 0.

    Raises:
      TypeError: a `Gradient` in place of its tree.
      ValueError: another `by`, a gradient that is not like the update, or a grouping that does not
        fit it.

    >>> update, gradient = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([2.0, 0.0])}
    >>> spare_update(update, gradient)["w"].tolist()
    [0.0, 1.0]
    """
    _checks.check_choice("spare_update", "by", by, ("total", "layer"))
    _checks.check_tree("update", update)
    _checks.check_like("risk_gradient", risk_gradient, update, "update")
    # Along the unit gradient, so that squares of a tiny or huge one stay within float32.
    scale = trees.norm(risk_gradient)
    unit = jax.tree.map(lambda g: trees.wide(g) / jnp.where(scale > 0, scale, 1), risk_gradient)
    groups = grouping.groups(update)
    rises = group_sums(leaf_dots(unit, update, groups), groups)
    squares = group_sums(leaf_dots(unit, unit, groups), groups)
    if by == "total":
        rises, squares = ([sum(map(jnp.sum, xs))] * len(groups) for xs in (rises, squares))

    leaves, structure = jax.tree.flatten(update)
    units = jax.tree.leaves(unit)
    for group, rise, square in zip(groups, rises, squares, strict=True):
        # The length of the update along the unit gradient where it rises, by layer of a stack.
        share = jnp.maximum(rise, 0) / jnp.where(square > 0, square, 1)
        for i in group.leaves:
            leaves[i] = _less(leaves[i], share, units[i])
    return jax.tree.unflatten(structure, leaves)


def _less(update: jax.Array, share: jax.Array, unit: jax.Array) -> jax.Array:
    """`update - share unit`, in the type of the update; `share` is a scalar, or one a layer."""
    spread = share.reshape(share.shape + (1,) * (unit.ndim - share.ndim))
    return (update - spread * unit).astype(update.dtype)
