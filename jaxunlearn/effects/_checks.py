"""Checks of what callers pass, by name: JAX's own messages speak of trees and axes it was given."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn.core.trees import Tree


def check_like(name: str, tree: Tree, params: Tree, expected: str = "params") -> None:
    """Checks that a tree has the leaves of another: the same paths, and arrays of the same shapes.

    Args:
      name: of the tree, for the message.
      tree: what was passed.
      params: what it must look like.
      expected: the name of `params`, for the message.

    Raises:
      ValueError: names the first leaf that is missing, of another shape, or too many.
    """
    given, wanted = _shapes(tree), _shapes(params)
    for path, shape in wanted.items():
        if path not in given:
            raise ValueError(f"{name}: has no leaf {_leaf(path)}, which {expected} has")
        if given[path] != shape:
            raise ValueError(
                f"{name}: the leaf {_leaf(path)} has the shape {given[path]}, that of {expected}"
                f" has {shape}"
            )
    for path in given:
        if path not in wanted:
            raise ValueError(f"{name}: has a leaf {_leaf(path)}, which {expected} has not")


def check_sums(pairs: Mapping[str, Any]) -> None:
    """Checks that every loss of a dataset is a sum and a count.

    Args:
      pairs: {name: what the loss function returned}.

    Raises:
      TypeError: names the loss and what it returned.
    """
    for name, pair in pairs.items():
        scalars = isinstance(pair, tuple | list) and len(pair) == 2
        if not scalars or any(np.shape(x) for x in pair):
            shapes = [np.shape(x) for x in jax.tree.leaves(pair)]
            raise TypeError(
                f"{name}: a loss function of a dataset returns (sum, count), two scalars; got the"
                f" shapes {shapes}"
            )


def check_log_probs(shape: tuple[int, ...]) -> None:
    """Checks the shape of what a `sample_logp_fn` returned.

    Raises:
      ValueError: neither [B] nor [B, S].
    """
    if len(shape) not in (1, 2):
        raise ValueError(
            "pg_effect: sample_logp_fn returns log-probabilities [B], or [B, S] by token; got the"
            f" shape {shape}"
        )


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): tuple(np.shape(x)) for path, x in leaves}


def _leaf(path: str) -> str:
    return path or "(the tree is one array)"
