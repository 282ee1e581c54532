"""The order of the data: pure functions of (seed, step), so resuming needs no iterator state."""

import numpy as np

# Keeps the draws of one seed apart; numpy pads short seeds with zeros, so the tag is not 0.
_RETAIN_STREAM = 1
_SUBSET_STREAM = 2


def num_steps(n: int, batch_size: int, epochs: int) -> int:
    """Full batches in a run: floor(n * epochs / batch_size).

    Args:
      n: samples in the data.
      batch_size: samples of a batch.
      epochs: passes over the data.

    Returns:
      The number of optimiser steps.

    Raises:
      ValueError: an argument is not positive.

    >>> num_steps(200, 16, 5)
    62
    """
    _positive(n=n, batch_size=batch_size, epochs=epochs)
    return n * epochs // batch_size


def batch_ids(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """Sample ids of one batch: entries step * b .. (step + 1) * b of a stream of permutations.

    The stream is one permutation of 0..n-1 per epoch; a batch may straddle epochs, so every
    sample is seen once an epoch and no batch is short.

    Args:
      seed: of the run.
      step: from 0.
      n: samples in the data.
      batch_size: samples of a batch, b.

    Returns:
      ``[batch_size]`` int64.

    Raises:
      ValueError: ``n`` or ``batch_size`` is not positive, or a negative seed or step.

    >>> sorted([*batch_ids(0, 0, 6, 4).tolist(), *batch_ids(0, 1, 6, 4)[:2].tolist()])
    [0, 1, 2, 3, 4, 5]
    """
    _positive(n=n, batch_size=batch_size)
    _natural(seed=seed, step=step)
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // n, (last - 1) // n + 1)
    shuffled = [np.random.default_rng((seed, epoch)).permutation(n) for epoch in epochs]
    offset = first - epochs.start * n
    return np.concatenate(shuffled)[offset : offset + batch_size]


def retain_ids(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """Retain samples to pair with a batch: one fresh uniform draw per slot of the global batch.

    The whole batch is drawn at once, before it is cut over devices, so no two shards share their
    draws and the pairs do not depend on the number of devices.

    Args:
      seed: of the run.
      step: from 0.
      n: retain samples.
      batch_size: slots of the global batch.

    Returns:
      ``[batch_size]`` int64, drawn with replacement.

    Raises:
      ValueError: ``n`` or ``batch_size`` is not positive, or a negative seed or step.

    >>> retain_ids(0, 0, 3800, 4).shape
    (4,)
    """
    _positive(n=n, batch_size=batch_size)
    _natural(seed=seed, step=step)
    return np.random.default_rng((seed, step, _RETAIN_STREAM)).integers(n, size=batch_size)


def subset_ids(seed: int, n: int, size: int) -> np.ndarray:
    """Some of n samples, the same ones throughout a run.

    Args:
      seed: of the run.
      n: samples in the data.
      size: how many at most.

    Returns:
      ``[min(n, size)]`` int64, sorted, none twice.

    Raises:
      ValueError: ``n`` or ``size`` is not positive, or a negative seed.

    >>> subset_ids(0, 3, 5).tolist()
    [0, 1, 2]
    """
    _positive(n=n, size=size)
    _natural(seed=seed)
    return np.sort(np.random.default_rng((seed, _SUBSET_STREAM)).permutation(n)[:size])


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _natural(**values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative")
