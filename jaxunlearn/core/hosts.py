"""The JAX process: its threads, its compilation cache, its platform, and its fellow processes.

A run on several hosts is one program in several processes. Every process computes on its part of
the arrays, and the first one alone writes files and prints. Whatever depends on the content of
files is decided by the first process and broadcast, so that all take the same branch; the run's
folder must be on a file system that all of them see.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Decision = TypeVar("Decision", bool, int)

MIN_CPU_THREADS = 64

MALLOC_SETTINGS = {
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: free bytes at the top that go back to the system; the most
    -2: 2**26,  # M_TOP_PAD: bytes to ask the system for at once
    -4: 0,  # M_MMAP_MAX: blocks that have pages of their own, which no other block gets
}
"""Settings of glibc's `mallopt`, by the numbers that malloc.h gives them, see `keep_memory`."""


def start(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
    small_model: bool = False,
) -> None:
    """Prepares this process for a run: threads, other processes, caches, memory, transfers.

    Call it before anything else of JAX, and once.

    Args:
      distributed: join the other processes of a cluster that JAX detects by itself.
      coordinator, processes, process, heartbeat: as in `connect`; any of the first three also
        joins the other processes.
      small_model: whether `keep_memory` may be called.

    Raises:
      ValueError: the processes cannot be joined, or there is no device.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or jax.config.jax_num_cpu_devices > 1:  # pyright: ignore[reportAttributeAccessIssue]
        give_cpu_threads()
    address = (coordinator, processes, process)
    if distributed or any(value is not None for value in address):
        connect(*address, heartbeat=heartbeat)
    check_devices()
    keep_compilations()
    if small_model:
        keep_memory()
    allow_transfers()


def give_cpu_threads() -> None:
    """Gives XLA enough threads for collectives between several CPU devices of one process.

    Call it before anything else of JAX. A thread blocks inside each collective, and by default XLA
    has only as many threads as cores or devices. The collectives of one program start in any
    order: if the last free thread blocks in one of them while another device blocks in the next,
    neither can go on, and the program hangs for ever.
    """
    os.environ.setdefault("PJRT_NPROC", str(max(MIN_CPU_THREADS, os.cpu_count() or 1)))


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
) -> None:
    """Joins the processes of a run; call it before anything else of JAX.

    Args:
      coordinator: address of process 0, "host:port". If all three are None, JAX detects the
        cluster (SLURM, TPU pods, Open MPI, Kubernetes, or JAX_COORDINATOR_ADDRESS).
      processes: total number of processes.
      process: index of this process, from 0.
      heartbeat: seconds of silence after which a process counts as dead. JAX then ends all others
        with a signal, and starting the run again resumes it.

    Raises:
      ValueError: no cluster can be joined, or only some of the three are given.
    """
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in flags.items() if value is None]
    if 0 < len(missing) < 3:
        raise ValueError(f"{', '.join(missing)}: give all of {', '.join(flags)}, or none")
    give_cpu_threads()
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=heartbeat
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot join the other processes: {error}; start all of them, with one address"
            " that each of them reaches"
        ) from error


def check_devices() -> None:
    """Checks that JAX has a device.

    Raises:
      ValueError: it has none of the platform that the environment names.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter says nothing
        named = os.environ.get("JAX_PLATFORMS", "")
        reason = f": {error}" if str(error) else ""
        raise ValueError(
            f"JAX finds no device (JAX_PLATFORMS={named}){reason}; leave JAX_PLATFORMS out, or"
            " install JAX for this kind of device"
        ) from error


def keep_compilations() -> None:
    """Keeps compiled programs of accelerators on disk, for the next start of a run.

    The folder is `jaxunlearn` in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names
    another. Programs for CPUs compile fast and are not kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.default_backend() != "cpu":
        root = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "jaxunlearn"))


def keep_memory() -> None:
    """Lets the C library keep the memory that programs on CPUs free, for their next buffers.

    A program allocates the same buffers in every step. By default glibc gives large ones back to
    the system at once, which then clears and maps their pages again: a fifth of the time of a small
    model. The price is memory: pieces of blocks that were freed lie idle, which a large model
    cannot afford. Where the environment has settings of its own (MALLOC_..., GLIBC_TUNABLES), and
    with other C libraries, nothing changes.
    """
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if own or jax.default_backend() != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        for setting, value in MALLOC_SETTINGS.items():
            mallopt(setting, value)


def allow_transfers() -> None:
    """Lets this process move arrays between host and devices, whatever the environment says.

    JAX_TRANSFER_GUARD=disallow finds transfers that a script makes unawares. A run makes all of its
    on purpose, several for each batch, and would end at the first one.
    """
    jax.config.update("jax_transfer_guard", "allow")


def use_cpu(devices: int | None = None) -> None:
    """Makes JAX use CPUs unless the environment names a platform; call it before JAX's first use.

    Args:
      devices: number of CPU devices; default: JAX's own number, one.
    """
    if not any(name in os.environ for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")):
        jax.config.update("jax_platforms", "cpu")
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", max(devices, 1))


def is_first() -> bool:
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Blocks until every process has reached this call (a barrier).

    Args:
      name: of the barrier, the same on all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(decision: Decision) -> Decision:
    """Returns process 0's decision on every process, so that all take the same branch."""
    if jax.process_count() == 1:
        return decision
    shared: Any = multihost_utils.broadcast_one_to_all(np.asarray(decision))
    return type(decision)(shared)


def first_does(work: Callable[[], object], otherwise: str) -> None:
    """Does something on process 0 alone; if it raises, every process does.

    Without this the others would wait for process 0 at the next barrier, for ever.

    Args:
      work: what process 0 does.
      otherwise: what the others say when it raises.

    Raises:
      Exception: what `work` raised; on the other processes a ValueError.
    """
    problem: Exception | None = None
    if is_first():
        try:
            work()
        except Exception as error:
            problem = error
    if agreed(problem is not None):
        raise problem or ValueError(otherwise)
