"""Memory and FLOPs of a run on devices that this machine lacks, from their own compilers.

    python -m benchmarks.scale CONFIG [--target cpu:N | cuda:N:FILE | tpu:NAME:SHAPE]
        [--compilers FOLDER] [--json FILE]

Every program of the run, and its G-effects by gates: bytes per device, FLOPs per device, bytes that
a device receives from others (where the compiler says how often its loops run), and the least time,
the larger of FLOPs and bytes over their published peaks. Nothing is allocated and nothing runs. The
mesh of the configuration must have as many devices as the target. Compilers of GPUs and TPUs are
read from a folder of their own, which must not be on Python's path: JAX would look for the devices.

    pip install --no-deps --target FOLDER jax-cuda12-plugin==JAX jax-cuda12-pjrt==JAX libtpu
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record, scale_hlo, scale_targets

GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles the programs of a run for the target, and prints a row for each."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whatever the target, nothing runs
    try:
        devices = scale_targets.devices(options.target, options.compilers)
        from jaxunlearn import config as config_lib
        from jaxunlearn.forecasting import resident
        from jaxunlearn.forecasting.sketch import sketch

        prepared = sketch(config_lib.load(options.config), devices)
    except (ValueError, OSError, scale_targets.NoCompiler) as error:
        raise SystemExit(f"benchmarks.scale: {error}") from None
    result = record.about("scale", arguments) | {"target": options.target, "programs": []}
    print(f"{result['date']}  {result['command']}")
    for note in prepared.notes:
        print(f"assumed: {note}")
    print(_HEAD)
    names = [part.strip() for part in options.only.split(";") if part.strip()]
    for program in programs(prepared, names):
        result["programs"].append(row(program))
        print(_line(result["programs"][-1]), flush=True)
    worst = max(result["programs"], key=lambda result_row: result_row["total"])
    print(f"most at once: {worst['total'] / GIB:.2f} GiB on each device, {worst['program']}")
    parked, disk = (f(prepared) / GIB for f in (resident.host_bytes, resident.disk_bytes))
    print(f"parked in host memory: {parked:.3g} GiB for each device; disk: {disk:.3g} GiB")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def programs(prepared: Any, names: Sequence[str] = ()) -> list[Any]:
    """The programs of a run, and those of the same run with `measure.gradients: gates`.

    Nothing is compiled yet.

    Args:
      prepared: from `sketch`.
      names: of the programs; none means all.
    """
    from jaxunlearn.forecasting import programs as forecast

    config = prepared.config
    measure = dataclasses.replace(config.measure, gradients="gates")
    gated = dataclasses.replace(prepared, config=dataclasses.replace(config, measure=measure))
    by_gates = [p for p in forecast.measuring(gated) if p.name.startswith("G-effect")]
    everything = [*forecast.programs(prepared), *by_gates]
    return [program for program in everything if not names or program.name in names]


def row(program: Any) -> dict[str, Any]:
    """The needs of a program, from the compiler of its mesh's devices."""
    start = time.perf_counter()
    compiled = program.compiled
    seconds = time.perf_counter() - start
    devices = program.mesh.devices
    rates = scale_targets.rates(devices.flat[0])
    flops = program.cost.flops / devices.size
    received = scale_hlo.collectives(compiled.as_text())
    total_received = None if received is None else sum(received.values())
    return {
        "program": program.name,
        "calls": program.calls,
        "batch": program.shape,
        "arguments": program.cost.arguments,
        "temp": program.cost.temp,
        "peak": program.cost.peak,
        "total": program.total_bytes,
        "flops": flops,
        "received": received,
        "floor_seconds": rates and max(flops / rates[0], (total_received or 0) / rates[1]),
        "compile_seconds": seconds,
    }


_HEAD = (
    f"{'program':<28}{'batch':<22}{'args':>7}{'temp':>7}{'peak':>7}{'total':>8}"
    f"{'TFLOP':>8}{'recv':>7}{'floor s':>9}{'compile s':>10}"
)


def _line(values: dict[str, Any]) -> str:
    sizes = "".join(
        f"{values[key] / GIB:>{width}.2f}"
        for key, width in (("arguments", 7), ("temp", 7), ("peak", 7), ("total", 8))
    )
    received = values["received"]
    total_received = "-" if received is None else f"{sum(received.values()) / GIB:.2f}"
    floor = values["floor_seconds"]
    least = "-" if floor is None else f"{floor:.3f}"
    return (
        f"{values['program']:<28}{values['batch']:<22}{sizes}{values['flops'] / 1e12:>8.1f}"
        f"{total_received:>7}{least:>9}{values['compile_seconds']:>10.1f}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--target", default="cpu:1", help="devices to compile for")
    parser.add_argument("--only", default="", help="names of programs, with semicolons between")
    parser.add_argument("--compilers", type=Path, help="folder of the packages (pip --target)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


if __name__ == "__main__":
    main()
