"""The record of a benchmark's circumstances: date, hardware, versions and command."""

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxunlearn.record.starts import version

PACKAGES = ("jaxunlearn", "jax", "jaxlib", "flax", "optax", "torch", "transformers", "kronfluence")


def about(
    benchmark: str, arguments: Sequence[str] | None = None, *, torch_threads: bool = True
) -> dict[str, Any]:
    """Date, hardware, versions and command, for the head of a table or a JSON file.

    Args:
      benchmark: the module's name.
      arguments: of the command line; None takes the process's own.
      torch_threads: asks PyTorch for its threads, which imports it.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *words]),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": _cores(),
        "load": os.getloadavg()[0],  # of the last minute: a busy machine times nothing well
        "torch_threads": _torch_threads() if torch_threads else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def show(record: dict[str, Any]) -> None:
    """Prints the head of a benchmark's output."""
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in record["versions"].items())
    print(f"{record['date']}  {record['command']}")
    print(
        f"{record['device']}, {record['cores']} cores of {record['processor']}, load"
        f" {record['load']:.1f}; threads: JAX's own choice, torch {record['torch_threads'] or '-'}"
    )
    print(versions, flush=True)


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _torch_threads() -> int | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.get_num_threads()


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
