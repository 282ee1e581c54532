"""Checks across data, model and configuration, before the first computation.

`config.validate` checks every value by itself. This module refuses combinations of values that
would stop a run halfway, and settings that would have no effect.
"""

from jaxunlearn.config import FineTune, Objective, Unlearn
from jaxunlearn.core.limits import STEPS
from jaxunlearn.data import order
from jaxunlearn.data.planning import Sample
from jaxunlearn.models import decoder, sharding
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.training.schedule import learning_rates, warmup_steps
from jaxunlearn.training.tasks import Task, settings_of


def check(prepared: Prepared) -> None:
    """Refuses a run that would stop halfway, or that has settings without effect.

    Raises:
      ValueError: the first problem; names the key and the values that are possible.
    """
    sharding.param_shardings(prepared.unlearn_model, prepared.mesh)
    _check_attention(prepared)
    _check_samples(prepared)
    _check_schedules(prepared)
    _check_measurements(prepared)
    _check_substitutes(prepared)
    for task in prepared.tasks:
        _check_unused(task, prepared.config.objectives[task.name])


def _check_attention(prepared: Prepared) -> None:
    """Checks that the devices have the attention kernel."""
    platform = prepared.mesh.devices.flat[0].platform
    if prepared.config.compute.attention == "cudnn" and platform not in ("gpu", "cuda"):
        raise ValueError(
            f"compute.attention: cudnn needs an NVIDIA GPU, and the device is a {platform}; set it"
            " to xla"
        )


def _check_samples(prepared: Prepared) -> None:
    """Checks that every training has at least one batch."""
    config, forget = prepared.config, len(prepared.sets.forget)
    if prepared.steps < 1 or forget < config.unlearn.batch_size:
        raise ValueError(
            f"unlearn.batch_size: {config.unlearn.batch_size} is more than the {forget} samples of"
            f" data.forget ({config.data.forget!r})"
        )
    if not config.finetune.epochs:
        return
    sets = {"finetune.splits": prepared.finetune}
    if config.finetune.retrained:
        sets["finetune.retrained (finetune.splits without data.forget)"] = prepared.retrain
    for key, samples in sets.items():
        size = config.finetune.batch_size
        if not samples or order.num_steps(len(samples), size, 1) < 1:
            raise ValueError(
                f"{key}: {len(samples)} samples make no batch of {size}; lower the batch size,"
                " or give more samples"
            )


def _check_schedules(prepared: Prepared) -> None:
    """Checks that steps can be planned, and that some step moves the model.

    Warm-up begins at a learning rate of 0.
    """
    config = prepared.config
    trainings: list[tuple[str, Unlearn | FineTune, list[Sample]]] = [
        ("unlearn", config.unlearn, prepared.sets.forget)
    ]
    if config.finetune.epochs:
        trainings.append(("finetune", config.finetune, prepared.finetune))
        if config.finetune.retrained:
            trainings.append(("finetune", config.finetune, prepared.retrain))
    for key, spec, samples in trainings:
        steps = order.num_steps(len(samples), spec.batch_size, spec.epochs)
        if steps > STEPS:
            raise ValueError(
                f"{key}.epochs: {spec.epochs} make {steps:,} steps of {spec.batch_size} samples,"
                f" at most {STEPS:,} are possible"
            )
        rates = learning_rates(spec.lr, steps, warmup_steps(spec, len(samples)))
        # Only the first step of a warm-up has a rate of 0, so the last step tells.
        if not rates[-1] > 0:
            raise ValueError(
                f"{key}.warmup_epochs: {spec.warmup_epochs} leaves a learning rate of 0 in all"
                f" {steps} steps with {len(samples)} samples; set it to 0, or make more steps"
            )


def _check_measurements(prepared: Prepared) -> None:
    """Checks that the measured steps and layers exist."""
    measure, steps = prepared.config.measure, prepared.steps
    blocks = [f"block_{i}" for i in range(prepared.model.num_layers)]
    try:
        decoder.layer_groups(blocks, measure.layer_cuts)
    except ValueError as error:
        raise ValueError(f"measure.layer_cuts: {error}") from error
    beyond = [step for step in measure.steps or () if step >= steps]
    if beyond:
        raise ValueError(f"measure.steps: {beyond[0]} must be in 0..{steps - 1}, the run's steps")


def _check_substitutes(prepared: Prepared) -> None:
    """Checks that every substitute answer that the run draws fits the context."""
    if all("substitute" not in task.needs for task in prepared.tasks):
        return
    draws, context = prepared.sets.refusal_draws(prepared.config.unlearn), prepared.model.context
    long = [(i, len(s.tokens)) for (i, _), s in draws.items() if len(s.tokens) > context]
    if long:
        raise ValueError(
            f"{len(long)} substitute answers do not fit the context of {context} tokens with their"
            f" questions; first (forget row, length): {long[:5]}; leave out po and dpo, or shorten"
            " the refusals"
        )


def _check_unused(task: Task, spec: Objective) -> None:
    """Refuses a setting that differs from its default where the objective does not read it."""
    terms = [term for term in (task.loss.unlearn, task.retain) if term is not None]
    arrays = {array for term in terms for array in term.objective.arrays}
    read = {*settings_of(arrays)}
    read |= {"retain_weight"} if spec.retain is not None and spec.spare is None else set()
    defaults = Objective()
    for field in ("scale", "unit_norm", "layer", "guide", "retain_weight"):
        if field not in read and getattr(spec, field) != getattr(defaults, field):
            reason = f"{task.loss.unlearn.objective.name} does not use it"
            if field == "retain_weight":
                reason = "needs a retain term" if spec.retain is None else "spare does not use it"
            raise ValueError(f"objectives.{task.name}.{field}: {reason}")
