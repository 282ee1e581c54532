"""Objectives by name, their hyper-parameters bound and checked, with what they need."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

from jaxunlearn.objectives import (
    ascent,
    distillation,
    preference,
    representation,
    retain,
    signature,
    substitute,
)
from jaxunlearn.objectives.likelihood import REDUCTIONS, check_known
from jaxunlearn.objectives.signature import Loss

_UNLEARN: dict[str, tuple[Loss, Loss | None]] = {
    "ga": (ascent.ga, ascent.ga_weight),
    "wga": (ascent.wga, ascent.wga_weight),
    "npo": (preference.npo, preference.npo_weight),
    "tnpo": (preference.tnpo, preference.tnpo_weight),
    "wtnpo": (preference.wtnpo, preference.wtnpo_weight),
    "po": (substitute.po, None),
    "rmu": (representation.rmu, None),
    "dpo": (substitute.dpo, None),
    "simnpo": (preference.simnpo, preference.simnpo_weight),
    "satimp": (ascent.satimp, ascent.satimp_weight),
    "undial": (distillation.undial, None),
    "ceu": (distillation.ceu, None),
    "guided": (ascent.guided, ascent.guided_weight),
}
_RETAIN: dict[str, Loss] = {"gd": retain.gd, "kl": retain.kl, "rr": retain.rr}
_PER_SEQUENCE = ("npo", "dpo", "simnpo", "rmu", "rr")

NAMES = tuple(_UNLEARN)
RETAIN_NAMES = tuple(_RETAIN)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss with its hyper-parameters bound; equal for equal name and hyper-parameters.

    Attributes:
      name: of the catalogue, or `module:function`.
      hyper: every hyper-parameter, defaults included, sorted by name.
      arrays: the arrays that `loss` takes, by name (see `signature`).
      loss: (**arrays) -> [B], or one loss per position for logits and hidden states.
      weight: (**arrays) -> [B] or [B, S] with grad loss = sum_i weight_i grad log p_i; None where
        the loss is no weighted likelihood.
      token_additive: whether the loss of a sequence is a sum over its tokens.
    """

    name: str
    hyper: tuple[tuple[str, Hashable], ...]
    arrays: tuple[str, ...] = dataclasses.field(compare=False)
    loss: Loss = dataclasses.field(compare=False, repr=False)
    weight: Loss | None = dataclasses.field(compare=False, repr=False)
    token_additive: bool = dataclasses.field(compare=False)

    @property
    def ascends(self) -> bool:
        """Whether it is plain ascent: minus the negative log-likelihood, its gradient - grad R."""
        return self.name == "ga"

    @property
    def needs(self) -> frozenset[str]:
        """What the arrays are made of: of "ref", "hidden", "substitute", "logits" and "guide"."""
        parts = {part for array in self.arrays for part in array.split("_")}
        needs = parts & {"ref", "substitute", "guide"}
        return frozenset(needs | ({"hidden", "logits"} & set(self.arrays)))

    def check_reduction(self, how: str) -> None:
        """Raises ValueError where a reduction (see `reduce`) means nothing for this loss."""
        check_known("reduction", how, REDUCTIONS)
        if how != "sequence_sum" and not self.token_additive:
            raise ValueError(
                f"{self.name} is one loss a sequence, not a sum over tokens: its reduction is "
                f"'sequence_sum' (the mean over sequences), got {how!r}"
            )


def get(name: str, /, **hyper: Any) -> Objective:
    """An objective of the catalogue, or a function of one's own.

    Args:
      name: one of `NAMES`, or `my_package.my_module:my_loss`, a pure function that names its arrays
        as `signature` says; its hyper-parameters are its keyword-only arguments.
      **hyper: hyper-parameters; those left out keep their defaults.

    Raises:
      ValueError: an unknown name or hyper-parameter, one that is missing or out of range, or a
        function that cannot be imported or does not have the form.

    >>> objective = get("tnpo", beta=4)
    >>> sorted(objective.needs), objective.hyper, objective.token_additive
    (['ref'], (('beta', 4.0),), True)
    """
    if ":" in name:
        return _objective(name, signature.load(name), None, hyper, token_additive=False)
    check_known("objective", name, NAMES)
    return _objective(name, *_UNLEARN[name], hyper, token_additive=name not in _PER_SEQUENCE)


def get_retain(name: str, /) -> Objective:
    """A retain term: one of `RETAIN_NAMES`.

    Raises:
      ValueError: an unknown name.

    >>> sorted(get_retain("kl").needs)
    ['logits', 'ref']
    """
    check_known("retain term", name, RETAIN_NAMES)
    return _objective(name, _RETAIN[name], None, {}, token_additive=name not in _PER_SEQUENCE)


def _objective(
    name: str, loss: Loss, weight: Loss | None, hyper: dict[str, Any], *, token_additive: bool
) -> Objective:
    arrays = signature.array_names(name, loss)
    bound = signature.bind(name, loss, hyper)
    objective = Objective(
        name=name,
        hyper=tuple(bound.items()),
        arrays=arrays,
        loss=functools.partial(loss, **bound),
        weight=weight and functools.partial(weight, **bound),
        token_additive=token_additive,
    )
    signature.check_result(name, objective.loss, arrays)
    return objective
