"""Which leaves of a parameter pytree an effect differentiates, and which are frozen.

Every program of this package takes two trees, the trainable leaves and the frozen ones, each with
None in the places of the other (equinox's convention). So frozen leaves are arguments of what is
compiled, never constants in it, and nothing of their size is formed by a gradient.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.names import nearest
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects._paths import as_pattern, leaf_names

Trainable = Callable[[str], bool] | str | re.Pattern | Tree | None
"""Which leaves are differentiated: a function of a leaf's path (`layers.0.attn.kernel`), a regular
expression that is searched in it, or a pytree of bools like the parameters. None: every leaf of a
floating type, so that integers, booleans and random keys are frozen without being named."""


def partition(params: Tree, trainable: Trainable = None) -> tuple[Tree, Tree]:
    """Parameters as two trees: the leaves that are trainable, and those that are frozen.

    Args:
      params: pytree of arrays, or of `jax.ShapeDtypeStruct`.
      trainable: which leaves are trainable, see `Trainable`; by default all of a floating type.

    Returns:
      (trainable, frozen): trees like `params`, each with None where the other has a leaf. Where
      every leaf is trainable, they are `params` itself and None.

    Raises:
      ValueError: no leaf is trainable, a tree of bools that is not like the parameters, or what is
        no regular expression.
      TypeError: a leaf that is no array, a trainable one without real derivatives (integers,
        booleans, random keys, complex numbers), or a `trainable` of another kind.

    >>> import jax.numpy as jnp
    >>> params = {"base": jnp.ones(2), "lora": jnp.zeros(2), "step": jnp.array(3)}
    >>> trainable, frozen = partition(params, "lora")
    >>> [name for name, leaf in trainable.items() if leaf is not None]
    ['lora']
    >>> partition(params)[1]["step"].item(), partition(params)[1]["base"]
    (3, None)
    """
    leaves, structure = jax.tree.flatten(params)
    names = leaf_names(params)
    for name, leaf in zip(names, leaves, strict=True):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"params: the leaf {name} is no array but {leaf!r}; keep what is no array out of"
                " the parameters (equinox.partition(model, equinox.is_array) does)"
            )
    picks = _picks(params, names, leaves, trainable)
    for name, leaf, pick in zip(names, leaves, picks, strict=True):
        if pick and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"params: the leaf {name} is of type {leaf.dtype}, which has no real derivative;"
                " leave it out with trainable="
            )
    if not any(picks):
        raise ValueError(_nothing(names, trainable))
    if all(picks):
        return params, None
    pairs = list(zip(leaves, picks, strict=True))
    chosen = jax.tree.unflatten(structure, [leaf if pick else None for leaf, pick in pairs])
    frozen = jax.tree.unflatten(structure, [None if pick else leaf for leaf, pick in pairs])
    return chosen, frozen


def combine(trainable: Tree, frozen: Tree) -> Tree:
    """The parameters of which `partition` made two trees.

    Args:
      trainable: the leaves that are trainable, or a tree like it (moved parameters, for example).
      frozen: the others; None where there are none.

    Returns:
      A tree with the leaves of both.
    """
    if frozen is None:
        return trainable
    none = lambda x: x is None
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=none)


def _picks(
    params: Tree, names: list[str], leaves: list[Any], trainable: Trainable
) -> Sequence[bool]:
    """Whether each leaf is trainable."""
    if trainable is None:
        # A complex leaf is not frozen in silence: it is refused, with its name.
        return [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    if isinstance(trainable, str | re.Pattern):
        pattern = as_pattern("trainable", trainable)
        return [pattern.search(name) is not None for name in names]
    # A pytree may be callable too, such as an equinox module of bools: a function is one leaf.
    if callable(trainable) and jax.tree_util.all_leaves([trainable]):
        return [bool(trainable(name)) for name in names]
    flags = jax.tree.leaves(trainable)
    if not flags or not all(isinstance(flag, bool | np.bool_) for flag in flags):
        raise TypeError(
            f"trainable={trainable!r}: expected a function of a leaf's path, a regular expression,"
            " or a pytree of bools like the parameters"
        )
    given = leaf_names(trainable)
    for name in {*names} ^ {*given}:
        few = "has no bool for" if name in names else "has a bool for"
        raise ValueError(
            f"trainable: {few} the leaf {name}, but the leaves of the parameters are"
            f" {', '.join(names[:8])}{', ..' if len(names) > 8 else ''}"
        )
    return flags


def _nothing(names: list[str], trainable: Trainable) -> str:
    if not names:
        return "params: a tree without leaves"
    if trainable is None:
        return f"params: no leaf has a floating type; the first, {names[0]}, has none"
    hint = nearest(trainable, names) if isinstance(trainable, str) else ""
    return (
        f"trainable={trainable!r} selects no leaf{hint}; the leaves are called {names[0]}"
        f"{f' .. {names[-1]}' if len(names) > 1 else ''}"
    )
