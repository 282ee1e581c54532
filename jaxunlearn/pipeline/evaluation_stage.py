"""Measures models with suites, one model at a time, and stores the results in `evaluation.json`.

A suite that has been measured on a model with the same settings is not measured again. No number
depends on batch size, packing or mesh.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.config import Config, Splits
from jaxunlearn.core import files, hosts, progress
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.trees import Tree
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
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.pipeline.subject import Subject
from jaxunlearn.record import manifest, shapes
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.record.stages import Stages

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
      retain_log: a log of a model that never saw the forget set, in the format of TOFU's authors or
        of OpenUnlearning; default: that of the retrained model.
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
        if count == ALL:
            continue
        if isinstance(count, str) or int(count) != count:
            raise ValueError(f"evaluate.{key} (--{key}): {count!r}; expected a number or {ALL!r}")
        if count < 0:
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


def requested_suites(config: Config) -> tuple[str, ...]:
    """The suites that a configuration names, each once.

    Raises:
      ValueError: an unknown one, or none of them is for the steps that `evaluate.every` asks for.
    """
    spec, names = config.evaluate, select_suites(config.evaluate.suites)
    if spec.every and not set(names) & set(DURING_UNLEARNING):
        cheap = ", ".join(DURING_UNLEARNING)
        raise ValueError(f"evaluate.every: needs one of {cheap} in evaluate.suites")
    return names


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
    if not requested_suites(prepared.config):
        return None
    retrained = prepared.config.finetune.retrained
    return build_run_evaluation(prepared, folder, request(prepared.config), retrained)


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


def build_run_evaluation(
    prepared: Prepared, folder: RunFolder, requested: EvaluateRequest, retrained: bool
) -> Evaluation:
    """Reads and encodes the data of some suites, for the models of a run.

    Args:
      prepared: the run.
      folder: its folder.
      requested: from `request`.
      retrained: whether the run has a retrained model, or will have.

    Raises:
      ValueError, OSError: data that are missing or bad.
    """
    others = (RETRAINED, BASE) if retrained else (BASE,)
    load = lambda name: stored.stage_params(folder, prepared, name)
    return build_evaluation(prepared, folder, requested, others, load)


def build_evaluation(
    subject: Subject,
    folder: RunFolder,
    requested: EvaluateRequest,
    others: Sequence[str],
    load: Callable[[str], Tree],
) -> Evaluation:
    """Reads and encodes the data of some suites.

    Args:
      subject: the model's shape, tokenizer and data.
      folder: where the logs go.
      requested: from `request`.
      others: those of `RETRAINED` and `BASE` that models can be compared with.
      load: (name of a model) -> its parameters, sharded.

    Raises:
      ValueError, OSError: data that are missing or bad.
    """
    context = Context(
        config=subject.config,
        splits=requested.splits,
        sources=subject.sources,
        encoder=subject.encoder,
        tokenizer=subject.tokenizer,
        model=subject.model,
        layout=subject.layout,
        load=load,
        retrained=RETRAINED in others,
        base=BASE in others,
        generate=_limit(requested.generate),
        recite=_limit(requested.recite),
        retain_log=requested.retain_log,
        log_file=folder.tofu_log,
    )
    return make_suites(context, requested.suites)


def suite_notes(evaluation: Evaluation, said: Sequence[str]) -> tuple[str, ...]:
    """Sentences on rows that suites left out.

    Args:
      evaluation: the suites.
      said: what was said of the rows of the run, whose sets suites read too.
    """
    notes = dict.fromkeys(evaluation.context.encoder.notes)
    return tuple(note for note in notes if note not in said)


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
    best_steps, unlike = best_step.summarise(folder, record["models"])
    for name in unlike:
        progress.say(
            stages.console, f"{name}: its steps were evaluated with other settings: none is best"
        )
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
            stages.interrupts.check(f"before the suite {suite} of {name}")
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
    models = files.read_json(file, shapes.Evaluations)["models"] if file.is_file() else {}
    return {"definitions": definitions, "models": models}


def _limit(count: Count) -> int | None:
    """A number of questions, None for all."""
    return None if count == ALL else int(count)


def _check_rouge() -> None:
    if importlib.util.find_spec("rouge_score") is None:
        raise ValueError(
            "ROUGE of generated text needs the package rouge-score: install jaxunlearn[evaluate],"
            " or set evaluate.generate and evaluate.recite (--generate, --recite) to 0"
        )
