"""Retain terms L_r, added to an objective as gamma L_u + lambda L_r, on data to keep."""

import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import wide
from jaxunlearn.objectives.divergence import divergence
from jaxunlearn.objectives.likelihood import label_values


def gd(logp: jax.Array, mask: jax.Array) -> jax.Array:
    """Gradient descent: the negative log-likelihood. On any data, this is also the risk R.

        L = -sum_i log p_i

    Args:
      logp: log p_i, [B, S].
      mask: [B, S] bool, True at labels.

    Returns:
      [B], nats; 0 without labels.

    Raises:
      ValueError: shapes that differ, or a mask that is not bool.

    >>> print(gd(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, True]])).round(4))
    [2.0794]
    """
    (logp,) = label_values(mask, logp=logp)
    return -jnp.sum(logp, axis=-1)


def kl(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """Divergence of the model's next-token distribution p from the reference's q.

        KL(q || p) = sum_v q_v (log q_v - log p_v)

    Its gradient p - q keeps its digits where p and q nearly agree, as a function of these logits.
    The logits themselves carry the model's rounding errors: close to the reference, where the
    gradient vanishes, its relative error is theirs over the distance from the reference's logits.

    Args:
      logits: of p, [..., V].
      ref_logits: of q, [..., V]; a constant.

    Returns:
      [...], nats per position.

    Raises:
      ValueError: shapes that differ.

    >>> print(kl(jnp.zeros(4), jnp.log(jnp.array([0.5, 0.5, 0.0, 0.0]))).round(4))  # ln 2
    0.6931
    """
    if ref_logits.shape != logits.shape:
        raise ValueError(
            f"ref_logits {ref_logits.shape} and logits {logits.shape} must have one shape"
        )
    return divergence(wide(logits), wide(jax.lax.stop_gradient(ref_logits)))


def rr(hidden: jax.Array, ref_hidden: jax.Array) -> jax.Array:
    """Representation retention: squared distance of hidden states to the reference's.

        L = ||h - h_ref||^2

    The caller takes the mean over the positions that predict the answer.

    Args:
      hidden: h after some block, [..., D].
      ref_hidden: the reference's, [..., D]; a constant.

    Returns:
      [...], squared units of h per position.

    Raises:
      ValueError: shapes that differ.

    >>> rr(jnp.ones((2, 3)), jnp.zeros((2, 3))).tolist()
    [3.0, 3.0]
    """
    if ref_hidden.shape != hidden.shape:
        raise ValueError(
            f"ref_hidden {ref_hidden.shape} and hidden {hidden.shape} must have one shape"
        )
    return jnp.sum(jnp.square(wide(hidden) - wide(jax.lax.stop_gradient(ref_hidden))), axis=-1)
