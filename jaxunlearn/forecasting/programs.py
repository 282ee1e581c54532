"""The programs of a run, compiled before it runs: bytes per device, FLOPs and calls of each.

The run's own functions are compiled for abstract parameters, sharded over as many devices as the
configuration names, whether this machine has them or not. Weights are neither read nor allocated.
Fine-tuning, references, train steps, measurements and guided weights are covered. Evaluation
suites, generated text and relearning attacks are not.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import packing
from jaxunlearn.data.planning import Sample
from jaxunlearn.effects import programs as effect_programs
from jaxunlearn.forecasting import resident
from jaxunlearn.measurement.guidance import refresh_steps
from jaxunlearn.measurement.statistics import label_statistics
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.pipeline.finetune import plan_finetuning
from jaxunlearn.pipeline.plan import guide_retain, step_batches, task_optimizer
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.training.arrays import LabelValue
from jaxunlearn.training.batch import Batch, LabelCache, Rows, Split
from jaxunlearn.training.losses import (
    GROUPING,
    FineTuning,
    Risk,
    RiskAndObjective,
    SampleLogProbs,
    TokenLogProbs,
)
from jaxunlearn.training.references import References, gather_references, label_references
from jaxunlearn.training.schedule import fine_tuning_evaluations
from jaxunlearn.training.step import abstract_state, optimizer, train_step
from jaxunlearn.training.tasks import Task

RATE = jax.ShapeDtypeStruct((), np.float32)
"""The learning rate of a step, which its program takes as an argument."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One function of a run, compiled when its cost is read.

    Attributes:
      name: of the function, for the reader.
      calls: how often the run calls it, at most.
      shape: of its batch, for the reader.
      resident_bytes: bytes per device that the run keeps in memory while the program runs.
      mesh: the devices; this machine need not have them.
      function: compiled by `jax.jit`.
      args: its abstract arguments.
      static: its static keyword arguments.
    """

    name: str
    calls: int
    shape: str
    resident_bytes: int
    mesh: jax.sharding.Mesh
    function: Any
    args: tuple[Any, ...]
    static: Mapping[str, Any]

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiler's result for the devices of the mesh."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.args, **self.static).compile()

    @functools.cached_property
    def cost(self) -> effects.Cost:
        """Bytes and FLOPs of one call."""
        compiled = self.compiled
        with jax.set_mesh(self.mesh):
            return effect_programs.cost_of_compiled(
                compiled, self.function, *self.args, **self.static
            )

    @property
    def total_bytes(self) -> int:
        """Bytes per device while it runs: its own peak and `resident_bytes`."""
        return self.cost.peak + self.resident_bytes


def programs(prepared: Prepared) -> Iterator[Program]:
    """Every program of a run that a forecast covers, in the order in which they first run."""
    yield from learning(prepared)
    yield from training(prepared, prepared.tasks)
    yield from measuring(prepared)
    yield from guiding(prepared)


def learning(prepared: Prepared) -> Iterator[Program]:
    """The programs of fine-tuning and of the reference pass."""
    if prepared.config.finetune.epochs:
        yield from _finetuning(prepared, resident.plain_params(prepared))
    params = resident.sharded_params(prepared)
    passes: list[tuple[Split, int | None]] = []

    def record(name: str, samples: Sequence[Sample], values: Sequence[LabelValue]):
        # As `references` does: one pass for each tap, and at least one.
        taps = {value.tap for value in values if value.tap is not None} or {None}
        split = prepared.layout.split(samples)
        passes.extend((split, tap) for tap in taps)
        return _zero_caches(prepared, samples, values)

    gather_references(params, prepared.tasks, prepared.sets, prepared.config.unlearn, record)
    if not passes:
        return
    largest, tap = max(passes, key=lambda one: one[0].packed[0].tokens.size)
    calls = sum(len(split.batches) for split, _ in passes)
    args = (params, largest.batches[0].packed)
    static = {"model": prepared.unlearn_model, "tap": tap}
    make = functools.partial(_program, prepared, "reference pass", calls, largest, 0)
    yield make(label_references, args, static)


def training(prepared: Prepared, tasks: Sequence[Task]) -> Iterator[Program]:
    """The train step of each of some objectives."""
    (params, frozen), references = resident.parts(prepared), _references(prepared)
    spec = prepared.config.unlearn
    for task in tasks:
        feed = step_batches(prepared, task, references)
        batch, _, share = feed.step(0)
        tx = task_optimizer(prepared, task)
        rows, width = batch.forget.packed.tokens.shape[-2:]
        shape = f"{rows} x {width}, {share:.0%} real"
        parts = spec.accumulate
        yield Program(
            name=f"{task.name}: step",
            calls=feed.steps,
            shape=f"{parts} parts of {shape}" if parts > 1 else shape,
            resident_bytes=resident.between_measurements(prepared),
            mesh=prepared.mesh,
            function=train_step,
            args=(abstract_state(params, tx), batch, RATE, frozen),
            static={"loss": task.loss, "tx": tx, "accumulate": parts, "guard": task.guard},
        )


def measuring(prepared: Prepared) -> Iterator[Program]:
    """The programs of the measurements, and of the statistics, which every run takes.

    Only one objective is compiled: the first whose gradient needs a backward pass of its own. The
    calls are those of all objectives.
    """
    measured, tasks = prepared.measured_steps, prepared.tasks
    params, references = resident.sharded_params(prepared), _references(prepared)
    forget = prepared.layout.split(prepared.sets.forget, references.forget)
    retain = prepared.layout.split(prepared.retain_eval)

    # --- statistics: at each measurement, after its update, and at the end ------------------------
    # At step 0 they are theta_0's, which the run takes once for all objectives.
    passes = 1 + len(tasks) * (2 * len(measured) - (0 in measured) + 1)
    resident_bytes = resident.while_counting(prepared)
    model = prepared.unlearn_model
    yield _statistics(prepared, "statistics", passes, resident_bytes, params, model)
    if not measured:
        return

    with_backward = [task for task in tasks if not task.loss.unlearn.objective.ascent]
    task = (*with_backward, *tasks)[0]
    batches = [step_batches(prepared, each, references).measured(forget) for each in tasks]
    batch, calls = batches[tasks.index(task)], len(measured) * sum(map(len, batches))
    if prepared.config.measure.gradients == "full":
        yield from _formed(prepared, task, batch, calls, forget, retain)
    else:
        yield from _gated(prepared, task, batch, calls, forget, retain)
    yield from _pg_effects(prepared, task, forget, retain)


def guiding(prepared: Prepared) -> Iterator[Program]:
    """The programs of a refresh of guided weights."""
    tasks = [task for task in prepared.tasks if "guide" in task.needs]
    if not tasks:
        return
    (params, frozen), size = resident.parts(prepared), resident.trainable_bytes(prepared)
    offloads = prepared.config.compute.offload
    count = sum(len(refresh_steps(task, prepared.steps)) for task in tasks)
    resident_bytes = resident.while_refreshing(prepared)
    forget = prepared.layout.split(prepared.sets.forget, _references(prepared).forget)
    risk = Risk(prepared.unlearn_model, tasks[0].loss.unlearn.reduction)
    splits = {"R(retain)": (guide_retain(prepared), 0), "R(D_u)": (forget, 1)}
    for name, (split, gradients) in splits.items():
        # Next to the pass: the gradient formed before it.
        more = 0 if offloads else gradients
        name, kept = f"guide: grad {name}", resident_bytes + more * size
        yield _risk_gradient(prepared, name, count, split, kept, risk)
    name, calls = "guide: PG-effects (jvp)", count * len(forget.batches)
    make = functools.partial(_program, prepared, name, calls, forget, resident_bytes)
    yield make(
        effect_programs.pg_by_jvp,
        (params, forget.batches[0], (params, params), frozen),
        token_options(prepared),
    )


def _formed(
    prepared: Prepared,
    task: Task,
    batches: Sequence[Batch],
    calls: int,
    forget: Split,
    retain: Split,
) -> Iterator[Program]:
    """The passes that form the gradients of both risks and of an objective."""
    measured, tasks = prepared.measured_steps, prepared.tasks
    resident_bytes, term = resident.while_measuring(prepared), task.loss.unlearn
    # At step 0 the objectives of one reduction share theta_0's gradient.
    reductions = {each.loss.unlearn.reduction for each in tasks}
    shared = (len(tasks) - len(reductions)) * (0 in measured)
    passes = len(tasks) * len(measured) - shared
    risk = Risk(prepared.unlearn_model, term.reduction)
    yield _risk_gradient(prepared, "grad R(D_r)", passes, retain, resident_bytes, risk)

    resident_bytes += resident.risk_gradients(prepared)
    name = f"grad R(D_u), grad L of {task.name}"
    make = functools.partial(_program, prepared, name, calls, forget, resident_bytes)
    yield make(*_gradients(prepared, RiskAndObjective(term), batches))


def _gated(
    prepared: Prepared,
    task: Task,
    batches: Sequence[Batch],
    calls: int,
    forget: Split,
    retain: Split,
) -> Iterator[Program]:
    """The pass that forms an objective's gradient, and those that read it through gates."""
    params, frozen = resident.parts(prepared)
    resident_bytes, term = resident.while_measuring(prepared), task.loss.unlearn
    name = f"grad L of {task.name}"
    make = functools.partial(_program, prepared, name, calls, forget, resident_bytes)
    yield make(*_gradients(prepared, effect_programs.SingleLoss(term), batches))
    # Once for the G-effect, once for the update, once for the interval.
    passes = 3 * len(prepared.tasks) * len(prepared.measured_steps)
    for name, split in (("R(D_u)", forget), ("R(D_r)", retain)):
        calls = passes * len(split.batches)
        name = f"G-effect on {name} (gates)"
        make = functools.partial(_program, prepared, name, calls, split, resident_bytes)
        risk = Risk(prepared.unlearn_model, term.reduction)
        static = {"risk_fn": risk, "by": "layer", "grouping": GROUPING}
        yield make(effect_programs.g_by_gates, (params, split.batches[0], params, frozen), static)


def _pg_effects(prepared: Prepared, task: Task, forget: Split, retain: Split) -> Iterator[Program]:
    """The passes for PG-effects along the gradients of both risks.

    They form these gradients themselves where the G-effect goes through gates.
    """
    measure, (params, frozen) = prepared.config.measure, resident.parts(prepared)
    steps = [step for step in measure.pg_steps if step < prepared.steps]
    if not steps:
        return
    resident_bytes = resident.while_measuring(prepared)
    if measure.gradients == "gates":
        risk = Risk(prepared.unlearn_model, task.loss.unlearn.reduction)
        passes, size = len(prepared.tasks) * len(steps), resident.trainable_bytes(prepared)
        # Next to the second pass: the gradient formed before it, which is not parked.
        for kept, (name, split) in enumerate((("R(D_u)", forget), ("R(D_r)", retain))):
            more = resident_bytes + kept * size
            yield _risk_gradient(prepared, f"grad {name}", passes, split, more, risk)

    per_step = len(prepared.tasks) * len(forget.batches)
    args = (params, forget.batches[0], (params, params), frozen)
    by_sample = {"sample", "token"} & set(measure.pg_by)
    forward = [step for step in steps if by_sample or step in measure.token_steps]
    if forward:
        name, calls = "PG-effects (jvp)", per_step * len(forward)
        make = functools.partial(_program, prepared, name, calls, forget, resident_bytes)
        yield make(effect_programs.pg_by_jvp, args, token_options(prepared))
    calls = per_step * len(steps)
    for by in ("layer", "tensor"):
        if by in measure.pg_by:
            name = f"PG-effects by {by} (gates)"
            make = functools.partial(_program, prepared, name, calls, forget, resident_bytes)
            logp = SampleLogProbs(prepared.unlearn_model)
            static = {"fn": logp, "by": by, "grouping": GROUPING}
            yield make(effect_programs.pg_by_gates, args, static)


def token_options(prepared: Prepared) -> dict[str, Any]:
    """The static arguments with which the run calls `pg_by_jvp` for PG-effects by token."""
    logp = TokenLogProbs(prepared.unlearn_model.with_forward_mode())
    return {"fn": logp, "by": "token", "grouping": GROUPING}


def _finetuning(prepared: Prepared, params: Tree) -> Iterator[Program]:
    """The train step and the statistics of fine-tuning.

    The retrained model's step is the same or a little smaller.
    """
    spec, plan = prepared.config.finetune, plan_finetuning(prepared, prepared.finetune)
    tx = optimizer(weight_decay=spec.weight_decay)
    steps, passes = plan.steps, len(fine_tuning_evaluations(spec, len(prepared.finetune)))
    if spec.retrained:
        steps += plan_finetuning(prepared, prepared.retrain).steps
        # Its statistics are taken once more when it is finished.
        passes += len(fine_tuning_evaluations(spec, len(prepared.retrain))) + 1
    resident_bytes = resident.while_fine_tuning(prepared)
    yield Program(
        name="fine-tuning step",
        calls=steps,
        shape=f"{plan.shape.rows} x {plan.shape.width}",
        resident_bytes=resident_bytes,
        mesh=prepared.mesh,
        function=train_step,
        args=(abstract_state(params, tx), prepared.layout.shard_rows(Rows(plan.batch(0))), RATE),
        static={"loss": FineTuning(prepared.model), "tx": tx},
    )
    resident_bytes += resident.MOMENTS * resident.device_bytes(params)
    name = "fine-tuning: statistics"
    yield _statistics(prepared, name, passes, resident_bytes, params, prepared.model)


def _statistics(
    prepared: Prepared,
    name: str,
    passes: int,
    resident_bytes: int,
    params: Tree,
    model: DecoderConfig,
) -> Program:
    """The passes over D_u and D_r for the statistics of both."""
    splits = [prepared.layout.split(s) for s in (prepared.sets.forget, prepared.retain_eval)]
    calls = passes * sum(len(split.batches) for split in splits)
    largest = max(splits, key=lambda split: split.packed[0].tokens.size)
    args = (params, largest.batches[0].packed)
    make = functools.partial(_program, prepared, name, calls, largest, resident_bytes)
    return make(label_statistics, args, {"model": model})


def _risk_gradient(
    prepared: Prepared, name: str, passes: int, split: Split, resident_bytes: int, risk: Risk
) -> Program:
    """The passes over a set that form the gradient of its risk."""
    calls, loss = passes * len(split.batches), effect_programs.SingleLoss(risk)
    make = functools.partial(_program, prepared, name, calls, split, resident_bytes)
    return make(*_gradients(prepared, loss, split.batches))


def _program(
    prepared: Prepared,
    name: str,
    calls: int,
    split: Split,
    resident_bytes: int,
    function: Any,
    args: tuple[Any, ...],
    static: Mapping[str, Any],
) -> Program:
    """A program over the batches of a set."""
    rows, width = split.packed[0].tokens.shape
    shape = f"{rows} x {width}, {packing.real_token_share(split.packed):.0%} real"
    return Program(name, calls, shape, resident_bytes, prepared.mesh, function, args, static)


def _gradients(
    prepared: Prepared, losses: effect_programs.LossesFn, batches: Sequence[Any]
) -> tuple[Any, tuple, dict[str, Any]]:
    """(function, arguments, static arguments) of one batch of `effects.dataset_gradients`.

    Of several batches the sums over those so far are an argument too.
    """
    params, frozen = resident.parts(prepared)
    static = {"losses_fn": losses, "shardings": trees.named_shardings(params)}
    several = len(batches) > 1
    totals = _sums(prepared, params, batches[0], frozen, static) if several else None
    return effect_programs.gradient_sums, (params, batches[0], totals, frozen), static


def _sums(
    prepared: Prepared, params: Tree, batch: Any, frozen: Tree, static: Mapping[str, Any]
) -> Tree:
    """The running sums of gradients as shapes, sharded like the parameters; scalars are not."""
    make = functools.partial(effect_programs.zero_sums, **static)
    with jax.set_mesh(prepared.mesh):
        zeros = jax.eval_shape(make, params, batch, frozen)
    values, counts, gradients = zeros
    everywhere = jax.NamedSharding(prepared.mesh, jax.P())
    scalars = jax.tree.map(lambda _: everywhere, (values, counts))
    like_params = jax.tree.map(lambda x: x.sharding, params)
    shardings = (*scalars, {name: like_params for name in gradients})
    return trees.with_shardings(zeros, shardings)


def _references(prepared: Prepared) -> References:
    """References with the shapes of the run's; their zeros take no memory."""
    params, unlearn = resident.sharded_params(prepared), prepared.config.unlearn

    def compute(name: str, samples: Sequence[Sample], values: Sequence[LabelValue]):
        return _zero_caches(prepared, samples, values)

    return gather_references(params, prepared.tasks, prepared.sets, unlearn, compute)


def _zero_caches(
    prepared: Prepared, samples: Sequence[Sample], values: Sequence[LabelValue]
) -> dict[str, LabelCache]:
    offsets = np.cumsum([0, *(sample.labels for sample in samples)])
    params = resident.sharded_params(prepared)
    rows = prepared.layout.split(samples[:1]).batches[0]
    caches = {}
    for value in values:
        assert value.of_reference is not None
        forward = functools.partial(label_references, model=prepared.unlearn_model, tap=value.tap)
        with jax.set_mesh(prepared.mesh):
            outputs = jax.eval_shape(forward, params, rows.packed)
        found = value.of_reference(outputs)
        zeros = np.broadcast_to(np.zeros((), found.dtype), (offsets[-1], *found.shape[2:]))
        caches[value.name] = LabelCache(zeros, offsets)
    return caches
