"""Arithmetic on parameter-shaped pytrees that stays where the leaves live.

Dots are `jnp.sum(a * b)` per leaf: `jnp.vdot` flattens its arguments and thereby gathers sharded
leaves on every device.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Tree = Any


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dot(a: Tree, b: Tree) -> jax.Array:
    """Inner product of two trees of the same shape, accumulated in float32 or wider."""
    return sum(
        (jnp.sum(wide(x) * wide(y)) for x, y in zip(_leaves(a), _leaves(b), strict=True)),
        jnp.zeros((), jnp.float32),
    )


def norm(a: Tree) -> jax.Array:
    """Euclidean norm of a tree; squares neither overflow nor vanish."""
    unit, scale = _scaled(a)
    return jnp.sqrt(dot(unit, unit)) * scale


def dots(
    a: Tree,
    b: Tree,
    *,
    by: Literal["layer", "tensor"] = "layer",
    stacked: tuple[str, ...] = ("blocks",),
) -> dict[str, Tree]:
    """Inner product of two parameter trees, layer by layer or tensor by tensor.

    Args:
      a: mapping whose top-level keys are layers; under a key in `stacked`, every leaf has a leading
        axis over layers.
      b: tree of the same shape.
      by: one value a "layer", or one a "tensor": then a tree of values in a layer's place.
      stacked: the keys whose leaves are stacked.

    Returns:
      {key: scalar, or [L] for a stacked key}; the sum over everything is `dot(a, b)`.
    """

    def one(key: str) -> Tree:
        keep = 1 if key in stacked else 0
        product = lambda x, y: jnp.sum(wide(x) * wide(y), axis=tuple(range(keep, x.ndim)))
        values = jax.tree.map(product, a[key], b[key])
        return values if by == "tensor" else sum(_leaves(values), jnp.zeros((), jnp.float32))

    return {key: one(key) for key in a}


def norms(
    a: Tree,
    *,
    by: Literal["layer", "tensor"] = "layer",
    stacked: tuple[str, ...] = ("blocks",),
) -> dict[str, Tree]:
    """Euclidean norm of every layer or tensor, as `dots`, and as safe as `norm`."""
    unit, scale = _scaled(a)
    return jax.tree.map(lambda x: jnp.sqrt(x) * scale, dots(unit, unit, by=by, stacked=stacked))


def _scaled(a: Tree) -> tuple[Tree, jax.Array]:
    """A tree divided by its largest magnitude, and that magnitude (1 where it cannot divide)."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(wide(x))) for x in _leaves(a)]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return jax.tree.map(lambda x: wide(x) / scale, a), scale


def subtract(a: Tree, b: Tree) -> Tree:
    """`a - b`, leaf by leaf, in float32 or wider."""
    return jax.tree.map(lambda x, y: wide(x) - wide(y), a, b)


def on_host(x: Any) -> np.ndarray:
    """An array as numpy, also where several processes share it: then all of them must ask."""
    shared = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True) if shared else x)


def stack(trees: list[Tree]) -> Tree:
    """Trees of one shape, stacked leaf by leaf along a new leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def named_shardings(tree: Tree) -> tuple[jax.sharding.Sharding | None, ...]:
    """The sharding of every leaf over a mesh (None where a leaf lives on one device); hashable."""
    return tuple(
        x.sharding if isinstance(getattr(x, "sharding", None), jax.NamedSharding) else None
        for x in _leaves(tree)
    )


def pin(tree: Tree, shardings: tuple[jax.sharding.Sharding | None, ...]) -> Tree:
    """Fixes the sharding of every leaf inside `jit`.

    A gradient that only feeds a dot has no sharding of its own; left alone, the partitioner
    replicates it on every device.
    """
    leaves, structure = jax.tree.flatten(tree)
    pinned = [
        x if s is None else jax.lax.with_sharding_constraint(x, s)
        for x, s in zip(leaves, shardings, strict=True)
    ]
    return jax.tree.unflatten(structure, pinned)


def _leaves(tree: Tree) -> list[jax.Array]:
    return jax.tree.leaves(tree)
