"""Checks of what callers pass, by name: JAX's own messages speak of trees and axes it was given."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxunlearn.core.names import nearest
from jaxunlearn.core.trees import Tree

PARAMS = "params"
TRAINABLE = "the trainable part of params"


def check_choice(caller: str, argument: str, value: Any, choices: Sequence[str]) -> None:
    """Checks that a word is one of those that are known.

    Raises:
      ValueError: names the argument, the words, and the nearest one.
    """
    if value not in choices:
        words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(
            f"{caller}: {argument}={value!r}; it is {words}{nearest(str(value), choices)}"
        )


def check_host(caller: str, programs: str, *trees: Tree) -> None:
    """Checks that a function that loops over batches on the host is not being traced.

    Args:
      caller: the function.
      programs: the compiled programs that do one batch of its work, for the message.
      *trees: its arguments. What the caller's function closes over is seen by `check_results`.

    Raises:
      TypeError: an argument is a tracer of `jax.jit`, `jax.grad`, `jax.vmap` or the like.
    """
    if _is_traced(trees):
        raise TypeError(
            f"{caller} loops over batches on the host and runs compiled programs itself, so it"
            " cannot be called under jax.jit, jax.grad or jax.vmap; call it outside, or for one"
            f" batch {programs}"
        )


def check_results(caller: str, programs: str, results: Tree) -> None:
    """Checks that what a compiled program gave for a batch are numbers.

    They are none in a function under `jax.jit` that closes over all arguments, and where the
    function that the caller was given closes over a traced value: no argument tells of either.

    Args:
      caller, programs: as in `check_host`.
      results: of one call of a program.

    Raises:
      TypeError: a result is a tracer.
    """
    if _is_traced(results):
        raise TypeError(
            f"{caller}: its results are traced values: it is called under jax.jit, jax.grad or"
            " jax.vmap, or the function that it was given closes over a value of such a function."
            " It loops over batches on the host; call it outside and put that value into params or"
            f" the batch, or for one batch call {programs}"
        )


def _is_traced(tree: Tree) -> bool:
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def each_batch(caller: str, programs: str, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches one after the other, checked on the way.

    A single batch is iterable too: an array by its rows, a mapping by its keys, a named tuple by
    its fields. A bare tuple is told from a list of batches only where its members differ in their
    leaves or in the number of their axes.

    Args:
      caller, programs: as in `check_host`.
      batches: what the caller was given.

    Raises:
      TypeError: one batch instead of several, or a tracer.
      ValueError: a batch that has other leaves, or leaves of other ranks, than the first.
    """
    single = isinstance(batches, jax.Array | np.ndarray | Mapping | str | jax.ShapeDtypeStruct)
    if single or hasattr(batches, "_fields") or not isinstance(batches, Iterable):
        check_host(caller, programs, batches)
        raise TypeError(
            f"{caller}: batches is one {type(batches).__name__}, whose parts would be taken for"
            " batches; give a list of batches, [batch] for a single one"
        )
    return _checked(caller, programs, batches)


def _checked(caller: str, programs: str, batches: Iterable[Any]) -> Iterator[Any]:
    first = None
    for i, batch in enumerate(batches):
        check_host(caller, programs, batch)
        ranks = {path: len(shape) for path, shape in _shapes(batch).items()}
        first = ranks if first is None else first
        if ranks != first:
            raise ValueError(
                f"{caller}: batch {i} has leaves of {_ranks(ranks)}, but batch 0 of"
                f" {_ranks(first)}; all have one structure, and a batch that is a tuple goes into a"
                " list: [(x, y)]"
            )
        yield batch


def check_tree(name: str, tree: Tree) -> None:
    """Checks that a tree is no `Gradient`, whose value would be taken for a leaf.

    Raises:
      TypeError: it is one.
    """
    # By its fields: the type is defined in a module that needs these checks.
    if getattr(tree, "_fields", None) == ("value", "gradient"):
        raise TypeError(f"{name}: got a Gradient; pass the tree in it, its .gradient")


def check_like(name: str, tree: Tree, params: Tree, expected: str = PARAMS) -> None:
    """Checks that a tree has the leaves of another: the same paths, and arrays of the same shapes.

    Args:
      name: of the tree, for the message.
      tree: what was passed.
      params: what it must look like.
      expected: the name of `params`, for the message.

    Raises:
      TypeError: a `Gradient`, which holds the tree.
      ValueError: names the first leaf that is missing, of another shape, or too many.
    """
    check_tree(name, tree)
    given, wanted = _shapes(tree), _shapes(params)
    for path, shape in wanted.items():
        if path not in given:
            raise ValueError(f"{name}: has no leaf {_leaf(path)}, which {expected} has")
        if given[path] != shape:
            raise ValueError(
                f"{name}: the leaf {_leaf(path)} has the shape {given[path]}, that of {expected}"
                f" has {shape}"
            )
    hint = "; effects.partition(tree, trainable)[0] leaves it out" if expected == TRAINABLE else ""
    for path in given:
        if path not in wanted:
            raise ValueError(f"{name}: has a leaf {_leaf(path)}, which {expected} has not{hint}")


def check_direction(name: str, tree: Tree, trainable: Tree, frozen: Tree) -> None:
    """Checks that a direction has the leaves of the trainable parameters, see `check_like`."""
    check_like(name, tree, trainable, PARAMS if frozen is None else TRAINABLE)


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


def check_counts(counts: Mapping[str, Any]) -> None:
    """Checks that there is something to average over.

    Args:
      counts: {name of the loss or the function: its count, added up over all batches}.

    Raises:
      ValueError: a count is 0; names it.
    """
    for name, count in counts.items():
        if count == 0:
            raise ValueError(f"{name}: nothing to average over (a count of 0 in every batch)")


def check_one_array(result: Any) -> None:
    """Checks that a `sample_logp_fn` returned an array.

    Raises:
      TypeError: it returned something else, such as the (sum, count) of a loss.
    """
    if not hasattr(result, "shape"):
        pair = isinstance(result, tuple | list) and len(result) == 2
        hint = "; a loss of (sum, count) is for dataset_gradient and g_effect" if pair else ""
        raise TypeError(
            "pg_effect: sample_logp_fn returns log-probabilities [B], or [B, S] by token; got a"
            f" {type(result).__name__}{hint}"
        )


def check_log_probs(shape: tuple[int, ...], batch: Any) -> None:
    """Checks the shape of what a `sample_logp_fn` returned for a batch.

    What cannot be seen: results that were broadcast to at least as many rows as the batch has, and
    any result where the leaves of the batch do not share a leading axis.

    Raises:
      ValueError: neither [B] nor [B, S], or fewer results than the batch has rows.
    """
    if len(shape) not in (1, 2):
        hint = "; a scalar is one value for all samples: leave out the sum or mean over them"
        raise ValueError(
            "pg_effect: sample_logp_fn returns log-probabilities [B], or [B, S] by token; got the"
            f" shape {shape}{'' if shape else hint}"
        )
    rows = {size[:1] for size in _shapes(batch).values()}
    if len(rows) == 1 and rows != {()} and shape[:1] < min(rows):
        raise ValueError(
            f"pg_effect: sample_logp_fn returned the shape {shape} for a batch of {min(rows)[0]}"
            " rows; it returns a value a sample. A sample of several rows has an axis of its own in"
            " the batch: [samples, rows, ...]"
        )


def check_samples(batch: Any) -> None:
    """Checks that every leaf of a batch has the same leading axis, that of the samples.

    Raises:
      ValueError: names two leaves that differ.
    """
    shapes = _shapes(batch)
    first, size = next(iter(shapes.items()), ("", (0,)))
    for path, shape in shapes.items():
        if not shape or shape[:1] != size[:1]:
            raise ValueError(
                "pg_effect(method='vmap') takes the samples of a batch apart along a leading axis"
                f" that all leaves share, but {_leaf(first)} has the shape {size} and {_leaf(path)}"
                f" {shape}"
            )


def _ranks(ranks: Mapping[str, int]) -> str:
    return ", ".join(f"{_leaf(path)} ({n} axes)" for path, n in ranks.items()) or "no kind"


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): tuple(np.shape(x)) for path, x in leaves}


def _leaf(path: str) -> str:
    return path or "(one array)"
