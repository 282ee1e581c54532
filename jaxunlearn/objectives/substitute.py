"""Objectives that put another answer ("I don't know") in the place of the one to forget."""

import jax
import jax.numpy as jnp

from jaxunlearn.objectives.likelihood import check_hyper, has_labels, label_values, log_ratio


def po(substitute_logp: jax.Array, substitute_mask: jax.Array) -> jax.Array:
    """Preference optimisation: the likelihood of a substitute answer (arXiv 2401.06121).

        L = -sum_i log p(y'_i)

    Args:
      substitute_logp: log p of the substitute answer's tokens, same prompt, [B, S].
      substitute_mask: [B, S] bool, True at the substitute's labels.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, or a mask that is not bool.

    >>> print(po(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, True]])).round(4))
    [2.0794]
    """
    (logp,) = label_values(substitute_mask, substitute_logp=substitute_logp)
    return -jnp.sum(logp, axis=-1)


def dpo(
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    substitute_logp: jax.Array,
    substitute_ref_logp: jax.Array,
    substitute_mask: jax.Array,
    *,
    beta: float = 0.1,
    two_over_beta: bool = False,
) -> jax.Array:
    """Direct preference optimisation, the substitute preferred to the original (arXiv 2305.18290).

        L = -log sigma(beta [log p(s') / q(s') - log p(s) / q(s)])

    Args:
      logp: log p of the original answer's tokens, [B, S].
      ref_logp: the same under the reference, [B, S].
      mask: [B, S] bool, True at the original's labels.
      substitute_logp: log p of the substitute answer's tokens, [B, S'].
      substitute_ref_logp: the same under the reference, [B, S'].
      substitute_mask: [B, S'] bool, True at the substitute's labels.
      beta: inverse temperature.
      two_over_beta: multiplies the loss by 2 / beta, as OpenUnlearning does.

    Returns:
      [B], nats; 0 where either answer has no labels.

    Raises:
      ValueError: shapes that do not belong together, a mask that is not bool, or a beta that is not
        positive and finite.

    >>> logp, mask = jnp.log(jnp.array([[0.5]])), jnp.array([[True]])
    >>> print(dpo(logp, logp, mask, logp, logp, mask).round(4))  # ln 2 where p = q
    [0.6931]
    """
    if mask.shape[:-1] != substitute_mask.shape[:-1]:
        raise ValueError(
            f"mask {mask.shape} and substitute_mask {substitute_mask.shape} differ in sequences"
        )
    # With 0 nothing is learned, and below it the original is preferred.
    check_hyper("positive", beta=beta)
    logp, ref_logp = label_values(mask, logp=logp, ref_logp=ref_logp)
    substitute_logp, substitute_ref_logp = label_values(
        substitute_mask,
        substitute_logp=substitute_logp,
        substitute_ref_logp=substitute_ref_logp,
    )
    original = jnp.sum(log_ratio(logp, ref_logp), axis=-1)
    margin = jnp.sum(log_ratio(substitute_logp, substitute_ref_logp), axis=-1) - original
    loss = jax.nn.softplus(-beta * margin) * (2 / beta if two_over_beta else 1)
    return jnp.where(has_labels(mask) & has_labels(substitute_mask), loss, 0)
