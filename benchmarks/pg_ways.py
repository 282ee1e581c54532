"""A way to PG-effects, ready to be called, and where all of them come from."""

import dataclasses
import importlib.util
from collections.abc import Callable

import numpy as np

from benchmarks.pg_jobs import Job, free_bytes


class DoesNotFit(Exception):
    """A way needs more memory than there is."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to the same numbers, on rows laid out as suits it.

    Attributes:
      name: of the way.
      k: number of directions; 0 for a plain gradient.
      rows: what it is fed.
      call: runs it once, to the end; [K, samples(, layers)], or None where k is 0.
      gives: what it knows: a value a sample, token, layer.
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


def require_free(needed: float) -> None:
    """Raises DoesNotFit where less than `needed` bytes are left."""
    free = free_bytes()
    if needed > free:
        raise DoesNotFit(f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def all_ways(job: Job) -> tuple[dict[str, Builder], dict[str, str]]:
    """Every way that can be tried here, by name, and {kind of ways: why they cannot}."""
    from benchmarks import pg_jax

    ways = pg_jax.ways(job)
    if job.config.dtype != "float32":
        reason = "its own copy of weights and directions of this size does not fit beside JAX's"
        return ways, {"PyTorch": reason}
    try:
        from benchmarks import pg_torch

        peer = pg_torch.peer(job)
    except ImportError as error:
        return ways, {"PyTorch": str(error)}
    ways |= pg_torch.ways(peer)
    if importlib.util.find_spec("kronfluence") is None:
        return ways, {"kronfluence": "not installed; see benchmarks/pg_kronfluence.py"}
    from benchmarks import pg_kronfluence

    return ways | pg_kronfluence.ways(peer), {}
