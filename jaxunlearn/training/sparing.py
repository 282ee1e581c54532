"""Projects updates so that they do not raise the retain risk to first order (A-GEM)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import effects
from jaxunlearn.core.trees import Tree


class Sparing(NamedTuple):
    """The state of `sparing`.

    Attributes:
      running: running mean of the retain gradients, in which the newest weighs most.
    """

    running: Tree


def sparing(
    by: Literal["total", "layer"],
    *,
    decay: float = 0.9,
    grouping: effects.Grouping = effects.BY_PATH,
) -> optax.GradientTransformationExtraArgs:
    """Projects each update so that, to first order, it does not raise the retain risk.

    It comes last in a chain. `update` takes the keyword `retain_gradient`, the risk's gradient on
    fresh retain samples; updates are projected (`effects.spare_update`) against its running mean,
    because one batch's gradient alone is too noisy a direction.

    Args:
      by: the update as a "total", or each "layer" by itself.
      decay: of the running mean, in [0, 1); 0 takes the newest gradient alone.
      grouping: how the leaves of the parameters form layers.
    """

    def init(params: Tree) -> Sparing:
        return Sparing(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra: Any) -> Any:
        running = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new,
            state.running,
            extra["retain_gradient"],
        )
        projected = effects.spare_update(updates, running, by=by, grouping=grouping)
        return projected, Sparing(running)

    return optax.GradientTransformationExtraArgs(init, update)
