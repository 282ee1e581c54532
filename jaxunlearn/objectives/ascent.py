"""Gradient ascent on the answers to forget: plain, or weighted by confidence or from outside.

p_i is the probability of label token i under the model; all losses are minimised.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.objectives.likelihood import LOG_ZERO, check_hyper, label_values, weighted_sum


def ga(logp: jax.Array, mask: jax.Array) -> jax.Array:
    """Gradient ascent (arXiv 2502.19301).

        L = sum_i log p_i

    Args:
      logp: log p_i, [B, S].
      mask: [B, S] bool, True at labels.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, or a mask that is not bool.

    >>> print(ga(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, False]])).round(4))
    [-0.6931]
    """
    (logp,) = label_values(mask, logp=logp)
    return jnp.sum(logp, axis=-1)


def ga_weight(logp: jax.Array, mask: jax.Array) -> jax.Array:
    """The weight of `ga`: 1 at labels, 0 elsewhere.

    Returns:
      [B, S].
    """
    (logp,) = label_values(mask, logp=logp)
    return mask.astype(logp.dtype)


def wga(logp: jax.Array, mask: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """Weighted gradient ascent (arXiv 2502.19301).

        L = sum_i sg(p_i^alpha) log p_i

    Args:
      logp: log p_i, [B, S].
      mask: [B, S] bool, True at labels.
      alpha: exponent of the confidence; 0 is `ga`.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, or a mask that is not bool.

    >>> print(wga(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, False]])).round(4))
    [-0.3466]
    """
    weight = wga_weight(logp, mask, alpha=alpha)
    (logp,) = label_values(mask, logp=logp)
    return weighted_sum(weight, logp)


def wga_weight(logp: jax.Array, mask: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """The weight of `wga`: p_i^alpha at labels, 0 elsewhere.

    Returns:
      [B, S].
    """
    check_hyper(alpha=alpha)
    (logp,) = label_values(mask, logp=logp)
    return jnp.where(mask, jnp.exp(alpha * jnp.maximum(logp, LOG_ZERO)), 0)


def satimp(
    logp: jax.Array, mask: jax.Array, *, beta1: float = 5.0, beta2: float = 1.0
) -> jax.Array:
    """Saturation and importance (SatImp, arXiv 2505.11953).

        L = sum_i sg(p_i^beta1 (1 - p_i)^beta2) log p_i

    Args:
      logp: log p_i, [B, S].
      mask: [B, S] bool, True at labels.
      beta1: exponent of saturation.
      beta2: exponent of importance, not negative: at p = 1 the weight would be infinite.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, a mask that is not bool, or beta2 < 0.

    >>> print(satimp(jnp.log(jnp.array([[0.5]])), jnp.array([[True]]), beta1=1.0).round(4))
    [-0.1733]
    """
    weight = satimp_weight(logp, mask, beta1=beta1, beta2=beta2)
    (logp,) = label_values(mask, logp=logp)
    return weighted_sum(weight, logp)


def satimp_weight(
    logp: jax.Array, mask: jax.Array, *, beta1: float = 5.0, beta2: float = 1.0
) -> jax.Array:
    """The weight of `satimp`: p_i^beta1 (1 - p_i)^beta2 at labels, 0 elsewhere.

    Returns:
      [B, S].

    Raises:
      ValueError: as `satimp`.
    """
    check_hyper(beta1=beta1)
    check_hyper("not negative", beta2=beta2)
    (logp,) = label_values(mask, logp=logp)
    # Rounding can leave log p a little above 0, where 1 - p has no real power.
    doubt = jnp.maximum(-jnp.expm1(logp), 0)
    saturation = jnp.exp(beta1 * jnp.maximum(logp, LOG_ZERO))
    return jnp.where(mask, saturation * doubt**beta2, 0)


def guided(logp: jax.Array, guide: jax.Array, mask: jax.Array) -> jax.Array:
    """Gradient ascent with weights from outside, such as those of `effects.guide_weights`.

    The array is called `guide` because it guides the ascent: unlike the weights of the other losses
    it is an input, computed before the step, not a function of the model's log-probabilities.

        L = sum_i sg(w_i) log p_i

    Args:
      logp: log p_i, [B, S].
      guide: w_i, [B, S]; a constant.
      mask: [B, S] bool, True at labels.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, or a mask that is not bool.

    >>> logp, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, True]])
    >>> print(guided(logp, jnp.array([[2.0, 0.0]]), mask).round(4))
    [-1.3863]
    """
    weight = guided_weight(logp, guide, mask)
    (logp,) = label_values(mask, logp=logp)
    return weighted_sum(weight, logp)


def guided_weight(logp: jax.Array, guide: jax.Array, mask: jax.Array) -> jax.Array:
    """The weight of `guided`: the guide at labels, 0 elsewhere.

    Returns:
      [B, S].
    """
    _, guide = label_values(mask, logp=logp, guide=guide)
    return guide
