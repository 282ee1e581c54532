"""The seconds of a run's programs: their FLOPs, over what the devices make of them in a second."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.devices import TERA, check_peak, peak_flops
from jaxunlearn.forecasting.programs import Program
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.training.step import train_step

SHARE = 0.4
"""The share of a peak that programs are assumed to reach, as is common for large models."""
MEASURING = 0.5
"""Seconds for which a step is repeated, at least once, to measure a speed."""


class Speed(NamedTuple):
    """How fast programs are assumed to run.

    Attributes:
      flops: FLOP/s of all devices together.
      basis: what this rests on, for the reader.
    """

    flops: float
    basis: str

    def seconds(self, program: Program) -> float:
        """Seconds of all calls of a program."""
        return program.calls * program.cost.flops / self.flops

    def total_seconds(self, programs: Iterable[Program]) -> float:
        """Seconds of all calls of some programs."""
        return sum(self.seconds(program) for program in programs)


def check_options(peak: float | None, measure: bool) -> None:
    """Checks what a user asks for.

    Raises:
      ValueError: a peak and a measurement, or a peak that is not positive.
    """
    if peak is not None and measure:
        raise ValueError("peak (--peak), measure (--measure): give one of them")
    check_peak(peak)


def stated_speed(prepared: Prepared, peak: float | None) -> Speed | None:
    """The speed at `SHARE` of a peak.

    Args:
      prepared: the run.
      peak: TFLOP/s of one device; default: the published one.

    Returns:
      None where no peak is stated or published.
    """
    devices = list(prepared.mesh.devices.flat)
    flops = peak_flops(devices, prepared.config.compute.dtype, peak)
    if flops is None:
        return None
    one = flops / len(devices) / TERA
    return Speed(SHARE * flops, f"if programs reach {SHARE:.0%} of {one:.4g} TFLOP/s a device")


def measured_speed(
    programs: Iterable[Program], clock: Callable[[], float] = time.perf_counter
) -> Speed | None:
    """The speed at which this machine runs the first train step of a run.

    A small model's programs are far from the peak of large products, most of all on a CPU: the rate
    of a product alone says little of them. The step's arrays are zeros of the right shapes.

    Args:
      programs: of the run; a step's state takes as much memory as in the run.
      clock: gives seconds.

    Returns:
      None where no train step computes anything, as with `rmu` at the embedding alone.
    """
    steps = (one for one in programs if one.function is train_step and one.cost.flops)
    step = next(steps, None)
    if step is None:
        return None

    def zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros(x.shape, x.dtype, device=x.sharding)

    state, *inputs = jax.tree.map(zeros, step.args)
    update: Any = step.compiled
    with jax.set_mesh(step.mesh):
        state, _ = jax.block_until_ready(update(state, *inputs))  # the first call is a slow one
        calls, seconds, start = 0, 0.0, clock()
        while seconds < MEASURING:
            state, _ = jax.block_until_ready(update(state, *inputs))
            calls, seconds = calls + 1, clock() - start
    flops = calls * step.cost.flops / seconds
    one = flops / step.mesh.devices.size / TERA
    return Speed(flops, f"at the {one:.3g} TFLOP/s a device of {step.name!r}, measured here")
