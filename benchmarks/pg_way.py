"""The type of a way to compute PG-effects."""

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.pg_jobs import free_bytes


class DoesNotFit(Exception):
    """A way needs more memory than there is."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to compute the same numbers, on rows in the layout that suits it.

    Attributes:
      name: of the way.
      k: number of directions; 0 for a plain gradient.
      rows: the layout of its rows, for the table.
      call: runs it once, to the end; [K, samples(, layers)], or None where k is 0.
      gives: the values that it computes: by sample, token or layer.
      exact: whether the values are held to a tolerance.
      linear_only: whether embedding and norms are left out.
      flops: of matrix products, where known.
      temp: bytes of temporaries by the compiler, where there is one.
      note: the variant.
    """

    name: str
    k: int
    rows: str
    call: Callable[[], np.ndarray | None]
    gives: str = "sample"
    exact: bool = True
    linear_only: bool = False
    flops: int | None = None
    temp: int | None = None
    note: str = ""


Builder = Callable[[int], list[Way]]  # K -> variants, of which the fastest counts
UNIT = "batch gradient"  # the name of the way that all others are compared with


def require_free(needed: float, free: int | None = None) -> None:
    """Raises DoesNotFit where less than `needed` bytes are left; of JAX's memory by default."""
    free = free_bytes() if free is None else free
    if needed > free:
        raise DoesNotFit(f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
