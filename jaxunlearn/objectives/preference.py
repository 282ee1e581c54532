"""Negative preference optimisation: ascent weighted by how far the model is from the reference.

p_i and q_i are the probabilities of label token i under the model and under the reference (the
model before unlearning, a constant), p(s) and q(s) those of the whole answer.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.objectives.ascent import wga_weight
from jaxunlearn.objectives.likelihood import (
    check_hyper,
    has_labels,
    label_counts,
    label_values,
    log_ratio,
    weighted_sum,
)


def npo(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, beta: float = 0.1) -> jax.Array:
    """Negative preference optimisation (arXiv 2404.05868).

        L = (2 / beta) log(1 + (p(s) / q(s))^beta)

    Args:
      logp: log p_i, [B, S].
      ref_logp: log q_i, [B, S].
      mask: [B, S] bool, True at labels.
      beta: inverse temperature, > 0; towards 0 this is `ga` plus a constant.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, a mask that is not bool, beta <= 0, or a hyper-parameter that
        is no single number.

    >>> logp, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, True]])
    >>> print(npo(logp, logp, mask, beta=1.0).round(4))  # 2 ln 2 where p = q
    [1.3863]
    """
    check_hyper("positive", beta=beta)
    ratio = _sequence_log_ratio(logp, ref_logp, mask)
    return jnp.where(has_labels(mask), 2 / beta * jax.nn.softplus(beta * ratio), 0)


def npo_weight(
    logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, beta: float = 0.1
) -> jax.Array:
    """The weight of a sequence in `npo`: 2 p(s)^beta / (p(s)^beta + q(s)^beta).

    Returns:
      [B], in [0, 2]: 1 where p = q, 0 without labels.

    Raises:
      ValueError: as `npo`.
    """
    check_hyper("positive", beta=beta)
    ratio = _sequence_log_ratio(logp, ref_logp, mask)
    return jnp.where(has_labels(mask), 2 * jax.nn.sigmoid(beta * ratio), 0)


def tnpo(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, beta: float = 1.0) -> jax.Array:
    """Token-wise negative preference optimisation (arXiv 2502.19301).

        L = sum_i sg(w_i) log p_i,    w_i = 2 p_i^beta / (p_i^beta + q_i^beta)

    Args:
      logp: log p_i, [B, S].
      ref_logp: log q_i, [B, S].
      mask: [B, S] bool, True at labels.
      beta: inverse temperature; 0 is `ga`.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, a mask that is not bool, or a hyper-parameter that is no
        single number.

    >>> p, q = jnp.log(jnp.array([[0.1]])), jnp.log(jnp.array([[0.3]]))
    >>> print(tnpo(p, q, jnp.array([[True]])).round(4))  # (1 / 2) log 0.1
    [-1.1513]
    """
    weight = tnpo_weight(logp, ref_logp, mask, beta=beta)
    (logp,) = label_values(mask, logp=logp)
    return weighted_sum(weight, logp)


def tnpo_weight(
    logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, beta: float = 1.0
) -> jax.Array:
    """The weight of a token in `tnpo`: 2 p_i^beta / (p_i^beta + q_i^beta).

    Returns:
      [B, S], in [0, 2]: 1 where p = q, 0 where there is no label.
    """
    check_hyper(beta=beta)
    logp, ref_logp = label_values(mask, logp=logp, ref_logp=ref_logp)
    return jnp.where(mask, 2 * jax.nn.sigmoid(beta * log_ratio(logp, ref_logp)), 0)


def wtnpo(
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> jax.Array:
    """Weighted token-wise negative preference optimisation (arXiv 2502.19301).

        L = sum_i sg(p_i^alpha w_i) log p_i,    w_i as in `tnpo`

    Args:
      logp: log p_i, [B, S].
      ref_logp: log q_i, [B, S].
      mask: [B, S] bool, True at labels.
      alpha: exponent of the confidence; 0 is `tnpo`.
      beta: inverse temperature; 0 is `wga`.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, a mask that is not bool, or a hyper-parameter that is no
        single number.

    >>> p, q = jnp.log(jnp.array([[0.1]])), jnp.log(jnp.array([[0.3]]))
    >>> print(wtnpo(p, q, jnp.array([[True]])).round(4))  # 0.1 / 2 * log 0.1
    [-0.1151]
    """
    weight = wtnpo_weight(logp, ref_logp, mask, alpha=alpha, beta=beta)
    (logp,) = label_values(mask, logp=logp)
    return weighted_sum(weight, logp)


def wtnpo_weight(
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> jax.Array:
    """The weight of a token in `wtnpo`: 2 p_i^(alpha + beta) / (p_i^beta + q_i^beta).

    Returns:
      [B, S]; 0 where there is no label.
    """
    return wga_weight(logp, mask, alpha=alpha) * tnpo_weight(logp, ref_logp, mask, beta=beta)


def simnpo(logp: jax.Array, mask: jax.Array, *, beta: float = 4.5, delta: float = 0.0) -> jax.Array:
    """Simple negative preference optimisation: no reference, lengths normalised (arXiv 2410.07163).

        L = -(2 / beta) log sigma(beta (mean_i l_i - delta)),    l_i = -log p_i

    Args:
      logp: log p_i, [B, S].
      mask: [B, S] bool, True at labels.
      beta: inverse temperature, > 0.
      delta: margin, nats per token.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, a mask that is not bool, beta <= 0, or a hyper-parameter that
        is no single number.

    >>> print(simnpo(jnp.zeros((1, 2)), jnp.array([[True, True]]), beta=1.0).round(4))
    [1.3863]
    """
    check_hyper("positive", beta=beta)
    check_hyper(delta=delta)
    margin = _mean_nll(logp, mask) - delta
    return jnp.where(has_labels(mask), 2 / beta * jax.nn.softplus(-beta * margin), 0)


def simnpo_weight(
    logp: jax.Array, mask: jax.Array, *, beta: float = 4.5, delta: float = 0.0
) -> jax.Array:
    """The weight of a sequence of T labels in `simnpo`: (2 / T) sigma(-beta (mean_i l_i - delta)).

    Returns:
      [B]; 0 without labels.

    Raises:
      ValueError: as `simnpo`.
    """
    check_hyper("positive", beta=beta)
    check_hyper(delta=delta)
    nll = _mean_nll(logp, mask)
    weight = 2 * jax.nn.sigmoid(-beta * (nll - delta)) / _lengths(mask, nll.dtype)
    return jnp.where(has_labels(mask), weight, 0)


def _sequence_log_ratio(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    logp, ref_logp = label_values(mask, logp=logp, ref_logp=ref_logp)
    return jnp.sum(log_ratio(logp, ref_logp), axis=-1)


def _mean_nll(logp: jax.Array, mask: jax.Array) -> jax.Array:
    (logp,) = label_values(mask, logp=logp)
    return -jnp.sum(logp, axis=-1) / _lengths(mask, logp.dtype)


def _lengths(mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.maximum(label_counts(mask, dtype), 1)
