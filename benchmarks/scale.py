"""What a run of a model of any size needs on devices that are not here, by their own compilers.

    python -m benchmarks.scale CONFIG [--target cpu:N | cuda:N:FILE | tpu:NAME:SHAPE]
        [--compilers FOLDER] [--json FILE]

Every program of the run, and the G-effect by gates: bytes per device, FLOPs per device, bytes that
a device receives from others (where the compiler says how often its loops run), and the least time,
the larger of FLOPs and bytes over their published peaks. Nothing is allocated and nothing runs. The
mesh of the configuration must have as many devices as the target. Compilers of GPUs and TPUs are
read from a folder of their own, which must not be on Python's path: JAX would look for the devices.

    pip install --no-deps --target FOLDER jax-cuda12-plugin==JAX jax-cuda12-pjrt==JAX libtpu
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record, scale_hlo, scale_targets

GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whatever the target, nothing runs
    try:
        devices = scale_targets.devices(options.target, options.compilers)
        from jaxunlearn import config as config_lib
        from jaxunlearn.run import forecast
        from jaxunlearn.run.sketch import sketch

        prepared = sketch(config_lib.load(options.config), devices)
    except (ValueError, OSError, scale_targets.NoCompiler) as error:
        raise SystemExit(f"benchmarks.scale: {error}") from None
    result = record.about("scale", arguments) | {"target": options.target, "programs": []}
    print(f"{result['date']}  {result['command']}")
    for note in prepared.notes:
        print(f"assumed: {note}")
    print(_HEAD)
    wanted = [part.strip() for part in options.only.split(";") if part.strip()]
    for program in programs(prepared, wanted):
        result["programs"].append(row(program))
        print(_line(result["programs"][-1]), flush=True)
    worst = max(result["programs"], key=lambda found: found["moment"])
    print(f"worst moment: {worst['moment'] / GIB:.2f} GiB on each device, {worst['program']}")
    waiting, disk = (f(prepared) / GIB for f in (forecast.host_bytes, forecast.disk_bytes))
    print(f"waiting in host memory: {waiting:.3g} GiB for each device; disk: {disk:.3g} GiB")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def programs(prepared: Any, wanted: Sequence[str] = ()) -> list[Any]:
    """The programs of a run, and the G-effect on R(D_r) by gates; nothing is compiled yet.

    Args:
      prepared: from `sketch`.
      wanted: their names; none means all.
    """
    from jaxunlearn.run import forecast

    found = [*forecast.programs(prepared), gates(prepared)]
    return [program for program in found if not wanted or program.name in wanted]


def gates(prepared: Any) -> Any:
    """The G-effect by gates, for models whose risk gradients do not fit beside them."""
    from jaxunlearn.effects import layers
    from jaxunlearn.effects.g_effect import gate_gradient
    from jaxunlearn.run import feed, forecast
    from jaxunlearn.run.losses import Risk

    params = forecast.abstract_params(prepared)
    split = feed.make_split(prepared, prepared.measured, {})
    risk = Risk(prepared.model, prepared.tasks[0].loss.term.reduction)
    rows, width = split.packed[0].tokens.shape
    return forecast.Program(
        "G-effect by gates",
        len(split.placed),
        f"{rows} x {width}",
        0,
        prepared.mesh,
        gate_gradient,
        (params, split.placed[0], params),
        {"risk_fn": risk, "by": "layer", "stacked": layers.STACKED},
    )


def row(program: Any) -> dict[str, Any]:
    """What a program needs, by the compiler of its mesh's devices."""
    start = time.perf_counter()
    compiled = program.compiled
    seconds = time.perf_counter() - start
    devices = program.mesh.devices
    rates = scale_targets.rates(devices.flat[0])
    flops = program.cost.flops / devices.size
    received = scale_hlo.collectives(compiled.as_text())
    moved = None if received is None else sum(received.values())
    return {
        "program": program.name,
        "calls": program.calls,
        "batch": program.shape,
        "arguments": program.cost.arguments,
        "temp": program.cost.temp,
        "peak": program.cost.peak,
        "moment": program.moment,
        "flops": flops,
        "received": received,
        "floor_seconds": rates and max(flops / rates[0], (moved or 0) / rates[1]),
        "compile_seconds": seconds,
    }


_HEAD = (
    f"{'program':<28}{'batch':<22}{'args':>7}{'temp':>7}{'peak':>7}{'moment':>8}"
    f"{'TFLOP':>8}{'recv':>7}{'floor s':>9}{'compile s':>10}"
)


def _line(found: dict[str, Any]) -> str:
    sizes = "".join(
        f"{found[key] / GIB:>{width}.2f}"
        for key, width in (("arguments", 7), ("temp", 7), ("peak", 7), ("moment", 8))
    )
    received = found["received"]
    moved = "-" if received is None else f"{sum(received.values()) / GIB:.2f}"
    floor = found["floor_seconds"]
    least = "-" if floor is None else f"{floor:.3f}"
    return (
        f"{found['program']:<28}{found['batch']:<22}{sizes}{found['flops'] / 1e12:>8.1f}{moved:>7}"
        f"{least:>9}{found['compile_seconds']:>10.1f}"
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
    parser.add_argument("--json", type=Path, help="also write what was found here")
    return parser


if __name__ == "__main__":
    main()
