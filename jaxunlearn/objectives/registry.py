"""Objectives by name, their hyper-parameters bound and checked, with what they need."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any, cast

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
from jaxunlearn.objectives.signature import Kind, Loss


@dataclasses.dataclass(frozen=True)
class Definition:
    """A loss, and what is known of it that its signature does not say.

    A module of your own may define one, and a configuration name it as `my_package.my_module:NAME`:

        MINE = Definition(my_loss, weight=my_weight, per_token=True)

    Attributes:
      loss: pure function of arrays; its arguments are named as in `signature.ARRAYS`, its
        hyper-parameters are keyword-only.
      weight: function of the same arrays and hyper-parameters -> [B] or [B, S], with
        grad loss = sum_i weight_i grad log p_i; None where the loss is no weighted likelihood.
      per_token: whether the loss of a sequence is a sum over its tokens (or positions), so that it
        may also be averaged over tokens.
      ascent: whether the loss is exactly minus the negative log-likelihood, so that its gradient is
        minus that of the risk and needs no pass of its own.
    """

    loss: Loss
    weight: Loss | None = None
    per_token: bool = False
    ascent: bool = False


_UNLEARN: dict[str, Definition] = {
    "ga": Definition(ascent.ga, ascent.ga_weight, per_token=True, ascent=True),
    "wga": Definition(ascent.wga, ascent.wga_weight, per_token=True),
    "npo": Definition(preference.npo, preference.npo_weight),
    "tnpo": Definition(preference.tnpo, preference.tnpo_weight, per_token=True),
    "wtnpo": Definition(preference.wtnpo, preference.wtnpo_weight, per_token=True),
    "po": Definition(substitute.po, per_token=True),
    # A mean over positions: the caller divides by their number.
    "rmu": Definition(representation.rmu),
    "dpo": Definition(substitute.dpo),
    "simnpo": Definition(preference.simnpo, preference.simnpo_weight),
    "satimp": Definition(ascent.satimp, ascent.satimp_weight, per_token=True),
    "undial": Definition(distillation.undial, per_token=True),
    "ceu": Definition(distillation.ceu, per_token=True),
    "guided": Definition(ascent.guided, ascent.guided_weight, per_token=True),
}
_RETAIN: dict[str, Definition] = {
    "gd": Definition(retain.gd, per_token=True),
    "kl": Definition(retain.kl, per_token=True),
    "rr": Definition(retain.rr),  # a mean over positions, as rmu
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss with its hyper-parameters bound; a static argument of compiled functions.

    Two are equal for equal name, hyper-parameters and functions: a function of your own that was
    changed and loaded again makes another objective.

    Attributes:
      name: of the registry, or `module:NAME`.
      hyper: every hyper-parameter, defaults included, sorted by name.
      definition: the functions without hyper-parameters.
      arrays: the arrays that `loss` takes, by name (see `signature.ARRAYS`).
      loss: (**arrays) -> [B], or one loss per position for logits and hidden states.
      weight: (**arrays) -> [B] or [B, S] with grad loss = sum_i weight_i grad log p_i; None where
        the loss is no weighted likelihood.
      open: hyper-parameters that are not bound: further arguments of `loss` and `weight`.
    """

    name: str
    hyper: tuple[tuple[str, Hashable], ...]
    definition: Definition = dataclasses.field(repr=False)
    arrays: tuple[str, ...] = dataclasses.field(compare=False)
    loss: Loss = dataclasses.field(compare=False, repr=False)
    weight: Loss | None = dataclasses.field(compare=False, repr=False)
    open: tuple[str, ...] = ()

    @property
    def per_token(self) -> bool:
        """Whether the loss of a sequence is a sum over its tokens."""
        return self.definition.per_token

    @property
    def ascent(self) -> bool:
        """Whether it is plain ascent: minus the negative log-likelihood, its gradient - grad R."""
        return self.definition.ascent

    @property
    def kind(self) -> Kind:
        """What the loss is a function of: "log_probs", "logits" or "hidden" states."""
        return signature.kind_of(self.arrays)

    @property
    def needs(self) -> frozenset[str]:
        """Inputs beyond the answers' log-probabilities that the caller must provide.

        A subset of "ref", "hidden", "substitute", "logits" and "guide".
        """
        return signature.needs_of(self.arrays)

    @property
    def numbers(self) -> dict[str, float]:
        """The bound hyper-parameters that are floating-point numbers, by name."""
        return {name: value for name, value in self.hyper if isinstance(value, float)}

    def opened(self) -> "Objective":
        """The same objective with its `numbers` left open.

        A function compiled with it takes them as arguments, which must be given, and serves all
        their values. An objective without any is returned as it is, and so is one whose functions
        cannot be traced with arrays in their place, such as a loss that branches on a number.

        >>> opened = get("npo", beta=0.5).opened()
        >>> opened == get("npo", beta=1.0).opened(), opened.hyper, opened.open
        (True, (), ('beta',))
        """
        numbers = tuple(self.numbers)
        fixed = {name: value for name, value in self.hyper if name not in numbers}
        definition = self.definition
        functions = [f for f in (definition.loss, definition.weight) if f is not None]
        loss, *weights = (
            functools.partial(_with_open, function, numbers, **fixed) for function in functions
        )
        traced = (signature.is_traceable(f, self.arrays, numbers) for f in (loss, *weights))
        if not numbers or not all(traced):
            return self
        return dataclasses.replace(
            self,
            hyper=tuple(fixed.items()),
            loss=loss,
            weight=weights[0] if weights else None,
            open=numbers,
        )

    def programs(self) -> tuple[str, ...]:
        """What `loss` and `weight` compute, see `signature.program`."""
        functions = [self.loss] if self.weight is None else [self.loss, self.weight]
        return tuple(signature.program(function, self.arrays) for function in functions)

    def check_reduction(self, how: str) -> None:
        """Raises ValueError where a reduction (see `reduce_losses`) means nothing for this loss."""
        check_known("reduction", how, REDUCTIONS)
        if how != "sequence_sum" and not self.per_token:
            raise ValueError(
                f"{self.name} is one loss a sequence, not a sum over tokens: its reduction is "
                f"'sequence_sum' (the mean over sequences), got {how!r}"
            )


def _with_open(function: Loss, numbers: tuple[str, ...], /, *args: Any, **values: Any) -> Any:
    """Calls a loss or weight that leaves numbers open, for which its defaults do not stand in."""
    if missing := [name for name in numbers if name not in values]:
        raise TypeError(
            f"missing {', '.join(missing)}: this objective leaves its numbers open, see"
            " Objective.opened; pass them with the arrays"
        )
    return function(*args, **values)


def names() -> tuple[str, ...]:
    """The names of the objectives, for `get`."""
    return tuple(_UNLEARN)


def retain_names() -> tuple[str, ...]:
    """The names of the retain terms, for `get_retain`."""
    return tuple(_RETAIN)


def get(name: str, /, **hyper: Any) -> Objective:
    """An objective of the registry, or one of your own.

    Args:
      name: one of `names()`, or `my_package.my_module:NAME`. NAME is a pure function that names its
        arrays as `signature.ARRAYS` does and has its hyper-parameters as keyword-only arguments
        (then it has no weight and is one loss a sequence), or a `Definition` of such a function.
      **hyper: hyper-parameters; those left out keep their defaults.

    Raises:
      ValueError: an unknown name or hyper-parameter, one that is missing or out of range, or a
        function that cannot be imported or does not have the form.

    >>> objective = get("tnpo", beta=4)
    >>> sorted(objective.needs), objective.hyper, objective.per_token
    (['ref'], (('beta', 4.0),), True)
    """
    return _resolve("objective", name, _UNLEARN, hyper)


def get_retain(name: str, /, **hyper: Any) -> Objective:
    """A retain term of the registry, or one of your own.

    Args:
      name: one of `retain_names()`, or `my_package.my_module:NAME` as in `get`.
      **hyper: hyper-parameters; those left out keep their defaults.

    Raises:
      ValueError: as `get`.

    >>> sorted(get_retain("kl").needs)
    ['logits', 'ref']
    """
    return _resolve("retain term", name, _RETAIN, hyper)


def _resolve(
    what: str, name: str, table: Mapping[str, Definition], hyper: dict[str, Any]
) -> Objective:
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected a name, got {name!r}")
    if ":" in name:
        return _objective(name, _own_definition(name), hyper)
    check_known(what, name, table)
    return _objective(name, table[name], hyper)


def _own_definition(name: str) -> Definition:
    """The definition that `module:NAME` points at, or that of the function there."""
    target = signature.load(name)
    if isinstance(target, Definition):
        return target
    if not callable(target):
        raise ValueError(
            f"{name}: expected a function or an objectives.Definition, got {type(target).__name__}"
        )
    return Definition(cast(Loss, target))


def _objective(name: str, definition: Definition, hyper: dict[str, Any]) -> Objective:
    loss, weight = definition.loss, definition.weight
    arrays = signature.array_names(name, loss)
    bound = signature.bind(name, loss, hyper)
    objective = Objective(
        name=name,
        hyper=tuple(bound.items()),
        definition=definition,
        arrays=arrays,
        loss=functools.partial(loss, **bound),
        weight=None if weight is None else functools.partial(weight, **bound),
    )
    signature.check_result(name, objective.loss, arrays)
    if weight is not None:
        signature.check_weight(name, loss, weight, arrays, bound)
    return objective
