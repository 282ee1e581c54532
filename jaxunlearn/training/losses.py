"""Objectives applied to the model: functions of (params, batch).

Each class is a pure function whose settings are frozen fields. Instances with equal settings are
equal, so that they share compiled functions.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxunlearn import effects
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.packing import unpack
from jaxunlearn.models.decoder import STACKED, DecoderConfig, forward
from jaxunlearn.objectives import Objective, gd, reduce_losses
from jaxunlearn.training.arrays import LossInputs, decoder_logp, read_arrays
from jaxunlearn.training.batch import Batch, Rows

GROUPING = effects.Grouping(stacked=STACKED)
"""The layers that the decoder's parameters form, for every effect by layer."""

ORIGINALS = frozenset({"logp", "ref_logp", "mask", "guide"})
"""The arrays of the original answers that a loss of log-probabilities may take."""

SumCount = tuple[jax.Array, jax.Array]
Metrics = dict[str, jax.Array]


class Loss(Protocol):
    """A function that a train step minimises: (params, batch) -> (scalar, {name: scalar})."""

    def __call__(self, params: Tree, batch: Any, /) -> tuple[jax.Array, Metrics]: ...


@dataclasses.dataclass(frozen=True)
class TokenLogProbs:
    """log p of every label token, [B, S], 0 where there is none; with gates for a probe."""

    model: DecoderConfig

    def __call__(self, params: Tree, rows: Rows, probe: Tree | None = None) -> jax.Array:
        return decoder_logp(params, rows, self.model, probe)


@dataclasses.dataclass(frozen=True)
class SampleLogProbs:
    """log p of every sample, [B]; with gates for a probe."""

    model: DecoderConfig

    def __call__(self, params: Tree, rows: Rows, probe: Tree | None = None) -> jax.Array:
        return decoder_logp(params, rows, self.model, probe).sum(-1)


@dataclasses.dataclass(frozen=True)
class Risk:
    """The risk R: negative log-likelihood of the answers, reduced as the objective is."""

    model: DecoderConfig
    reduction: str

    def __call__(self, params: Tree, rows: Rows, probe: Tree | None = None) -> SumCount:
        return self.of(decoder_logp(params, rows, self.model, probe), jnp.asarray(rows.mask))

    def of(self, logp: jax.Array, mask: jax.Array) -> SumCount:
        """The risk of labels whose log-probabilities are known, both [B, S]."""
        return reduce_losses(gd(logp, mask), mask, self.reduction)


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of the registry on one kind of rows: an unlearning objective, or a retain term.

    Attributes:
      objective: the loss; the hyper-parameters that it leaves open are constants of the batch.
      model: the model it is a loss of.
      reduction: how its losses per sequence become one number, see `objectives.reduce_losses`.
      layer: blocks after which hidden states are read, for losses of those.
      rows: the field of `Batch` that it is a loss of.
    """

    objective: Objective
    model: DecoderConfig
    reduction: str
    layer: int
    rows: Literal["forget", "retain"]

    @property
    def kind(self) -> str:
        """The arrays that the loss is a function of: "log_probs", "logits" or "hidden"."""
        return self.objective.kind

    @property
    def substitutes_alone(self) -> bool:
        """Whether the loss reads substitute answers, and nothing of the original ones."""
        of_originals = ORIGINALS.intersection(self.objective.arrays)
        return self.kind == "log_probs" and not of_originals

    @property
    def blocks(self) -> int | None:
        """Blocks that the loss runs where it needs no head; None: all blocks and the head."""
        return self.layer if self.kind == "hidden" else None

    @property
    def reads_final_hidden(self) -> bool:
        """Whether all that the model computes for the loss follows from its last hidden states."""
        return self.kind != "hidden" and "substitute" not in self.objective.needs

    def __call__(
        self, params: Tree, batch: Batch, final_hidden: jax.Array | None = None
    ) -> SumCount:
        """The sum of the losses of a batch, and their count; `final_hidden` as in `LossInputs`."""
        inputs = LossInputs(self, params, batch, with_logp=False, final_hidden=final_hidden)
        return self._reduced(self._losses(inputs), batch)

    def with_risk(self, params: Tree, batch: Batch) -> tuple[SumCount, SumCount]:
        """The risk of the rows and the loss, from one forward pass (two with substitutes)."""
        inputs = LossInputs(self, params, batch, with_logp=True)
        mask = jnp.asarray(inputs.rows.mask)
        risk = Risk(self.model, self.reduction).of(inputs.logp, mask)
        return risk, self._reduced(self._losses(inputs), batch)

    def count(self, batch: Batch) -> jax.Array:
        """The denominator of a batch's sum; those of the parts of a batch add up to it."""
        mask = self._mask(batch)
        return reduce_losses(jnp.zeros(len(mask)), mask, self.reduction)[1]

    def _reduced(self, losses: jax.Array, batch: Batch) -> SumCount:
        return reduce_losses(losses, self._mask(batch), self.reduction)

    def _losses(self, inputs: LossInputs) -> jax.Array:
        """One loss a sequence, [B], in the unpacked layout."""
        packed = inputs.rows.packed
        if self.kind == "logits":
            # The loss ran inside the head, where logits exist a chunk at a time.
            return unpack(inputs.position_losses, packed).sum(-1)
        losses = self.objective.loss(**read_arrays(inputs), **inputs.hyper)
        if self.kind == "log_probs":
            return losses
        # A loss of hidden states is a mean over the positions that predict an answer token.
        positions = jnp.asarray(inputs.rows.mask).sum(-1)
        return unpack(losses, packed).sum(-1) / jnp.maximum(positions, 1)

    def _mask(self, batch: Batch) -> jax.Array:
        """The labels that the loss is a loss of: those of its rows, or the substitutes' alone."""
        rows = batch.substitute if self.substitutes_alone else getattr(batch, self.rows)
        assert rows is not None  # the feed gives every kind of rows that the objective names
        return jnp.asarray(rows.mask)


class Counts(NamedTuple):
    """The denominators of a batch's sums; those of its parts add up to the batch's.

    Attributes:
      unlearn: that of the unlearning objective.
      retain: that of the retain term, if there is one.
    """

    unlearn: jax.Array
    retain: jax.Array | None


@dataclasses.dataclass(frozen=True)
class UnlearnLoss:
    """L = gamma L_u + retain_weight L_r, the function that a train step minimises.

    Attributes:
      unlearn: L_u, on forget rows.
      retain: L_r, on retain rows, if there is one. The weights of both are constants of the batch,
        so that one compiled step serves all their values; those that a batch leaves out are 1.
    """

    unlearn: Term
    retain: Term | None = None

    @property
    def shares_a_pass(self) -> bool:
        """Whether one pass over forget and retain rows serves both terms."""
        retain = self.retain
        return retain is not None and self.unlearn.reads_final_hidden and retain.reads_final_hidden

    def __call__(
        self, params: Tree, batch: Batch, counts: Counts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, or the share of a larger batch whose counts are given."""
        whole = self.counts(batch) if counts is None else counts
        # Only now at least 1: the counts of parts must add up to the batch's.
        counts = Counts(*jax.tree.map(lambda count: jnp.maximum(count, 1), tuple(whole)))
        of_forget, of_retain = self._final_hidden(params, batch)
        unlearn = self.unlearn(params, batch, of_forget)[0] / counts.unlearn
        gamma, retain_weight = (
            1.0 if weight is None else jnp.asarray(weight)
            for weight in (batch.constants.gamma, batch.constants.retain_weight)
        )
        if self.retain is None or counts.retain is None:
            return gamma * unlearn, {"unlearn_loss": unlearn}
        retain = self.retain(params, batch, of_retain)[0] / counts.retain
        loss = gamma * unlearn + retain_weight * retain
        return loss, {"unlearn_loss": unlearn, "retain_loss": retain}

    def _final_hidden(
        self, params: Tree, batch: Batch
    ) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
        """The last hidden states of forget and retain rows, by one pass where they have one shape.

        Devices that share the parameters exchange them, and their gradients, once instead of twice.
        """
        if batch.retain is None or not self.shares_a_pass:
            return None, None
        forget, retain = batch.forget.packed, batch.retain.packed
        if jax.tree.map(jnp.shape, forget) != jax.tree.map(jnp.shape, retain):
            return None, None
        # In turns, so that a device keeps the rows of both that it has.
        rows = jax.tree.map(
            lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), forget, retain
        )
        hidden = forward(params, rows, self.unlearn.model, head=None).final_hidden
        pairs = hidden.reshape(-1, 2, *hidden.shape[1:])
        return pairs[:, 0], pairs[:, 1]

    def counts(self, batch: Batch) -> Counts:
        """The denominators of the batch's sums; 0 without labels."""
        retain = None if self.retain is None else self.retain.count(batch)
        return Counts(self.unlearn.count(batch), retain)


@dataclasses.dataclass(frozen=True)
class RetainLoss:
    """A retain term alone: the risk that updates must not raise, see `sparing`."""

    term: Term

    def __call__(
        self, params: Tree, batch: Batch, counts: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, or the share of a larger batch whose count is given."""
        count = self.counts(batch) if counts is None else counts
        loss = self.term(params, batch)[0] / jnp.maximum(count, 1)
        return loss, {"retain_loss": loss}

    def counts(self, batch: Batch) -> jax.Array:
        """The denominator of the batch's sum; 0 without labels."""
        return self.term.count(batch)


@dataclasses.dataclass(frozen=True)
class RiskAndObjective:
    """R(D_u) and L_u(D_u) from one forward pass, for their gradients.

    Plain ascent is -R: its gradient needs no backward pass of its own, and is left out.
    """

    term: Term

    def __call__(self, params: Tree, batch: Batch) -> dict[str, SumCount]:
        risk, objective = self.term.with_risk(params, batch)
        if self.term.objective.ascent:
            return {"risk": risk}
        return {"risk": risk, "objective": objective}


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Mean negative log-likelihood over the label tokens of rows."""

    model: DecoderConfig

    def __call__(self, params: Tree, rows: Rows) -> tuple[jax.Array, Metrics]:
        total, count = Risk(self.model, "token_mean")(params, rows)
        return total / jnp.maximum(count, 1), {}
