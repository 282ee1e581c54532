"""Reads and checks the inputs of a run before anything is written or computed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.core.devices import peak_flops
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.refusals import Refusals
from jaxunlearn.data.rows import DataRows, without
from jaxunlearn.data.sources import Sources
from jaxunlearn.models import sharding
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.pipeline.subject import Subject, idle_note, initial_params, open_subject
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import Stages
from jaxunlearn.training.schedule import measured_steps, unlearning_steps
from jaxunlearn.training.scope import Scope, make_scope, with_adapters
from jaxunlearn.training.sets import SampleSets
from jaxunlearn.training.tasks import Task, make_tasks


@dataclasses.dataclass(frozen=True)
class Prepared(Subject):
    """The inputs of a run: a configuration, with the data and models that it names.

    Attributes:
      unlearn_model: the configuration of the model that unlearns: `model` with the adapters of
        `train.lora`, if any.
      scope: which of its parameters train.
      sets: the samples that unlearning draws from: D_u, the retain pool, substitute answers.
      retain_eval: the retain set D_r, on which retention is measured.
      forget_rows, retain_rows: the rows of `sets.forget` and of `retain_eval`.
      finetune: the samples to fine-tune the model on; empty without fine-tuning.
      retrain: the same without D_u, for the retrained model; empty if there is none.
      tasks: the objectives.
      notes: sentences for the user, for example about rows that were left out.
    """

    unlearn_model: DecoderConfig
    scope: Scope
    sets: SampleSets
    retain_eval: list[Sample]
    forget_rows: DataRows
    retain_rows: DataRows
    finetune: list[Sample]
    retrain: list[Sample]
    tasks: tuple[Task, ...]
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Updates of unlearning."""
        return unlearning_steps(self.config, len(self.sets.forget))

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """The steps at which effects are measured."""
        return measured_steps(self.config, self.steps)


def prepare(
    config: Config, devices: Sequence[Any] | None = None, *, unlearns: bool = True
) -> Prepared:
    """Reads data, tokenizer and model configuration, and resolves the objectives.

    Args:
      config: what to run.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.
      unlearns: whether anything is unlearned. Models that are finished need no objectives: none is
        resolved then, so that no module of theirs is imported.

    Raises:
      ValueError, OSError: the first problem; names the file and the key.
    """
    subject = open_subject(config, devices)
    sources, encoder, model = subject.sources, subject.encoder, subject.model
    unlearn_model = with_adapters(config.train, model)
    scope = make_scope(config.train, unlearn_model)
    tasks = make_tasks(config, unlearn_model) if unlearns else ()
    _check_substitutes(config, tasks)

    # --- the data: D_u, D_r, and the pool of retain samples without the rows of D_r ---------------
    forget_rows = sources.require(config.data.forget, "data.forget")
    left_out = _LeftOut(forget_rows)
    eval_rows = left_out.retained(sources, "data.measured_retain", config.data.measured_retain)
    needs_pool = any(task.reads_retain for task in tasks)
    pool_rows = _pool(config, sources, left_out, eval_rows) if needs_pool else []
    forget, forget_ids = encoder.encode(forget_rows, f"data.forget ({config.data.forget})")
    retain, _ = encoder.encode(pool_rows, f"data.retain ({config.data.retain})")
    retain_eval, retain_ids = encoder.encode(eval_rows, config.data.measured_retain)

    # --- fine-tuning, only where the run fine-tunes -----------------------------------------------
    finetune_rows = _finetune_rows(config, sources)
    finetune, _ = encoder.encode(finetune_rows, "finetune.splits")
    retrain_rows = without(finetune_rows, forget_rows) if config.finetune.retrained else []
    retrain, _ = encoder.encode(retrain_rows, "retraining")

    encoded_rows = [forget_rows[i] for i in forget_ids]
    refusals = Refusals(encoded_rows, sources.refusals(), encoder.one, config.seed)
    shardings = sharding.param_shardings(model, subject.mesh)
    initial = lambda: initial_params(config, model, shardings, scope)
    return Prepared(
        **vars(dataclasses.replace(subject, initial=initial)),
        unlearn_model=unlearn_model,
        scope=scope,
        sets=SampleSets(forget, retain, refusals),
        retain_eval=retain_eval,
        forget_rows=encoded_rows,
        retain_rows=[eval_rows[i] for i in retain_ids],
        finetune=finetune,
        retrain=retrain,
        tasks=tasks,
        notes=(*idle_note(subject.mesh, devices), *left_out.notes, *encoder.notes),
    )


def make_stages(
    subject: Subject,
    folder: RunFolder,
    console: Console,
    peak: float | None = None,
    interrupts: Interrupts | None = None,
) -> Stages:
    """Makes what times the stages of a run.

    Args:
      subject: the run, or the model that is measured.
      folder: its folder.
      console: for a line a stage, and for progress.
      peak: TFLOP/s of one device; default: the published peak, where it is known.
      interrupts: whether the run is asked to stop; default: it never is.
    """
    used = list(subject.mesh.devices.flat)
    flops = peak_flops(used, subject.config.compute.dtype, peak)
    return Stages(folder, console, used, flops, interrupts or Interrupts())


def _check_substitutes(config: Config, tasks: Sequence[Task]) -> None:
    """Refuses objectives that need another answer to a question where there are no questions."""
    if config.data.text_key is None:
        return
    for task in tasks:
        if "substitute" in task.needs:
            raise ValueError(
                f"objectives.{task.name}: {task.objective.name} needs questions with other answers,"
                " and free text (data.text_key) has no questions"
            )


class _LeftOut:
    """Takes the forget set out of sets to retain, and notes how many rows that were.

    An objective would raise the loss of these rows and lower it at once, and their retention would
    be measured against their removal.
    """

    def __init__(self, forget: DataRows):
        self._forget = forget
        self.notes: list[str] = []

    def retained(self, sources: Sources, key: str, split: str) -> DataRows:
        """The rows of a split that are not to be forgotten.

        Raises:
          ValueError: there are none; names the key.
        """
        rows = sources.require(split, key)
        kept = without(rows, self._forget)
        if not kept:
            raise ValueError(
                f"{key}: every row of {split!r} is also in data.forget; name a split with"
                " other rows"
            )
        if len(kept) < len(rows):
            count = len(rows) - len(kept)
            self.notes.append(f"{key} ({split}): {count} rows of the forget set left out")
        return kept


def _pool(config: Config, sources: Sources, left_out: _LeftOut, eval_rows: DataRows) -> DataRows:
    """The rows that retain terms draw from, without those that retention is measured on."""
    rows = without(left_out.retained(sources, "data.retain", config.data.retain), eval_rows)
    if not rows:
        raise ValueError(
            f"data.retain: every row of {config.data.retain!r} is also in data.measured_retain"
            f" ({config.data.measured_retain!r}), so there is nothing to draw from"
        )
    return rows


def _finetune_rows(config: Config, sources: Sources) -> DataRows:
    """The rows that the model is fine-tuned on; none where the model is taken as it is."""
    if not config.finetune.epochs:
        return []
    splits = config.finetune.splits
    return [row for split in splits for row in sources.require(split, "finetune.splits")]
