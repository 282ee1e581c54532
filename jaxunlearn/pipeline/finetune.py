"""Fine-tuning: trains the model on the data before it is unlearned."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import optax

from jaxunlearn.config import FineTune
from jaxunlearn.core import files, hosts, progress, typed
from jaxunlearn.core.interrupts import Stopped
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import order
from jaxunlearn.data.planning import Sample
from jaxunlearn.measurement.statistics import Splits
from jaxunlearn.models import hf, sharding
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record import manifest, shapes
from jaxunlearn.record.folder import BASE, RunFolder
from jaxunlearn.record.stages import Stages
from jaxunlearn.training.checkpoint import open_checkpoints
from jaxunlearn.training.feed import FineTuneInput, FineTunePlan
from jaxunlearn.training.losses import FineTuning
from jaxunlearn.training.prefetch import Prefetch
from jaxunlearn.training.schedule import (
    fine_tuning_evaluations,
    learning_rates,
    warmup_steps,
)
from jaxunlearn.training.step import Trainer, init_state, optimizer

ES_RISE = 0.01
"""The smallest rise of the forget ES that counts, see `finetune.patience`."""


def plan_finetuning(prepared: Prepared, samples: Sequence[Sample]) -> FineTunePlan:
    """Plans the fine-tuning of a run on some samples."""
    spec = prepared.config.finetune
    steps = order.num_steps(len(samples), spec.batch_size, spec.epochs)
    return FineTunePlan.make(
        samples,
        prepared.layout,
        batch_size=spec.batch_size,
        steps=steps,
        seed=prepared.config.seed,
        stream=order.Stream.FINETUNE,
    )


def finetune(
    prepared: Prepared,
    folder: RunFolder,
    name: str,
    samples: Sequence[Sample],
    splits: Splits,
    stages: Stages,
    *,
    debug_nans: bool = False,
) -> Tree:
    """Fine-tunes the initial model, or reads the model that an earlier start of the run finished.

    Args:
      prepared: the run.
      folder: its folder, which gets the finished model.
      name: of the model: `base`, or `retrained`, which trains for as many epochs as `base` did.
      samples: the samples to train on.
      splits: D_u and D_r, to evaluate on.
      stages: times it, and shows progress.
      debug_nans: whether a loss that is not finite names the operation that is to blame.

    Returns:
      The parameters; the initial ones where the run does not fine-tune.

    Raises:
      FloatingPointError: the loss is no longer finite.
    """
    if not prepared.config.finetune.epochs:
        return prepared.initial()
    if hosts.agreed(folder.model(name).is_dir()):
        if not manifest.holds(folder, name, folder.model(name) / "config.json"):
            _seal(folder, name)
        shardings = sharding.param_shardings(prepared.model, prepared.mesh)
        return hf.load_params(folder.model(name), prepared.model, shardings=shardings)
    return _train(prepared, folder, name, samples, splits, stages, debug_nans)


def _train(
    prepared: Prepared,
    folder: RunFolder,
    name: str,
    samples: Sequence[Sample],
    splits: Splits,
    stages: Stages,
    debug_nans: bool,
) -> Tree:
    """Fine-tunes the initial model, and writes the result, see `finetune`."""
    spec, model = prepared.config.finetune, prepared.model
    minutes = prepared.config.compute.save_minutes
    manifest.open_stage(folder, name)  # a model that was removed is made anew
    # --- the schedule: one static shape for all steps, hence one compilation ---------------------
    plan = plan_finetuning(prepared, samples)
    rates = learning_rates(spec.lr, plan.steps, warmup_steps(spec, len(samples)))
    evaluated = fine_tuning_evaluations(spec, len(samples))
    last = plan.steps if name == BASE else _last_as_base(prepared, folder, plan)
    tx = optimizer(weight_decay=spec.weight_decay)
    with (
        open_checkpoints(folder.finetune_checkpoints(name), minutes=minutes) as checkpoints,
        progress.bar(stages.console, name, last, checkpoints.latest or 0) as bar,
        stages.stage(name) as stage,
        Prefetch[FineTuneInput]() as ahead,
        stage.part("train") as train,
        stages.interrupts.between_steps(),
    ):
        # --- from scratch, or from the newest checkpoint of an interrupted start ------------------
        with stage.part("load"):
            state = checkpoints.newest_or(init_state(prepared.initial(), tx))
        first, trainer = int(state.step), Trainer(state, FineTuning(model), tx)
        del state  # the trainer donates it
        files.cut_back(folder.metrics, name, first)  # records of steps that are done again
        make = partial(plan.placed, layout=prepared.layout, model=model)
        ahead.plan(range(first, last), make)
        for step in range(first, last + 1):
            if step in evaluated or step == last:
                # A state that is not finite is neither saved nor recorded.
                with stage.part("evaluate", after=trainer.state):
                    numbers = splits.statistics(trainer.params, model).summary()
                if step == 0:
                    check_start(numbers, "fine-tuning", "take another model")
                if not math.isfinite(numbers["forget_nll"] + numbers["retain_nll"]):
                    words = _blame(prepared, trainer, tx, make, rates[:step]) if debug_nans else ""
                    raise FloatingPointError(
                        f"{name}: the loss is not finite after {step} steps{words}; lower"
                        f" finetune.lr ({spec.lr}) and start in a new folder"
                    )
                with stage.part("save"):
                    checkpoints.save(step, trainer.state)
                record = {"step": step, "objective": name, **numbers}
                files.append(folder.metrics, record, durable=True)
                bar.advance(step, nll=numbers["forget_nll"], es=numbers["forget_es"])
                if step == last or (name == BASE and _stops(prepared, folder)):
                    break
            stops = stages.interrupts.asked(step)
            if stops or checkpoints.due(step):
                with stage.part("save", after=trainer.state):
                    checkpoints.save(step, trainer.state)
            if stops:
                raise Stopped(f"at step {step} of fine-tuning {name}")
            inputs = ahead.take(step)
            trainer.update(inputs.rows, rates[step])
            train.add(inputs.tokens, inputs.flops)
            bar.advance(step + 1, inputs.tokens)
        train.waiting = ahead.waited
        with stage.part("save"):
            hf.save_params(folder.model(name), trainer.params, model, tokenizer=prepared.tokenizer)
            _seal(folder, name)
    return trainer.params


def check_start(start: Mapping[str, float], before: str, remedy: str) -> None:
    """Ends a run whose model is broken before anything is computed with it.

    Args:
      start: the numbers of the model.
      before: "fine-tuning" or "unlearning".
      remedy: what to do.

    Raises:
      FloatingPointError: a risk is not finite; names the set.
    """
    for split in ("forget", "retain"):
        if not math.isfinite(start[f"{split}_nll"]):
            raise FloatingPointError(
                f"the model before {before} is broken: its NLL on the {split} set is"
                f" {start[f'{split}_nll']}; {remedy}"
            )


def _seal(folder: RunFolder, name: str) -> None:
    """Notes the digests of a finished model and of its evaluations."""
    # All else builds on the base model, so there is no way to make it anew.
    redo = None if name == BASE else folder.model(name)
    manifest.seal(folder, name, [folder.model(name)], redo=redo, before=manifest.ALL_STEPS)


def _blame(
    prepared: Prepared,
    trainer: Trainer,
    tx: optax.GradientTransformation,
    make: Callable[[int], FineTuneInput],
    rates: Sequence[float],
) -> str:
    """Names the operation to blame for a loss that is not finite after some steps.

    They are taken again from the first one: the newest checkpoint may be no longer finite.
    """

    def restart(steps: int) -> Iterator[float]:
        """Takes steps from the initial model; yields the loss before each."""
        del trainer.state  # its memory is needed
        trainer.state = init_state(prepared.initial(), tx)
        for step in range(steps):
            yield float(trainer.update(make(step).rows, rates[step])["loss"])

    losses = enumerate(restart(len(rates)))
    broken = next((step for step, loss in losses if not math.isfinite(loss)), len(rates))
    first = max(broken - 1, 0)
    for _ in restart(first):
        pass
    steps = range(first, min(broken + 1, len(rates)))
    return ": " + trainer.blame((make(step).rows, rates[step]) for step in steps)


def _stops(prepared: Prepared, folder: RunFolder) -> bool:
    """Whether the fine-tuning of the base model stops at this evaluation.

    The decision depends on the recorded evaluations only, so a resumed run decides as the first
    start did. The first process, which writes them, decides, and the others get its decision.
    """
    stops = False
    if hosts.is_first():
        stops = has_learned(_evaluations(folder, BASE), prepared.config.finetune)
    return hosts.agreed(stops)


def _last_as_base(prepared: Prepared, folder: RunFolder, plan: FineTunePlan) -> int:
    """The step at which a model has seen its samples as often as the base model its own."""
    steps = 0
    if hosts.is_first():
        evaluations = _evaluations(folder, BASE)
        if not evaluations:
            raise ValueError(
                f"{folder.metrics}: holds no evaluation of the base model, which says how long it"
                " learned; put the file back, or start with --overwrite"
            )
        steps = evaluations[-1]["step"]
    steps, spec, samples = hosts.agreed(steps), prepared.config.finetune, len(prepared.finetune)
    if steps >= order.num_steps(samples, spec.batch_size, spec.epochs):
        return plan.steps
    return max(steps * len(plan.samples) // samples, 1)


def _evaluations(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    """The recorded evaluations of the fine-tuning of a model."""
    records = files.records(folder.metrics, files.StepRecord)
    evaluations = [record for record in records if record["objective"] == name]
    for record in evaluations:
        where = f"{folder.metrics}: step {record['step']} of {name}"
        typed.check(record, shapes.Learned, where)
    return evaluations


def has_learned(evaluations: list[dict[str, Any]], spec: FineTune) -> bool:
    """Whether a model has reached `target_nll`, or has stopped improving for `patience`.

    Args:
      evaluations: of this fine-tuning so far, the newest last.
      spec: the section `finetune` of the configuration.
    """
    newest = evaluations[-1]
    worse = max(newest["forget_nll"], newest["retain_nll"])
    if spec.target_nll is not None and worse < spec.target_nll:
        return True
    if spec.patience is None or len(evaluations) <= spec.patience:
        return False
    strengths = [evaluation["forget_es"] for evaluation in evaluations]
    return max(strengths[-spec.patience :]) < max(strengths[: -spec.patience]) + ES_RISE
