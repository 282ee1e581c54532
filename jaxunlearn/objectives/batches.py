"""Losses of any model that gives logits, as functions of (params, batch) such as effects take.

A batch is a mapping with the arrays of a loss by their names, see `signature.ARRAYS`:

    tokens    [B, T] int
    mask      [B, S] bool, S = T - 1: True where the token that follows is a label
    ref_logp  [B, S], for losses with a reference: `LabelLogProbs` of the model before unlearning

It may hold more, for the model. Instances with equal fields are equal, so that they share what is
compiled.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.names import nearest
from jaxunlearn.objectives.likelihood import check_mask, reduce_losses, token_log_probs
from jaxunlearn.objectives.registry import Objective

BatchFn = Callable[[Any, Any], jax.Array]
"""(params, batch) -> array."""

COMPUTED = "logp"
"""The one array of a loss that comes from the model; all others are in the batch."""


@dataclasses.dataclass(frozen=True)
class LabelLogProbs:
    """log p of every label, [B, S], 0 where there is none: the `sample_logp_fn` of a model.

    Attributes:
      logits_fn: (params, batch) -> next-token logits [B, T, V].

    >>> logp = LabelLogProbs(lambda params, batch: params[batch["tokens"]])
    >>> batch = {"tokens": jnp.array([[0, 1, 2]]), "mask": jnp.array([[False, True]])}
    >>> print(logp(jnp.zeros((3, 3)), batch).round(4))
    [[ 0.     -1.0986]]
    """

    logits_fn: BatchFn

    def __call__(self, params: Any, batch: Mapping[str, Any]) -> jax.Array:
        tokens, mask = _array(batch, "tokens"), _array(batch, "mask")
        check_mask(mask)
        logp = token_log_probs(self.logits_fn(params, batch), tokens)
        if mask.shape != logp.shape:
            raise ValueError(
                f"batch: mask {mask.shape}, expected {logp.shape}: it says of every token but the"
                f" first whether it is a label, and tokens are {tokens.shape}"
            )
        return jnp.where(mask, logp, 0)


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """(sum, count) of a loss over a batch: the `loss_fn` or `risk_fn` of a model.

    Attributes:
      objective: a loss of the log-probabilities of the answers, from `get` or `get_retain`; the
        risk is `get_retain("gd")`.
      logp_fn: (params, batch) -> [B, S], such as `LabelLogProbs`.
      reduction: see `reduce_losses`.

    Raises:
      ValueError: a loss of something else (logits, hidden states, substitute answers), one that
        leaves numbers open, or a reduction that means nothing for it.

    >>> from jaxunlearn.objectives import get
    >>> ascent = BatchLoss(get("ga"), lambda params, batch: params)
    >>> batch = {"mask": jnp.array([[True, True], [False, False]])}
    >>> print(*ascent(jnp.full((2, 2), -2.0), batch))
    -4.0 1.0
    """

    objective: Objective
    logp_fn: BatchFn
    reduction: str = "sequence_sum"

    def __post_init__(self) -> None:
        objective = self.objective
        if not isinstance(objective, Objective):
            raise TypeError(
                f"BatchLoss: objective is a {type(objective).__name__}; expected an Objective, as"
                " objectives.get returns it"
            )
        if objective.kind != "log_probs" or "substitute" in objective.needs:
            raise ValueError(
                f"{objective.name} is a loss of {', '.join(objective.arrays)}; BatchLoss computes"
                f" losses of {COMPUTED}, the log-probabilities of the answers"
            )
        if objective.open:
            raise ValueError(
                f"{objective.name} leaves {', '.join(objective.open)} open; BatchLoss needs an"
                " objective with its numbers bound, as objectives.get returns it"
            )
        objective.check_reduction(self.reduction)

    def __call__(self, params: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        arrays = {name: _array(batch, name) for name in self.objective.arrays if name != COMPUTED}
        losses = self.objective.loss(logp=self.logp_fn(params, batch), **arrays)
        return reduce_losses(losses, _array(batch, "mask"), self.reduction)


def _array(batch: Mapping[str, Any], name: str) -> jax.Array:
    """An array of a batch.

    Raises:
      TypeError: the batch is no mapping.
      ValueError: it has no such array.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"batch: expected a mapping with {name!r}, got {type(batch).__name__}; for batches of"
            " another form write the loss as a function of your own"
        )
    if name not in batch:
        raise ValueError(f"batch: has no {name!r}, only {sorted(batch)}{nearest(name, batch)}")
    return jnp.asarray(batch[name])
