"""Prints a forecast: a table of programs, and the memory and disk that the run needs."""

import math

from rich.console import Console

from jaxunlearn.config import Config, ConfigError
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.forecasting import resident
from jaxunlearn.forecasting.advice import GIB, advise
from jaxunlearn.forecasting.programs import Program, programs
from jaxunlearn.forecasting.sketch import sketch
from jaxunlearn.forecasting.speed import Speed, check_options, measured_speed, stated_speed
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.reporting.terminal import TextTable, print_wide, rich_table

HEADS = (
    "program",
    "calls",
    "batch",
    "args",
    "output",
    "temp",
    "peak",
    "resident",
    "total",
    "TFLOP",
    "seconds",
)


def forecast(
    config: Config,
    *,
    memory: float | None = None,
    peak: float | None = None,
    measure: bool = False,
    own_code: bool = False,
    console: Console | None = None,
) -> list[Program]:
    """Compiles the programs of a run, prints what each needs, and advises how to make it fit.

    Args:
      config: the run.
      memory: GiB of one device; None gives no advice.
      peak: TFLOP/s of one device; default: the published one of JAX's devices, if it is known.
      measure: whether to run a train step here instead, and take its speed for all programs.
      own_code: whether losses that the configuration names as module:NAME are imported; without it
        such a configuration is refused, as it may be somebody else's.
      console: for the table and the advice; default: nothing is printed.

    Returns:
      The programs, compiled.

    Raises:
      ValueError, OSError: bad input, as for `run`, or a memory or peak that is not positive.
    """
    if memory is not None and not 0 < memory < math.inf:
        raise ValueError(f"memory (--memory): {memory} must be a positive number of GiB")
    check_options(peak, measure)
    if not own_code:
        _refuse_code(config)
    console = console or quiet_console()
    # --- compile every program --------------------------------------------------------------------
    prepared = sketch(config)
    say(console, *(f"assumed: {note}" for note in prepared.notes))
    compiled = list(programs(prepared))
    speed = measured_speed(compiled) if measure else stated_speed(prepared, peak)
    # --- the table --------------------------------------------------------------------------------
    devices = prepared.mesh.devices
    size = resident.device_bytes(resident.sharded_params(prepared))
    title = f"{config.name}: GiB on each device, TFLOP of all in one call, seconds of all calls"
    table = rich_table(
        _table(compiled, speed), title, left_aligned=("batch",), two_line_heads=False
    )
    print_wide(table, console)
    platform = devices.flat[0].platform
    say(
        console,
        f"{devices.size} devices, compiled for {platform}; {size / GIB:.3g} GiB of parameters on"
        " each",
        f"products: {prepared.model.arithmetic} (compute.dtype, compute.precision)",
        "not covered: compilation, evaluation suites, generated text, relearning attacks, files",
        _time(compiled, speed),
    )
    if platform == "cpu":
        say(console, "temp is the CPU compiler's: an accelerator's differs (docs/scale.md)")
    _print_totals(config, prepared, compiled, console)
    if memory is not None:
        say(console, *advise(config, memory, compiled))
    return compiled


def _refuse_code(config: Config) -> None:
    """Refuses to import code that a configuration names.

    Raises:
      ConfigError: it names some; says which, and the option that allows it.
    """
    for name, spec in config.objectives.items():
        for key, value in (("loss", spec.loss), ("retain", spec.retain)):
            if value is not None and ":" in value:
                raise ConfigError(
                    f"objectives.{name}.{key}: {value} is code, which a forecast imports only where"
                    " it is asked to (--own-code)"
                )


def _print_totals(
    config: Config, prepared: Prepared, compiled: list[Program], console: Console
) -> None:
    """Prints what the run as a whole needs of devices, host and disk."""
    worst = max(compiled, key=lambda program: program.total_bytes)
    say(console, f"most at once: {worst.total_bytes / GIB:.3g} GiB on each device, {worst.name}")
    if parked := resident.host_bytes(prepared):
        say(console, f"parked in host memory: {parked / GIB:.3g} GiB for each device")
    disk, checkpoints = resident.disk_bytes(prepared), config.unlearn.keep_checkpoints
    say(console, f"disk: {disk / GIB:.3g} GiB at most (unlearn.keep_checkpoints: {checkpoints})")


def _time(compiled: list[Program], speed: Speed | None) -> str:
    """The sentence on the time of all programs, and what it assumes."""
    if speed is None:
        return "seconds: not known without a peak of these devices (--peak TFLOPS, or --measure)"
    return f"seconds: {speed.total_seconds(compiled):,.3g} in all, {speed.basis}"


def _table(compiled: list[Program], speed: Speed | None) -> TextTable:
    """One row a program."""
    rows = []
    for program in compiled:
        cost = program.cost
        sizes = (cost.arguments, cost.output - cost.alias, cost.temp, cost.peak)
        sizes += (program.resident_bytes, program.total_bytes)
        gib = (f"{size / GIB:.3g}" if size > GIB / 2000 else "0" for size in sizes)
        tera = f"{cost.flops / 1e12:.3g}"
        seconds = "-" if speed is None else f"{speed.seconds(program):,.3g}"
        rows.append((program.name, str(program.calls), program.shape, *gib, tera, seconds))
    return TextTable(HEADS, rows)
