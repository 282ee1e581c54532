"""What a run will need, before it runs: bytes per device and FLOPs of each of its programs.

The run's own functions are compiled for abstract parameters, sharded over as many devices as the
configuration asks for, real or not. Weights are neither read nor allocated.
"""

import dataclasses
import functools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxunlearn.data import packing
from jaxunlearn.effects import directions, trees
from jaxunlearn.effects.forecast import Forecast, of_compiled
from jaxunlearn.effects.pg_effect import by_jvp
from jaxunlearn.models import architecture, sharding
from jaxunlearn.run import feed, guide, learn, measure, prepare
from jaxunlearn.run import step as step_lib
from jaxunlearn.run.batches import LabelCache
from jaxunlearn.run.losses import FineTuning, Risk, RiskAndObjective, TokenLogProbs
from jaxunlearn.run.prepare import Prepared, Task

Tree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """One function of a run, compiled when its cost is asked for."""

    name: str
    calls: int
    shape: str  # of its batch, or ""
    beside: int  # bytes per device that the run holds beside it
    mesh: jax.sharding.Mesh  # its devices need not be there
    step: Any  # jitted
    args: tuple[Any, ...]  # abstract
    static: dict[str, Any]

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiler's result for the devices of the mesh."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(*self.args, **self.static).compile()

    @functools.cached_property
    def cost(self) -> Forecast:
        """Bytes and FLOPs of one call."""
        compiled = self.compiled
        with jax.set_mesh(self.mesh):
            return of_compiled(compiled, self.step, *self.args, **self.static)

    @property
    def moment(self) -> int:
        """Bytes per device while it runs."""
        return self.cost.peak + self.beside


def programs(prepared: Prepared) -> Iterator[Program]:
    """Every program of a run, in the order it comes up."""
    yield from learning(prepared)
    yield from training(prepared, prepared.tasks)
    yield from measuring(prepared)
    yield from guiding(prepared)


def learning(prepared: Prepared) -> Iterator[Program]:
    """Fine-tuning, and the pass that caches the reference."""
    params = abstract_params(prepared)
    if prepared.config.finetune.epochs:
        yield _finetuning(prepared, params)
    split = feed.make_split(prepared, prepared.forget, {})
    yield Program(
        "reference pass",
        len(split.placed),
        _split_shape(split),
        0,
        prepared.mesh,
        feed.label_references,
        (params, split.placed[0]["packed"]),
        {"model": prepared.model, "tap": None},
    )


def training(prepared: Prepared, tasks: tuple[Task, ...]) -> Iterator[Program]:
    """The train step of each objective.

    Beside it the run holds theta_0, and from one measurement to the next theta_t and the gradients
    of both risks; with `compute.offload` they wait on the host.
    """
    params, references = abstract_params(prepared), _references(prepared)
    for task in tasks:
        yield _training(prepared, task, references, params)


def measuring(prepared: Prepared) -> Iterator[Program]:
    """What a measurement runs; beside it the run holds theta_0, the moments, and gradients.

    Of the objectives, the first that takes a backward pass of its own stands for all.
    """
    config, points = prepared.config, _points(prepared)
    if not points:
        return
    params, references = abstract_params(prepared), _references(prepared)
    size, rest = device_bytes(params), idle(prepared)
    own = [task for task in prepared.tasks if not task.loss.term.loss.ascends]
    task = (*own, *prepared.tasks)[0]
    term = task.loss.term
    forget = feed.make_split(prepared, prepared.forget, references.forget)
    retain = feed.make_split(prepared, prepared.measured, {})
    paired = feed.Feed(prepared, task, references).measured(forget)
    count, splits = len(prepared.tasks) * points, (retain, forget)

    def program(name: str, calls: int, split: measure.Split, beside: int, step: Any, *args: Any):
        shape = _split_shape(split)
        return partial(Program, name, calls, shape, beside, prepared.mesh, step, (params, *args))

    calls, beside = count * sum(len(s.placed) for s in splits), 2 * size + remembered(prepared)
    step, packed = measure.label_statistics, retain.placed[0]["packed"]
    yield program("statistics", calls, retain, beside, step, packed)({"model": prepared.model})

    step, shardings = directions.gradient_sums, trees.named_shardings(params)
    sums = size if len(retain.placed) > 1 else 0  # of the batches before
    calls, losses = (
        count * len(retain.placed),
        directions.Single(Risk(prepared.model, term.reduction)),
    )
    static: dict[str, Any] = {"losses_fn": losses, "shardings": shardings}
    yield program("grad R(D_r)", calls, retain, rest + sums, step, retain.placed[0])(static)

    gradients = 1 if term.loss.ascends else 2
    sums = gradients * size if len(paired) > 1 else 0
    kept = 0 if config.compute.offload else size  # grad R(D_r)
    name, calls = f"grad R(D_u), grad L of {task.name}", count * len(paired)
    static = {"losses_fn": RiskAndObjective(term), "shardings": shardings}
    yield program(name, calls, forget, rest + sums + kept, step, paired[0])(static)

    calls = len(prepared.tasks) * len(config.measure.pg_steps) * len(forget.placed)
    along = forget.placed[0], (params, params)
    yield program("PG-effects (jvp)", calls, forget, rest, by_jvp, *along)(pg_options(prepared))


def guiding(prepared: Prepared) -> Iterator[Program]:
    """What a refresh of guided weights runs, beside all that the run remembers and the moments."""
    tasks = [task for task in prepared.tasks if "guide" in task.needs]
    if not tasks:
        return
    params, offloads = abstract_params(prepared), prepared.config.compute.offload
    size, count = device_bytes(params), sum(len(guide.refreshes(prepared, t)) for t in tasks)
    beside = 0 if offloads else remembered(prepared) + 2 * size
    losses = directions.Single(Risk(prepared.model, tasks[0].loss.term.reduction))
    static: dict[str, Any] = {"losses_fn": losses, "shardings": trees.named_shardings(params)}
    forget = feed.make_split(prepared, prepared.forget, _references(prepared).forget)

    def program(name: str, split: measure.Split, more: int, step: Any, *args: Any, **options: Any):
        calls, shape = count * len(split.placed), _split_shape(split)
        where = calls, shape, beside + more * size, prepared.mesh
        return Program(f"guide: {name}", *where, step, (params, *args), options)

    for name, split, waiting in (("R(retain)", guide.spared(prepared), 0), ("R(D_u)", forget, 1)):
        before = (len(split.placed) > 1) + (0 if offloads else waiting)  # sums, the other gradient
        batch = split.placed[0]
        yield program(f"grad {name}", split, before, directions.gradient_sums, batch, **static)
    along = forget.placed[0], (params, params)
    yield program("PG-effects (jvp)", forget, 0, by_jvp, *along, **pg_options(prepared))


def remembered(prepared: Prepared) -> int:
    """Bytes per device of what a run remembers between measurements beside its state.

    That is theta_0 and, where it measures, theta_t, the gradients of both risks, and grad R(D_r) at
    theta_0, which serves all objectives of one reduction.
    """
    if prepared.config.compute.offload:
        return 0
    return _remembered(prepared) * device_bytes(abstract_params(prepared))


def idle(prepared: Prepared) -> int:
    """Bytes per device that only wait while a measurement runs.

    These are theta_0, the moments, and grad R(D_r) at theta_0.
    """
    if prepared.config.compute.offload:
        return 0
    return (3 + len(_reductions(prepared))) * device_bytes(abstract_params(prepared))


def host_bytes(prepared: Prepared) -> int:
    """Bytes of one device's share of what waits in host memory, at most."""
    if not prepared.config.compute.offload:
        return 0
    # While a measurement runs: theta_0, both moments, one gradient and those at theta_0: as many.
    # Weights are also refreshed between measurements: then both moments and a gradient come on top.
    more = 3 if any("guide" in task.needs for task in prepared.tasks) else 0
    return (_remembered(prepared) + more) * device_bytes(abstract_params(prepared))


def disk_bytes(prepared: Prepared) -> int:
    """Bytes on disk at most: a state is parameters and both moments in float32.

    They are the checkpoints kept of each objective and the one being written, fine-tuned models and
    the last state of each fine-tuning.
    """
    config, tasks = prepared.config, len(prepared.tasks)
    sizes = jax.tree.leaves(architecture.abstract_params(prepared.model))
    params = sum(x.size * x.dtype.itemsize for x in sizes)
    tuned = bool(config.finetune.epochs) + config.finetune.retrained
    states = tasks * config.unlearn.keep_checkpoints + tuned + 1
    return params * (3 * states + tuned)


def _remembered(prepared: Prepared) -> int:
    return 4 + len(_reductions(prepared)) if _points(prepared) else 1


def _reductions(prepared: Prepared) -> set[str]:
    return {task.loss.term.reduction for task in prepared.tasks}


def _points(prepared: Prepared) -> int:
    """Measurements of one objective."""
    steps = prepare.steps_of(prepared.config, len(prepared.forget))
    return len(prepare.measured_steps(prepared.config, steps))


def pg_options(prepared: Prepared) -> dict[str, Any]:
    """How the run computes PG-effects, as static arguments of `by_jvp`."""
    logp = TokenLogProbs(dataclasses.replace(prepared.model, attention="xla"))
    return {"fn": logp, "by": "token", "stacked": ("blocks",)}


def _finetuning(prepared: Prepared, params: Tree) -> Program:
    spec, lessons = prepared.config.finetune, learn.plan_lessons(prepared, prepared.finetune)
    batch = prepared.place({"retain": {"packed": lessons.batch(0)}})
    tx = step_lib.optimizer(_rate, weight_decay=spec.weight_decay)
    return Program(
        "fine-tuning step",
        lessons.steps,
        _shape(lessons.plan.rows, lessons.plan.width),
        0,
        prepared.mesh,
        step_lib.train_step,
        (step_lib.abstract(params, tx), batch),
        {"loss": FineTuning(prepared.model), "tx": tx},
    )


def _training(prepared: Prepared, task: Task, references: feed.References, params: Tree) -> Program:
    fed = feed.Feed(prepared, task, references)
    batch, _, share = fed.step(0)
    spec = prepared.config.unlearn
    options: Any = {"weight_decay": spec.weight_decay, "clip_norm": spec.clip_norm}
    tx = step_lib.optimizer(_rate, spare=task.spare, **options)
    parts = spec.accumulate
    rows, width = batch["forget"]["packed"].tokens.shape[-2:]
    shape = f"{_shape(rows, width)}, {share:.0%} real"
    return Program(
        f"{task.name}: step",
        fed.steps,
        f"{parts} parts of {shape}" if parts > 1 else shape,
        remembered(prepared),
        prepared.mesh,
        step_lib.train_step,
        (step_lib.abstract(params, tx), batch),
        {"loss": task.loss, "tx": tx, "accumulate": parts},
    )


def abstract_params(prepared: Prepared) -> Tree:
    """The parameters as shapes on the run's mesh."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        architecture.abstract_params(prepared.model),
        sharding.param_shardings(prepared.model, prepared.mesh),
    )


def device_bytes(params: Tree) -> int:
    """Bytes of sharded parameters on one device."""
    sizes = jax.tree.map(
        lambda x: int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize, params
    )
    return sum(jax.tree.leaves(sizes))


def _references(prepared: Prepared) -> feed.References:
    """Caches of the right shapes that hold zeros, and take no memory."""
    width = prepared.model.hidden_size

    def caches(sequences: list[packing.Sequence], keys: set[str]) -> dict[str, LabelCache]:
        counts = [len(s.tokens) - s.first_label for s in sequences]
        offsets = np.cumsum([0, *counts])
        zero = np.zeros((), np.float32)
        shapes = {k: (offsets[-1], *([] if k == "ref_logp" else [width])) for k in keys}
        return {k: LabelCache(np.broadcast_to(zero, x), offsets) for k, x in shapes.items()}

    terms = [task.loss.term for task in prepared.tasks]
    kept = [task.loss.retain for task in prepared.tasks if task.loss.retain]
    pairs, substitutes = feed.drawn_pairs(prepared)
    params = abstract_params(prepared)
    return feed.References(
        head=feed.reference_head(params, [*terms, *kept]),
        forget=caches(prepared.forget, feed.reference_keys(terms)),
        retain=caches(prepared.retain, feed.reference_keys(kept)),
        substitute=caches(substitutes, {"ref_logp"})["ref_logp"],
        pairs=pairs,
    )


def _rate(_: Any) -> float:
    return 1e-5


def _split_shape(split: measure.Split) -> str:
    rows, width = split.packed[0].tokens.shape
    return f"{_shape(rows, width)}, {packing.real_token_share(split.packed):.0%} real"


def _shape(rows: int, width: int) -> str:
    return f"{rows} x {width}"
