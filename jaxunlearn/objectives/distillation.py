"""Objectives that pull the next-token distribution towards one without the answer.

They read logits of single positions and return one loss per position, so they apply to packed rows
and to chunks of the vocabulary head alike; the caller masks and sums.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import wide
from jaxunlearn.objectives.divergence import cross_entropy
from jaxunlearn.objectives.likelihood import check_hyper, check_labels, is_label


def undial(
    logits: jax.Array, ref_logits: jax.Array, labels: jax.Array, *, beta: float = 10.0
) -> jax.Array:
    """Self-distillation with adjusted logits (UNDIAL, arXiv 2402.10052).

        L = CE(softmax(z_ref - beta onehot(y)), z)

    Its gradient keeps its digits near the reference, see `divergence`.

    Args:
      logits: z, [..., V].
      ref_logits: z_ref of the reference, [..., V]; a constant.
      labels: y, [...] int.
      beta: how far the label's logit is lowered.

    Returns:
      [...], nats per position.

    Raises:
      ValueError: shapes that do not belong together, or a beta that is no single number.

    >>> print(undial(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.array([2])).round(4))  # ln 4
    [1.3863]
    """
    if ref_logits.shape != logits.shape:
        raise ValueError(
            f"ref_logits {ref_logits.shape} and logits {logits.shape} must have one shape"
        )
    check_labels("logits", logits, "labels", labels)
    check_hyper(beta=beta)
    ref_logits = wide(jax.lax.stop_gradient(ref_logits))
    lowered = jnp.where(is_label(ref_logits, labels), ref_logits - beta, ref_logits)
    return cross_entropy(wide(logits), lowered)


def ceu(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy unlearning (CE-U, arXiv 2503.01224).

        L = CE(softmax(sg(z) with z_y = -inf), z)

    Its gradient with respect to z is p_y at the label and -p_v p_y / (1 - p_y) elsewhere, in
    float32 also where p_y is so small that target and model round to the same numbers.

    Args:
      logits: z, [..., V], V >= 2.
      labels: y, [...] int.

    Returns:
      [...], nats per position.

    Raises:
      ValueError: shapes that do not belong together.

    >>> print(ceu(jnp.zeros((1, 4)), jnp.array([2])).round(4))  # ln 4
    [1.3863]
    """
    check_labels("logits", logits, "labels", labels)
    fixed = wide(jax.lax.stop_gradient(logits))
    without_label = jnp.where(is_label(fixed, labels), -jnp.inf, fixed)
    return cross_entropy(wide(logits), without_label)
