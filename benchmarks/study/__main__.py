"""Does the paper's analysis hold? Runs the study, and writes the page that judges its claims.

    python -m benchmarks.study run STUDY --source SOURCE [--model MODEL] [--seed N] [--only NAME]
    python -m benchmarks.study keep STUDY [--seed N]
    python -m benchmarks.study estimators STUDY [--seed N] [--places SHARE ..] [--repeats N]
    python -m benchmarks.study page

`run` runs configs/study/STUDY.yaml, or configs/STUDY.yaml, in runs/study/STUDY-seedN; it goes on
where it was stopped. What the page needs of a run is kept in benchmarks/study/results; `keep` does
that for a run that was stopped, with the objectives that are finished.
`estimators` measures on a run's models what the official code's estimate of gradients does.
`page` writes the tables and figures of docs/fidelity.md from the results alone, in seconds.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import jaxunlearn
from benchmarks.study import collect, estimators, page
from jaxunlearn.config import Config, only
from jaxunlearn.core import files

CONFIGS = Path("configs")
RESULTS = Path("benchmarks/study/results")
RUNS = Path("runs/study")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _do(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _do(options: argparse.Namespace) -> None:
    if options.command == "page":
        page.write(RESULTS)
        return
    folder = RUNS / f"{options.study}-seed{options.seed}"
    if options.command in ("run", "keep"):
        if options.command == "run":
            jaxunlearn.run(_config(options), folder, console=Console())
        else:
            collect.merge_finished(folder)
        content = collect.collect(folder, _words(options))
        files.write_json(RESULTS / f"{folder.name}.json", content)
    else:
        content = estimators.compare(folder, _words(options), options.places, options.repeats)
        files.write_json(RESULTS / f"estimators-{folder.name}.json", content)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a study and keep its facts")
    compare = commands.add_parser("estimators", help="compare estimators on a run's models")
    keep = commands.add_parser("keep", help="keep the facts of what a stopped run has finished")
    for command in (run, compare, keep):
        command.add_argument("study", help="a configuration's name without .yaml")
        command.add_argument("--seed", type=int, default=0)
    run.add_argument("--source", required=True, help="TOFU's splits, or the name of a hub dataset")
    run.add_argument("--model", help="weights, where the study does not make its own")
    run.add_argument("--only", nargs="+", default=(), metavar="OBJECTIVE")
    compare.add_argument("--places", nargs="+", type=float, default=(0.0, 0.5, 1.0))
    compare.add_argument("--repeats", type=int, default=20)
    commands.add_parser("page", help="write docs/fidelity.md's tables and figures")
    return parser


def _config(options: argparse.Namespace) -> Config:
    """The study's configuration, on the data and model that were given."""
    places = [folder / f"{options.study}.yaml" for folder in (CONFIGS / "study", CONFIGS)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise SystemExit(f"no such study: there is neither {' nor '.join(map(str, places))}")
    config = jaxunlearn.load_config(file)
    config = only(config, options.only) if options.only else config
    return dataclasses.replace(
        config,
        seed=options.seed,
        model=options.model or config.model,
        data=dataclasses.replace(config.data, source=options.source),
    )


def _words(options: argparse.Namespace) -> list[str]:
    """The command, without the places of this machine's files."""
    words = [options.command, options.study, "--seed", str(options.seed)]
    for name in ("model", "source"):
        if getattr(options, name, None):
            words += [f"--{name}", name.upper()]
    for name in ("only", "places"):
        if values := getattr(options, name, ()):
            words += [f"--{name}", *map(str, values)]
    if hasattr(options, "repeats"):
        words += ["--repeats", str(options.repeats)]
    return words


if __name__ == "__main__":
    main()
