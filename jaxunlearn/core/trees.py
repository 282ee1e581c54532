"""Arithmetic on parameter-shaped pytrees that stays where the leaves live.

Dots are `jnp.sum(a * b)` per leaf: `jnp.vdot` flattens its arguments and thereby gathers sharded
leaves on every device.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

Tree = Any
"""A pytree of arrays, such as a model's parameters."""


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is float64."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def check_available(name: str, dtype: Any) -> None:
    """Checks that JAX computes in a type as it is, and not in a narrower one in its place.

    Args:
      name: of the argument that gives the type, for the message.
      dtype: the type.

    Raises:
      ValueError: it has 64 bits while JAX's x64 mode is off.
    """
    narrow = jax.dtypes.canonicalize_dtype(dtype)
    if narrow != jnp.dtype(dtype):
        raise ValueError(
            f"{name}={jnp.dtype(dtype).name!r}: JAX would compute in {narrow.name}, for its x64 "
            'mode is off; turn it on with jax.config.update("jax_enable_x64", True), or with '
            "JAX_ENABLE_X64=1 in the environment"
        )


def dot(a: Tree, b: Tree) -> jax.Array:
    """Inner product of two trees of the same shape, accumulated in float32 or wider."""
    dots = (jnp.sum(wide(x) * wide(y)) for x, y in zip(_leaves(a), _leaves(b), strict=True))
    # The zero is a Python number, so that it takes the type of the dots, also float64.
    return jnp.asarray(sum(dots, 0.0))


def norm(a: Tree) -> jax.Array:
    """Euclidean norm of a tree; squares neither overflow nor vanish."""
    unit, scale = scaled(a)
    return jnp.sqrt(dot(unit, unit)) * scale


def scaled(a: Tree) -> tuple[Tree, jax.Array]:
    """A tree divided by its largest magnitude, and that magnitude.

    Squares of the quotients neither overflow nor vanish. The magnitude is 1 for a tree of zeros,
    and for one that holds infinities or NaN, so that these stay what they are.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(wide(x)), initial=0) for x in _leaves(a)]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return jax.tree.map(lambda x: wide(x) / scale, a), scale


def subtract(a: Tree, b: Tree) -> Tree:
    """`a - b`, leaf by leaf, in float32 or wider."""
    return jax.tree.map(lambda x, y: wide(x) - wide(y), a, b)


def like(a: Tree, b: Tree) -> Tree:
    """`a` in the types of `b`, leaf by leaf."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), a, b)


def on_host(x: Any) -> np.ndarray:
    """An array as numpy.

    An array that several processes share is gathered from all of them, so all must make this call.
    """
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


def with_shardings(tree: Tree, shardings: Tree) -> Tree:
    """The shapes and dtypes of a tree with the given shardings; nothing is allocated.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`.
      shardings: a tree of the same structure.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def pin(tree: Tree, shardings: tuple[jax.sharding.Sharding | None, ...]) -> Tree:
    """Fixes the sharding of every leaf inside `jit`.

    A gradient that only feeds a dot has no sharding of its own; left alone, the partitioner
    replicates it on every device. On a mesh with explicit axes shardings are part of types, and a
    leaf moves to another one.
    """
    leaves, structure = jax.tree.flatten(tree)
    pinned = [x if s is None else _place(x, s) for x, s in zip(leaves, shardings, strict=True)]
    return jax.tree.unflatten(structure, pinned)


def _place(x: jax.Array, sharding: Any) -> jax.Array:
    if AxisType.Explicit in sharding.mesh.axis_types:
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def whole_leading_axis(x: jax.Array) -> jax.Array:
    """`x` with its leading axis on every device, inside `jit`, where its sharding is explicit.

    A loop over that axis asks for it; on a mesh with automatic axes the partitioner sees to it.
    """
    sharding = jax.typeof(x).sharding
    if not sharding.spec or sharding.spec[0] is None:
        return x
    return _place(x, jax.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec[1:])))


def _leaves(tree: Tree) -> list[jax.Array]:
    return jax.tree.leaves(tree)
