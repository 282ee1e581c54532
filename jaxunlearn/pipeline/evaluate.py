"""Evaluates the models of a run with the suites, one model at a time.

Results are stored in `evaluation.json`. A suite that has been measured on a model with the same
settings is not measured again. No number depends on batch size, packing or mesh.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxunlearn.config import Config, Splits, reader
from jaxunlearn.core import files, hosts, progress
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console
from jaxunlearn.evaluation import best_step
from jaxunlearn.evaluation.suite import Context, Evaluation, all_finite
from jaxunlearn.evaluation.suites import (
    ALL,
    DURING_UNLEARNING,
    SUITES,
    all_definitions,
    make_suites,
    select_suites,
)
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.prepare import Prepared, make_encoder, make_stages, prepare
from jaxunlearn.pipeline.resume import check_finished
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.record.lock import locked
from jaxunlearn.record.stages import Stages
from jaxunlearn.reporting import report

Count = int | str
"""A number of questions, or `ALL`."""


class EvaluateRequest(NamedTuple):
    """A checked request for an evaluation, made by `request`.

    Attributes:
      suites: names of `SUITES`.
      generate: questions of each set that are answered in text.
      recite: questions of each set whose answers are continued word by word.
      retain_log: a TOFU log that takes the place of the retrained model's.
      splits: the names of the splits that suites read.
    """

    suites: tuple[str, ...]
    generate: Count
    recite: Count
    retain_log: Path | None
    splits: Splits


# ------------------------------------------------------------------------------- the command


def evaluate(
    run: str | Path,
    *,
    only: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    generate: Count | None = None,
    recite: Count | None = None,
    retain_log: str | Path | None = None,
    splits: Splits | None = None,
    mesh: tuple[int, int, int] | None = None,
    console: Console | None = None,
    devices: Sequence[Any] | None = None,
) -> None:
    """Measures what `evaluation.json` of a run still lacks, and prints the table.

    Args:
      run: the run's folder.
      only: objectives; default: all that are finished. The model before unlearning and the
        retrained one are always measured.
      suites: "tofu", "memorization", "mia", "uwc", or "all"; default: the configuration's, or all
        where it names none.
      generate: questions of each set that are answered in text, or "all"; 0: none, and no ROUGE.
      recite: questions of each set whose answers are continued word by word, or "all"; 0: none.
      retain_log: a log in the TOFU authors' format of a model that never saw the forget set;
        default: that of the run's own retrained model.
      splits: the splits that suites read; default: the configuration's.
      mesh: (data, fsdp, tensor), where it is not the run's.
      console: for progress and the table; default: nothing is printed.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.

    Raises:
      ValueError, OSError: no run, model, suite or data of this name, or bad input.
    """
    console, folder = console or quiet_console(), RunFolder(user_path(run))
    config = stored.on_mesh(stored.configuration(folder), mesh)
    names = _names(folder, config, only, console)
    requested = request(config, suites, generate, recite, retain_log, splits)
    prepared = prepare(config, devices, unlearns=False)
    for note in prepared.notes:
        console.print(note, markup=False, highlight=False)
    with locked(folder), jax.set_mesh(prepared.mesh):
        check_finished(folder, prepared)
        evaluation = build_evaluation(prepared, folder, requested, RETRAINED in names)
        measure_models(evaluation, folder, names, make_stages(prepared, folder, console))
    report.print_evaluation(folder.path, config, console, names)


def request(
    config: Config,
    suites: Sequence[str] | None = None,
    generate: Count | None = None,
    recite: Count | None = None,
    retain_log: str | Path | None = None,
    splits: Splits | None = None,
) -> EvaluateRequest:
    """Makes a request from arguments, and from the configuration where an argument is missing.

    Args:
      config: of the run.
      suites: names of `SUITES`, or "all"; default: the configuration's, or all where it names none.
      generate: questions of each set that are answered in text, or "all"; 0: none, and no ROUGE.
      recite: questions of each set whose answers are continued word by word, or "all"; 0: none.
      retain_log: a log in the TOFU authors' format of a model that never saw the forget set;
        default: that of the run's own retrained model.
      splits: the splits that suites read; default: the configuration's.

    Raises:
      ValueError: no such suite, a negative count, or text is asked for and ROUGE is not installed.
    """
    spec = config.evaluate
    names = select_suites(suites or spec.suites or (ALL,))
    counts: dict[str, Count] = {
        "generate": spec.generate if generate is None else generate,
        "recite": spec.recite if recite is None else recite,
    }
    for key, count in counts.items():
        if count != ALL and int(count) < 0:
            raise ValueError(f"evaluate.{key} (--{key}): {count} must not be negative")
    options = {SUITES[name].text_option for name in names} - {None}
    if any(counts[option] for option in options if option):
        _check_rouge()
    log = spec.retain_log if retain_log is None else retain_log
    return EvaluateRequest(
        suites=names,
        generate=counts["generate"],
        recite=counts["recite"],
        retain_log=None if log is None else user_path(log),
        splits=spec.splits if splits is None else splits,
    )


# ------------------------------------------------------------------------------- stages of a run


def requested_evaluation(prepared: Prepared, folder: RunFolder) -> Evaluation | None:
    """Makes the suites that the configuration of a run names: reads and encodes their data.

    Args:
      prepared: the run.
      folder: its folder.

    Returns:
      None where the configuration names no suite.

    Raises:
      ValueError, OSError: suites or data that are missing or bad.
    """
    spec = prepared.config.evaluate
    if spec.every and not set(select_suites(spec.suites)) & set(DURING_UNLEARNING):
        cheap = ", ".join(DURING_UNLEARNING)
        raise ValueError(f"evaluate.every: needs one of {cheap} in evaluate.suites")
    if not spec.suites:
        return None
    retrained = prepared.config.finetune.retrained
    return build_evaluation(prepared, folder, request(prepared.config), retrained)


def evaluate_starting_points(evaluation: Evaluation, folder: RunFolder, stages: Stages) -> None:
    """Measures the models before unlearning and, if there is one, the retrained model.

    Models that are evaluated during unlearning are compared with these two.

    Args:
      evaluation: the suites.
      folder: of the run.
      stages: times it, and shows progress.
    """
    measure_models(evaluation, folder, models_of((), evaluation.context.retrained), stages)


def evaluate_finished(
    evaluation: Evaluation, prepared: Prepared, folder: RunFolder, stages: Stages
) -> None:
    """Measures every model of a run whose objectives are done.

    Args:
      evaluation: the suites.
      prepared: the run.
      folder: its folder.
      stages: times it, and shows progress.
    """
    objectives = stored.finished(folder, prepared.config)
    names = models_of(objectives, evaluation.context.retrained)
    measure_models(evaluation, folder, names, stages)


def build_evaluation(
    prepared: Prepared, folder: RunFolder, requested: EvaluateRequest, retrained: bool
) -> Evaluation:
    """Reads and encodes the data of some suites.

    Args:
      prepared: the run.
      folder: its folder.
      requested: from `request`.
      retrained: whether the run has a retrained model, or will have.

    Raises:
      ValueError, OSError: data that are missing or bad.
    """
    context = Context(
        config=prepared.config,
        splits=requested.splits,
        sources=prepared.sources,
        encoder=make_encoder(prepared.config, prepared.tokenizer, prepared.model),
        tokenizer=prepared.tokenizer,
        model=prepared.model,
        layout=prepared.layout,
        load=lambda name: stored.stage_params(folder, prepared, name),
        retrained=retrained,
        generate=_limit(requested.generate),
        recite=_limit(requested.recite),
        retain_log=requested.retain_log,
        log_file=folder.tofu_log,
    )
    return make_suites(context, requested.suites)


def models_of(objectives: Sequence[str], retrained: bool) -> list[str]:
    """The models to measure, in order; the retrained model is first, others are compared with it.

    >>> models_of(["ga"], True)
    ['retrained', 'base', 'ga']
    """
    return [*([RETRAINED] if retrained else []), BASE, *objectives]


# ------------------------------------------------------------------------------- measuring


def measure_models(
    evaluation: Evaluation, folder: RunFolder, names: Sequence[str], stages: Stages
) -> None:
    """Measures the missing suites of some models, and writes each result at once.

    Args:
      evaluation: the suites.
      folder: of the run.
      names: the models, from `models_of`.
      stages: times it, and shows progress.
    """
    record = _read(folder)
    # The first process writes the record below; all others must have read it before.
    hosts.wait("the record is read")
    manifest.open_stage(folder, manifest.EVALUATION)
    with progress.bar(stages.console, "evaluate", len(names)) as bar:
        for i, name in enumerate(names):
            results = record["models"].setdefault(name, {})
            missing = [suite for suite in evaluation.suites if _lacks(evaluation, results, suite)]
            missing = [suite for suite in missing if _applies(suite, name)]
            for suite, result in _measure(evaluation, name, missing, stages):
                results[suite] = {"settings": evaluation.suites[suite].settings} | result
                files.write_json(folder.evaluation, record)
            bar.advance(i + 1)
    best_steps = best_step.summarise(folder, record["models"])
    files.write_json(folder.evaluation, record | {"steps": best_steps})
    written = [folder.evaluation, *map(folder.tofu_log, record["models"])]
    manifest.seal(folder, manifest.EVALUATION, written, redo=folder.evaluation)


def _measure(
    evaluation: Evaluation, name: str, suites: Sequence[str], stages: Stages
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Loads a model once, and yields the result of each suite."""
    if not suites:
        return
    with stages.stage(f"evaluate {name}") as stage:
        with stage.part("load"):
            params = evaluation.context.load(name)
            finite = bool(all_finite(params))
        for suite in suites:
            if not finite:
                yield suite, {"results": [], "reason": f"the parameters of {name} are not finite"}
                continue
            with stage.part(suite):
                results = evaluation.suites[suite].measure(name, params)
            yield suite, {"results": results}


def _lacks(evaluation: Evaluation, results: dict[str, Any], suite: str) -> bool:
    """Whether a model's results lack a suite, or have it with other settings."""
    return results.get(suite, {}).get("settings") != evaluation.suites[suite].settings


def _applies(suite: str, name: str) -> bool:
    """Whether a suite can be measured on a model."""
    return not (SUITES[suite].unlearned_only and name in (BASE, RETRAINED))


def _read(folder: RunFolder) -> dict[str, Any]:
    """The record so far: {"definitions", "models": {model: {suite: ..}}}."""
    definitions = {
        name: {"version": definition.version, "meaning": definition.meaning}
        for name, definition in all_definitions().items()
    }
    file = folder.evaluation
    models = files.read_json(file)["models"] if file.is_file() else {}
    return {"definitions": definitions, "models": models}


def _names(
    folder: RunFolder, config: Config, only: Sequence[str] | None, console: Console
) -> list[str]:
    """The models to measure: all finished objectives, or those that were requested.

    Raises:
      ValueError: an objective that was asked for is not finished, or not in the run.
    """
    done = stored.finished(folder, config)
    objectives = list(config.objectives if only is None else reader.only(config, only).objectives)
    unfinished = [name for name in objectives if name not in done]
    if only is not None and unfinished:
        raise ValueError(
            f"{folder.path}: not finished: {', '.join(unfinished)}; run the configuration again"
        )
    if unfinished:
        console.print(f"not finished, not measured: {', '.join(unfinished)}", markup=False)
    finished = [name for name in config.objectives if name in objectives and name in done]
    return models_of(finished, folder.model(RETRAINED).is_dir())


def _limit(count: Count) -> int | None:
    """A number of questions, None for all."""
    return None if count == ALL else int(count)


def _check_rouge() -> None:
    if importlib.util.find_spec("rouge_score") is None:
        raise ValueError(
            "ROUGE of generated text needs the package rouge-score: install jaxunlearn[evaluate],"
            " or set evaluate.generate and evaluate.recite (--generate, --recite) to 0"
        )
