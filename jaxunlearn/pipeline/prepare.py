"""Reads and checks the inputs of a run before anything is written or computed."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.core.devices import peak_flops
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.refusals import Refusals
from jaxunlearn.data.rows import DataRows, retained, without
from jaxunlearn.data.sources import Sources
from jaxunlearn.models import sharding
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.pipeline.subject import Subject, idle_note, initial_params, open_subject
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import Stages
from jaxunlearn.training.schedule import late_pg_steps, measured_steps, unlearning_steps
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

    rows = read_rows(config, sources, tasks)
    forget, forget_ids = encoder.encode(rows.forget, f"data.forget ({config.data.forget})")
    retain, _ = encoder.encode(rows.pool, f"data.retain ({config.data.retain})")
    retain_eval, retain_ids = encoder.encode(rows.retain_eval, config.data.measured_retain)
    finetune, _ = encoder.encode(rows.finetune, "finetune.splits")
    retrain, _ = encoder.encode(rows.retrain, "retraining")

    encoded_rows = [rows.forget[i] for i in forget_ids]
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
        retain_rows=[rows.retain_eval[i] for i in retain_ids],
        finetune=finetune,
        retrain=retrain,
        tasks=tasks,
        notes=(
            *idle_note(subject.mesh, devices),
            *rows.notes,
            *encoder.notes,
            *(_late_notes(config, len(forget)) if unlearns else ()),
        ),
    )


def _late_notes(config: Config, samples: int) -> Iterator[str]:
    """Sentences on steps that are to be measured or evaluated, and that the run does not reach."""
    steps = unlearning_steps(config, samples)
    if late := late_pg_steps(config, steps):
        beyond = ", ".join(map(str, late))
        yield f"measure.pg_steps: {beyond} beyond the last step of the run, {steps - 1}"
    if (every := config.evaluate.every) >= steps:
        yield f"evaluate.every: {every}, but there are {steps} steps: only their end is evaluated"


class RunRows(NamedTuple):
    """The rows of a run, by what they are for.

    Attributes:
      forget: D_u.
      retain_eval: D_r.
      pool: the rows that retain terms draw from, without those of D_r; empty where none draws.
      finetune, retrain: those of fine-tuning, with and without D_u; empty where the run does not.
      notes: sentences for the user on rows that were left out.
    """

    forget: DataRows
    retain_eval: DataRows
    pool: DataRows
    finetune: DataRows
    retrain: DataRows
    notes: tuple[str, ...]


def read_rows(config: Config, sources: Sources, tasks: Sequence[Task]) -> RunRows:
    """Reads the splits that a run names, those alone that it needs.

    Args:
      config: the run.
      sources: from `open_sources`.
      tasks: the objectives.

    Raises:
      ValueError, OSError: a split that is missing, bad or empty once rows are left out of it; names
        the key.
    """
    forget = sources.require(config.data.forget, "data.forget")
    left_out = _LeftOut(forget)
    retain_eval = left_out.retained(sources, "data.measured_retain", config.data.measured_retain)
    needs_pool = any(task.reads_retain for task in tasks)
    pool = _pool(config, sources, left_out, retain_eval) if needs_pool else []
    finetune = _finetune_rows(config, sources)
    retrain = without(finetune, forget) if config.finetune.retrained else []
    return RunRows(forget, retain_eval, pool, finetune, retrain, tuple(left_out.notes))


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
    """Takes the forget set out of sets to retain, and notes how many rows that were."""

    def __init__(self, forget: DataRows):
        self._forget = forget
        self.notes: list[str] = []

    def retained(self, sources: Sources, key: str, split: str) -> DataRows:
        """The rows of a split that are not to be forgotten.

        Raises:
          ValueError: there are none; names the key.
        """
        rows = sources.require(split, key)
        kept = retained(rows, self._forget, key, split)
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
