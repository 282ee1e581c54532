"""Evaluates the models of a run: the suites, one model at a time.

What is found is kept in `assessment.json`; a suite of a model that is there already, with the same
settings, is not measured again. No number depends on batch size, packing or mesh.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn.config import Config
from jaxunlearn.evaluate import calibrate, leakage, memorization, tofu
from jaxunlearn.run import assess_steps, closing, hosts, models, progress, tables
from jaxunlearn.run.assess_memory import memorization_suite
from jaxunlearn.run.assess_mia import mia_suite
from jaxunlearn.run.assess_sets import BEFORE, TWIN, Exam, Job, Suite, finite
from jaxunlearn.run.assess_table import FILE, read
from jaxunlearn.run.assess_tofu import tofu_suite
from jaxunlearn.run.assess_uwc import uwc_suite
from jaxunlearn.run.prepare import Prepared, prepare

Tree = Any
Record = dict[str, Any]
Count = int | str  # of questions, or ALL

SUITES: dict[str, Callable[[Job], Suite]] = {
    "tofu": tofu_suite,
    "memorization": memorization_suite,
    "mia": mia_suite,
    "uwc": uwc_suite,
}
ALL = "all"


class Request(NamedTuple):
    """What to measure, checked."""

    suites: tuple[str, ...]
    generate: Count
    recite: Count
    retain_log: Path | None


def assess(
    run: Path,
    console: Console,
    *,
    only: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    generate: Count | None = None,
    recite: Count | None = None,
    retain_log: Path | None = None,
    mesh: tuple[int, int, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> None:
    """Measures what is missing in `run`/assessment.json, then prints the table.

    Args:
      run: the run's folder.
      console: where progress and the table go.
      only: objectives; default: all that are finished. The models before and without unlearning
        are always measured.
      suites: as `request`, like the three that follow.
      mesh: (data, fsdp, tensor), where it is not the run's.
      devices: the devices of the mesh; default: all.

    Raises:
      ValueError, FileNotFoundError: no run, model, suite or data of this name, or bad input.
    """
    config = models.on_mesh(models.configuration(run), mesh)
    names = _names(run, config, only)
    asked = request(config, suites, generate, recite, retain_log)
    prepared = prepare(config, devices)
    with jax.set_mesh(prepared.mesh):
        measure_models(exam(prepared, run, asked, TWIN in names), names, console)
    closing.show(run, config, console, names)


def request(
    config: Config,
    suites: Sequence[str] | None = None,
    generate: Count | None = None,
    recite: Count | None = None,
    retain_log: Path | None = None,
) -> Request:
    """What to measure: what is given, else what the configuration says.

    Args:
      config: of the run.
      suites: of `SUITES`, or "all"; default: the configuration's, or all where it names none.
      generate: questions of each set that are answered in text, or "all"; 0: none, and no ROUGE.
      recite: questions of each set whose answers are continued word by word, or "all"; 0: none.
      retain_log: a log in the TOFU authors' format of a model that never saw the forget set;
        default: that of the run's own retrained model.

    Raises:
      ValueError: no such suite, a negative count, or text is asked for and ROUGE is not installed.
    """
    spec = config.evaluate
    named = tuple(dict.fromkeys(suites or spec.suites or (ALL,)))
    for name in named:
        if name not in (*SUITES, ALL):
            hint = config_lib.nearest(name, SUITES)
            raise ValueError(f"no suite {name!r}; there are: {', '.join(SUITES)}, {ALL}{hint}")
    named = tuple(SUITES) if ALL in named else named
    counts = {
        "generate": spec.generate if generate is None else generate,
        "recite": spec.recite if recite is None else recite,
    }
    for key, count in counts.items():
        if count != ALL and int(count) < 0:
            raise ValueError(f"evaluate.{key} (--{key}): {count} must not be negative")
    if ("tofu" in named and counts["generate"]) or ("memorization" in named and counts["recite"]):
        _need_rouge()
    if retain_log is None and spec.retain_log is not None:
        retain_log = Path(spec.retain_log)
    return Request(named, **counts, retain_log=retain_log)


def exam(prepared: Prepared, run: Path, asked: Request, twin: bool) -> Exam:
    """Reads and encodes what the suites need.

    Args:
      prepared: the run.
      run: its folder.
      asked: from `request`.
      twin: whether the run has a retrained model, or will have.

    Raises:
      ValueError, FileNotFoundError: data that are missing or bad.
    """
    load = lambda name: models.stage_params(run, prepared, "base" if name == BEFORE else name)
    limit = lambda count: None if count == ALL else int(count)
    job = Job(
        run, prepared, load, twin, limit(asked.generate), limit(asked.recite), asked.retain_log
    )
    return Exam(job, tuple(SUITES[name](job) for name in asked.suites))


def measure_models(exam: Exam, names: Sequence[str], console: Console) -> None:
    """Measures what is missing of some models, and writes it after every suite of each.

    Args:
      exam: the suites.
      names: the models; the retrained one comes before those that are compared with it.
      console: for progress.
    """
    run = exam.job.run
    record = _read(run)
    hosts.wait("the record is read")
    with progress.bar(console, "evaluate", len(names)) as bar:
        for i, name in enumerate(names):
            found = record["models"].setdefault(name, {})
            missing = [suite for suite in exam.suites if not _is_there(found, suite, name)]
            for suite, results in _results(exam.job, name, missing):
                found[suite.name] = {"settings": suite.settings} | results
                tables.write_json(run / FILE, record)
            bar.advance(i + 1)
    tables.write_json(run / FILE, record | {"steps": assess_steps.summarise(run, record["models"])})


def models_of(config: Config, twin: bool, objectives: Sequence[str]) -> list[str]:
    """The models to measure, in order; the yardstick of the others comes first."""
    wanted = [name for name in config.objectives if name in objectives]
    return [*([TWIN] if twin else []), BEFORE, *wanted]


def _results(job: Job, name: str, suites: list[Suite]) -> Iterator[tuple[Suite, dict[str, Any]]]:
    """What some suites say of a model, which is in memory meanwhile."""
    if not suites:
        return
    params = job.load(name)
    whole = bool(finite(params))
    for suite in suites:
        if whole:
            with tables.timed(job.run, f"assess {name} {suite.name}"):
                yield suite, {"results": suite.measure(name, params)}
        else:
            yield suite, {"results": [], "reason": f"the parameters of {name} are not finite"}


def _is_there(found: dict[str, Any], suite: Suite, name: str) -> bool:
    if suite.only_unlearned and name in (BEFORE, TWIN):
        return True
    return found.get(suite.name, {}).get("settings") == suite.settings


def _read(run: Path) -> Record:
    every = tofu.DEFINITIONS | memorization.DEFINITIONS | leakage.DEFINITIONS
    definitions = {
        name: {"version": d.version, "meaning": d.meaning}
        for name, d in (every | calibrate.DEFINITIONS).items()
    }
    return {"definitions": definitions, "models": read(run)["models"]}


def _names(run: Path, config: Config, only: Sequence[str] | None) -> list[str]:
    """The models to measure."""
    done = models.finished(run, config)
    wanted = list(config.objectives if only is None else config_lib.only(config, only).objectives)
    unfinished = [name for name in wanted if name not in done]
    if only is not None and unfinished:
        raise ValueError(
            f"{run}: not finished: {', '.join(unfinished)}; run the configuration again"
        )
    chosen = [name for name in wanted if name in done]
    return models_of(config, (run / TWIN).is_dir(), chosen)


def _need_rouge() -> None:
    import importlib.util

    if importlib.util.find_spec("rouge_score") is None:
        raise ValueError(
            "ROUGE of generated text needs the package rouge-score: install jaxunlearn[evaluate],"
            " or set evaluate.generate and evaluate.recite (--generate, --recite) to 0"
        )
