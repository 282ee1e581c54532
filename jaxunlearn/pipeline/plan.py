"""The plan of one objective: its batches, rates, measurements, and the steps that are special."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import optax

from jaxunlearn.core.trees import Tree
from jaxunlearn.data import order
from jaxunlearn.evaluation.suite import Evaluation
from jaxunlearn.measurement.guidance import Guidance, guide_retain_samples, refresh_steps
from jaxunlearn.measurement.interval import Measurer, SharedGradients
from jaxunlearn.measurement.statistics import SetStatistics, Splits
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import Stages
from jaxunlearn.record.trackers import Trackers
from jaxunlearn.training.batch import Split
from jaxunlearn.training.feed import StepBatches, StepInput
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.references import References
from jaxunlearn.training.schedule import evaluated_steps, learning_rates, warmup_steps
from jaxunlearn.training.step import optimizer
from jaxunlearn.training.tasks import Task

SEALS = 64  # times that an objective notes digests on the way


@dataclasses.dataclass(frozen=True)
class UnlearnContext:
    """The inputs that all objectives of a run share.

    Attributes:
      prepared: the run.
      folder: its folder.
      stages: times the objectives, and shows progress.
      offload: where arrays are parked.
      base: the parameters of theta_0 that train, parked; never donated.
      frozen: the others, on the devices; None where all train. No objective changes or copies them.
      references: outputs of theta_0 on the samples.
      splits: D_u with the references that objectives read, and D_r.
      base_statistics: of both sets at theta_0.
      shared: grad R(D_r) at theta_0, see `Measurer`.
      evaluation: the suites; None where the run evaluates no model.
      trackers: get the numbers of steps, measurements and results.
      debug_nans: whether an objective that diverges takes a step again without compilation, to
        name the operation that is to blame.
    """

    prepared: Prepared
    folder: RunFolder
    stages: Stages
    offload: Offload
    base: Tree
    frozen: Tree
    references: References
    splits: Splits
    base_statistics: SetStatistics
    shared: SharedGradients
    evaluation: Evaluation | None = None
    trackers: Trackers = dataclasses.field(default_factory=Trackers)
    debug_nans: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of one objective, and those before which something is measured or saved.

    Attributes:
      feed: the batches.
      tx: the optimiser.
      rates: the learning rate of each step.
      measured: steps at which effects are measured.
      saved: steps whose state is saved, apart from those that the clock asks for.
      evaluated: steps at which suites are measured.
      guidance: the weights of a guided objective.
      measurer: the measurements.
    """

    feed: StepBatches
    tx: optax.GradientTransformation
    rates: list[float]
    measured: Sequence[int]
    saved: Sequence[int]
    evaluated: Sequence[int]
    guidance: Guidance
    measurer: Measurer

    @property
    def steps(self) -> int:
        return self.feed.steps

    def seals(self, step: int) -> bool:
        """Whether the digests of what was written are noted at a saved step: some dozens of times.

        Each time they are those of all steps so far, so that more would take long in a long run.
        """
        saved = list(self.saved)
        return step not in saved or saved.index(step) % (1 + len(saved) // SEALS) == 0

    def same_weights(self, step: int) -> range:
        """The steps from one on that have the weights of this one."""
        return range(step, min((s for s in self.guidance.steps if s > step), default=self.steps))

    def inputs(self, step: int, guide: np.ndarray | None) -> tuple[StepInput, int]:
        """The batch of a step, and the FLOPs that its gradient needs."""
        return self.feed.step(step, guide), self.feed.needed_flops(step)


def step_batches(prepared: Prepared, task: Task, references: References) -> StepBatches:
    """The batches of one objective of a run.

    Args:
      prepared: the run.
      task: the objective.
      references: outputs of theta_0 on the samples, or their shapes.
    """
    return StepBatches(
        task,
        prepared.sets,
        references,
        layout=prepared.layout,
        unlearn=prepared.config.unlearn,
        seed=prepared.config.seed,
    )


def task_optimizer(prepared: Prepared, task: Task) -> optax.GradientTransformation:
    """The optimiser of one objective of a run."""
    spec = prepared.config.unlearn
    return optimizer(weight_decay=spec.weight_decay, clip_norm=spec.clip_norm, spare=task.spare)


def guide_retain(prepared: Prepared) -> Split:
    """The retain samples whose risk gradient defines harm when a run computes guided weights."""
    pool, count = prepared.sets.retain, len(prepared.retain_eval)
    return prepared.layout.split(guide_retain_samples(pool, count, prepared.config.seed))


def make_plan(context: UnlearnContext, task: Task) -> Plan:
    """Plans an objective: everything that does not depend on its parameters."""
    prepared, splits = context.prepared, context.splits
    config, spec = prepared.config, prepared.config.unlearn
    feed = step_batches(prepared, task, context.references)
    per_epoch = order.num_steps(len(prepared.sets.forget), spec.batch_size, 1)
    warmup = warmup_steps(spec, len(prepared.sets.forget))
    measured = prepared.measured_steps
    return Plan(
        feed=feed,
        tx=task_optimizer(prepared, task),
        rates=learning_rates(task.lr, feed.steps, warmup),
        measured=measured,
        # Where effects are measured the state is saved too; else once an epoch.
        saved=measured or range(0, feed.steps, per_epoch),
        evaluated=evaluated_steps(config, feed.steps),
        guidance=_guidance(context, task, feed.steps),
        measurer=Measurer(
            name=task.name,
            objective=task.objective,
            term=task.loss.unlearn,
            splits=splits,
            base=context.base_statistics,
            spec=config.measure,
            offload=context.offload,
            folder=context.folder.path,
            shared=context.shared,
            trainable=prepared.scope.rule,
        ),
    )


def _guidance(context: UnlearnContext, task: Task, steps: int) -> Guidance:
    """The weights of a guided objective; for the others, without any steps."""
    refreshed = refresh_steps(task, steps)
    retain = guide_retain(context.prepared) if refreshed else None
    return Guidance(
        task=task,
        steps=refreshed,
        forget=context.splits.forget,
        mask=context.base_statistics.forget.mask,
        retain=retain,
        folder=context.folder,
        offload=context.offload,
        trainable=context.prepared.scope.rule,
    )
