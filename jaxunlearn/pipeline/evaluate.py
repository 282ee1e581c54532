"""The command `evaluate`: the models of a run, or any model in the Hugging Face format."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxunlearn.config import Config, ConfigError, Splits, Train, reader
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.models import sharding
from jaxunlearn.pipeline import inputs, stored
from jaxunlearn.pipeline.evaluation_stage import (
    Count,
    EvaluateRequest,
    build_evaluation,
    build_run_evaluation,
    measure_models,
    models_of,
    request,
    suite_notes,
)
from jaxunlearn.pipeline.prepare import make_stages, prepare
from jaxunlearn.pipeline.resume import check_finished, open_results
from jaxunlearn.pipeline.subject import (
    check_shape,
    idle_note,
    measured_on,
    model_folder,
    open_subject,
    read_folder,
)
from jaxunlearn.record.folder import BASE, MODEL, RETRAINED, RunFolder, is_run
from jaxunlearn.record.lock import locked
from jaxunlearn.reporting import report


def evaluate(
    model_or_run: str | Path,
    *,
    config: Config | None = None,
    out: str | Path | None = None,
    retrained: str | Path | None = None,
    base: str | Path | None = None,
    only: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    generate: Count | None = None,
    recite: Count | None = None,
    retain_log: str | Path | None = None,
    splits: Splits | None = None,
    mesh: tuple[int, int, int] | None = None,
    console: Console | None = None,
    devices: Sequence[Any] | None = None,
    interrupts: Interrupts | None = None,
) -> None:
    """Measures what `evaluation.json` still lacks, and prints the table.

    A folder with the `config.yaml` of a run is a run, and its models are measured on its data.
    Anything else is a model, measured on the data of `config`; its results go to a folder of their
    own, where the model is called "model".

    Args:
      model_or_run: a run's folder; or a model's folder, or its name on the Hugging Face hub.
      config: for a model: data, mesh and precision, and defaults of what follows; its own `model`
        is not read. Default: all defaults of `Config`.
      out: for a model: the folder of the results; default: `evaluations/NAME`.
      retrained: for a model: a folder or hub name of a model of the same architecture that never
        saw the forget set; default: none, and numbers that need one are null.
      base: for a model: the same of the model before unlearning.
      only: for a run: objectives; default: all that are finished. The model before unlearning and
        the retrained one are always measured.
      suites: "tofu", "memorization", "mia", "uwc", or "all"; default: the configuration's, or all
        where it names none.
      generate: questions of each set that are answered in text, or "all"; 0: none, and no ROUGE.
      recite: questions of each set whose answers are continued word by word, or "all"; 0: none.
      retain_log: a log of a model that never saw the forget set, in the format of TOFU's authors or
        of OpenUnlearning; default: that of the retrained model.
      splits: the splits that suites read; default: the configuration's.
      mesh: (data, fsdp, tensor), where it is not the configuration's.
      console: for progress and the table; default: nothing is printed.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.
      interrupts: whether it is asked to stop; default: it never is.

    Raises:
      Stopped: it was asked to stop; what is measured stays, the rest follows when it is called
        again.
      ValueError, OSError: no run, model, suite or data of this name, an option that belongs to the
        other kind, or bad input.
    """
    console = console or quiet_console()
    options = (suites, generate, recite, retain_log, splits)
    if is_run(model_or_run):
        of_models = {"config": config, "out": out, "retrained": retrained, "base": base}
        _refuse(of_models, model_or_run, "a run", "a model")
        folder = RunFolder(user_path(model_or_run))
        run_config = stored.on_mesh(stored.configuration(folder), mesh)
        _evaluate_run(
            folder, run_config, only, request(run_config, *options), console, devices, interrupts
        )
        return
    _refuse({"only": only}, model_or_run, "a model", "a run")
    model_config = stored.on_mesh(of_model(config or Config(), model_or_run), mesh)
    others = {RETRAINED: retrained, BASE: base}
    _evaluate_model(
        model_config,
        {name: str(other) for name, other in others.items() if other is not None},
        RunFolder(user_path(out or Path("evaluations") / model_config.name)),
        request(model_config, *options),
        console,
        devices,
        interrupts,
    )


def of_model(config: Config, model: str | Path) -> Config:
    """The configuration of measurements of one model, which nothing is trained for.

    Args:
      config: where data, mesh and settings come from.
      model: a folder or a hub name, whose last part becomes the name.
    """
    name = user_path(model).resolve().name
    # Data that were once fine-tuned on may be absent now.
    finetune = dataclasses.replace(config.finetune, epochs=0, retrained=False)
    return dataclasses.replace(
        config, name=name, model=str(model), finetune=finetune, train=Train()
    )


# ------------------------------------------------------------------------------- both kinds


def _evaluate_run(
    folder: RunFolder,
    config: Config,
    only: Sequence[str] | None,
    requested: EvaluateRequest,
    console: Console,
    devices: Sequence[Any] | None,
    interrupts: Interrupts | None,
) -> None:
    """Measures the models of a run."""
    names = _names(folder, config, only, console)
    prepared = prepare(config, devices, unlearns=False)
    say(console, *prepared.notes)
    with locked(folder), jax.set_mesh(prepared.mesh):
        check_finished(folder, prepared, console)
        evaluation = build_run_evaluation(prepared, folder, requested, RETRAINED in names)
        say(console, *suite_notes(evaluation, prepared.notes))
        measure_models(
            evaluation, folder, names, make_stages(prepared, folder, console, interrupts=interrupts)
        )
    report.print_evaluation(folder.path, config, console, names)


def _evaluate_model(
    config: Config,
    others: Mapping[str, str],
    folder: RunFolder,
    requested: EvaluateRequest,
    console: Console,
    devices: Sequence[Any] | None,
    interrupts: Interrupts | None,
) -> None:
    """Measures one model, and those of `RETRAINED` and `BASE` that it is compared with."""
    keys = {MODEL: MODEL, **{name: f"{name} (--{name})" for name in others}}
    models = {MODEL: config.model or "", **others}
    folders = {name: model_folder(keys[name], model) for name, model in models.items()}
    subject = open_subject(config, devices)
    say(console, measured_on(config), *idle_note(subject.mesh, devices))
    for name in others:
        check_shape(keys[name], folders[name], subject)
    shardings = sharding.param_shardings(subject.model, subject.mesh)
    load = lambda name: read_folder(folders[name], subject.model, shardings)
    names = [name for name in (RETRAINED, BASE, MODEL) if name in folders]
    digests = inputs.of_models(folders)
    with jax.set_mesh(subject.mesh):
        # Bad data are refused before the folder is made.
        evaluation = build_evaluation(subject, folder, requested, list(others), load)
    say(console, *suite_notes(evaluation, ()))
    with open_results(folder, digests, config), jax.set_mesh(subject.mesh):
        measure_models(
            evaluation, folder, names, make_stages(subject, folder, console, interrupts=interrupts)
        )
    report.print_evaluation(folder.path, config, console, names)


def _refuse(options: Mapping[str, Any], path: str | Path, this: str, other: str) -> None:
    """Refuses options that are for the other kind.

    Raises:
      ConfigError: names the first that is given.
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} (--{name}): is for {other}, and {path} is {this}")


def _names(
    folder: RunFolder, config: Config, only: Sequence[str] | None, console: Console
) -> list[str]:
    """The models to measure: all finished objectives, or those that were requested.

    Raises:
      ValueError: an objective that was asked for is not in the run.
      FileNotFoundError: it is not finished, or it diverged; says which.
    """
    done = stored.finished(folder, config)
    objectives = list(config.objectives if only is None else reader.only(config, only).objectives)
    absent = [name for name in objectives if name not in done]
    for name in absent if only is not None else ():
        stored.final_step(folder, name)  # says why there is no final model
    diverged = [name for name in absent if folder.result(name).is_file()]
    unfinished = [name for name in absent if name not in diverged]
    for words, which in (("not finished", unfinished), ("diverged", diverged)):
        if which:
            say(console, f"{words}, not measured: {', '.join(which)}")
    finished = [name for name in config.objectives if name in objectives and name in done]
    return models_of(finished, folder.model(RETRAINED).is_dir())
