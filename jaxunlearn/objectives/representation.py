"""Objectives on hidden states: one loss per position, so they apply to packed rows as they are."""

import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import wide


def rmu(hidden: jax.Array, target: jax.Array, *, per_dim: bool = False) -> jax.Array:
    """Representation misdirection (arXiv 2403.03218): hidden states driven to one random vector.

        L = ||h - c u||^2

    The caller takes the mean over the positions that predict the answer.

    Args:
      hidden: h after some block, [..., D].
      target: c u, [D], drawn once a run (`rmu_target`); a constant.
      per_dim: divide by D, as common code does and the paper does not.

    Returns:
      [...], squared units of h per position.

    Raises:
      ValueError: a target of another width.

    >>> rmu(jnp.ones((1, 3, 2)), jnp.array([1.0, 3.0])).tolist()
    [[4.0, 4.0, 4.0]]
    """
    if target.shape != hidden.shape[-1:]:
        raise ValueError(f"target {target.shape}: hidden {hidden.shape} wants {hidden.shape[-1:]}")
    target = jnp.broadcast_to(wide(jax.lax.stop_gradient(target)), hidden.shape)
    mean_or_sum = jnp.mean if per_dim else jnp.sum
    return mean_or_sum(jnp.square(wide(hidden) - target), axis=-1)


def rmu_target(
    key: jax.Array, width: int, *, scale: float = 5.0, unit_norm: bool = False
) -> jax.Array:
    """The target of `rmu`: c u with u ~ U[0, 1)^D. Draw it once a run, never once a step.

    Without `unit_norm` its length is about c sqrt(D / 3), which the paper's c means; with it the
    length is c, as in the original RMU and OpenUnlearning.

    Args:
      key: random key.
      width: D.
      scale: c.
      unit_norm: normalise u to length 1.

    Returns:
      [D] float32.

    >>> rmu_target(jax.random.key(0), 3, unit_norm=True).shape
    (3,)
    """
    u = jax.random.uniform(key, (width,), jnp.float32)
    if unit_norm:
        u = u / jnp.sqrt(jnp.sum(jnp.square(u)))
    return scale * u
