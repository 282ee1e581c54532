"""One objective of a configuration, resolved and checked."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

from jaxunlearn import objectives
from jaxunlearn.config import Config, Guide
from jaxunlearn.config import Objective as ObjectiveConfig
from jaxunlearn.core import names
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.losses import RetainLoss, Term, UnlearnLoss

_Kind = Literal["forget", "retain"]


@dataclasses.dataclass(frozen=True)
class Task:
    """One objective, ready to run.

    Attributes:
      name: its key in the configuration.
      objective: the unlearning objective, its hyper-parameters bound.
      loss: the function that a train step minimises; it leaves numbers open.
      hyper: {"forget", "retain": {name: value}}, the numbers that the losses on these rows leave
        open.
      gamma: the weight of the objective in the loss.
      retain_weight: that of the retain term.
      lr: the learning rate after warm-up.
      scale: rmu: the length c of its target.
      unit_norm: rmu: whether the random direction of its target is normalised.
      spare: whether updates are projected so that they do not raise `guard` ("total" or "layer").
      guard: the retain loss that updates must not raise, where `spare` says so; it is then no part
        of `loss`.
      guide: where the weights of a guided loss come from.
    """

    name: str
    objective: objectives.Objective
    loss: UnlearnLoss
    hyper: Mapping[_Kind, Mapping[str, float]]
    gamma: float
    retain_weight: float
    lr: float
    scale: float
    unit_norm: bool
    spare: Literal["total", "layer"] | None
    guard: RetainLoss | None
    guide: Guide

    @property
    def retain(self) -> Term | None:
        """The retain term, whether it is a part of the loss or guards the updates."""
        return self.guard.term if self.guard is not None else self.loss.retain

    @property
    def needs(self) -> frozenset[str]:
        """The needs of the objective and of its retain term, see `objectives.Objective.needs`."""
        retain = frozenset() if self.retain is None else self.retain.objective.needs
        return self.loss.unlearn.objective.needs | retain

    @property
    def reads_retain(self) -> bool:
        """Whether it reads samples to retain: in a retain term, or to guide its weights."""
        return self.retain is not None or "guide" in self.needs


def settings_of(arrays: Collection[str]) -> tuple[str, ...]:
    """The keys of an objective that say how some arrays are made, see `signature.ARRAYS`."""
    made_by = {
        "scale": {"target"},
        "unit_norm": {"target"},
        "layer": {"hidden", "ref_hidden"},
        "guide": {"guide"},
    }
    return tuple(key for key, made in made_by.items() if made & {*arrays})


def make_task(name: str, spec: ObjectiveConfig, model: DecoderConfig, config: Config) -> Task:
    """Resolves one objective of a configuration.

    Raises:
      ValueError: names the key that is wrong.
    """
    where = f"objectives.{name}"
    layer = model.num_layers // 2 if spec.layer is None else spec.layer
    if not 0 <= layer <= model.num_layers:
        raise ValueError(f"{where}.layer: {layer} must be in 0..{model.num_layers}")
    names.search_working_directory(spec.loss, spec.retain)
    try:
        objective = objectives.get(spec.loss or name, **spec.hyper)
        objective.check_reduction(spec.reduction)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    bound: dict[_Kind, objectives.Objective] = {
        "forget": objective,
        **_retain_objective(where, spec),
    }
    terms: dict[_Kind, Term] = {
        rows: _term(loss, spec, model, layer, rows) for rows, loss in bound.items()
    }
    hyper: dict[_Kind, dict[str, float]] = {
        rows: {number: bound[rows].numbers[number] for number in term.objective.open}
        for rows, term in terms.items()
    }
    retain = terms.get("retain")
    guard = RetainLoss(retain) if retain is not None and spec.spare is not None else None
    return Task(
        name=name,
        objective=objective,
        loss=UnlearnLoss(terms["forget"], retain if guard is None else None),
        hyper=hyper,
        gamma=spec.gamma,
        retain_weight=spec.retain_weight,
        lr=config.unlearn.lr if spec.lr is None else spec.lr,
        scale=spec.scale,
        unit_norm=spec.unit_norm,
        spare=spec.spare,
        guard=guard,
        guide=spec.guide,
    )


def make_tasks(config: Config, model: DecoderConfig) -> tuple[Task, ...]:
    """Resolves all objectives of a configuration, see `make_task`."""
    return tuple(make_task(name, spec, model, config) for name, spec in config.objectives.items())


def _retain_objective(where: str, spec: ObjectiveConfig) -> dict[_Kind, objectives.Objective]:
    """{"retain": the retain term's loss}, if there is one."""
    if spec.retain is None:
        return {}
    try:
        term = objectives.get_retain(spec.retain, **spec.retain_hyper)
    except ValueError as error:
        raise ValueError(f"{where}.retain: {error}") from error
    # These are made for the samples to forget alone.
    of_forget = {"substitute": "substitute answers", "guide": "weights that guide it"}
    for need in of_forget.keys() & term.needs:
        raise ValueError(
            f"{where}.retain: {spec.retain} reads {of_forget[need]}, which samples to retain do not"
            " have"
        )
    return {"retain": term}


def _term(
    objective: objectives.Objective,
    spec: ObjectiveConfig,
    model: DecoderConfig,
    layer: int,
    rows: _Kind,
) -> Term:
    """The loss on one kind of rows, its numbers left open."""
    # A retain term with one loss for each sequence can only be summed over sequences.
    per_sequence = rows == "retain" and not objective.per_token
    reduction = "sequence_sum" if per_sequence else spec.reduction
    return Term(objective.opened(), model, reduction, layer, rows)
