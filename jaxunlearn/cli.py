"""The command line: reads flags, calls the function of a command, and reports its errors.

The flags of every command are generated from a dataclass, in `jaxunlearn.commands` or
`jaxunlearn.config`. Set the environment variable JAXUNLEARN_TRACEBACK to see where an error was
raised.
"""

import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import tyro
from rich.console import Console

from jaxunlearn import __version__, flags
from jaxunlearn.commands import (
    LISTS,
    Command,
    DemoCommand,
    EffectsCommand,
    EvaluateCommand,
    ExportCommand,
    ForecastCommand,
    ObjectivesCommand,
    Processes,
    RelearnCommand,
    ReportCommand,
    RunCommand,
    RunOptions,
)
from jaxunlearn.config import (
    DEMO,
    RANGES,
    Config,
    ConfigError,
    between,
    check_number,
    differences,
    load,
    only,
    sweep,
)
from jaxunlearn.core.devices import check_peak, out_of_memory
from jaxunlearn.core.interrupts import EXIT_STATUS, INTERRUPTED, Interrupts, Stopped
from jaxunlearn.core.limits import SEEDS
from jaxunlearn.core.names import nearest
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import say
from jaxunlearn.record.folder import RunFolder, is_run, of_seed, seeds

DESCRIPTION = (
    "Unlearning in language models, and why it works or fails, seen through gradients."
    " `jaxunlearn COMMAND --help` says more of a command, `jaxunlearn --version` which version"
    " this is."
)


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the arguments; default: those of the process.

    Returns:
      The exit status: 0; 2 after an error, which is one line on stderr; 75 where a command was
      asked to stop by SIGTERM or SIGINT, and goes on when it is given again; or 130 where Ctrl-C
      ended one that has nothing to go on with.
    """
    arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if arguments == ["--version"]:
        jax = importlib.metadata.version("jax")
        print(f"jaxunlearn {__version__} (jax {jax}, Python {platform.python_version()})")
        return 0
    try:
        _check_command(arguments[0])
        command, overrides = _parse(arguments)
        _FUNCTIONS[type(command)](command, overrides)
    except Stopped as where:
        print(f"jaxunlearn: stopped {where}; the same command goes on from there", file=sys.stderr)
        return EXIT_STATUS
    except KeyboardInterrupt:
        print("jaxunlearn: interrupted", file=sys.stderr)
        return INTERRUPTED
    # ConfigError and CheckpointError are ValueErrors.
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("JAXUNLEARN_TRACEBACK"):
            raise
        return _refused(error)
    except RuntimeError as error:
        no_memory = out_of_memory(error, arguments[0])
        if no_memory is None or os.environ.get("JAXUNLEARN_TRACEBACK"):
            raise
        return _refused(no_memory)
    return 0


def _refused(error: Exception) -> int:
    """Says an error in one line; returns the exit status."""
    words = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        # What the system says has the path at its end, after a number.
        words = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    # What a file or an option holds may be meant for the terminal.
    words = " ".join(words.split())
    print("jaxunlearn:", "".join(c if c.isprintable() else "?" for c in words), file=sys.stderr)
    return 2


def _check_command(word: str) -> None:
    """Checks the first word of the arguments.

    Raises:
      ConfigError: it is no command; names the nearest one.
    """
    commands = [get_args(kind)[1].name for kind in get_args(Command)]
    if word not in (*commands, "--help", "-h"):
        hint = nearest(word, [*commands, "--version", "--help"])
        raise ConfigError(f"no command {word!r}; there are: {', '.join(commands)}{hint}")


def _parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """Returns the command, and the arguments that its function reads by itself.

    These are the flags that override a configuration, which must be loaded before they can be
    read: its objectives have flags, and its values are the defaults.
    """
    options: dict[str, Any] = {"prog": "jaxunlearn", "description": DESCRIPTION}
    # Of a flag that is given twice the last one counts, which drops the values of the first.
    for flag in LISTS:
        if sum(word.partition("=")[0] == flag for word in arguments) > 1:
            raise ConfigError(f"{flag}: is given twice; write all its values after one")
    command, unknown = tyro.cli(Command, args=arguments, return_unknown_args=True, **options)
    if isinstance(command, RunCommand | DemoCommand | ForecastCommand):
        return command, unknown
    if unknown:
        tyro.cli(Command, args=arguments, **options)  # says which flags are unknown, and exits
    return command, arguments[1:]


def _run(command: RunCommand | DemoCommand, overrides: list[str]) -> None:
    options = command.run
    if options.profile < 0:
        raise ConfigError(f"--profile: {options.profile} must not be negative")
    check_peak(options.peak)
    if isinstance(command, RunCommand):
        name, config = "run", _load("run", command.config, options.keys)
    else:
        name, config = "demo", load(DEMO)
    config = flags.read(name, config, overrides, keys=options.keys)
    check_number("--seeds", between(1, SEEDS), options.seeds)
    # A name of the configuration chooses all its copies of a sweep, a name of a copy that one.
    before = all(name in config.objectives for name in options.only)
    if before and options.only:
        config = only(config, options.only)
    config = sweep(config, options.sweep) if options.sweep else config
    if not before:
        config = only(config, options.only)
    out = user_path(options.out or Path("runs") / config.name)
    console = _start(command.processes, small_model=config.model is None)
    with Interrupts().catching() as interrupts:
        _run_seeds(config, out, options, console, interrupts)
    if options.no_report:
        say(console, f"`jaxunlearn report {out}` writes the report")


def _run_seeds(
    config: Config, out: Path, options: RunOptions, console: Console, interrupts: Interrupts
) -> None:
    """Runs a configuration with as many seeds as the options say."""
    from jaxunlearn.core import hosts
    from jaxunlearn.reporting import report
    from jaxunlearn.reporting.background import BackgroundReports

    run_one = partial(_run_one, options=options, console=console, interrupts=interrupts)
    if options.seeds == 1:
        write = partial(report.write_report, processes=_drawing())
        run_one(config, out, None if options.no_report else write)
        return
    if RunFolder(out).config.exists():
        raise ConfigError(f"{out}: is a run by itself; choose another --out for several seeds")
    # One process: what is compiled for the first seed serves the others.
    numbers = range(config.seed, config.seed + options.seeds)
    check_number("--seeds: the last seed", RANGES["seed"], numbers[-1])
    folders = [of_seed(out, seed) for seed in numbers]
    with BackgroundReports() as reports:
        begin = None if options.no_report else reports.begin
        for seed, folder in zip(numbers, folders, strict=True):
            interrupts.check(f"before seed {seed}")
            run_one(dataclasses.replace(config, seed=seed), folder, begin, title=f"seed {seed}")
        reports.finish()
    # The tables of all seeds together: each run's are in its report, to which the page has a link.
    if hosts.is_first() and not options.no_report:
        report.compare_runs(folders, out, console)


def _run_one(
    config: Config,
    out: Path,
    write_report: Callable[[Path, Console], object] | None,
    *,
    options: RunOptions,
    console: Console,
    interrupts: Interrupts,
    title: str = "",
) -> None:
    from jaxunlearn.pipeline import recipe

    begun = recipe.begin(config, out, overwrite=options.overwrite, debug_nans=options.debug_nans)
    if title:
        say(console, title, style="bold")
    recipe.execute(
        begun,
        console,
        profile=options.profile,
        peak=options.peak,
        interrupts=interrupts,
        write_report=write_report,
    )


def _forecast(command: ForecastCommand, overrides: list[str]) -> None:
    base = _load("forecast", command.config, command.keys)
    config = flags.read("forecast", base, overrides, keys=command.keys)
    from jaxunlearn.core import hosts

    # Nothing runs on the devices of the mesh: only the compiler must know how many there are.
    hosts.use_cpu(config.compute.data * config.compute.fsdp * config.compute.tensor)
    hosts.allow_transfers()
    from jaxunlearn.forecasting.show import forecast

    forecast(
        config,
        memory=command.memory,
        peak=command.peak,
        measure=command.measure,
        own_code=command.own_code,
        console=Console(),
    )


def _evaluate(command: EvaluateCommand, arguments: list[str]) -> None:
    from jaxunlearn.pipeline import stored
    from jaxunlearn.pipeline.evaluate import evaluate

    of_run = is_run(command.model)
    config = _base_config(command.config)
    if of_run:
        config = stored.configuration(RunFolder(user_path(command.model)))
    command = _with_defaults(
        command, arguments, configuration=config.evaluate, data=config.data, compute=config.compute
    )
    spec = command.configuration
    if spec.every != config.evaluate.every:
        raise ConfigError("--every: steps on the way are evaluated by `jaxunlearn run` alone")
    if of_run:
        _check_unchanged(command, config, ("data", "compute"))
    changed = dataclasses.replace(config, evaluate=spec, data=command.data, compute=command.compute)
    console = _start(command.processes)
    with Interrupts().catching() as interrupts:
        evaluate(
            command.model,
            config=None if of_run and command.config is None else changed,
            out=command.out,
            retrained=command.retrained,
            base=command.base,
            console=console,
            only=command.only or None,
            suites=spec.suites,
            generate=spec.generate,
            recite=spec.recite,
            retain_log=spec.retain_log,
            splits=spec.splits,
            mesh=command.mesh,
            interrupts=interrupts,
        )


def _base_config(file: Path | None) -> Config:
    """The configuration that flags for a model start from."""
    return Config() if file is None else load(file)


def _check_unchanged(command: Any, config: Config, sections: tuple[str, ...]) -> None:
    """Refuses flags that would give a run other settings than it was made with.

    Raises:
      ConfigError: names the first one.
    """
    for section in sections:
        old, new = (dataclasses.asdict(getattr(x, section)) for x in (config, command))
        for key, was, _ in differences(old, new, section):
            raise ConfigError(f"--{key}: is for a model; {command.model} is a run, with {was!r}")


def _effects(command: EffectsCommand, arguments: list[str]) -> None:
    from jaxunlearn.pipeline.checkpoint_effects import checkpoint_effects

    config = _base_config(command.config)
    command = _with_defaults(command, arguments, data=config.data, compute=config.compute)
    measure = dataclasses.replace(
        config.measure,
        pg_by=command.by or config.measure.pg_by,
        gradients=command.gradients or config.measure.gradients,
    )
    checkpoint_effects(
        command.before,
        command.after,
        config=dataclasses.replace(
            config, measure=measure, data=command.data, compute=command.compute
        ),
        out=command.out,
        reduction=command.reduction,
        mesh=command.mesh,
        console=_start(command.processes),
    )


def _relearn(command: RelearnCommand, arguments: list[str]) -> None:
    from jaxunlearn.pipeline import stored
    from jaxunlearn.pipeline.relearn import relearn

    defaults = stored.configuration(RunFolder(user_path(command.run))).relearn
    command = _with_defaults(command, arguments, configuration=defaults)
    spec = command.configuration
    console = _start(command.processes)
    with Interrupts().catching() as interrupts:
        relearn(
            command.run,
            console=console,
            only=command.only,
            samples=spec.samples,
            steps=spec.steps,
            lr=spec.lr,
            benign=spec.benign,
            mesh=command.mesh,
            interrupts=interrupts,
        )


def _report(command: ReportCommand, _: list[str]) -> None:
    named = [user_path(run) for run in command.runs]
    runs = [run for folder in named for run in (seeds(folder) or [folder])]
    if not runs:
        raise ConfigError("report: name the folder of a run, or of several to compare them")
    if len(runs) > 1:
        from jaxunlearn.reporting.report import compare_runs

        alone = named[0] if len(named) == 1 else runs[0].parent / "comparison"
        compare_runs(runs, command.out or alone, Console())
        return
    if command.out is not None:
        raise ConfigError("--out: is for a comparison of several runs")
    from jaxunlearn.reporting.report import write_report

    write_report(runs[0], Console(), processes=_drawing())


def _drawing() -> int:
    """The processes that draw figures: few, since each holds a copy of the tables."""
    return min(4, os.cpu_count() or 1)


def _export(command: ExportCommand, _: list[str]) -> None:
    from jaxunlearn.core import hosts

    hosts.use_cpu()  # nothing is computed, and hosts have more memory than accelerators
    hosts.allow_transfers()
    from jaxunlearn.pipeline.export import export

    console = Console()
    options = {"adapter": command.adapter, "console": console}
    export(command.run, command.objective, command.folder, command.dtype, **options)


def _objectives(command: ObjectivesCommand, _: list[str]) -> None:
    from jaxunlearn.core import hosts

    hosts.use_cpu()  # losses are traced on small shapes
    from jaxunlearn.reporting import objectives, terminal

    if command.names:
        print("\n\n".join([objectives.text(name) for name in command.names]))
    if not command.names:
        for title, table in objectives.tables():
            rich = terminal.rich_table(table, title, left_aligned=table.columns)
            terminal.print_wide(rich, Console())
        print(f"{objectives.WORDS}.\n`jaxunlearn objectives NAME` says everything about one.")


_FUNCTIONS: dict[type, Callable[[Any, list[str]], None]] = {
    RunCommand: _run,
    DemoCommand: _run,
    ForecastCommand: _forecast,
    EvaluateCommand: _evaluate,
    EffectsCommand: _effects,
    RelearnCommand: _relearn,
    ReportCommand: _report,
    ExportCommand: _export,
    ObjectivesCommand: _objectives,
}


def _load(name: str, paths: tuple[Path, ...], keys: bool) -> Config:
    """Returns the configuration that a command was given, or the default one to list its keys."""
    if keys and not paths:
        return Config()
    if len(paths) != 1:
        files = ", ".join(map(str, paths)) or "none"
        raise ConfigError(f"{name} needs a configuration: jaxunlearn {name} CONFIG; got {files}")
    return load(paths[0])


def _with_defaults(command: Any, arguments: list[str], **defaults: Any) -> Any:
    """Reads the arguments of a command again, now with other defaults of some fields."""
    default = dataclasses.replace(command, **defaults)
    return tyro.cli(type(command), args=arguments, default=default)


def _start(processes: Processes, *, small_model: bool = False) -> Console:
    """Starts JAX on one or several processes; returns a console on which only the first prints.

    Args:
      processes: of the run.
      small_model: see `hosts.start`.
    """
    from jaxunlearn.core import hosts

    hosts.start(**dataclasses.asdict(processes), small_model=small_model)
    return Console(quiet=not hosts.is_first())


if __name__ == "__main__":
    sys.exit(main())
