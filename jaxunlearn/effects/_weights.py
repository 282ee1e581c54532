"""Weights for gradient ascent that removes without harm, from the PG-effects of the forget set.

Ascent with weights w_i moves the risks by e_D = mean_i w_i PG_D(i), where
PG_D(i) = grad R(D) . grad log p_i: e_u << 0 removes, e_r >= 0 retains. So weight belongs on tokens
with a very negative unlearn and no negative retain PG-effect (arXiv 2502.19301, figure 5b).

The losses of `jaxunlearn.objectives` call the array of these weights `guide`: it guides the ascent
(`objectives.guided`), as opposed to weights that a loss computes itself.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxunlearn.core import trees


def guide_weights(
    unlearn: ArrayLike,
    retain: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    norms: tuple[ArrayLike, ArrayLike],
    penalty: float = 3.0,
    power: float = 0.0,
) -> jax.Array:
    """Weights of tokens or samples from their PG-effects: what ascent removes, less its harm.

        a_i = max(0, -PG_u(i) / ||grad R(D_u)|| - penalty max(0, -PG_r(i) / ||grad R(D_r)||))
        w_i = a_i^power / mean_j a_j^power      (0 where a_i = 0, also for a power of 0)

    Both terms are lengths: how far grad log p_i reaches along the unit gradient of a risk. So the
    scale of neither risk matters, and a penalty of 1 drops whatever reaches further along the data
    to retain than along the data to forget. A positive retain PG-effect is not punished, for it
    lowers the retain risk, and not rewarded, for it removes nothing.

    Beware of a power of 1: grad log p_i is long where p_i is small, so most of the weight falls on
    the few tokens that are known worst, and those that are forgotten already gain more.

    Args:
      unlearn: PG-effects along grad R(D_u), of tokens [n, S] or of samples [n].
      retain: those along grad R(D_r), of the same shape.
      mask: bool, of the same shape, True at labels; None means everywhere.
      norms: (||grad R(D_u)||, ||grad R(D_r)||).
      penalty: how many units of removal one unit of harm cancels.
      power: exponent of the scores; 0 only chooses: one weight where a_i > 0, else 0.

    Returns:
      Float32 or wider, of the same shape: never negative, 0 outside the mask, mean 1 inside; all 0
      where nothing is left that removes more than it harms. Effects or norms that are not finite
      make weights of NaN: a run must not take them for "nothing is left".

    Raises:
      ValueError: shapes that differ.

    >>> unlearn, retain = jnp.array([-4.0, -6.0, -2.0, 1.0]), jnp.array([3.0, -1.0, -1.0, 0.0])
    >>> norms = (2.0, 1.0)  # removal 2, 3, 1, 0; harm 0, 1, 1, 0
    >>> guide_weights(unlearn, retain, norms=norms, penalty=1.0).tolist()
    [2.0, 2.0, 0.0, 0.0]
    >>> guide_weights(unlearn, retain, norms=norms, penalty=3.0).tolist()
    [4.0, 0.0, 0.0, 0.0]
    """
    unlearn, retain = trees.wide(jnp.asarray(unlearn)), trees.wide(jnp.asarray(retain))
    labels = jnp.ones(unlearn.shape, bool) if mask is None else jnp.asarray(mask)
    if not unlearn.shape == retain.shape == labels.shape:
        raise ValueError(
            f"guide_weights: unlearn {unlearn.shape}, retain {retain.shape} and mask"
            f" {labels.shape} must have one shape"
        )
    removal, harm = _reach(unlearn, norms[0]), _reach(retain, norms[1])
    score = jnp.where(labels, jnp.maximum(removal - penalty * harm, 0), 0)
    largest = jnp.max(score, initial=0)
    # In units of the largest score, so that the mean neither overflows nor vanishes.
    share = score / jnp.where(largest > 0, largest, 1)
    # Where the score is 0 the weight is too, also for a power of 0 (0**0 is 1), and NaN stays NaN.
    share = jnp.where((share == 0) | jnp.isnan(share), share, share**power)
    mean = jnp.sum(share) / jnp.maximum(jnp.sum(labels, dtype=share.dtype), 1)
    return share / jnp.where(mean > 0, mean, 1)


def _reach(values: jax.Array, norm: ArrayLike) -> jax.Array:
    """Length of the projection onto the negative unit risk gradient, clipped at 0.

    It is 0 everywhere where the risk gradient is 0.
    """
    norm = jnp.asarray(norm)
    return jnp.maximum(jnp.where(norm == 0, 0, -values / norm), 0)
