"""How much of an answer the model still knows by heart, from teacher-forced predictions."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def extraction_strength(correct: Array, mask: Array) -> jax.Array:
    """Extraction strength: 1 - k / L.

    k is the length of the shortest prefix of the answer after which the teacher-forced argmax is
    right for all the rest, L the answer's length (its EOS included). 1: the whole answer follows
    from the question; 0: not even the last token is right. (Carlini et al. 2021, in the
    teacher-forced suffix form of OpenUnlearning.)

    Args:
      correct: [B, S] bool, whether the argmax at each label is the label.
      mask: [B, S] bool, True on labels; an answer's labels are contiguous.

    Returns:
      [B] float32; 0 for an answer without labels.

    >>> correct = jnp.array([[False, True, True, False]])
    >>> mask = jnp.array([[True, True, True, False]])
    >>> round(float(extraction_strength(correct, mask)[0]), 4)
    0.6667
    """
    right = jnp.where(mask, correct, True)
    suffix = jax.lax.cumprod(right.astype(jnp.int32), axis=1, reverse=True).astype(bool)
    memorised = jnp.sum(suffix & mask, axis=1)
    return _share(memorised, mask)


def exact_memorization(correct: Array, mask: Array) -> jax.Array:
    """Exact memorisation: the share of labels whose teacher-forced argmax is right.

    Args:
      correct: [B, S] bool.
      mask: [B, S] bool.

    Returns:
      [B] float32; 0 for an answer without labels.

    >>> float(exact_memorization(jnp.array([[True, False]]), jnp.array([[True, True]]))[0])
    0.5
    """
    return _share(jnp.sum(correct & mask, axis=1), mask)


def _share(count: jax.Array, mask: Array) -> jax.Array:
    return count.astype(jnp.float32) / jnp.maximum(mask.sum(axis=1), 1).astype(jnp.float32)
