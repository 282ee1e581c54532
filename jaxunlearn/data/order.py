"""The order of the data: pure functions of (seed, step), so that resuming restores no state."""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """The random streams of a run: draws of one seed that must not coincide.

    Embedded data and new models are drawn from the seed itself, which is no member of these.
    """

    UNLEARN = 1
    """The order of the forget samples while unlearning."""
    FINETUNE = 2
    """The order of the samples while fine-tuning."""
    ATTACK = 3
    """The order of the samples that an attack shows."""
    RETAIN = 4
    """The retain samples that are paired with a batch."""
    GUIDE = 5
    """The retain samples whose risk gradient defines harm for guided weights."""
    ATTACK_SAMPLES = 6
    """The samples that an attack shows."""
    REFUSAL = 7
    """The refusal that stands in for a sample's answer."""


def generator(seed: int, stream: Stream, first: int = 0, second: int = 0) -> np.random.Generator:
    """Returns the generator of one draw.

    Args:
      seed: of the run.
      stream: what is drawn.
      first, second: which draw of the stream it is, such as the epoch, or sample and epoch.

    >>> draw = lambda: generator(0, Stream.RETAIN, 3).integers(10, size=4).tolist()
    >>> draw() == draw()
    True
    """
    # A spawn key is mixed apart from the seed, and always has the same length here: two draws are
    # equal only if seed, stream and both numbers are.
    key = (int(stream), first, second)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def num_steps(n: int, batch_size: int, epochs: int) -> int:
    """Returns the number of full batches in a run: floor(n * epochs / batch_size).

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


def batch_ids(
    seed: int, step: int, n: int, batch_size: int, *, stream: Stream = Stream.UNLEARN
) -> np.ndarray:
    """Returns the sample ids of a batch: entries step * b .. (step + 1) * b of the shuffled data.

    The shuffled data are one permutation of 0..n-1 per epoch, one after the other. A batch may
    straddle epochs, so every sample is seen once an epoch and no batch is short.

    Args:
      seed: of the run.
      step: from 0.
      n: samples in the data.
      batch_size: samples of a batch, b.
      stream: what the batches are for.

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
    shuffled = [generator(seed, stream, epoch).permutation(n) for epoch in epochs]
    offset = first - epochs.start * n
    return np.concatenate(shuffled)[offset : offset + batch_size]


def retain_ids(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """Draws the retain samples of a batch: one uniform draw for every sample of the global batch.

    The whole batch is drawn at once, before it is split over devices. So no two devices have the
    same draws, and the draws do not depend on the number of devices.

    Args:
      seed: of the run.
      step: from 0.
      n: retain samples.
      batch_size: samples of the global batch.

    Returns:
      ``[batch_size]`` int64, drawn with replacement.

    Raises:
      ValueError: ``n`` or ``batch_size`` is not positive, or a negative seed or step.

    >>> retain_ids(0, 0, 3800, 4).shape
    (4,)
    """
    _positive(n=n, batch_size=batch_size)
    _natural(seed=seed, step=step)
    return generator(seed, Stream.RETAIN, step).integers(n, size=batch_size)


def subset_ids(seed: int, n: int, size: int) -> np.ndarray:
    """Draws some of n samples, the same ones throughout a run.

    Args:
      seed: of the run.
      n: samples in the data.
      size: the most samples to draw.

    Returns:
      ``[min(n, size)]`` int64, sorted and distinct.

    Raises:
      ValueError: ``n`` or ``size`` is not positive, or a negative seed.

    >>> subset_ids(0, 3, 5).tolist()
    [0, 1, 2]
    """
    _positive(n=n, size=size)
    _natural(seed=seed)
    return np.sort(generator(seed, Stream.GUIDE).permutation(n)[:size])


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _natural(**values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative")


def attack_ids(seed: int, n: int, k: int) -> np.ndarray:
    """Draws the k of n samples that an attack trains on; a smaller draw begins a larger one.

    Args:
      seed: of the run.
      n: samples in the data.
      k: samples to draw.

    Returns:
      [k] int64, distinct.

    Raises:
      ValueError: k is not in 1..n.

    >>> attack_ids(0, 10, 3).tolist() == attack_ids(0, 10, 7)[:3].tolist()
    True
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} samples to show must be in 1..{n}")
    return generator(seed, Stream.ATTACK_SAMPLES).permutation(n)[:k]
