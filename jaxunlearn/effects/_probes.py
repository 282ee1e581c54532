"""Gates: scalars `a` that move each layer along a direction, inside the model.

A model that takes `probe=` evaluates every linear map as `x @ (W + sum_k a_k V_k)` at a = 0, with
one `a` per layer (or tensor), direction k and sample. The derivative of a sample's log-likelihood
with respect to `a[layer, k, sample]` is <grad_layer log p(s), V_k>: a table by sample and layer in
one reverse pass that never forms a gradient.

The model must read its gates itself, so a probe has one fixed form: the parameters are a mapping,
each of its keys is a layer, or a stack of layers that the grouping names.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks
from jaxunlearn.effects._grouping import BY_PATH, Grouping
from jaxunlearn.effects._rows import concatenate, tensor_rows
from jaxunlearn.effects._trainable import combine

Probe = dict[str, Any]
By = Literal["sample", "layer", "tensor"]


def make(
    params: Tree,
    directions: Sequence[Tree],
    *,
    samples: int = 1,
    by: Literal["layer", "tensor"] = "layer",
    grouping: Grouping = BY_PATH,
) -> Probe:
    """A probe whose gates are all zero: the model's output is unchanged.

    Args:
      params: mapping of layers, with None in the places of frozen leaves; a layer without others
        has no gates.
      directions: K trees like `params`.
      samples: gates per layer and direction; 1 = one gate shared by all samples.
      by: a gate per "layer", or per "tensor": then a tree of gates in the place of a layer's.
      grouping: says which keys are stacks of layers.

    Returns:
      {"directions": tuple of K trees, "gates": {key: [K, samples] or [L, K, samples]}}.

    Raises:
      TypeError: parameters that are no mapping.
      ValueError: another `by`, or a stack that is not a whole key of the mapping.
    """
    _checks.check_choice("make_probe", "by", by, ("layer", "tensor"))
    keys = _leaf_keys(params)
    depths = {}
    for group in grouping.groups(params):
        if not group.stacked:
            continue
        key = keys[group.leaves[0]]
        if keys.count(key) != len(group.leaves):
            raise ValueError(
                f"gates need each stack of layers to be a top-level key of the parameters, but"
                f" {group.names[0]!r} is a part of {key!r}; use method='vmap'"
            )
        depths[key] = (len(group.names),)

    def gates(key: Hashable) -> Any:
        zeros = jnp.zeros((*depths.get(key, ()), len(directions), samples))
        # Every tensor of a layer starts from the same zeros, but has a gate of its own.
        return jax.tree.map(lambda _: zeros, params[key]) if by == "tensor" else zeros

    return {
        "directions": tuple(directions),
        "gates": {key: gates(key) for key in dict.fromkeys(keys)},
    }


def to_rows(gates: Mapping[Any, Any], params: Tree, by: By, grouping: Grouping) -> jax.Array:
    """The derivatives with respect to a probe's gates as one table.

    Args:
      gates: like the gates of `make`.
      params: the parameters of that probe.
      by: "layer" and "tensor" for the rows of the grouping; "sample" for the keys of the mapping,
        which exist whatever the grouping.
      grouping: how leaves form rows.

    Returns:
      [rows, K, samples].
    """
    keys = _leaf_keys(params)
    if by == "sample":
        tables = [gates[key] for key in dict.fromkeys(keys)]
        return jnp.concatenate([x if x.ndim == 3 else x[None] for x in tables])
    groups = grouping.groups(params)
    if by == "tensor":
        leaves = [leaf for key in dict.fromkeys(keys) for leaf in jax.tree.leaves(gates[key])]
        return tensor_rows(leaves, groups)
    return concatenate([gates[keys[group.leaves[0]]] for group in groups], groups)


def check_rows(params: Tree, by: By, grouping: Grouping) -> None:
    """Checks that gates can give the rows of a table.

    Raises:
      ValueError: by="layer", and rows that are not the top-level keys of the mapping.
    """
    if by == "layer" and not rows_are_keys(params, grouping):
        keys = ", ".join(map(str, dict.fromkeys(_leaf_keys(params))))
        rows = ", ".join(group.names[0] for group in grouping.groups(params))
        raise ValueError(
            f"gates give one value for each top-level key of the parameters ({keys}), but the rows"
            f" by layer are {rows}; use method='vmap' (pg_effect) or method='full' (g_effect), or"
            " by='tensor'"
        )


def rows_are_keys(params: Tree, grouping: Grouping) -> bool:
    """Whether every row by layer (or stack of rows) is a whole top-level key of a mapping."""
    if not isinstance(params, Mapping):
        return False
    keys = _leaf_keys(params)
    return all(
        [i for i, key in enumerate(keys) if key == keys[group.leaves[0]]] == list(group.leaves)
        for group in grouping.groups(params)
    )


def basis(gates: Tree) -> Tree:
    """K tangents of a probe's gates along a new leading axis; the k-th moves along V_k alone."""

    def one(gate: jax.Array) -> jax.Array:
        picks = jnp.eye(gate.shape[-2], dtype=gate.dtype)[..., None]  # [K, K, 1]
        picks = jnp.expand_dims(picks, tuple(range(1, gate.ndim - 1)))  # [K, (1,) K, 1]
        return jnp.broadcast_to(picks, (gate.shape[-2], *gate.shape))

    return jax.tree.map(one, gates)


def accepts(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument named `probe`."""
    return "probe" in inspect.signature(function).parameters


def require(function: Callable[..., Any], caller: str, others: str) -> None:
    """Checks that a function can be gated.

    Raises:
      TypeError: names the function, the missing argument and the methods that work without it.
    """
    if not accepts(function):
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{caller}(method='gates') needs a function with an argument `probe`, and {name} has"
            f" none; add `probe=None` and pass it to the model, or use {others}"
        )


def check_read(
    function: Callable[..., Any],
    params: Tree,
    batch: Any,
    probe: Probe,
    others: str,
    *,
    frozen: Tree = None,
) -> None:
    """Checks that a function reads the gates of all parameters that it computes with.

    Of a gate that is not read every derivative is 0, whatever the effect. That a layer reads its
    gate in some of its linear maps and not in others cannot be seen.

    Args:
      function: (params, batch, probe=) -> arrays.
      params: the parameters that have gates.
      batch: one batch.
      probe: from `make`.
      others: the methods that work without gates, for the message.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.

    Raises:
      ValueError: names the parameters and the methods that work without gates.
    """

    def run(gates: Any, params: Tree) -> Any:
        return function(combine(params, frozen), batch, probe=probe | {"gates": gates})

    inputs = (probe["gates"], params)
    program = jax.make_jaxpr(run)(*inputs).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    read, needed = jax.tree.unflatten(jax.tree.structure(inputs), used)

    def is_read(gates: Any, leaves: Any) -> bool:
        """A gate of a whole layer stands for all its leaves; else each leaf has its own."""
        if isinstance(gates, bool):
            return gates or not any(jax.tree.leaves(leaves))
        return all(jax.tree.leaves(jax.tree.map(is_read, gates, leaves)))

    unread = [str(key) for key in read if not is_read(read[key], needed[key])]
    if unread:
        raise ValueError(
            f"{getattr(function, '__qualname__', repr(function))} does not read the gates of"
            f" {', '.join(unread)} from its argument `probe`, so that their effects would be 0;"
            f" pass `probe` on to the model, which has to read them, or use {others}"
        )


def _leaf_keys(params: Tree) -> list[Hashable]:
    """The top-level key that each leaf lies under, in the order of the leaves."""
    if not isinstance(params, Mapping):
        raise TypeError(
            "gates need parameters that are a mapping of layers, got"
            f" {type(params).__name__}; use method='vmap' (pg_effect) or method='full' (g_effect)"
        )
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    first: list[Any] = [path[0] for path, _ in paths]
    return [entry.key for entry in first]
