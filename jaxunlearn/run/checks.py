"""What can be wrong with a run although each of its values reads well."""

from jaxunlearn import config as config_lib
from jaxunlearn.data import order
from jaxunlearn.effects import layers
from jaxunlearn.models import sharding
from jaxunlearn.run.feed import drawn_pairs
from jaxunlearn.run.prepare import Prepared, steps_of


def check(prepared: Prepared) -> None:
    """Finds before the first computation what would stop the run in its middle.

    Raises:
      ValueError: the first thing found; names the key, and what would do.
    """
    _counts(prepared.config)
    sharding.param_shardings(prepared.model, prepared.mesh)
    _steps(prepared)
    _measurements(prepared)
    _substitutes(prepared)
    for name, spec in prepared.config.objectives.items():
        _unused(name, spec, prepared)


def _counts(config: config_lib.Config) -> None:
    sizes = {
        "finetune.batch_size": config.finetune.batch_size,
        "finetune.evaluate_every": config.finetune.evaluate_every,
        "unlearn.batch_size": config.unlearn.batch_size,
        "unlearn.epochs": config.unlearn.epochs,
        "unlearn.accumulate": config.unlearn.accumulate,
        "unlearn.keep_checkpoints": config.unlearn.keep_checkpoints,
        "compute.batch_tokens": config.compute.batch_tokens,
        "compute.width_step": config.compute.width_step,
    }
    guides = {f"objectives.{n}.guide": spec.guide for n, spec in config.objectives.items()}
    sizes |= {f"{key}.every": guide.every for key, guide in guides.items()}
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"{key}: {value} must be at least 1")
    for key, value in {
        "finetune.epochs": config.finetune.epochs,
        "measure.every": config.measure.every,
        "seed": config.seed,
        **{f"{key}.penalty": guide.penalty for key, guide in guides.items()},
        **{f"{key}.power": guide.power for key, guide in guides.items()},
    }.items():
        if value < 0:
            raise ValueError(f"{key}: {value} must not be negative")
    size, parts = config.unlearn.batch_size, config.unlearn.accumulate
    if size % parts:
        raise ValueError(f"unlearn.accumulate: {parts} does not divide the batch_size of {size}")
    if not config.objectives:
        raise ValueError("objectives: there are none; name at least one")


def _steps(prepared: Prepared) -> None:
    config, forget = prepared.config, len(prepared.forget)
    if steps_of(config, forget) < 1 or forget < config.unlearn.batch_size:
        raise ValueError(
            f"unlearn.batch_size: {config.unlearn.batch_size} is more than the {forget} samples of"
            f" data.forget ({config.data.forget!r})"
        )
    if not config.finetune.epochs:
        if config.finetune.retrained:
            raise ValueError("finetune.retrained: needs finetune.epochs of at least 1")
        return
    sets = {"finetune.splits": prepared.finetune}
    if config.finetune.retrained:
        sets["finetune.retrained (finetune.splits without data.forget)"] = prepared.retrain
    for key, rows in sets.items():
        if not rows or order.num_steps(len(rows), config.finetune.batch_size, 1) < 1:
            size = config.finetune.batch_size
            raise ValueError(f"{key}: {len(rows)} samples make no batch of {size}")


def _measurements(prepared: Prepared) -> None:
    measure, steps = prepared.config.measure, steps_of(prepared.config, len(prepared.forget))
    names = [f"block_{i}" for i in range(prepared.model.num_layers)]
    try:
        layers.groups(names, measure.layer_cuts)
    except ValueError as error:
        raise ValueError(f"measure.layer_cuts: {error}") from error
    for key, values in {"steps": measure.steps or (), "pg_steps": measure.pg_steps}.items():
        if any(step < 0 for step in values):
            raise ValueError(f"measure.{key}: {min(values)} is no step")
    beyond = [step for step in measure.steps or () if step >= steps]
    if beyond:
        raise ValueError(f"measure.steps: {beyond[0]} is not in 0..{steps - 1}, the run's steps")
    lost = set(measure.token_steps) - set(measure.pg_steps)
    if lost:
        raise ValueError(f"measure.token_steps: {min(lost)} is not one of measure.pg_steps")


def _substitutes(prepared: Prepared) -> None:
    """Every substitute answer that the run draws must fit the context."""
    pairs, sequences = drawn_pairs(prepared)
    context = prepared.model.context
    over = [
        (sample, len(sequence.tokens))
        for (sample, _), sequence in zip(pairs, sequences, strict=True)
        if len(sequence.tokens) > context
    ]
    if over:
        raise ValueError(
            f"{len(over)} substitute answers do not fit the context of {context} tokens with their"
            f" questions; first (forget row, length): {over[:5]}; leave out po and dpo, or shorten"
            " the refusals"
        )


def _unused(name: str, spec: config_lib.Objective, prepared: Prepared) -> None:
    """A setting that the objective does not read is a mistake, not a wish."""
    (task,) = (task for task in prepared.tasks if task.name == name)
    plain = config_lib.Objective()
    losses = [t.loss for t in (task.loss.term, task.loss.retain) if t is not None]
    arrays = {array for loss in losses for array in loss.arrays}
    readers = {
        "scale": "target" in arrays,
        "unit_norm": "target" in arrays,
        "layer": bool(arrays & {"hidden", "ref_hidden"}),
        "guide": "guide" in arrays,
        "retain_weight": spec.retain is not None and spec.spare is None,
    }
    for field, is_read in readers.items():
        if not is_read and getattr(spec, field) != getattr(plain, field):
            raise ValueError(f"objectives.{name}.{field}: {losses[0].name} does not use it")
