"""Section machine: the card, and its peaks, which are the denominators of every MFU."""

import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import record
from benchmarks.accelerator.inputs import Setting
from benchmarks.accelerator.ledger import Row, Values
from benchmarks.train_ours import matmul_flops
from benchmarks.train_step import best

COLUMNS = {
    "flops_per_s": ("TFLOP/s", "tera"),
    "bytes_per_s": ("GB/s", "giga"),
    "size": ("size", "text"),
    "card": ("card", "text"),
    "driver": ("driver", "text"),
    "memory_bytes": ("GB for JAX", "giga"),
    "flags": ("flags", "text"),
}
SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
FLAGS = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PLATFORMS")
PRODUCTS = ("bfloat16", "float32 highest", "float32 default")  # type and precision
FLOAT_BYTES = 4


def rows(setting: Setting) -> list[Row]:
    """The card, its products and its memory."""
    size = setting.scaled(16384, 256)
    count = setting.scaled(2**30, 2**18)
    return [
        Row("card", card),
        *(Row(f"product, {kind}", partial(product, size, *kind.split())) for kind in PRODUCTS),
        # Bytes read and written for each number.
        Row("copy", partial(stream, count, lambda a, b: a + 1, 2)),
        Row("triad", partial(stream, count, lambda a, b: a + 3 * b, 3)),
    ]


def card() -> Values:
    """The device, its driver, and the flags of XLA."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    try:
        answer = subprocess.run(SMI, capture_output=True, text=True, timeout=30).stdout
        name, driver, memory = (part.strip() for part in answer.split("\n")[0].split(","))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        name, driver, memory = device.device_kind, None, None
    flags = " ".join(f"{flag}={os.environ[flag]}" for flag in FLAGS if flag in os.environ)
    return {
        "card": name,
        "driver": driver,
        "memory": memory,
        "memory_bytes": stats.get("bytes_limit"),
        "flags": flags,
        "versions": record.about("accelerator", torch_threads=False)["versions"],
    }


def product(size: int, dtype: str, precision: str | None = None) -> Values:
    """FLOPs per second of a large product: the fastest of a few calls."""
    seconds = partial(best, clock=time.perf_counter)
    flops = matmul_flops(size, dtype == "bfloat16", seconds, precision)
    return {"flops_per_s": flops, "size": f"{size} x {size}"}


def stream(count: int, fn: Callable[..., Any], arrays: int) -> Values:
    """Bytes per second of an element-wise operation on large arrays.

    Args:
      count: numbers of an array.
      fn: of two arrays, the second of which it may leave unread.
      arrays: that it reads and writes.
    """
    a, b = (jnp.full(count, value, jnp.float32) for value in (1.0, 2.0))
    compiled = jax.jit(fn)
    seconds = best(lambda: jax.block_until_ready(compiled(a, b)), time.perf_counter)
    moved = arrays * FLOAT_BYTES * count
    return {"bytes_per_s": moved / seconds, "size": f"{FLOAT_BYTES * count / 1e9:.2g} GB each"}
