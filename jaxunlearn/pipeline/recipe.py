"""Runs a configuration from top to bottom: fine-tune, unlearn, measure, evaluate, report.

Every stage writes its result to the run's folder as a whole, and is skipped where the folder has
that result, so that an interrupted run continues where it stopped. Batches, substitute answers and
targets are pure functions of (seed, step): no other state has to be restored.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxunlearn.config import Config, check_readable, load
from jaxunlearn.core import hosts
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.data import encoding, packing
from jaxunlearn.data.rows import title
from jaxunlearn.evaluation.suite import Evaluation
from jaxunlearn.measurement.statistics import Splits
from jaxunlearn.pipeline import damage, inputs, results
from jaxunlearn.pipeline.checks import check
from jaxunlearn.pipeline.evaluation_stage import (
    evaluate_finished,
    evaluate_starting_points,
    requested_evaluation,
    suite_notes,
)
from jaxunlearn.pipeline.finetune import check_start, finetune
from jaxunlearn.pipeline.origin import starting_params
from jaxunlearn.pipeline.plan import UnlearnContext
from jaxunlearn.pipeline.prepare import Prepared, make_stages, prepare
from jaxunlearn.pipeline.redo import remove_measurements
from jaxunlearn.pipeline.relearn import relearn_finished, requested_attacks
from jaxunlearn.pipeline.resume import open_folder
from jaxunlearn.pipeline.unlearn import unlearn
from jaxunlearn.pipeline.work import count_passes
from jaxunlearn.record import manifest, starts, texts
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.record.lock import locked
from jaxunlearn.record.stages import Stages
from jaxunlearn.record.trackers import Trackers, check_installed, tracking
from jaxunlearn.reporting import report as reporting
from jaxunlearn.reporting import summary
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.references import reference_pass

REFERENCES = "the reference pass"
"""The stage of the reference pass."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose input is checked and whose folder is open.

    Attributes:
      prepared: the inputs.
      folder: the run's folder.
      evaluation: the suites of the configuration, if any, their data read and encoded.
      notes: sentences on the folder.
      debug_nans: whether a training that diverges takes a step again without compilation, to name
        the operation that first makes a value that is not finite.
    """

    prepared: Prepared
    folder: RunFolder
    evaluation: Evaluation | None
    notes: tuple[str, ...] = ()
    debug_nans: bool = False


def run(
    config: Config,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    report: bool = True,
    debug_nans: bool = False,
    console: Console | None = None,
    devices: Sequence[Any] | None = None,
) -> Path:
    """Runs a configuration, or continues the run where the folder holds a part of it.

    Args:
      config: what to run.
      out: the run's folder; default: runs/NAME.
      overwrite: whether another run in the folder is removed first, and nothing but its own files.
      report: whether figures, `summary.md` and `report.html` are written; `jaxunlearn report` can
        do that later, on any machine.
      debug_nans: see `Run`; in one process alone.
      console: where progress and tables go; default: nowhere.
      devices: the devices of the mesh; default: all, or the first one where `compute` names one.

    Returns:
      The run's folder.

    Raises:
      ValueError, OSError: bad input; nothing was written.
      FloatingPointError: fine-tuning diverged.
    """
    path = Path("runs") / config.name if out is None else user_path(out)
    opened = begin(config, path, devices, overwrite=overwrite, debug_nans=debug_nans)
    execute(opened, console, write_report=reporting.write_report if report else None)
    return path


def begin(
    config: Config,
    out: str | Path,
    devices: Sequence[Any] | None = None,
    *,
    overwrite: bool = False,
    debug_nans: bool = False,
) -> Run:
    """Checks all input, then opens the run's folder.

    Args:
      config: what to run.
      out: the run's folder: absent, empty, or an earlier part of this very run.
      devices: the devices of the mesh; default: all, or the first one where `compute` names one.
      overwrite: whether another run in the folder is removed, once all input is checked.
      debug_nans: see `Run`; in one process alone.

    Raises:
      ValueError, OSError: bad input; nothing was written.
    """
    folder = RunFolder(user_path(out))
    if debug_nans and jax.process_count() > 1:
        raise ValueError("debug_nans (--debug-nans): works in one process alone")
    check_readable(config)
    check_installed(config.track)
    prepared = prepare(config, devices)
    check(prepared)
    requested_attacks(prepared)
    with jax.set_mesh(prepared.mesh):
        evaluation = requested_evaluation(prepared, folder)
    # The first process alone compares them, and a large model takes seconds.
    digests: dict[str, str] = {}
    if hosts.is_first():
        digests = inputs.digests(prepared) | inputs.of_functions(prepared)
    notes = damage.notes(folder)
    if evaluation is not None:
        notes += suite_notes(evaluation, prepared.notes)
    open_folder(folder, config, digests, overwrite=overwrite)
    return Run(prepared, folder, evaluation, notes, debug_nans)


def execute(
    run: Run,
    console: Console | None = None,
    *,
    profile: int = 0,
    peak: float | None = None,
    interrupts: Interrupts | None = None,
    write_report: Callable[[Path, Console], object] | None = None,
) -> None:
    """Fine-tunes, unlearns, measures, evaluates, and reports if it is told how.

    Args:
      run: from `begin`.
      console: where progress and tables go; default: nowhere.
      profile: steps of the first objective to trace into the folder's `profile`.
      peak: TFLOP/s of one device, for the MFU; default: the published peak, where it is known.
      interrupts: whether the run is asked to stop; default: it never is.
      write_report: (folder, console) writes the report, in the first process alone; default: there
        is none.

    Raises:
      Stopped: it was asked to stop; running it again goes on from there.
      ValueError: another process works on the folder, or a file of it is damaged; names it.
      CheckpointError: the folder's checkpoints are of another model.
      FloatingPointError: fine-tuning diverged.
    """
    with locked(run.folder):
        console = console or quiet_console()
        again = [manifest.RESULTS]  # written anew from the files of others
        if requested_attacks(run.prepared) is not None:
            again.append(manifest.RELEARNING)
        damage.check(run.folder, console, without=again)
        stages = make_stages(run.prepared, run.folder, console, peak, interrupts)
        _execute(run, stages, profile)
        if write_report is not None:
            stages.interrupts.check("before the report")
            if hosts.is_first():
                write_report(run.folder.path, console)
        hosts.wait("the run is done")


def _execute(run: Run, stages: Stages, profile: int) -> None:
    console = stages.console
    say(console, *run.prepared.notes, *run.notes)
    starts.note(run.folder, stages.devices)
    _write_texts(run.prepared, run.folder)
    config = run.prepared.config
    track = tracking(config.track, run.folder.path, config.name, dataclasses.asdict(config))
    with jax.set_mesh(run.prepared.mesh), track as trackers:
        _stages(run, stages, trackers, profile)
        if run.evaluation is not None:
            evaluate_finished(run.evaluation, run.prepared, run.folder, stages)
        relearn_finished(run.prepared, run.folder, stages)


def _write_texts(prepared: Prepared, folder: RunFolder) -> None:
    """Writes what the samples of both sets say, for reports, at the first start of a run."""
    if folder.texts.exists() or not hosts.is_first():
        return
    sets = {
        "forget": (prepared.forget_rows, prepared.sets.forget),
        "retain": (prepared.retain_rows, prepared.retain_eval),
    }
    content = [
        texts.SampleText(
            split=split,
            sample=i,
            question=title(row),
            answer=encoding.answer_text(prepared.tokenizer, row, sample),
            tokens=encoding.pieces(prepared.tokenizer, sample.tokens[sample.first_label :]),
        )
        for split, (rows, samples) in sets.items()
        for i, (row, sample) in enumerate(zip(rows, samples, strict=True))
    ]
    texts.write(folder.path, content)
    manifest.seal(folder, manifest.TEXTS, [folder.texts], redo=folder.texts)


def _stages(run: Run, stages: Stages, trackers: Trackers, profile: int) -> None:
    """Fine-tunes, unlearns with every objective, and merges the tables."""
    console = stages.console
    prepared, folder, config = run.prepared, run.folder, run.prepared.config
    layout, sets = prepared.layout, prepared.sets
    splits = Splits(layout.split(sets.forget), layout.split(prepared.retain_eval))
    _describe(splits, console)
    starting: dict[str, Any] = {}
    tune = partial(finetune, splits=splits, stages=stages, debug_nans=run.debug_nans)

    # --- theta_0: the model before unlearning, which all objectives start from --------------------
    model = prepared.unlearn_model
    base = starting_params(prepared, tune(prepared, folder, BASE, prepared.finetune))
    base_statistics = splits.statistics(base, model)
    starting[BASE] = base_statistics.summary()
    remedy = "lower finetune.lr" if config.finetune.epochs else "take another model"
    check_start(starting[BASE], "unlearning", remedy)
    summary.print_starting_point(starting[BASE], console)

    # --- the retrained model, which unlearning tries to come close to -----------------------------
    if config.finetune.retrained:
        retrained = tune(prepared, folder, RETRAINED, prepared.retrain)
        starting[RETRAINED] = splits.statistics(retrained, prepared.model).summary()
        del retrained  # it stays in its folder
    if run.evaluation is not None and config.evaluate.every:
        # Evaluations during unlearning are compared with these two models.
        evaluate_starting_points(run.evaluation, folder, stages)

    # --- references: cached outputs of theta_0, so that no second model stays in memory -----------
    manifest.open_stage(folder, manifest.REFERENCES)
    with stages.stage(REFERENCES) as stage, stage.part("forward") as part:
        references = reference_pass(
            base,
            prepared.tasks,
            sets,
            layout=layout,
            model=model,
            unlearn=config.unlearn,
            folder=folder,
            on_pass=lambda split: count_passes(part, split, model, 1),
        )
    manifest.seal(folder, manifest.REFERENCES, [folder.references], redo=folder.references)
    offload = Offload(config.compute.offload)
    start, frozen = prepared.scope.split(base)
    parked = offload.away(start)
    del base, start  # the parked theta_0 serves every objective

    # --- the objectives, one after the other ------------------------------------------------------
    for name in load(folder.config).objectives:  # those of earlier starts too
        if hosts.agreed(not folder.objective(name).exists()):
            manifest.open_stage(folder, name)  # its folder was removed, or it has yet to begin
            remove_measurements(folder, name, console)
    context = UnlearnContext(
        prepared=prepared,
        folder=folder,
        stages=stages,
        offload=offload,
        base=parked,
        frozen=frozen,
        references=references,
        splits=splits._replace(forget=layout.split(sets.forget, references.forget)),
        base_statistics=base_statistics,
        shared={},
        evaluation=run.evaluation,
        trackers=trackers,
        debug_nans=run.debug_nans,
    )
    for i, task in enumerate(prepared.tasks):
        unlearn(context, task, profile if i == 0 else 0)
    results.merge(folder, starting)


def _describe(splits: Splits, console: Console) -> None:
    """Prints how the two measured sets are packed."""
    for name, split in splits._asdict().items():
        rows, width = split.packed[0].tokens.shape
        share = packing.real_token_share(split.packed)
        say(
            console,
            f"{name}: {split.samples} samples in {len(split.packed)}"
            f" batch{'es' * (len(split.packed) != 1)} of {rows} x {width} tokens,"
            f" {share:.1%} real",
        )
