"""Fine-tuning: what teaches the model the data before it is unlearned."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from jaxunlearn.data import order, packing
from jaxunlearn.models import hf, sharding
from jaxunlearn.run import hosts, measure, progress, summary, tables
from jaxunlearn.run import step as step_lib
from jaxunlearn.run.checkpoint import open_checkpoints
from jaxunlearn.run.losses import FineTuning
from jaxunlearn.run.measure import Split
from jaxunlearn.run.prepare import Prepared

Tree = Any


class Lessons(NamedTuple):
    """What fine-tuning sees: pure functions of the step."""

    steps: int  # at most
    plan: packing.Plan
    batch: Callable[[int], packing.Packed]


def plan_lessons(prepared: Prepared, sequences: list[packing.Sequence]) -> Lessons:
    """The steps of fine-tuning on `sequences`, in one static shape."""
    spec, count = prepared.config.finetune, len(sequences)
    steps = order.num_steps(count, spec.batch_size, spec.epochs)
    draw = lambda step: order.batch_ids(prepared.config.seed, step, count, spec.batch_size)
    plan = packing.plan_steps(
        sequences,
        [draw(step) for step in range(steps)],
        max_width=prepared.model.context,
        row_multiple=prepared.row_multiple,
        width_step=prepared.config.compute.width_step,
    )
    return Lessons(steps, plan, lambda step: packing.pack_step(sequences, draw(step), plan))


def learn(
    prepared: Prepared,
    out: Path,
    name: str,
    sequences: list[packing.Sequence],
    watched: dict[str, Split],
    console: Console,
) -> Tree:
    """Fine-tunes the initial model, or reads the result; `retrained` trains as long as `base`."""
    spec, model = prepared.config.finetune, prepared.model
    if not spec.epochs:
        return prepared.initial()
    if hosts.agreed((out / name).is_dir()):
        shardings = sharding.param_shardings(model, prepared.mesh)
        return hf.load_params(out / name, model, shardings=shardings)
    per_epoch = order.num_steps(len(sequences), spec.batch_size, 1)
    lessons = plan_lessons(prepared, sequences)
    steps = lessons.steps
    lr = step_lib.schedule(spec.lr, steps, round(spec.warmup_epochs * per_epoch))
    tx = step_lib.optimizer(lr, weight_decay=spec.weight_decay)
    loss, log = FineTuning(model), out / "metrics.jsonl"
    with (
        open_checkpoints(out / "finetune" / name) as checkpoints,
        progress.bar(console, name, steps, checkpoints.latest or 0) as bar,
        tables.timed(out, name),
    ):
        state = step_lib.init(prepared.initial(), tx)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        first = int(state.step)
        tables.cut_back(log, name, first)
        for step in range(first, steps + 1):
            if step % (per_epoch * spec.evaluate_every) == 0 or step == steps:
                checkpoints.save(step, state)
                found = summary.evaluation(*measure.evaluate(state.params, watched, prepared.model))
                tables.append(log, {"step": step, "objective": name, **found})
                bar.advance(step, nll=found["forget_nll"], es=found["forget_es"])
                if not math.isfinite(found["forget_nll"]):
                    raise FloatingPointError(
                        f"{name}: the loss is not finite after {step} steps; lower finetune.lr"
                        f" ({spec.lr}) and start in a new folder"
                    )
                if step == steps or hosts.agreed(_learned(prepared, out, name, step, per_epoch)):
                    break
            packed = lessons.batch(step)
            batch = prepared.place({"retain": {"packed": packed}})
            state, _ = step_lib.train_step(state, batch, loss=loss, tx=tx)
            bar.advance(step + 1, int((packed.segments >= 0).sum()))
        hf.save_params(out / name, state.params, model, tokenizer=prepared.tokenizer)
    return state.params


def _learned(prepared: Prepared, out: Path, name: str, step: int, per_epoch: int) -> bool:
    """Whether fine-tuning stops at this evaluation; a function of the recorded evaluations.

    The first process knows: it writes them.
    """
    if not hosts.is_first():
        return False
    spec = prepared.config.finetune
    log = tables.records(out / "metrics.jsonl")
    if name == "retrained":
        epochs = max(r["step"] for r in log if r["objective"] == "base") / order.num_steps(
            len(prepared.finetune), spec.batch_size, 1
        )
        return step >= round(epochs) * per_epoch
    seen = [r for r in log if r["objective"] == name]
    last = seen[-1]
    if (
        spec.target_nll is not None
        and max(last["forget_nll"], last["retain_nll"]) < spec.target_nll
    ):
        return True
    if spec.patience is None or len(seen) <= spec.patience:
        return False
    earlier = max(r["forget_es"] for r in seen[: -spec.patience])
    return max(r["forget_es"] for r in seen[-spec.patience :]) < earlier + 0.01
