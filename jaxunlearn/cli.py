"""The command line; no logic of its own."""

import argparse
import os
import sys
from collections.abc import Callable
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
    afterwards = {
        "report": _report,
        "export": _export,
        "evaluate": _evaluate,
        "relearn": _relearn,
    }
    if arguments.command not in afterwards:
        return _run(arguments, overrides)
    if overrides:
        parser.error(f"{arguments.command} knows no {' '.join(overrides)}")
    return afterwards[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jaxunlearn", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="unlearn as a YAML configuration says; resumes")
    run.add_argument("config", type=Path, nargs="?", help="a YAML file, see configs/")
    demo = commands.add_parser("demo", help="the same on embedded data: nothing to download")
    for command in (run, demo):
        command.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME)")
        command.add_argument("--keys", action="store_true", help="list the keys and exit")
        command.add_argument(
            "--only", nargs="+", metavar="OBJECTIVE", help="run these of its objectives alone"
        )
        command.add_argument(
            "--profile", type=int, default=0, metavar="STEPS", help="trace so many steps"
        )
        _add_several(command)
    ahead = commands.add_parser("forecast", help="what a run will need, before it runs")
    ahead.add_argument("config", type=Path, nargs="?", help="a YAML file, see configs/")
    ahead.add_argument("--memory", type=float, help="GiB of one device: advise what fits it")
    ahead.add_argument("--keys", action="store_true", help="list the keys and exit")
    report = commands.add_parser("report", help="draw figures and summary of a finished run anew")
    report.add_argument("run", type=Path, help="the run's folder")
    _add_evaluate(commands.add_parser("evaluate", help="measure the models of a finished run"))
    _add_relearn(commands.add_parser("relearn", help="would the models of a run learn it again?"))
    model = commands.add_parser("export", help="write a model of a run for transformers")
    model.add_argument("run", type=Path, help="the run's folder")
    model.add_argument("objective", help="whose final model; or `base` or `retrained`")
    model.add_argument("folder", type=Path, help="the folder to make")
    model.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)"
    )
    return parser


def _add_several(command: argparse.ArgumentParser) -> None:
    several = command.add_argument_group("several processes, one on each host")
    several.add_argument(
        "--distributed", action="store_true", help="join them: SLURM, TPU pods and the like"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    several.add_argument("--processes", type=int, help="how many there are")
    several.add_argument("--process", type=int, help="which one this is, from 0")
    several.add_argument(
        "--heartbeat", type=int, default=100, help="seconds until a silent one counts as dead"
    )


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="the run's folder")
    command.add_argument("--only", nargs="+", metavar="OBJECTIVE", help="default: all finished")
    command.add_argument(
        "--suite",
        nargs="+",
        metavar="SUITE",
        help="tofu, memorization, mia, uwc or all (default: the configuration's, else all)",
    )
    command.add_argument(
        "--generate",
        type=_count,
        metavar="N",
        help="answers to write for each set, or `all` (default: the configuration's; 40)",
    )
    command.add_argument(
        "--recite",
        type=_count,
        metavar="N",
        help="answers of each set to continue word by word, or `all`: slow (the same; 0)",
    )
    command.add_argument(
        "--retain-log", type=Path, metavar="FILE", help="TOFU's log of a model that saw no D_u"
    )
    _add_mesh(command)
    _add_several(command)


def _add_relearn(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="the run's folder")
    command.add_argument(
        "--only", nargs="+", default=(), metavar="OBJECTIVE", help="default: all finished"
    )
    command.add_argument(
        "--samples",
        nargs="+",
        metavar="K",
        help="forget samples shown, or `all`; defaults are the configuration's (1 5 20 all)",
    )
    command.add_argument("--steps", type=int, help="of fine-tuning (20)")
    command.add_argument("--lr", type=float, help="its learning rate (unlearn.lr)")
    command.add_argument(
        "--benign", action=argparse.BooleanOptionalAction, help="also learn data to retain"
    )
    _add_mesh(command)
    _add_several(command)


def _add_mesh(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--mesh",
        type=int,
        nargs=3,
        metavar=("DATA", "FSDP", "TENSOR"),
        help="devices along each axis, where they are not the run's",
    )


def _count(text: str) -> int | str:
    """A number of questions, or "all"."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor 'all'")
    return text if text == "all" else int(text)


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
    from jaxunlearn.run import hosts, recipe
    from jaxunlearn.run.checkpoint import CheckpointError

    if arguments.only:
        try:
            config = config_lib.only(config, arguments.only)
        except ValueError as error:
            return _fail(error)
    out = arguments.out or Path("runs") / config.name
    try:
        _connect(arguments)
        prepared = recipe.begin(config, out)
    except (ValueError, OSError) as error:
        return _fail(error)
    try:
        console = Console(quiet=not hosts.is_first())
        recipe.execute(prepared, out, console, profile=arguments.profile)
    except (CheckpointError, FloatingPointError) as error:
        return _fail(error)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    def job(console: Any) -> None:
        from jaxunlearn.run.assess import assess

        assess(
            arguments.run,
            console,
            only=arguments.only,
            suites=arguments.suite,
            generate=arguments.generate,
            recite=arguments.recite,
            retain_log=arguments.retain_log,
            mesh=arguments.mesh,
        )

    return _on_run(arguments, job)


def _relearn(arguments: argparse.Namespace) -> int:
    def job(console: Any) -> None:
        from jaxunlearn.run.relearn import relearn

        names = ("only", "samples", "steps", "lr", "benign", "mesh")
        relearn(arguments.run, console, **{name: getattr(arguments, name) for name in names})

    return _on_run(arguments, job)


def _on_run(arguments: argparse.Namespace, job: Callable[[Any], None]) -> int:
    """Does something with a finished run, on as many processes as are asked for."""
    from rich.console import Console

    from jaxunlearn.run import hosts

    try:
        _connect(arguments)
        job(Console(quiet=not hosts.is_first()))
    except (ValueError, OSError) as error:
        return _fail(error)
    return 0


def _connect(arguments: argparse.Namespace) -> None:
    """Joins the other processes; programs of accelerators, slow to compile, are kept on disk."""
    import jax

    from jaxunlearn.run import hosts

    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or jax.config.jax_num_cpu_devices > 1:  # pyright: ignore[reportAttributeAccessIssue]
        hosts.give_cpu_threads()
    where = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.distributed or any(given is not None for given in where):
        hosts.connect(*where, heartbeat=arguments.heartbeat)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.default_backend() != "cpu":
        root = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "jaxunlearn"))


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


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from jaxunlearn.run import closing

    try:
        closing.finish(arguments.run, Console())
    except (ValueError, FileNotFoundError) as error:
        return _fail(error)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    import jax

    # The host is enough, and has room: nothing is computed.
    if not any(name in os.environ for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")):
        jax.config.update("jax_platforms", "cpu")
    from jaxunlearn.run.export import export

    try:
        export(arguments.run, arguments.objective, arguments.folder, arguments.dtype)
    except (ValueError, OSError) as error:
        return _fail(error)
    print(f"{arguments.objective} of {arguments.run} is in {arguments.folder}")
    return 0


def _fail(error: Exception) -> int:
    print(f"jaxunlearn: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
