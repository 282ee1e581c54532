"""The work of a measurement: real tokens and needed FLOPs of its passes over D_u and D_r.

FLOPs are counted in forward passes: a gradient takes 3, PG-effects along K directions 1 + 2 K in
forward mode and 2 + K through gates (docs/effects.md).
"""

from typing import NamedTuple

from jaxunlearn.measurement.guidance import Guidance
from jaxunlearn.measurement.interval import Measurer
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import GRADIENT, DecoderConfig
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.training.batch import Split
from jaxunlearn.training.feed import sample_flops

DIRECTIONS = 2
"""PG-effects are along the gradients of both risks."""
FORWARD_MODE, GATES = 1 + 2 * DIRECTIONS, 2 + DIRECTIONS
ONE_DIRECTION_GATES = 3
"""Forward passes of a pass through gates along one direction."""


class Work(NamedTuple):
    """Real tokens of all passes, and the FLOPs that they need."""

    tokens: int
    flops: int

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(self.tokens + other.tokens, self.flops + other.flops)


def passes(split: Split, model: DecoderConfig, forwards: int, count: int = 1) -> Work:
    """The work of some passes over a set.

    Args:
      split: the set.
      model: the model.
      forwards: forward passes that one of them takes.
      count: how many there are.
    """
    tokens, labels = split.lengths
    forward = int(decoder.forward_flops(model, tokens, labels).sum())
    return Work(count * int(tokens.sum()), count * forwards * forward)


def refresh(guidance: Guidance) -> Work:
    """The work of computing the weights of a guided objective once."""
    assert guidance.retain is not None  # the objective is guided
    model = guidance.task.loss.unlearn.model
    gradients = [passes(split, model, GRADIENT) for split in (guidance.forget, guidance.retain)]
    return gradients[0] + gradients[1] + passes(guidance.forget, model, FORWARD_MODE)


def measurement(prepared: Prepared, measurer: Measurer, step: int, *, shared: bool) -> Work:
    """The work of one measurement, from its opening to its closing.

    Args:
      prepared: the run.
      measurer: of the objective.
      step: the measured step.
      shared: whether another objective has left grad R(D_r) at this theta.
    """
    model, spec = measurer.model, measurer.spec
    forget, retain = measurer.splits
    both = lambda forwards, count=1: (
        passes(forget, model, forwards, count) + passes(retain, model, forwards, count)
    )
    # --- statistics before the update, unless they are those of theta_0, and after it -------------
    total = both(1, 2 if step else 1)
    # --- the G-effect -----------------------------------------------------------------------------
    if spec.gradients == "full":
        total += passes(forget, model, GRADIENT) + _objective(prepared, measurer, GRADIENT - 1)
        if not shared:
            total += passes(retain, model, GRADIENT)
    else:
        # The effects of the objective, of the update, and of all updates of the interval.
        total += _objective(prepared, measurer, GRADIENT) + both(ONE_DIRECTION_GATES, 3)
    # --- PG-effects -------------------------------------------------------------------------------
    if step in spec.pg_steps:
        if spec.gradients == "gates":
            total += both(GRADIENT)
        if {"sample", "token"} & set(spec.pg_by) or step in spec.token_steps:
            total += passes(forget, model, FORWARD_MODE)
        reverse = len({"layer", "tensor"} & set(spec.pg_by))
        total += passes(forget, model, GATES, reverse)
    return total


def _objective(prepared: Prepared, measurer: Measurer, forwards: int) -> Work:
    """The work of grad L_u(D_u); `forwards` is 2 where the risk's forward pass serves it too."""
    term, sets = measurer.term, prepared.sets
    if term.objective.ascent and forwards < GRADIENT:
        return Work(0, 0)  # the negative of the risk's gradient
    flops = 0
    if not term.substitutes_alone:
        flops += forwards * sample_flops(term.model, sets.forget, term.blocks)
    tokens = int(measurer.splits.forget.lengths[0].sum()) if forwards == GRADIENT else 0
    if "substitute" in term.objective.needs:
        answers = [sets.refusals.draw(i, None) for i in range(len(sets.forget))]
        flops += GRADIENT * sample_flops(term.model, answers)
        tokens += sum(len(answer.tokens) for answer in answers)
    return Work(tokens, flops)
