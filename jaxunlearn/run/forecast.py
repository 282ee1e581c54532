"""What a run will need, before it runs: bytes per device and FLOPs of each of its programs.

The run's own functions are compiled for abstract parameters, sharded over as many devices as the
configuration asks for, real or not. Weights are neither read nor allocated.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import effects
from jaxunlearn.config import Config
from jaxunlearn.data import packing
from jaxunlearn.effects import directions, trees
from jaxunlearn.effects.forecast import Forecast
from jaxunlearn.effects.pg_effect import by_jvp
from jaxunlearn.models import architecture, known, sharding
from jaxunlearn.run import feed, learn, measure, prepare
from jaxunlearn.run import step as step_lib
from jaxunlearn.run.batches import LabelCache, place
from jaxunlearn.run.losses import FineTuning, Risk, RiskAndObjective, TokenLogProbs
from jaxunlearn.run.prepare import Prepared, Task

Tree = Any

# TOFU with the Llama-2 tokenizer: rows of a split, and tokens and labels of a row.
SPLITS = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain90": 3600,
    "retain95": 3800,
    "retain99": 3960,
    "retain_perturbed": 400,
}
MEAN, SPREAD, SHORTEST, LONGEST, LABELS = 71, 16, 33, 121, 0.6


class Program(NamedTuple):
    """One compiled function of a run."""

    name: str
    calls: int
    shape: str  # of its batch, or ""
    cost: Forecast
    beside: int  # bytes per device that the run holds beside it

    @property
    def moment(self) -> int:
        """Bytes per device while it runs."""
        return self.cost.peak + self.beside


def sketch(config: Config, devices: Sequence[Any] | None = None) -> Prepared:
    """A run of which only shapes are known: from its files where they are here, else assumed.

    Args:
      config: the run.
      devices: of the mesh; default: all.

    Returns:
      Prepared; `notes` say what is assumed.

    Raises:
      ValueError, FileNotFoundError: as `prepare`, or a model or split of unknown size.
    """
    has_model = config.model is None or Path(config.model).expanduser().is_dir()
    has_data = config.data.source == "fictional" or Path(config.data.source).exists()
    if has_model and has_data:
        return prepare.prepare(config, devices)
    if config.model is None:
        raise ValueError("model: a new model is sized by its data; give a local data.source")
    mesh = prepare.make_mesh(config, devices)
    model = known.shape(config.model, prepare.compute_options(config))
    data, spec = config.data, config.finetune
    forget, finetune = _assumed(data.forget), [s for n in spec.splits for s in _assumed(n)]
    kept = any(o.retain is not None for o in config.objectives.values())
    stand_in = _sequence(MEAN)
    return Prepared(
        config=config,
        mesh=mesh,
        tokenizer=None,
        model=model,
        initial=lambda: None,
        forget=forget,
        retain=_assumed(data.retain) if kept else [],
        measured=_assumed(data.measured_retain),
        finetune=finetune,
        retrain=finetune[len(forget) :] if spec.retrained else [],
        refusals=prepare.Refusals(
            [{"question": ""}] * len(forget), [""], lambda *_: stand_in, config.seed
        ),
        tasks=tuple(
            prepare.make_task(name, spec, model, config) for name, spec in config.objectives.items()
        ),
        notes=(
            f"{config.model}: shape from its name; lengths assumed as TOFU's with the Llama-2"
            f" tokenizer (mean {MEAN} tokens, {LABELS:.0%} of them labels)",
        ),
    )


def programs(prepared: Prepared) -> Iterator[Program]:
    """Every program of a run, in the order it comes up; each is compiled when it is asked for."""
    yield from learning(prepared)
    yield from training(prepared, prepared.tasks)
    yield from measuring(prepared)


def learning(prepared: Prepared) -> Iterator[Program]:
    """Fine-tuning, and the pass that caches the reference."""
    with jax.set_mesh(prepared.mesh):
        params = abstract_params(prepared)
        if prepared.config.finetune.epochs:
            yield _finetuning(prepared, params)
        split = feed.make_split(prepared, prepared.forget, {})
        options = {"model": prepared.model, "tap": None}
        packed = abstract(split.placed[0]["packed"])
        cost = effects.forecast(feed.label_references, params, packed, **options)
        yield Program("reference pass", len(split.placed), _split_shape(split), cost, 0)


def training(prepared: Prepared, tasks: tuple[Task, ...]) -> Iterator[Program]:
    """The train step of each objective.

    Beside it the run holds theta_0, and from one measurement to the next theta_t and the gradients
    of both risks.
    """
    with jax.set_mesh(prepared.mesh):
        params, references = abstract_params(prepared), _references(prepared)
        steps = prepare.steps_of(prepared.config, len(prepared.forget))
        measured = bool(prepare.measured_steps(prepared.config, steps))
        beside = device_bytes(params) * (4 if measured else 1)
        for task in tasks:
            yield _training(prepared, task, references, params, beside)


def measuring(prepared: Prepared) -> Iterator[Program]:
    """What a measurement runs; beside it the run holds theta_0, the moments, and gradients."""
    config, model = prepared.config, prepared.model
    points = prepare.measured_steps(config, prepare.steps_of(config, len(prepared.forget)))
    if not points:
        return
    with jax.set_mesh(prepared.mesh):
        params, references = abstract_params(prepared), _references(prepared)
        size, task = device_bytes(params), prepared.tasks[0]
        forget = feed.make_split(prepared, prepared.forget, references.forget)
        retain = feed.make_split(prepared, prepared.measured, {})
        paired = feed.Feed(prepared, task, references).measured(forget)
        count = len(prepared.tasks) * len(points)
        packed = abstract(retain.placed[0]["packed"])
        cost = effects.forecast(measure.label_statistics, params, packed, model=model)
        passes = count * (len(retain.placed) + len(forget.placed))
        yield Program("statistics", passes, _split_shape(retain), cost, 3 * size)
        risk = directions.Single(Risk(model, task.loss.term.reduction))
        cost = _gradient(params, risk, retain.placed[0])
        calls = count * len(retain.placed)
        yield Program("grad R(D_r)", calls, _split_shape(retain), cost, 3 * size)
        cost = _gradient(params, RiskAndObjective(task.loss.term), paired[0])
        name = f"grad R(D_u), grad L of {task.name}"
        yield Program(name, count * len(paired), _split_shape(forget), cost, 4 * size)
        options = pg_options(prepared)
        cost = effects.forecast(
            by_jvp, params, abstract(forget.placed[0]), (params, params), **options
        )
        calls = len(prepared.tasks) * len(config.measure.pg_steps) * len(forget.placed)
        yield Program("PG-effects (jvp)", calls, _split_shape(forget), cost, 4 * size)


def pg_options(prepared: Prepared) -> dict[str, Any]:
    """How the run computes PG-effects, as static arguments of `by_jvp`."""
    logp = TokenLogProbs(dataclasses.replace(prepared.model, attention="xla"))
    return {"fn": logp, "by": "token", "stacked": ("blocks",)}


def _finetuning(prepared: Prepared, params: Tree) -> Program:
    spec, lessons = prepared.config.finetune, learn.plan_lessons(prepared, prepared.finetune)
    batch = place({"retain": {"packed": lessons.batch(0)}}, prepared.mesh)
    tx = _optimizer(spec.weight_decay)
    cost = effects.forecast(
        step_lib.train_step,
        step_lib.abstract(params, tx),
        abstract(batch),
        loss=FineTuning(prepared.model),
        tx=tx,
    )
    shape = _shape(lessons.plan.rows, lessons.plan.width)
    return Program("fine-tuning step", lessons.steps, shape, cost, 0)


def _training(
    prepared: Prepared, task: Task, references: feed.References, params: Tree, beside: int
) -> Program:
    fed = feed.Feed(prepared, task, references)
    batch, _, share = fed.step(0)
    tx = _optimizer(prepared.config.unlearn.weight_decay, prepared.config.unlearn.clip_norm)
    state = step_lib.abstract(params, tx)
    cost = effects.forecast(step_lib.train_step, state, abstract(batch), loss=task.loss, tx=tx)
    rows, width = batch["forget"]["packed"].tokens.shape
    shape = f"{_shape(rows, width)}, {share:.0%} real"
    return Program(f"{task.name}: step", fed.steps, shape, cost, beside)


def _gradient(params: Tree, losses: Any, batch: Tree) -> Forecast:
    return effects.forecast(
        directions.gradient_sums,
        params,
        abstract(batch),
        losses_fn=losses,
        shardings=trees.named_shardings(params),
    )


def abstract(tree: Tree) -> Tree:
    """Shapes, dtypes and shardings of arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
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
        head=feed.reference_head(params),
        forget=caches(prepared.forget, feed.reference_keys(terms)),
        retain=caches(prepared.retain, feed.reference_keys(kept)),
        substitute=caches(substitutes, {"ref_logp"})["ref_logp"],
        pairs=pairs,
    )


def _optimizer(weight_decay: float, clip_norm: float | None = None) -> Any:
    return step_lib.optimizer(lambda _: 1e-5, weight_decay=weight_decay, clip_norm=clip_norm)


def _assumed(split: str) -> list[packing.Sequence]:
    if split not in SPLITS:
        raise ValueError(
            f"{split}: how many rows it has is not known; give a local data.source, or one of"
            f" TOFU's splits: {', '.join(SPLITS)}"
        )
    draw = np.random.default_rng(0).normal(MEAN, SPREAD, SPLITS[split])
    return [_sequence(int(n)) for n in np.clip(draw, SHORTEST, LONGEST)]


def _sequence(tokens: int) -> packing.Sequence:
    return packing.Sequence(np.ones(tokens, np.int32), tokens - int(LABELS * tokens))


def _split_shape(split: measure.Split) -> str:
    rows, width = split.packed[0].tokens.shape
    return f"{_shape(rows, width)}, {packing.real_token_share(split.packed):.0%} real"


def _shape(rows: int, width: int) -> str:
    return f"{rows} x {width}"
