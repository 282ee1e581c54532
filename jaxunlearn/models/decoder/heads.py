"""Heads: functions of logits and labels that `forward` applies chunk by chunk."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees


def label_moments(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """A head for min-k++: log p of the label, and what log p is on average where p is true.

    mu = sum_v p_v log p_v and sigma^2 = sum_v p_v (log p_v - mu)^2; a token that is impossible
    (logit -inf) adds nothing. A head of `forward`.

    Args:
      logits: [..., V].
      labels: [...] int.

    Returns:
      {"logp", "mu", "sigma"}, each [...] float32 or wider; logp as `label_log_probs` has it.

    >>> moments = label_moments(jnp.zeros((1, 4)), jnp.array([2]))
    >>> {name: f"{value[0]:.3f}" for name, value in moments.items()}
    {'logp': '-1.386', 'mu': '-1.386', 'sigma': '0.000'}
    """
    logits = trees.wide(logits)
    logp = logits - jax.nn.logsumexp(logits, -1, keepdims=True)
    p = jnp.exp(logp)
    logp = jnp.where(p > 0, logp, 0)  # 0 log 0 is 0 here, not NaN
    mu = jnp.sum(p * logp, -1)
    variance = jnp.sum(p * jnp.square(logp - mu[..., None]), -1)
    return {
        "logp": label_log_probs(logits, labels),
        "mu": mu,
        "sigma": jnp.sqrt(variance),
    }


Head = Callable[..., Any]


def label_log_probs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log p(label) = z_label - log sum_v exp z_v: the default head.

    A label outside the vocabulary, such as -100, gets a finite value that means nothing, as in
    `objectives.token_log_probs`: it must be masked.

    Args:
      logits: [..., V].
      labels: [...] int, of any width.

    Returns:
      [...] float32 or wider.

    >>> [f"{logp:.4f}" for logp in label_log_probs(jnp.zeros((1, 4)), jnp.array([2]))]
    ['-1.3863']
    """
    # In the type of the labels, which may have 8 bits, a large vocabulary would be numbered anew
    # after every 256 entries.
    logits, labels = trees.wide(logits), labels.astype(jnp.int32)
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    # Not a gather: that is no good on logits split over the vocabulary.
    chosen = jnp.sum(jnp.where(vocabulary == labels[..., None], logits, 0), -1)
    # Not in the form of `objectives.token_log_probs`, which keeps the digits of 1 - p: that takes
    # more temporary memory for PG-effects in forward mode than their bar allows.
    return chosen - jax.nn.logsumexp(logits, -1)


def label_statistics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """A head for exact matches: {"logp": [...], "correct": [...] bool, argmax == label}.

    A label outside the vocabulary is never correct; logp is that of `label_log_probs`.
    """
    correct = jnp.argmax(logits, -1) == labels
    return {"logp": label_log_probs(logits, labels), "correct": correct}
