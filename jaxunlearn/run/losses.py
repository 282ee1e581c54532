"""Objectives applied to the model: the one place where both are known.

Each class is a pure function of (params, batch) with its settings frozen inside, equal for equal
settings, so that compiled functions are shared. A batch is {"forget": rows, "retain": rows,
"substitute": rows, "constants": {..}}; rows = {"packed": Packed, "ref_logp": [R, N], "ref_hidden":
[R, N, D], "ref_tap_K": [R, N, D] after K blocks, "guide": [R, N]}, each but the first only where an
objective needs it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.data.packing import unpack
from jaxunlearn.models import llama
from jaxunlearn.objectives import catalogue, likelihood, retain

Tree = Any
SumCount = tuple[jax.Array, jax.Array]
Counts = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TokenLogProbs:
    """log p of every label token, [B, S], 0 where there is none."""

    model: llama.LlamaConfig

    def __call__(self, params: Tree, rows: Tree, probe: Tree | None = None) -> jax.Array:
        packed = rows["packed"]
        return unpack(llama.forward(params, packed, self.model, probe=probe).labels, packed)


@dataclasses.dataclass(frozen=True)
class SampleLogProbs:
    """log p of every sample, [B]."""

    model: llama.LlamaConfig

    def __call__(self, params: Tree, rows: Tree, probe: Tree | None = None) -> jax.Array:
        return TokenLogProbs(self.model)(params, rows, probe).sum(-1)


@dataclasses.dataclass(frozen=True)
class Risk:
    """The risk R: negative log-likelihood of the answers, reduced as the objective is."""

    model: llama.LlamaConfig
    reduction: str

    def __call__(self, params: Tree, rows: Tree, probe: Tree | None = None) -> SumCount:
        logp = TokenLogProbs(self.model)(params, rows, probe)
        return self.of(logp, label_mask(rows))

    def of(self, logp: jax.Array, mask: jax.Array) -> SumCount:
        return likelihood.reduce(retain.gd(logp, mask), mask, self.reduction)


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of the catalogue on one kind of rows: an objective, or a retain term."""

    loss: catalogue.Objective
    model: llama.LlamaConfig
    reduction: str
    layer: int
    rows: str  # "forget" or "retain"

    def __call__(self, params: Tree, batch: Tree) -> SumCount:
        # A loss of hidden states alone needs no blocks after its layer, and no head.
        return self._reduced(self._arrays(params, batch, head="hidden" not in self._wants), batch)

    def with_risk(self, params: Tree, batch: Tree) -> tuple[SumCount, SumCount]:
        """The risk of the rows and the loss, from one forward pass (two with substitutes)."""
        arrays = self._arrays(params, batch, head=True)
        risk = Risk(self.model, self.reduction).of(arrays["logp"], arrays["mask"])
        return risk, self._reduced(arrays, batch)

    def count(self, batch: Tree) -> jax.Array:
        """What a sum over the batch is divided by."""
        mask = self._mask(batch)
        return likelihood.reduce(jnp.zeros(len(mask)), mask, self.reduction)[1]

    def _reduced(self, arrays: dict[str, jax.Array], batch: Tree) -> SumCount:
        losses = self._losses(arrays, batch[self.rows]["packed"])
        return likelihood.reduce(losses, self._mask(batch), self.reduction)

    def _mask(self, batch: Tree) -> jax.Array:
        """The labels that the loss is of: its rows', or the substitutes' alone."""
        own = "mask" in self._wants or self._wide
        return label_mask(batch[self.rows] if own else batch["substitute"])

    @property
    def _wants(self) -> tuple[str, ...]:
        return self.loss.arrays

    @property
    def _wide(self) -> bool:
        return "logits" in self._wants or "hidden" in self._wants

    def _arrays(self, params: Tree, batch: Tree, *, head: bool) -> dict[str, jax.Array]:
        """Every array that the loss names, laid out as it expects; log-likelihoods with a head."""
        rows, packed = batch[self.rows], batch[self.rows]["packed"]
        apply, inputs = (llama.label_log_probs if head else None), ()
        if "logits" in self._wants:
            apply, inputs = self._position_head(batch), self._head_inputs(rows)
        tap = self.layer if "hidden" in self._wants else None
        out = llama.forward(params, packed, self.model, head=apply, head_inputs=inputs, tap=tap)
        arrays = {"mask": label_mask(rows)}
        if apply is not None:
            labels = out.labels if "logits" in self._wants else {"logp": out.labels}
            arrays["logp"] = unpack(labels["logp"], packed)
        if "logits" in self._wants:
            arrays["positions"] = out.labels["loss"]
        if "hidden" in self._wants:
            assert out.hidden is not None  # a tap was given
            arrays["hidden"] = out.hidden
        if "target" in self._wants:
            arrays["target"] = batch["constants"]["target"]
        if "ref_hidden" in self._wants:
            arrays["ref_hidden"] = rows[f"ref_tap_{self.layer}"]
        if "ref_logp" in self._wants:
            arrays["ref_logp"] = unpack(rows["ref_logp"], packed)
        if "guide" in self._wants:
            arrays["guide"] = unpack(rows["guide"], packed)
        return arrays | self._substitute_arrays(params, batch)

    def _substitute_arrays(self, params: Tree, batch: Tree) -> dict[str, jax.Array]:
        if "substitute" not in self.loss.needs:
            return {}
        rows = batch["substitute"]
        arrays = {
            "substitute_logp": TokenLogProbs(self.model)(params, rows),
            "substitute_mask": label_mask(rows),
        }
        if "substitute_ref_logp" in self._wants:
            arrays["substitute_ref_logp"] = unpack(rows["ref_logp"], rows["packed"])
        if "logp" not in self._wants:
            return arrays
        # Both answers of a sample in one place: "partner" is the substitute's slot of each slot.
        partner, real = (
            rows["partner"].reshape(-1),
            batch[self.rows]["packed"].mask.any(-1).reshape(-1),
        )
        picked = {name: jnp.take(x, partner, axis=0) for name, x in arrays.items()}
        picked["substitute_mask"] &= real[:, None]
        return picked

    def _losses(self, arrays: dict[str, jax.Array], packed: Any) -> jax.Array:
        if not self._wide:
            return self.loss.loss(**{name: arrays[name] for name in self._wants})
        if "logits" in self._wants:
            return unpack(arrays["positions"], packed).sum(-1)
        per_position = self.loss.loss(**{name: arrays[name] for name in self._wants})
        counts = arrays["mask"].sum(-1)
        return unpack(per_position, packed).sum(-1) / jnp.maximum(counts, 1)

    def _position_head(self, batch: Tree):
        def head(logits, labels, *reference_hidden):
            given: dict[str, jax.Array] = {"logits": logits, "labels": labels}
            if reference_hidden:
                reference = batch["constants"]["reference_head"]
                given["ref_logits"] = llama.head_logits(reference, reference_hidden[0], self.model)
            loss = self.loss.loss(**{name: given[name] for name in self._wants})
            return {"logp": llama.label_log_probs(logits, labels), "loss": loss}

        return head

    def _head_inputs(self, rows: Tree) -> tuple[jax.Array, ...]:
        return (rows["ref_hidden"],) if "ref_logits" in self._wants else ()


@dataclasses.dataclass(frozen=True)
class Unlearning:
    """L = gamma L_u + retain_weight L_r, the function that a train step minimises.

    Where the retain term guards, it is no part of L: updates are bent so that they do not raise it.
    """

    term: Term
    gamma: float = 1.0
    retain: Term | None = None
    retain_weight: float = 1.0
    guards: bool = False

    def __call__(
        self, params: Tree, batch: Tree, counts: Counts | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch, or the part of a larger batch with these counts."""
        counts = self.counts(batch) if counts is None else counts
        unlearn = self.term(params, batch)[0] / counts["unlearn"]
        if self.retain is None or self.guards:
            return self.gamma * unlearn, {"unlearn_loss": unlearn}
        kept = self.retain(params, batch)[0] / counts["retain"]
        loss = self.gamma * unlearn + self.retain_weight * kept
        return loss, {"unlearn_loss": unlearn, "retain_loss": kept}

    def counts(self, batch: Tree) -> Counts:
        """What the sums over a batch are divided by; of its parts they add up to its own."""
        terms = {"unlearn": self.term, "retain": self.retain}
        return {n: jnp.maximum(t.count(batch), 1) for n, t in terms.items() if t is not None}


@dataclasses.dataclass(frozen=True)
class Guard:
    """The retain loss that updates must not raise."""

    of: Unlearning

    def __call__(
        self, params: Tree, batch: Tree, counts: Counts | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert self.of.retain is not None
        counts = self.of.counts(batch) if counts is None else counts
        kept = self.of.retain(params, batch)[0] / counts["retain"]
        return kept, {"retain_loss": kept}

    def counts(self, batch: Tree) -> Counts:
        return self.of.counts(batch)


@dataclasses.dataclass(frozen=True)
class RiskAndObjective:
    """R(D_u) and L_u(D_u) from one forward pass, for their gradients.

    Plain ascent is - R, whose gradient needs no backward pass of its own: it is left out.
    """

    term: Term

    def __call__(self, params: Tree, batch: Tree) -> dict[str, SumCount]:
        risk, objective = self.term.with_risk(params, batch)
        return {"risk": risk} if self.term.loss.ascends else {"risk": risk, "objective": objective}


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Mean NLL over the label tokens of a batch of `retain` rows."""

    model: llama.LlamaConfig

    def __call__(self, params: Tree, batch: Tree) -> tuple[jax.Array, dict[str, jax.Array]]:
        total, count = Risk(self.model, "token_mean")(params, batch["retain"])
        return total / jnp.maximum(count, 1), {}


def label_mask(rows: Tree) -> jax.Array:
    """The mask of a rows' unpacked layout, [B, S]."""
    mask = rows["packed"].mask
    return mask.reshape(-1, mask.shape[-1])
