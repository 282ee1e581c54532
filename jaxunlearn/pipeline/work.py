"""Counts the work of a measurement: real tokens and needed FLOPs of its passes over D_u and D_r.

FLOPs are counted in forward passes: a gradient takes 3, PG-effects along K directions 1 + 2 K in
forward mode and 2 + K through gates (docs/effects.md). Beside adapters no product with a matrix's
gradient or direction is needed: then they are 2, 1 + K and 2.
"""

from jaxunlearn.measurement.guidance import Guidance
from jaxunlearn.measurement.interval import Measurer
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import DecoderConfig, gradient_passes
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record.stages import Part
from jaxunlearn.training.batch import Split
from jaxunlearn.training.feed import sample_flops

DIRECTIONS = 2
"""PG-effects are along the gradients of both risks."""


def forward_mode_passes(model: DecoderConfig) -> int:
    """Forward passes that PG-effects take in forward mode."""
    return 1 + (gradient_passes(model) - 1) * DIRECTIONS


def gate_passes(model: DecoderConfig, directions: int) -> int:
    """Forward passes that a pass through gates takes."""
    return 2 + (gradient_passes(model) - 2) * directions


def count_passes(
    part: Part, split: Split, model: DecoderConfig, forwards: int, count: int = 1
) -> None:
    """Counts some passes over a set.

    Args:
      part: of a stage, which gets the tokens and the FLOPs.
      split: the set.
      model: the model.
      forwards: forward passes that one of them takes.
      count: how many there are.
    """
    tokens, labels = split.lengths
    forward = int(decoder.forward_flops(model, tokens, labels).sum())
    part.add(count * int(tokens.sum()), count * forwards * forward)


def count_refresh(part: Part, guidance: Guidance) -> None:
    """Counts the passes that compute the weights of a guided objective once."""
    assert guidance.retain is not None  # the objective is guided
    model = guidance.task.loss.unlearn.model
    count_passes(part, guidance.retain, model, gradient_passes(model))
    count_passes(part, guidance.forget, model, gradient_passes(model))
    count_passes(part, guidance.forget, model, forward_mode_passes(model))


def count_measurement(
    part: Part, prepared: Prepared, measurer: Measurer, step: int, *, shared: bool
) -> None:
    """Counts the passes of one measurement, with those after its update and at its closing.

    Args:
      part: of a stage, which gets the tokens and the FLOPs.
      prepared: the run.
      measurer: of the objective.
      step: the measured step.
      shared: whether another objective has left grad R(D_r) at this theta.
    """
    model, spec, splits = measurer.model, measurer.spec, measurer.splits
    gradient = gradient_passes(model)
    # --- statistics before the update, unless they are those of theta_0, and after it -------------
    for split in splits:
        count_passes(part, split, model, 1, 2 if step else 1)
    # --- the G-effect -----------------------------------------------------------------------------
    if spec.gradients == "full":
        count_passes(part, splits.forget, model, gradient)
        _count_objective(part, prepared, measurer, gradient - 1)
        if not shared:
            count_passes(part, splits.retain, model, gradient)
    else:
        _count_objective(part, prepared, measurer, gradient)
        for split in splits:
            # The effects of the objective, of the update, and of all updates of the interval.
            count_passes(part, split, model, gate_passes(model, 1), 3)
    # --- PG-effects -------------------------------------------------------------------------------
    if step not in spec.pg_steps:
        return
    if spec.gradients == "gates":
        for split in splits:
            count_passes(part, split, model, gradient)
    if {"sample", "token"} & set(spec.pg_by) or step in spec.token_steps:
        count_passes(part, splits.forget, model, forward_mode_passes(model))
    gates = gate_passes(model, DIRECTIONS)
    count_passes(part, splits.forget, model, gates, len({"layer", "tensor"} & set(spec.pg_by)))


def _count_objective(part: Part, prepared: Prepared, measurer: Measurer, forwards: int) -> None:
    """Counts grad L_u(D_u); `forwards` is one less where the risk's forward pass serves it too."""
    term, sets = measurer.term, prepared.sets
    gradient = gradient_passes(term.model)
    alone = forwards == gradient
    if term.objective.ascent and not alone:
        return  # it is the negative of the risk's gradient
    if not term.substitutes_alone:
        tokens = sum(len(sample.tokens) for sample in sets.forget) if alone else 0
        part.add(tokens, forwards * sample_flops(term.model, sets.forget, term.blocks))
    if "substitute" in term.objective.needs:
        answers = [sets.refusals.draw(i, None) for i in range(len(sets.forget))]
        tokens = sum(len(answer.tokens) for answer in answers)
        part.add(tokens, gradient * sample_flops(term.model, answers))
