"""Log-likelihoods of label tokens, and the reductions of losses over sequences and tokens.

Letters: B sequences, T tokens, S = T - 1 predictions, V vocabulary. Log-probabilities and losses
are in nats and in float32, or wider where the input is.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxunlearn.core.names import nearest
from jaxunlearn.core.trees import wide

REDUCTIONS = ("sequence_sum", "sequence_mean", "token_mean")

LOG_ZERO = -1e30
"""Replaces log 0 of the reference: finite, so that the difference of two of them is 0."""


def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of every token but the first, given those before it.

        log p(tokens[:, s + 1] | tokens[:, :s + 1])

    A token outside the vocabulary, such as the label -100, gets a finite value that means nothing:
    it must be masked.

    Args:
      logits: [B, T, V], or [T, V]; those after the last token are not read.
      tokens: [B, T] int, or [T].

    Returns:
      [B, S], or [S], S = T - 1.

    Raises:
      ValueError: shapes that do not belong together.

    >>> print(token_log_probs(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]])).round(4))
    [[-1.3863 -1.3863]]
    """
    check_labels("logits", logits, "tokens", tokens)
    logits, labels = wide(logits[..., :-1, :]), tokens[..., 1:]
    # Not a gather: with logits sharded over the vocabulary it would move them to one device, and
    # an index of -100 would count from the end.
    at_label = is_label(logits, labels)
    label_logits = jnp.sum(jnp.where(at_label, logits, 0), axis=-1)
    # Not -inf: where all others are impossible, the gradient of their sum would be NaN.
    others = jnp.where(at_label, LOG_ZERO, jnp.maximum(logits, LOG_ZERO))
    others = jax.nn.logsumexp(others, axis=-1)
    # Not z_label - logsumexp(z): where p is near 1, its gradient 1 - p would lose its digits.
    return -jax.nn.softplus(others - label_logits)


def reduce_losses(
    losses: jax.Array, mask: jax.Array, how: str = "sequence_sum"
) -> tuple[jax.Array, jax.Array]:
    """Sum and count of per-sequence losses; the mean is their quotient, taken once at the very end.

        sequence_sum   (sum_b loss_b,             sequences with labels)
        sequence_mean  (sum_b loss_b / labels_b,  sequences with labels)
        token_mean     (sum_b loss_b,             labels)

    Sequences without labels do not count. `sequence_mean` and `token_mean` mean something only for
    losses that are sums over tokens: see `Objective.check_reduction`.

    Args:
      losses: [B].
      mask: [B, S] bool, True at labels.
      how: one of the three.

    Returns:
      (sum, count), scalars of one dtype.

    Raises:
      ValueError: an unknown reduction, or shapes that do not belong together.

    >>> mask = jnp.array([[True, True], [True, False], [False, False]])
    >>> [float(x) for x in reduce_losses(jnp.array([4.0, 1.0, 0.0]), mask, "token_mean")]
    [5.0, 3.0]
    """
    check_known("reduction", how, REDUCTIONS)
    check_mask(mask)
    if losses.shape != mask.shape[:-1]:
        raise ValueError(f"losses {losses.shape}: expected one for each row of mask {mask.shape}")
    losses = jnp.where(has_labels(mask), wide(losses), 0)
    labels = label_counts(mask, losses.dtype)
    if how == "sequence_mean":
        losses = losses / jnp.maximum(labels, 1)
    counts = labels if how == "token_mean" else has_labels(mask).astype(losses.dtype)
    return jnp.sum(losses), jnp.sum(counts)


def check_hyper(allowed: str = "any", **values: Any) -> None:
    """Checks hyper-parameters of a loss.

    Values that JAX traces are known by their shape alone.

    Args:
      allowed: "any", "not negative", or "positive" (then also finite).
      **values: by the names that errors call them.

    Raises:
      ValueError: one that is no single number (an array would be spread over tokens or sequences,
        whichever fits), or that is not allowed.
    """
    for name, value in values.items():
        if (shape := jnp.shape(value)) != ():
            raise ValueError(
                f"{name} has the shape {shape}, expected one number; for several use jax.vmap"
            )
        if allowed == "any" or isinstance(value, Tracer):
            continue
        value = float(value)  # under jit the comparison of a known array would be traced
        if allowed == "positive" and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
        if allowed == "not negative" and not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def label_values(mask: jax.Array, **arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in float32 or wider, 0 where there is no label.

    Values at other positions (-inf, NaN) then reach neither the loss nor its gradients.

    Args:
      mask: [B, S] bool, True at labels.
      **arrays: [B, S] each, by the name that errors call them.

    Raises:
      ValueError: a mask that is not bool, or an array of another shape.
    """
    check_mask(mask)
    for name, x in arrays.items():
        if x.shape != mask.shape:
            raise ValueError(f"{name} {x.shape} and its mask {mask.shape} must have one shape")
    return tuple(jnp.where(mask, wide(x), 0) for x in arrays.values())


def log_ratio(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """log p/q by token, [B, S]; q is a constant. 0 stands for exp(-1e30), so that it is finite."""
    return jnp.maximum(logp, LOG_ZERO) - jnp.maximum(jax.lax.stop_gradient(ref_logp), LOG_ZERO)


def weighted_sum(weight: jax.Array, logp: jax.Array) -> jax.Array:
    """sum_i sg(w_i) log p_i, [B], from two arrays [B, S] that are 0 where there is no label.

    Where w_i is 0 so is the product, as in the limit p^a log p of p = 0.
    """
    weight = jax.lax.stop_gradient(weight)
    return jnp.sum(jnp.where(weight == 0, 0, weight * logp), axis=-1)


def has_labels(mask: jax.Array) -> jax.Array:
    """Which sequences have labels, [B] bool."""
    return jnp.any(mask, axis=-1)


def label_counts(mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Labels of each sequence, [B]."""
    return jnp.sum(mask, axis=-1, dtype=dtype)


def is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[..., V] bool, True at the label; all False for a label outside the vocabulary."""
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return vocabulary == labels[..., None].astype(jnp.int32)


def check_mask(mask: jax.Array) -> None:
    """Raises ValueError unless the mask is boolean."""
    if mask.dtype != jnp.bool_:
        raise ValueError(f"a mask is bool (True at labels), got {mask.dtype}")


def check_labels(name: str, logits: jax.Array, labels_name: str, labels: jax.Array) -> None:
    """Raises ValueError unless logits [..., V] have one integer label [...] each."""
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{labels_name} {labels.shape}: expected one label for each of {name} {logits.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{labels_name} are integers, got {labels.dtype}")


def check_known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raises ValueError, with the nearest name, unless `name` is among `names`."""
    names = tuple(names)
    if name not in names:
        hint = nearest(str(name), names)
        raise ValueError(f"unknown {kind} {name!r}{hint}; known: {', '.join(names) or 'none'}")
