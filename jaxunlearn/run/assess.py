"""Evaluates the models of a finished run: the suites, one model at a time.

What is found is kept in `assessment.json`; a suite of a model that is there already, with the same
settings, is not measured again. No number depends on batch size, packing or mesh.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn.config import Config
from jaxunlearn.evaluate import calibrate, leakage, memorization, tofu
from jaxunlearn.run import hosts, models, summary, tables
from jaxunlearn.run.assess_memory import memorization_suite
from jaxunlearn.run.assess_mia import mia_suite
from jaxunlearn.run.assess_sets import BEFORE, TWIN, Job, Suite
from jaxunlearn.run.assess_table import reasons, table
from jaxunlearn.run.assess_tofu import tofu_suite
from jaxunlearn.run.assess_uwc import uwc_suite
from jaxunlearn.run.prepare import prepare

Tree = Any
Record = dict[str, Any]

SUITES: dict[str, Callable[[Job], Suite]] = {
    "tofu": tofu_suite,
    "memorization": memorization_suite,
    "mia": mia_suite,
    "uwc": uwc_suite,
}
FILE = "assessment.json"
GENERATE = 40


def assess(
    run: Path,
    console: Console,
    *,
    only: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    generate: int = GENERATE,
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
      suites: of `SUITES`; default: all.
      generate: questions of each set that are answered in text; 0: none, and no ROUGE.
      retain_log: a log in the TOFU authors' format of a model that never saw the forget set;
        default: that of the run's own retrained model.
      mesh: (data, fsdp, tensor), where it is not the run's.
      devices: the devices of the mesh; default: all.

    Raises:
      ValueError, FileNotFoundError: no run, model, suite or data of this name, or bad input.
    """
    config = _on_mesh(models.configuration(run), mesh)
    names = _names(run, config, only)
    asked = _check(suites, generate)
    prepared = prepare(config, devices)
    load = lambda name: models.stage_params(run, prepared, "base" if name == BEFORE else name)
    job = Job(run, prepared, load, TWIN in names, generate, retain_log)
    with jax.set_mesh(prepared.mesh):
        record = _measure(job, names, [SUITES[name](job) for name in asked], console)
    measured = {name: record["models"][name] for name in _in_order(names)}
    console.print(table(measured, config.name))
    for text in reasons(measured):
        console.print(text, markup=False, highlight=False)
    console.print(f"all numbers are in {run / FILE}", markup=False, highlight=False)


def _measure(job: Job, names: Sequence[str], suites: list[Suite], console: Console) -> Record:
    """Fills the record, and writes it after every suite of every model."""
    record = _read(job.run)
    hosts.wait("the record is read")
    for name in names:
        found = record["models"].setdefault(name, {})
        missing = [suite for suite in suites if not _is_there(found, suite, name)]
        for suite, results in _results(job, name, missing, console):
            found[suite.name] = {"settings": suite.settings} | results
            tables.write_json(job.run / FILE, record)
    return record


def _results(
    job: Job, name: str, suites: list[Suite], console: Console
) -> Iterator[tuple[Suite, dict[str, Any]]]:
    """What some suites say of a model, which is in memory meanwhile."""
    if not suites:
        return
    params = job.load(name)
    whole = bool(_finite(params))
    for suite in suites:
        console.print(f"{name}: {suite.name}", highlight=False)
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
    path = run / FILE
    record = summary.read_json(path) if path.is_file() else {"models": {}}
    every = tofu.DEFINITIONS | memorization.DEFINITIONS | leakage.DEFINITIONS
    definitions = {
        name: {"version": d.version, "meaning": d.meaning}
        for name, d in (every | calibrate.DEFINITIONS).items()
    }
    return {"definitions": definitions, "models": record["models"]}


def _names(run: Path, config: Config, only: Sequence[str] | None) -> list[str]:
    """The models to measure; the yardstick of the others comes first."""
    done = models.finished(run, config)
    wanted = list(config.objectives if only is None else config_lib.only(config, only).objectives)
    unfinished = [name for name in wanted if name not in done]
    if only is not None and unfinished:
        raise ValueError(
            f"{run}: not finished: {', '.join(unfinished)}; run the configuration again"
        )
    stages = [TWIN] if (run / TWIN).is_dir() else []
    return [*stages, BEFORE, *(name for name in wanted if name in done)]


def _in_order(names: Sequence[str]) -> list[str]:
    """As they are shown: the model before unlearning first."""
    return sorted(names, key=lambda name: name != BEFORE)


def _check(suites: Sequence[str] | None, generate: int) -> list[str]:
    asked = list(SUITES) if suites is None else list(dict.fromkeys(suites))
    for name in asked:
        if name not in SUITES:
            hint = config_lib.nearest(name, SUITES)
            raise ValueError(f"no suite {name!r}; there are: {', '.join(SUITES)}{hint}")
    if generate < 0:
        raise ValueError(f"generate={generate} must not be negative")
    if generate and {"tofu", "memorization"} & set(asked):
        _need_rouge()
    return asked


def _need_rouge() -> None:
    import importlib.util

    if importlib.util.find_spec("rouge_score") is None:
        raise ValueError(
            "ROUGE of generated text needs the package rouge-score: install jaxunlearn[evaluate],"
            " or generate no text (0)"
        )


def _on_mesh(config: Config, mesh: tuple[int, int, int] | None) -> Config:
    if mesh is None:
        return config
    data, fsdp, tensor = mesh
    compute = dataclasses.replace(config.compute, data=data, fsdp=fsdp, tensor=tensor)
    return dataclasses.replace(config, compute=compute)


@jax.jit
def _finite(params):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))
