"""The command line; no logic of its own."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

DESCRIPTION = "Unlearning in language models, and why it works or fails, seen through gradients."
EPILOG = "`jaxunlearn run --keys` lists every key that --KEY VALUE can override."


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
      0; 2 where the input is at fault, after one message that says how.
    """
    parser = _parser()
    arguments, overrides = parser.parse_known_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it advises to install PyTorch
    sys.path.insert(0, "")  # for objectives of the user's own, named in a configuration
    if arguments.command == "report":
        if overrides:
            parser.error(f"report takes a folder alone, not {' '.join(overrides)}")
        return _report(arguments.run)
    return _run(arguments, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jaxunlearn", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="unlearn as a YAML configuration says; resumes")
    run.add_argument("config", type=Path, nargs="?", help="a YAML file, see configs/")
    demo = commands.add_parser("demo", help="the same on embedded data: nothing to download")
    for command in (run, demo):
        command.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME)")
        command.add_argument("--keys", action="store_true", help="list the keys and exit")
    ahead = commands.add_parser("forecast", help="what a run will need, before it runs")
    ahead.add_argument("config", type=Path, nargs="?", help="a YAML file, see configs/")
    ahead.add_argument("--memory", type=float, help="GiB of one device: advise what fits it")
    ahead.add_argument("--keys", action="store_true", help="list the keys and exit")
    report = commands.add_parser("report", help="draw figures and summary of a finished run anew")
    report.add_argument("run", type=Path, help="the run's folder")
    return parser


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import tyro
    from rich.console import Console

    from jaxunlearn import config as config_lib

    try:
        if arguments.command == "demo":
            base = config_lib.load(Path(__file__).with_name("demo.yaml"))
        elif arguments.config is None:
            base = config_lib.Config()
            if not arguments.keys:
                command = arguments.command
                raise ValueError(
                    f"{command} needs a configuration: jaxunlearn {command} CONFIG.yaml"
                )
        else:
            base = config_lib.load(arguments.config)
    except ValueError as error:
        return _fail(error)
    asked = ["--help"] if arguments.keys else overrides
    prog = f"jaxunlearn {arguments.command}"
    config = tyro.cli(config_lib.Config, prog=prog, args=asked, default=base)

    if arguments.command == "forecast":
        return _forecast(config, arguments.memory)
    from jaxunlearn.run import recipe
    from jaxunlearn.run.checkpoint import CheckpointError

    out = arguments.out or Path("runs") / config.name
    console = Console()
    try:
        prepared = recipe.begin(config, out)
    except (ValueError, OSError) as error:
        return _fail(error)
    try:
        recipe.execute(prepared, out, console)
    except (CheckpointError, FloatingPointError) as error:
        return _fail(error)
    return 0


def _forecast(config: Any, memory: float | None) -> int:
    import jax
    from rich.console import Console

    # As many devices as the mesh has: nothing runs on them, the compiler alone must know them.
    compute = config.compute
    devices = compute.data * compute.fsdp * compute.tensor
    if not any(name in os.environ for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")):
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(devices, 1))
    from jaxunlearn.run import advice

    try:
        advice.show(config, Console(), memory)
    except (ValueError, OSError) as error:
        return _fail(error)
    return 0


def _report(out: Path) -> int:
    from rich.console import Console

    from jaxunlearn.run import summary

    try:
        summary.finish(out, Console())
    except (ValueError, FileNotFoundError) as error:
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    print(f"jaxunlearn: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
