"""Divergence of next-token distributions, with derivatives that survive float32.

The derivative of every cross-entropy with respect to logits is p - q. Where p and q nearly agree
(close to the reference; or without a label that is improbable anyway), subtracting them leaves
their rounding errors: in float32 the difference may have no correct digit. Here both follow from
the difference of the logits instead.
"""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def divergence(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """KL(q || p) = sum_v q_v log(q_v / p_v), accurate also where p and q nearly agree.

    That is where their logits nearly do: an offset common to all of one is lost in rounding.

    Args:
      logits: of p, [..., V], float32 or wider.
      ref_logits: of q, [..., V], of the same type; a constant: its derivative is 0.

    Returns:
      [...], nats.

    >>> print(divergence(jnp.zeros(4), jnp.log(jnp.array([0.5, 0.5, 0.0, 0.0]))).round(4))  # ln 2
    0.6931
    """
    return _value_and_difference(logits, ref_logits)[0]


@divergence.defjvp
def _divergence_tangent(primals, tangents):
    value, difference = _value_and_difference(*primals)
    return value, jnp.sum(difference * tangents[0], axis=-1)


def cross_entropy(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """-sum_v q_v log p_v = KL(q || p) + H(q), where 0 log 0 = 0; see `divergence`."""
    ref_logits = jax.lax.stop_gradient(ref_logits)
    ref_logp = jax.nn.log_softmax(ref_logits, axis=-1)
    q = jnp.exp(ref_logp)
    entropy = -jnp.sum(q * jnp.where(q > 0, ref_logp, 0), axis=-1)
    return divergence(logits, ref_logits) + entropy


def _value_and_difference(z: jax.Array, ref_z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """KL(q || p), [...], and p - q, [..., V], of the distributions of two arrays of logits.

    With d = z - ref_z, shifted by a constant, and c = log sum_v q_v exp(d_v),

        log(p_v / q_v) = d_v - c,    p_v - q_v = q_v (exp(d_v - c) - 1),

    which lose no digits where d is small. Where it is not (or infinite: impossible tokens), p and q
    differ by more than their rounding errors and are computed one by one.
    """
    norm, ref_norm = (jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (z, ref_z))
    logp, ref_logp = z - norm, ref_z - ref_norm
    q = jnp.exp(ref_logp)
    # The shift makes d 0 at the most probable token. The sum below then holds no entry of order 1
    # that c would have to cancel, even where the probability of all other tokens is tiny.
    d = jnp.where(jnp.isfinite(z) & jnp.isfinite(ref_z), z - ref_z, jnp.inf)
    shift = jnp.max(
        jnp.where(ref_z == ref_z.max(-1, keepdims=True), d, -jnp.inf), -1, keepdims=True
    )
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    d = d - shift
    excess = jnp.sum(_difference(q, d, jnp.exp(z - shift - ref_norm) - q), -1, keepdims=True)
    far = norm - ref_norm - shift
    c = jnp.where(jnp.abs(excess) < 0.5, jnp.log1p(excess), far)
    log_ratio = jnp.where(jnp.abs(d - c) < 1, d - c, logp - ref_logp)
    difference = _difference(q, log_ratio, jnp.exp(logp) - q)
    # sum_v (p_v - q_v) is 0; with it, no entry of the sum is negative and none cancels another.
    entries = difference - jnp.where(q > 0, q * log_ratio, 0)
    return jnp.maximum(jnp.sum(entries, axis=-1), 0), difference


def _difference(q: jax.Array, log_ratio: jax.Array, far: jax.Array) -> jax.Array:
    """q (exp(log_ratio) - 1) for small log-ratios, elsewhere the value that is given for them."""
    near = jnp.abs(log_ratio) < 1
    # The branch that is not taken must be finite, too: its derivative would be 0 times infinity.
    return jnp.where(near, q * jnp.expm1(jnp.where(near, log_ratio, 0)), far)
