"""Unlearns with one objective, from theta_0 to its last step, and measures on the way."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core import files, hosts, progress
from jaxunlearn.core.interrupts import Stopped
from jaxunlearn.core.progress import say
from jaxunlearn.evaluation import best_step
from jaxunlearn.evaluation.suite import all_finite
from jaxunlearn.measurement.interval import Interval
from jaxunlearn.measurement.statistics import SetStatistics
from jaxunlearn.models.decoder import merge_adapters
from jaxunlearn.pipeline import work
from jaxunlearn.pipeline.divergence import Divergence, diagnose
from jaxunlearn.pipeline.plan import Plan, UnlearnContext, make_plan
from jaxunlearn.pipeline.trace import Trace
from jaxunlearn.record import manifest, shapes, tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import Part, Stage
from jaxunlearn.record.steps import StepLog
from jaxunlearn.training.batch import Batch
from jaxunlearn.training.checkpoint import Checkpoints, newest, open_checkpoints
from jaxunlearn.training.feed import StepInput
from jaxunlearn.training.prefetch import Prefetch
from jaxunlearn.training.step import Trainer, TrainState, init_state
from jaxunlearn.training.tasks import Task

WARM_STEPS = 2  # steps before a profile, so that no compilation is traced


class _Loop(NamedTuple):
    """What the steps of one objective work with.

    Attributes:
      context: what all objectives share.
      plan: of the objective.
      trainer: holds the state.
      checkpoints: of the objective.
      stage: takes the time of the parts.
    """

    context: UnlearnContext
    plan: Plan
    trainer: Trainer
    checkpoints: Checkpoints
    stage: Stage

    def refresh(self, step: int) -> np.ndarray:
        """New weights for all forget tokens, at theta_t."""
        with (
            self.stage.part("guide", after=self.trainer.state) as part,
            self.trainer.parked_moments(self.context.offload),
        ):
            work.count_refresh(part, self.plan.guidance)
            return self.plan.guidance.refresh(step, self.trainer.params)

    def close(self, step: int, interval: Interval | None) -> SetStatistics:
        """Closes the measurement that is open, and returns the statistics of theta_t."""
        measurer, params = self.plan.measurer, self.trainer.params
        with self.stage.part("measure", after=self.trainer.state):
            stats = measurer.statistics(params, step)
            if interval is not None:
                interval.close(step, params, stats)
        return stats

    def open(
        self,
        step: int,
        stats: SetStatistics,
        batches: Sequence[Batch],
        guide: np.ndarray | None,
    ) -> Interval:
        """Takes the step's measurement."""
        measurer, trainer = self.plan.measurer, self.trainer
        with self.stage.part("measure") as part, trainer.parked_moments(self.context.offload):
            shared = step == 0 and measurer.risk in measurer.shared
            work.count_measurement(part, self.context.prepared, measurer, step, shared=shared)
            lr = self.plan.rates[step]
            return measurer.open(step, trainer.params, stats, batches, guide, lr)

    def save(self, step: int) -> None:
        """Saves the state."""
        with self.stage.part("save", after=self.trainer.state):
            if hosts.is_first() and self.context.folder.metrics.exists():
                files.to_disk(self.context.folder.metrics)
            self.checkpoints.save(step, self.trainer.state)
            if self.plan.seals(step):
                _seal(self.context.folder, self.plan.measurer.name, step)

    def stop_if_asked(self, step: int, log: StepLog, interval: Interval | None) -> None:
        """Stops where the run was asked to; what is not saved is computed again."""
        if self.context.stages.interrupts.asked(step):
            log.flush()
            # A measurement that is open would be lost: the run goes on from where it was opened.
            if interval is None and log.finite:
                self.save(step)
            raise Stopped(f"at step {step} of {self.plan.measurer.name}")

    def replay(self, last: int) -> None:
        """Goes back to theta_last: to the newest checkpoint before it, and on from there.

        The steps are taken again, and nothing is recorded.
        """
        trainer, plan = self.trainer, self.plan
        del trainer.state  # its memory is needed
        self.checkpoints.drop_after(last)
        trainer.state = _newest_state(self.context, plan, self.checkpoints)
        for step in range(int(trainer.state.step), last):
            trainer.update(self._batch(step), plan.rates[step])

    def operation(self, broken: int) -> str:
        """Names the operation to blame: of the update to theta_broken, or of the loss there.

        Args:
          broken: the first step t at whose theta_t the loss is not finite.
        """
        trainer, plan = self.trainer, self.plan
        first = max(broken - 1, 0)
        self.replay(first)
        steps = range(first, min(broken + 1, plan.steps))
        return trainer.blame((self._batch(step), plan.rates[step]) for step in steps)

    def _batch(self, step: int) -> Batch:
        """The batch of a step that is taken again, at theta_t."""
        guidance = self.plan.guidance
        fresh = step in guidance.steps
        guide = self.refresh(step) if fresh else guidance.before(step)
        return self.plan.inputs(step, guide)[0].batch

    def evaluate(self, step: int) -> None:
        """Measures the suites on the way."""
        context, trainer = self.context, self.trainer
        assert context.evaluation is not None  # there are steps to evaluate
        with (
            self.stage.part("evaluate", after=trainer.state),
            trainer.parked_moments(context.offload),
        ):
            name = self.plan.measurer.name
            params = merge_adapters(trainer.params, context.prepared.unlearn_model)
            best_step.evaluate(context.evaluation, context.folder, name, step, params)


def unlearn(context: UnlearnContext, task: Task, profile: int = 0) -> dict[str, Any]:
    """Unlearns with one objective, or reads the result of an earlier start of the run.

    Args:
      context: what all objectives share.
      task: the objective.
      profile: the number of steps to trace into the run's `profile` folder, after WARM_STEPS.

    Returns:
      NLL, ES and EM of both sets after the last step, with the steps made and planned; where the
      loss did not stay finite those of the last state at which it was, and what broke.
    """
    folder, name = context.folder, task.name
    if hosts.agreed(_is_done(folder, name)):
        if not manifest.holds(folder, name, folder.result(name)):
            _seal(folder, name, manifest.ALL_STEPS)  # a process was killed before it did so
        _say_what_is_late(context, name, profile)
        return files.read_json(folder.result(name), shapes.ObjectiveResult)
    plan, spec = make_plan(context, task), context.prepared.config.unlearn
    with (
        open_checkpoints(
            folder.checkpoints(name),
            keep=spec.keep_checkpoints,
            minutes=context.prepared.config.compute.save_minutes,
        ) as checkpoints,
        progress.bar(context.stages.console, name, plan.steps, checkpoints.latest or 0) as bar,
        context.stages.stage(name) as stage,
        Prefetch[tuple[StepInput, int]]() as ahead,
        stage.part("train") as train,
    ):
        # --- from theta_0, or from the newest checkpoint of an interrupted start ------------------
        with stage.part("load"):
            state = _newest_state(context, plan, checkpoints)
        options = {"accumulate": spec.accumulate, "guard": task.guard}
        trainer = Trainer(state, task.loss, plan.tx, frozen=context.frozen, **options)
        first = int(state.step)
        del state  # the trainer donates it
        # Whatever an interrupted start recorded from this step on is recorded again.
        _seal(folder, name, first)
        files.cut_back(folder.metrics, name, first)
        tables.drop_parts(folder.path, name, first)
        trace = Trace(
            folder.profile, first + WARM_STEPS, min(profile, plan.steps - first - WARM_STEPS)
        )
        loop = _Loop(context, plan, trainer, checkpoints, stage)
        with context.stages.interrupts.between_steps():
            stats, divergence = _steps(loop, ahead, train, bar, trace, first)
        train.waiting = ahead.waited
    steps = {"steps": int(trainer.state.step), "of_steps": plan.steps}
    result: dict[str, Any] = stats.summary() | steps
    if divergence is not None:
        progress.say(context.stages.console, f"{name}: {divergence.sentence()}")
        result["diverged"] = divergence._asdict()
    files.write_json(folder.result(name), result)
    _seal(folder, name, manifest.ALL_STEPS)
    context.trackers.log(name, steps["steps"], result)
    hosts.wait(f"{name} is done")
    return result


def _say_what_is_late(context: UnlearnContext, name: str, profile: int) -> None:
    """Says which settings change nothing, as the steps of a finished objective are not repeated."""
    console, every = context.stages.console, context.prepared.config.evaluate.every
    if every:
        parts = tables.parts_of(context.folder.path, name, manifest.ALL_STEPS)
        if all(part.parent.name != best_step.TABLE for part in parts):
            say(console, f"evaluate.every: {name} is finished, so none of its steps is evaluated")
    if profile:
        say(console, f"--profile: {name} is finished, so nothing is traced")


def _steps(
    loop: _Loop,
    ahead: Prefetch[tuple[StepInput, int]],
    train: Part,
    bar: progress.Bar,
    trace: Trace,
    first: int,
) -> tuple[SetStatistics, Divergence | None]:
    """Takes the steps from `first` to the last, see `_finish` for what it returns."""
    plan, trainer, measurer = loop.plan, loop.trainer, loop.plan.measurer
    log = StepLog(loop.context.folder.metrics, measurer.name, loop.context.trackers)
    guide = plan.guidance.before(first)
    batches = plan.feed.measured(measurer.splits.forget, guide) if plan.measured else []
    interval: Interval | None = None  # the measurement that is still open

    for step in range(first, plan.steps):
        trace.before(step, trainer.state)
        loop.stop_if_asked(step, log, interval)
        # --- a measured step has all records before it, and a diverged state is never measured ----
        if step in plan.measured:
            log.flush()
            if not log.finite:
                break
        # --- guided objectives: new weights for all forget tokens ---------------------------------
        if step in plan.guidance.steps:
            guide = loop.refresh(step)
            batches = plan.feed.measured(measurer.splits.forget, guide) if plan.measured else []
        # --- batches are prepared ahead, up to the step that gets new weights ---------------------
        if step == first or step in plan.guidance.steps:
            ahead.plan(plan.same_weights(step), functools.partial(plan.inputs, guide=guide))
        # --- measure: close the last measurement, save, open the next -----------------------------
        if step in plan.measured:
            stats = loop.close(step, interval)
            interval = None  # its gradients make room for the next ones
            if not stats.finite:
                break
            # Closed before saved: resuming here finds the closed measurement's rows written.
            loop.save(step)
            interval = loop.open(step, stats, batches, guide)
            loop.context.trackers.log(measurer.name, step, interval.totals())
        elif step in plan.saved or (interval is None and loop.checkpoints.due(step)):
            log.flush()
            if not log.finite or not all_finite(trainer.params):
                break
            loop.save(step)
        # --- evaluate on the way ------------------------------------------------------------------
        if step in plan.evaluated and loop.context.evaluation is not None:
            loop.evaluate(step)
        # --- the update; its metrics are read a step late, so no step waits for the host ----------
        inputs, flops = ahead.take(step)
        metrics = trainer.update(inputs.batch, plan.rates[step])
        train.add(inputs.tokens, flops)
        if interval is not None and interval.step == step:
            with loop.stage.part("measure", after=trainer.state):
                interval.after_update(trainer.params)
        fed = {"lr": plan.rates[step], "tokens": inputs.tokens}
        log.add(step, metrics | fed | {"real_token_share": inputs.real_share})
        totals = {} if interval is None else interval.totals()
        bar.advance(step + 1, inputs.tokens, loss=log.last.get("loss"), **totals)
        if not log.finite:
            break  # the last checkpoint is from before

    trace.before(plan.steps, trainer.state)
    return _finish(loop, log, interval)


def _finish(
    loop: _Loop, log: StepLog, interval: Interval | None
) -> tuple[SetStatistics, Divergence | None]:
    """Closes what the last step left open, and saves the final state.

    The last interval is written before the final state is saved. A run that stops in between
    resumes at the last measured step and measures it again. In the other order the resumed run
    would have no steps left, and the last measurement would be lost.

    Returns:
      Statistics of the final parameters, and what broke where the loss did not stay finite. The
      final state is then the last one at which it was.
    """
    plan, trainer = loop.plan, loop.trainer
    log.flush()
    with loop.stage.part("measure", after=trainer.state) as part:
        for split in plan.measurer.splits:
            work.count_passes(part, split, plan.measurer.model, 1)
        stats = plan.measurer.statistics(trainer.params)
        divergence = None
        last = int(trainer.state.step)
        if last < plan.steps or not stats.finite or log.broken is not None:
            stats, divergence = _last_finite(loop, last if log.broken is None else log.broken)
            last = int(trainer.state.step)
        if interval is not None and interval.step <= last:
            interval.close(last, trainer.params, stats)
    if stats.finite:
        loop.save(last)
    return stats, divergence


def _last_finite(loop: _Loop, broken: int) -> tuple[SetStatistics, Divergence]:
    """Says what broke, and goes back to the last state with a finite loss.

    Args:
      loop: of the objective.
      broken: the first step t at whose theta_t the loss is not finite.

    Returns:
      Statistics of the last state with a finite loss, and what broke at the next one.
    """
    trainer, measurer = loop.trainer, loop.plan.measurer
    forget, model = measurer.splits.forget, measurer.model
    loop.replay(broken)
    stats = measurer.statistics(trainer.params)
    divergence = diagnose(broken, trainer.params, stats.forget, forget, model)
    if loop.context.debug_nans:
        divergence = divergence._replace(operation=loop.operation(broken))
    loop.replay(max(broken - 1, 0))
    return measurer.statistics(trainer.params), divergence


def _newest_state(context: UnlearnContext, plan: Plan, checkpoints: Checkpoints) -> TrainState:
    """The state of the newest checkpoint; where there is none, theta_0 with fresh moments."""
    return checkpoints.newest_or(init_state(context.offload.fresh(context.base), plan.tx))


def _is_done(folder: RunFolder, name: str) -> bool:
    """Whether an objective has its result, and its final parameters unless it diverged."""
    if not folder.result(name).exists():
        return False
    result = files.read_json(folder.result(name), shapes.ObjectiveResult)
    diverged = result["steps"] < result["of_steps"] or result["forget_nll"] is None
    last = newest(folder.checkpoints(name))
    return diverged or (last is not None and int(last.name) == result["steps"])


def _seal(folder: RunFolder, name: str, before: int) -> None:
    """Notes the digests of what an objective has written of the steps before one."""
    guides = sorted(folder.guide(name).glob("*.npy"))
    guides = [guide for guide in guides if int(guide.stem) < before]
    written = [*tables.parts_of(folder.path, name, before), *guides, folder.result(name)]
    manifest.seal(folder, name, written, redo=folder.objective(name), before=before)
