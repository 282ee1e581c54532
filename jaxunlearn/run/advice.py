"""A forecast as a table, and the settings that make a run fit a device."""

import dataclasses
from collections.abc import Iterable

import jax
from rich.console import Console
from rich.table import Table

from jaxunlearn import effects
from jaxunlearn.config import Config
from jaxunlearn.effects.pg_effect import Choice
from jaxunlearn.run import feed, forecast, summary
from jaxunlearn.run.forecast import Program
from jaxunlearn.run.losses import SampleLogProbs
from jaxunlearn.run.sketch import sketch

GIB = 2**30
REMATS = ("none", "dots", "full")  # the fewest FLOPs first
FEWEST_TOKENS = 1024


def show(config: Config, console: Console, memory: float | None = None) -> None:
    """Prints what each program of a run needs, and with a device's memory what fits it.

    Args:
      config: the run.
      console: where it goes.
      memory: GiB of one device.

    Raises:
      ValueError, FileNotFoundError: as `sketch`.
    """
    prepared = sketch(config)
    for note in prepared.notes:
        console.print(f"assumed: {note}", markup=False, highlight=False)
    found = list(forecast.programs(prepared))
    devices = prepared.mesh.devices
    size = forecast.device_bytes(forecast.abstract_params(prepared))
    summary.put(_table(found, config.name), console)
    platform = devices.flat[0].platform
    console.print(
        f"{devices.size} devices, compiled for {platform}; {size / GIB:.3g} GiB of parameters on"
        " each",
        highlight=False,
    )
    if platform == "cpu":
        console.print("temp is the CPU compiler's: an accelerator's differs (docs/scale.md)")
    worst = max(found, key=lambda program: program.moment)
    console.print(f"worst moment: {worst.moment / GIB:.3g} GiB on each device, {worst.name}")
    if waiting := forecast.host_bytes(prepared):
        console.print(
            f"waiting in host memory: {waiting / GIB:.3g} GiB for each device", highlight=False
        )
    disk = forecast.disk_bytes(prepared)
    kept = config.unlearn.keep_checkpoints
    console.print(
        f"disk: {disk / GIB:.3g} GiB at most (unlearn.keep_checkpoints: {kept})", highlight=False
    )
    if memory is not None:
        for line in advise(config, memory, found):
            console.print(line, markup=False, highlight=False)


def advise(config: Config, memory: float, found: Iterable[Program]) -> list[str]:
    """Which method, batch and remat fit a device, by compiling them.

    Args:
      config: the run.
      memory: GiB of one device.
      found: its programs as they are.

    Returns:
      Sentences.
    """
    limit = memory * GIB
    over = [program for program in found if program.moment > limit]
    if not over:
        return [f"fits {memory:g} GiB as it is", _method(config, limit)]
    lines = [f"does not fit {memory:g} GiB: {', '.join(program.name for program in over)}"]
    remat = _first(config, limit, "remat", REMATS)
    if remat is None:
        return [*lines, "no compute.remat makes a step fit: raise compute.fsdp or compute.tensor"]
    config = _with(config, remat=remat)
    sizes = [config.compute.batch_tokens]
    while sizes[-1] > FEWEST_TOKENS:
        sizes.append(sizes[-1] // 2)
    tokens = _first(config, limit, "batch_tokens", sizes)
    if tokens is None:
        return [
            *lines,
            f"compute.remat: {remat} makes the steps fit, but no compute.batch_tokens the"
            " measurements: raise compute.fsdp or compute.tensor, or set measure.every: 0",
        ]
    config = _with(config, batch_tokens=tokens)
    fits = f"fits with compute.remat: {remat}, compute.batch_tokens: {tokens}"
    return [*lines, fits, _method(config, limit)]


def _first(config: Config, limit: float, key: str, values: Iterable) -> str | int | None:
    """The first value of a key of `compute` with which the programs that it bears on fit."""
    for value in values:
        prepared = sketch(_with(config, **{key: value}))
        steps = forecast.training(prepared, prepared.tasks[:1])
        programs = steps if key == "remat" else forecast.measuring(prepared)
        if all(program.moment <= limit for program in programs):
            return value
    return None


def _method(config: Config, limit: float) -> str:
    """What `effects.choose` says of PG-effects by sample, with the memory left beside the run."""
    prepared = sketch(config)
    params = forecast.abstract_params(prepared)
    # Beside theta_t and two directions.
    left = int(limit - 3 * forecast.device_bytes(params) - forecast.idle(prepared))
    with jax.set_mesh(prepared.mesh):
        split = feed.make_split(prepared, prepared.forget, {})
        choice: Choice = effects.choose(
            SampleLogProbs(prepared.model),
            params,
            split.placed[0],
            (params, params),
            memory=left,
        )
    return f"PG-effects by sample: {choice.method} ({choice.reason})"


def _with(config: Config, **compute) -> Config:
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, **compute))


def _table(found: list[Program], title: str) -> Table:
    from rich import box
    from rich.markup import escape

    table = Table(
        title=f"{escape(title)}: GiB on each device, TFLOP of all",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    heads = ("program", "calls", "batch", "args", "output", "temp", "peak", "beside", "moment")
    for name in (*heads, "TFLOP"):
        justify = "left" if name in ("program", "batch") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for program in found:
        cost = program.cost
        sizes = (cost.arguments, cost.output - cost.alias, cost.temp, cost.peak)
        sizes += (program.beside, program.moment)
        gib = (f"{size / GIB:.3g}" if size > GIB / 2000 else "0" for size in sizes)
        tera = f"{cost.flops / 1e12:.3g}"
        table.add_row(escape(program.name), str(program.calls), program.shape, *gib, tera)
    return table
