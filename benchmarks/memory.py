"""The memory of the device that JAX holds at most during a call."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

SAMPLING_SECONDS = 2e-4


class Peak(NamedTuple):
    """The most bytes of the device at once.

    Attributes:
      bytes: that were in use.
      exact: whether the device's own high-water mark rose, which is exact. A device never lowers
        its mark, so a call that stays under an earlier one is sampled by a thread instead, and
        `bytes` is a lower bound.
    """

    bytes: int
    exact: bool


def in_use() -> int | None:
    """Bytes in use on the device now; None where it does not say, as on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats["bytes_in_use"] if stats else None


def peak_of(call: Callable[[], Any]) -> Peak | None:
    """Runs a call, which must wait for its results, and returns its peak.

    Returns:
      None where the device does not say.
    """
    if in_use() is None:
        call()
        return None
    device = jax.devices()[0]
    mark = device.memory_stats()["peak_bytes_in_use"]
    done, samples = threading.Event(), [in_use() or 0]

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            samples.append(in_use() or 0)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    reached = device.memory_stats()["peak_bytes_in_use"]
    return Peak(reached, True) if reached > mark else Peak(max(samples), False)
