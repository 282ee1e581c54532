"""Which leaves of a parameter pytree form one row of a table by layer, and what the row is called.

Nothing here knows a model: rows follow from the paths of the leaves, by a rule of this module or of
the caller, and from the keys that the caller names as stacked.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

from jaxunlearn.core.names import nearest
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects._paths import Path, as_pattern, leaf_paths
from jaxunlearn.effects._trainable import Trainable, partition


class Group(NamedTuple):
    """The leaves that make up one row of a table by layer, or one stack of rows.

    Attributes:
      names: the name of the row; of a stack, one name for each of its layers.
      leaves: positions of the leaves in `jax.tree.leaves(params)`, in that order.
      stacked: whether the leaves have a leading axis over the layers in `names`.
    """

    names: tuple[str, ...]
    leaves: tuple[int, ...]
    stacked: bool


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How the leaves of a parameter pytree form the rows of a table by layer.

    The path of a leaf is its keys, attributes and indices, joined by dots: `layers.0.attn.kernel`
    (a key that itself holds dots or slashes counts as several components). The row of a leaf is

    * the path up to and including its first numbered component: an index, or a name that ends in
      digits, such as `layers.0`, `params.Dense_0`, `h_3`;
    * for a path without numbers, the path without its last component: `embed.kernel` belongs to
      `embed`; a leaf at the top is a row of its own.

    Components that all leaves share, such as a wrapper `Transformer_0`, tell no layers apart, so
    their numbers do not count. (Frozen leaves, None in the tree, count as leaves for this: rows are
    called the same whatever is frozen.)

    `rows` replaces this rule by another, one of

    * a regular expression, searched in the path: its first group that matched is the name of the
      row, or the whole match where no group did. `r"layers\\.\\d+"` makes the rows `layers.0`,
      `layers.1`, ..;
    * a function of the path that returns the name of the row, or None where it knows none.

    Leaves without a row are an error, or form the row `other` where that has a name.

    Some models keep one array for all layers, with a leading axis over them. No rule can see that,
    so such keys are named in `stacked`; `rows` is about the other leaves.

    A grouping is immutable and hashable: a static argument of `jax.jit`. Two functions are equal
    only where they are one object, so make a grouping with a function once.

    Attributes:
      stacked: {path of a subtree: name of one of its layers}. Under such a path every leaf has a
        leading axis over the same layers; with {"blocks": "block"} these are the rows `block_0`,
        `block_1`, ...
      rows: a regular expression or a function of the path; None for the rule above.
      other: the row of leaves to which `rows` gives none; None: there must be no such leaf.

    Raises:
      TypeError: `stacked` is no mapping from text to text, or `rows` or `other` of another type.
      ValueError: `rows` is no regular expression.

    >>> import jax.numpy as jnp
    >>> w = jnp.ones((2, 3))
    >>> layer_names({"layers": [{"w": w}, {"w": w}], "head": {"w": w}})
    ['head', 'layers.0', 'layers.1']
    >>> layer_names({"h": {"w": w}, "head": {"w": w}}, grouping=Grouping(stacked={"h": "layer"}))
    ['layer_0', 'layer_1', 'head']
    >>> params = {"h": {"attn_q": w, "attn_k": w, "mlp_up": w}, "head": w}
    >>> layer_names(params, grouping=Grouping(rows=r"(attn|mlp)_", other="rest"))
    ['attn', 'mlp', 'rest']
    >>> layer_names(params, grouping=Grouping(rows=lambda path: path.split(".")[0]))
    ['h', 'head']
    """

    stacked: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: str | re.Pattern | Callable[[str], str | None] | None = None
    other: str | None = None

    def __post_init__(self) -> None:
        pairs = self.stacked.items() if isinstance(self.stacked, Mapping) else [(None, None)]
        if not all(isinstance(text, str) and text for pair in pairs for text in pair):
            raise TypeError(
                f"Grouping(stacked={self.stacked!r}): expected {{path of the stacked leaves: name"
                " of one layer}, such as {'blocks': 'block'}"
            )
        # A copy, so that the caller's mapping cannot change the grouping (and its hash) later.
        object.__setattr__(self, "stacked", dict(self.stacked))
        if isinstance(self.rows, str):
            as_pattern("Grouping: rows", self.rows)
        elif not (self.rows is None or isinstance(self.rows, re.Pattern) or callable(self.rows)):
            raise TypeError(
                f"Grouping(rows={self.rows!r}): expected a regular expression, such as"
                " r'layers\\.\\d+', or a function from a leaf's path to the name of its row"
            )
        if not (self.other is None or (isinstance(self.other, str) and self.other)):
            raise TypeError(f"Grouping(other={self.other!r}): expected the name of a row")
        if self.other is not None and self.rows is None:
            raise TypeError(
                f"Grouping(other={self.other!r}): every leaf has a row by its path; `other` goes"
                " with `rows`"
            )

    def __hash__(self) -> int:
        return hash((frozenset(self.stacked.items()), self.rows, self.other))

    def groups(self, params: Tree) -> tuple[Group, ...]:
        """The rows of a parameter tree, with the leaves that belong to each.

        Rows come in the order of their first leaves, those that differ in their number alone in
        the order of these numbers (`Dense_2` before `Dense_10`, although jax sorts keys as text).

        Args:
          params: pytree of arrays, or of `jax.ShapeDtypeStruct`; None stands for a frozen leaf,
            which belongs to no row.

        Returns:
          One `Group` a row or stack; every leaf belongs to exactly one.

        Raises:
          ValueError: a stacked path that the tree does not have, leaves under it that do not agree
            in their leading axis, two rows of one name, or a leaf to which `rows` gives none.
          TypeError: `rows` is a function that returned something else than a name.
        """
        leaves, paths = jax.tree.leaves(params), leaf_paths(params)
        places = leaf_paths(params, with_none=True)
        shared = _shared_components(places)
        members: dict[tuple[str | None, Path], list[int]] = {}
        for i, path in enumerate(paths):
            key = self._stack_of(path)
            row = tuple(key.split(".")) if key else self._row(path, shared)
            members.setdefault((key, row), []).append(i)
        self._check_stacks({self._stack_of(path) for path in places}, places)
        groups = [self._group(key, row, indices, leaves) for (key, row), indices in members.items()]
        _check_unique([name for group in groups for name in group.names])
        return tuple(groups[i] for i in _by_number([".".join(row) for _, row in members]))

    def _row(self, path: Path, shared: int) -> Path:
        """The row of a leaf that is not stacked."""
        if self.rows is None:
            return _row_by_path(path, shared)
        text = ".".join(path)
        if isinstance(self.rows, str | re.Pattern):
            match = re.search(self.rows, text)
            found = match and next((group for group in match.groups() if group), match[0])
        else:
            found = self.rows(text)
            if not (found is None or isinstance(found, str)):
                raise TypeError(
                    f"Grouping(rows=..): the function returned {found!r} for the leaf {text};"
                    " expected the name of its row, or None"
                )
        row = found or self.other
        if not row:
            raise ValueError(
                f"Grouping(rows={self.rows!r}) gives the leaf {text} no row; other='NAME' makes one"
                " of all such leaves"
            )
        return (row,)

    def _stack_of(self, path: Path) -> str | None:
        """The stacked path that a leaf lies under."""
        for key in self.stacked:
            parts = tuple(key.split("."))
            if path[: len(parts)] == parts:
                return key
        return None

    def _group(self, key: str | None, row: Path, indices: list[int], leaves: list[Any]) -> Group:
        if key is None:
            return Group((".".join(row),), tuple(indices), stacked=False)
        axes = {tuple(leaves[i].shape[:1]) for i in indices}
        if len(axes) != 1 or axes == {()}:
            shapes = sorted({str(tuple(leaves[i].shape)) for i in indices})
            raise ValueError(
                f"stacked={{{key!r}: ..}}: every leaf needs a leading axis over the same layers,"
                f" but their shapes are {', '.join(shapes)}"
            )
        ((depth,),) = axes
        names = tuple(f"{self.stacked[key]}_{layer}" for layer in range(depth))
        return Group(names, tuple(indices), stacked=True)

    def _check_stacks(self, present: set[str | None], paths: Sequence[Path]) -> None:
        for key in self.stacked:
            if key not in present:
                known = dict.fromkeys(
                    ".".join(path[:n]) for path in paths for n in range(1, len(path) + 1)
                )
                raise ValueError(
                    f"stacked={{{key!r}: ..}}: the parameters have no {key!r}{nearest(key, known)}"
                )


def _own_name(path: str) -> str:
    return path


BY_PATH = Grouping()
"""The rows that follow from the paths alone: nothing is stacked."""

BY_LEAF = Grouping(rows=_own_name)
"""A row a leaf, called by its whole path."""


def layer_names(
    params: Tree, *, grouping: Grouping = BY_PATH, trainable: Trainable = None
) -> list[str]:
    """The names of the rows by layer.

    Args:
      params: pytree of arrays.
      grouping: how leaves form rows; by default by their paths, with nothing stacked.
      trainable: which leaves have rows, as in the function whose result these names are for.

    Returns:
      One name a row, in the order of every result by layer.

    >>> import jax.numpy as jnp
    >>> tree = {"embed": {"w": jnp.ones((2, 3))}, "blocks": {"w": jnp.ones((2, 4))}}
    >>> layer_names(tree)
    ['blocks', 'embed']
    >>> layer_names(tree, grouping=Grouping(stacked={"blocks": "block"}))
    ['block_0', 'block_1', 'embed']
    """
    return row_names(partition(params, trainable)[0], by="layer", grouping=grouping)


def tensor_names(
    params: Tree, *, grouping: Grouping = BY_PATH, trainable: Trainable = None
) -> list[str]:
    """The names of the rows by tensor: paths of leaves, layer by layer.

    Args:
      params: pytree of arrays.
      grouping: how leaves form rows; by default by their paths, with nothing stacked.
      trainable: which leaves have rows, as in the function whose result these names are for.

    Returns:
      One name a row, in the order of every result by tensor.

    >>> import jax.numpy as jnp
    >>> tree = {"embed": {"w": jnp.ones((2, 3))}, "blocks": {"w": jnp.ones((2, 4))}}
    >>> tensor_names(tree, grouping=Grouping(stacked={"blocks": "block"}))
    ['block_0.w', 'block_1.w', 'embed.w']
    """
    return row_names(partition(params, trainable)[0], by="tensor", grouping=grouping)


def row_names(params: Tree, *, by: Literal["layer", "tensor"], grouping: Grouping) -> list[str]:
    """The names of the rows of a tree all of whose leaves have one, such as a gradient."""
    if by == "layer":
        return [name for group in grouping.groups(params) for name in group.names]
    paths = leaf_paths(params)
    names = []
    for group in grouping.groups(params):
        if not group.stacked:
            names += [".".join(paths[i]) for i in group.leaves]
            continue
        depth = len(_stacked_path(grouping, paths[group.leaves[0]]))
        names += [".".join((name, *paths[i][depth:])) for name in group.names for i in group.leaves]
    return names


def _stacked_path(grouping: Grouping, path: Path) -> Path:
    key = grouping._stack_of(path)
    return tuple(key.split(".")) if key else ()


def _row_by_path(path: Path, shared: int) -> Path:
    """The components of a leaf's path that name its row; the first `shared` are all leaves'."""
    for i in range(shared, len(path)):
        if path[i][-1:].isdigit():
            return path[: i + 1]
    return path[:-1] or path


def _shared_components(paths: Sequence[Path]) -> int:
    """How many leading components all paths have in common."""
    count = 0
    for components in zip(*paths, strict=False):
        if len(set(components)) > 1:
            break
        count += 1
    return count


def _by_number(names: Sequence[str]) -> list[int]:
    """The order of names in which those of one stem (`Dense_`) swap places to follow their numbers.

    Rows of other stems keep their places, so that the order in which a model declares its layers
    survives.
    """
    numbers = [re.search(r"\d*$", name) for name in names]
    stems: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        stems.setdefault(name.rstrip("0123456789"), []).append(i)
    order = list(range(len(names)))
    for places in stems.values():
        number = lambda i: int(numbers[i][0] or -1)  # pyright: ignore[reportOptionalSubscript]
        for place, source in zip(places, sorted(places, key=number), strict=True):
            order[place] = source
    return order


def _check_unique(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two layers are called {twice[0]!r}; give the layers of the stack another name"
        )
