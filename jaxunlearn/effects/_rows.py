"""Numbers by leaf, gathered into the rows of a table by layer or by tensor."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks
from jaxunlearn.effects._grouping import BY_PATH, Group, Grouping

By = Literal["layer", "tensor"]


def layer_dots(a: Tree, b: Tree, *, by: By = "layer", grouping: Grouping = BY_PATH) -> jax.Array:
    """Inner products of two parameter trees, row by row.

    Args:
      a: pytree of arrays.
      b: pytree of the same structure and shapes.
      by: a row a "layer", or a row a "tensor".
      grouping: how leaves form rows; by default by their paths, with nothing stacked.

    Returns:
      [rows] float32 or wider, called as `layer_names` or `tensor_names` say; they sum to the inner
      product of the whole trees.

    Raises:
      TypeError: a `Gradient` in place of its tree.
      ValueError: another `by`, a tree that is not like the other, or a grouping that does not fit.
    """
    _checks.check_choice("layer_dots", "by", by, get_args(By))
    _checks.check_tree("layer_dots: a", a)
    _checks.check_like("layer_dots: b", b, a, "a")
    groups = grouping.groups(a)
    dots = leaf_dots(a, b, groups)
    return (
        tensor_rows(dots, groups)
        if by == "tensor"
        else concatenate(group_sums(dots, groups), groups)
    )


def layer_norms(a: Tree, *, by: By = "layer", grouping: Grouping = BY_PATH) -> jax.Array:
    """Euclidean norms of a parameter tree, row by row; squares do not overflow.

    Those of a row vanish where all its entries are below about 1e-19 of the largest of the tree:
    their squares are below what float32 holds.

    Args:
      a: pytree of arrays.
      by: a row a "layer", or a row a "tensor".
      grouping: how leaves form rows; by default by their paths, with nothing stacked.

    Returns:
      [rows], as in `layer_dots`.
    """
    unit, scale = trees.scaled(a)
    return jnp.sqrt(layer_dots(unit, unit, by=by, grouping=grouping)) * scale


def leaf_dots(a: Tree, b: Tree, groups: Sequence[Group]) -> list[jax.Array]:
    """The inner product of every pair of leaves, in the order of `jax.tree.leaves`.

    Returns:
      One scalar a leaf, or [layers] where the leaf is stacked.
    """
    stacked = {i for group in groups if group.stacked for i in group.leaves}
    return [
        jnp.sum(trees.wide(x) * trees.wide(y), axis=tuple(range(i in stacked, x.ndim)))
        for i, (x, y) in enumerate(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    ]


def group_sums(values: Sequence[jax.Array], groups: Sequence[Group]) -> list[jax.Array]:
    """The sum over the leaves of every group: a scalar, or [layers] of a stack."""
    # Leaf after leaf, from zero, in the order of the tree: always the same rounding.
    return [jnp.asarray(sum((values[i] for i in group.leaves), 0.0)) for group in groups]


def concatenate(values: Sequence[jax.Array], groups: Sequence[Group]) -> jax.Array:
    """One array [rows, ...] of the values by group: [...] each, or [layers, ...] of a stack."""
    return jnp.concatenate(
        [x if group.stacked else x[None] for x, group in zip(values, groups, strict=True)]
    )


def tensor_rows(values: Sequence[jax.Array], groups: Sequence[Group]) -> jax.Array:
    """One array [rows, ...] of the values by leaf, in the order of `tensor_names`."""

    def rows(group: Group) -> jax.Array:
        leaves = [values[i] for i in group.leaves]
        if not group.stacked:
            return jnp.stack(leaves)
        table = jnp.stack(leaves, axis=1)  # [layers, tensors, ...]
        return table.reshape(-1, *table.shape[2:])

    return jnp.concatenate([rows(group) for group in groups])
