"""Directions in the types of the parameters, which forward mode and gates take.

float16 ends at 65504: a gradient over a data set, or the tangents that it makes on its way through
a model, may be longer. Derivatives are linear in their direction, so that there it is scaled to a
largest element between 1 and 2, and the derivatives are scaled back in float32. The factor is a
power of two: what neither overflowed nor vanished before is the same to the last bit. Other types
have the range of float32, and directions are rounded to them as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree

_EXPONENTS = (-100, 127)
"""Those of the factors, which float32 holds without loss."""


def rounded(
    directions: Sequence[Tree], params: Tree
) -> tuple[tuple[Tree, ...], Callable[[Any], Any]]:
    """Directions like some parameters, and what turns derivatives along them into those asked for.

    Args:
      directions: K trees like `params`, of any floating types.
      params: pytree of arrays.

    Returns:
      The K directions in the parameters' types; a function of derivatives, float32 or wider, an
      array with the K directions along its leading axis, or a tree of such arrays.
    """
    if all(x.dtype != jnp.float16 for x in jax.tree.leaves(params)):
        return tuple(trees.like(v, params) for v in directions), lambda values: values
    factors = [_factor(v) for v in directions]
    short = [
        trees.like(jax.tree.map(lambda x, f=factor: trees.wide(x) / f, v), params)
        for v, factor in zip(directions, factors, strict=True)
    ]
    stacked = jnp.stack(factors)
    along = lambda x: x * stacked.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    return tuple(short), lambda values: jax.tree.map(along, values)


def _factor(direction: Tree) -> jax.Array:
    """The power of two at or below the largest magnitude of a tree; 1 for zero, inf and NaN."""
    _, exponent = jnp.frexp(trees.scaled(direction)[1])
    return jnp.ldexp(jnp.float32(1), jnp.clip(exponent - 1, *_EXPONENTS))
