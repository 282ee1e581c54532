"""Updates that spare a risk: the half-space of the (e_u, e_r) plane where retention is kept.

To first order an update u changes R by grad R . u. Where that is positive, the nearest update that
does not raise R is

    u' = u - (grad R . u) / ||grad R||^2  grad R        (A-GEM, arXiv 1812.00420, equation 11)
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.effects import layers, trees

Tree = Any


def spare(
    update: Tree,
    risk_gradient: Tree,
    *,
    by: Literal["total", "layer"] = "total",
    stacked: tuple[str, ...] = layers.STACKED,
) -> Tree:
    """The nearest update along which a risk does not rise, to first order.

    Args:
      update: what is added to the parameters, a mapping of layers.
      risk_gradient: grad R, like `update`; its length does not matter.
      by: "total" bends the update as a whole; "layer" bends each layer by itself, so that no layer
        alone raises the risk.
      stacked: keys whose leaves are stacked over layers.

    Returns:
      The update, unchanged where grad R . u <= 0 or grad R is 0.

    Raises:
      ValueError: another `by`.

    >>> bent = spare({"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([2.0, 0.0])})
    >>> bent["w"].tolist()
    [0.0, 1.0]
    """
    if by not in ("total", "layer"):
        raise ValueError(f"spare: by={by!r}; it is 'total' or 'layer'")
    scale = trees.norm(risk_gradient)
    unit = jax.tree.map(lambda g: trees.wide(g) / jnp.where(scale > 0, scale, 1), risk_gradient)
    rises = trees.dots(unit, update, stacked=stacked)
    squares = trees.dots(unit, unit, stacked=stacked)
    if by == "total":
        total = lambda values: sum(jnp.sum(x) for x in values.values())
        rises, squares = (dict.fromkeys(unit, total(values)) for values in (rises, squares))

    def bend(key: str) -> Tree:
        square = squares[key]
        share = jnp.maximum(rises[key], 0) / jnp.where(square > 0, square, 1)
        spread = lambda g: share.reshape(share.shape + (1,) * (g.ndim - share.ndim))
        one = lambda u, g: (u - spread(g) * g).astype(u.dtype)
        return jax.tree.map(one, update[key], unit[key])

    return {key: bend(key) for key in update}
