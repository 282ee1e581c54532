"""All ways to PG-effects that can be tried here."""

import importlib.util

from benchmarks.pg_jobs import Job
from benchmarks.pg_way import Builder


def all_ways(job: Job) -> tuple[dict[str, Builder], dict[str, str]]:
    """Every way that can be tried here, by name, and {kind of ways: why they cannot}."""
    from benchmarks import pg_jax

    ways = pg_jax.ways(job)
    if job.config.dtype != "float32":
        reason = "its own copy of weights and directions of this size does not fit next to JAX's"
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
