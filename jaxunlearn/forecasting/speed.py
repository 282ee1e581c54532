"""The seconds of a run's programs, from their FLOPs and the peak of a device."""

import math
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from jaxunlearn.core.devices import TERA, peak_flops
from jaxunlearn.forecasting.programs import Program
from jaxunlearn.pipeline.prepare import Prepared

SHARE = 0.4
"""The share of the peak that programs are assumed to reach: what is common for transformers."""
MEASURING = 0.5
"""Seconds for which a product is repeated to measure a peak."""


def run_peak(prepared: Prepared, tflops: float | None, measure: bool) -> float | None:
    """The FLOP/s of all devices of a run together, None where it is not known.

    Args:
      prepared: the run.
      tflops: of one device, stated by the user.
      measure: whether to measure this machine's instead.

    Raises:
      ValueError: both are given, or the number is not positive.
    """
    if tflops is not None and measure:
        raise ValueError("--peak, --measure-peak: give one of them")
    if tflops is not None and not 0 < tflops < math.inf:
        raise ValueError(f"peak (--peak): {tflops} must be a positive number of TFLOP/s")
    devices = list(prepared.mesh.devices.flat)
    if measure:
        tflops = measured_peak(prepared) / TERA
    return peak_flops(devices, prepared.config.compute.dtype, tflops)


def measured_peak(prepared: Prepared, clock: Callable[[], float] = time.perf_counter) -> float:
    """The FLOP/s that a product of the model's own shapes reaches on this machine's device.

    The product is that of a batch's tokens with the MLP's widest matrix, in the dtype of the
    computation: a small model's products are far from the peak of large ones.
    """
    model = prepared.model
    forget = prepared.layout.split(prepared.sets.forget).packed[0]
    rows, inner, outer = forget.tokens.size, model.hidden_size, model.intermediate_size
    left = jnp.ones((rows, inner), model.dtype)
    right = jnp.ones((inner, outer), model.dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))
    calls, start = 0, clock()
    while (seconds := clock() - start) < MEASURING:
        jax.block_until_ready(product(left, right))
        calls += 1
    return 2 * rows * inner * outer * calls / seconds


def program_seconds(program: Program, peak: float) -> float:
    """Seconds of all calls of a program at `SHARE` of a peak."""
    return program.calls * program.cost.flops / (SHARE * peak)


def total_seconds(programs: Iterable[Program], peak: float) -> float:
    """Seconds of all programs."""
    return sum(program_seconds(program, peak) for program in programs)
