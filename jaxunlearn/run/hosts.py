"""One run on several processes: all compute, the first decides and writes.

Every process runs the same program on its part of the arrays. What depends on files is decided by
the first process and told to the others, so that none of them goes another way. The run's folder
must be one that all of them see.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

CPU_THREADS = 64  # at least


def give_cpu_threads() -> None:
    """Gives XLA threads to wait in, on CPUs of several devices; before anything else of JAX.

    A thread waits inside each collective, and XLA has only as many as cores or devices. Collectives
    of one program start in any order: where the last thread waits in one of them while another
    device waits in the next, all wait for ever.
    """
    os.environ.setdefault("PJRT_NPROC", str(max(CPU_THREADS, os.cpu_count() or 1)))


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
) -> None:
    """Joins the processes of a run; call it before anything else of JAX.

    Args:
      coordinator: "host:port" of the first process; None: JAX finds it (SLURM, TPU pods, Open MPI,
        Kubernetes, or JAX_COORDINATOR_ADDRESS).
      processes: how many there are.
      process: which one this is.
      heartbeat: seconds after which a silent process counts as dead: JAX then ends all others with
        a signal, and the next start of the run resumes.

    Raises:
      ValueError: the cluster is not found, or one of three is missing.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ValueError(f"{', '.join(missing)}: give all of {', '.join(given)}, or none")
    give_cpu_threads()
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=heartbeat
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"cannot join the other processes: {error}") from error


def is_first() -> bool:
    """Whether this process is the one that writes tables and talks."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(decision: bool) -> bool:
    """The first process's decision."""
    if jax.process_count() == 1:
        return decision
    told: Any = multihost_utils.broadcast_one_to_all(np.asarray(decision))
    return bool(told)
