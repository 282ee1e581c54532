"""The names of the leaves of a pytree: their paths, as every table and message has them."""

import re

import jax

from jaxunlearn.core.trees import Tree

Path = tuple[str, ...]


def leaf_paths(tree: Tree, *, with_none: bool = False) -> list[Path]:
    """The components of every leaf's path; a tree that is one array is called `params`.

    Args:
      tree: any pytree.
      with_none: whether the places that hold None, such as those of frozen leaves, count too.

    Returns:
      One path a leaf, in the order of `jax.tree.leaves`.
    """
    is_leaf = (lambda x: x is None) if with_none else None
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]
    # In the state of a Flax NNX module every leaf is the attribute `value` of a variable. It is no
    # part of the variable's name.
    variable = jax.tree_util.GetAttrKey("value")
    if paths and all(len(path) > 1 and path[-1] == variable for path in paths):
        paths = [path[:-1] for path in paths]
    texts = (jax.tree_util.keystr(path, simple=True, separator=".") for path in paths)
    return [tuple(re.split(r"[./]", text)) if text else ("params",) for text in texts]


def leaf_names(tree: Tree) -> list[str]:
    """The paths of the leaves with dots between their components, such as `layers.0.attn.kernel`.

    >>> leaf_names({"layers": [{"kernel": 1.0}, {"kernel": 2.0}]})
    ['layers.0.kernel', 'layers.1.kernel']
    """
    return [".".join(path) for path in leaf_paths(tree)]


def as_pattern(argument: str, text: str | re.Pattern) -> re.Pattern:
    """A regular expression over paths, compiled.

    Args:
      argument: the name of the argument, for the message.
      text: the expression.

    Raises:
      ValueError: it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{argument}={text!r} is no regular expression: {error}") from None
