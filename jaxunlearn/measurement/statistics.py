"""Teacher-forced statistics of a set of samples at one theta."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.trees import Tree
from jaxunlearn.data.packing import unpack
from jaxunlearn.metrics import memorization
from jaxunlearn.models import decoder
from jaxunlearn.objectives import gd
from jaxunlearn.training.batch import Split

DEFINITIONS: dict[str, dict[str, str | int]] = {
    "definitions": {
        "nll": "mean negative log-likelihood of the label tokens (answer and EOS), nats per token",
        "es": "extraction strength, teacher-forced suffix form: mean over samples of 1 - k/L",
        "em": "exact memorisation: mean over samples of the share of labels whose argmax is right",
        "version": 1,
    }
}
"""The definitions of the numbers of `SetStatistics.summary`, written next to them in files."""


class Statistics(NamedTuple):
    """Teacher-forced statistics of a set, by sample.

    Attributes:
      logp: [n, S] float32, log p of each label, 0 off the labels.
      correct: [n, S] bool, whether the label is the model's most likely token.
      mask: [n, S] bool, which entries are labels.
    """

    logp: np.ndarray
    correct: np.ndarray
    mask: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """[n], the number of labels of each sample."""
        return self.mask.sum(-1)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood over all label tokens, nats."""
        return float(-self.logp.sum(dtype=np.float64) / self.mask.sum())

    @property
    def extraction_strength(self) -> np.ndarray:
        """[n], see `metrics.memorization`."""
        return np.asarray(memorization.extraction_strength(self.correct, self.mask))

    @property
    def exact_memorization(self) -> np.ndarray:
        """[n], see `metrics.memorization`."""
        return np.asarray(memorization.exact_memorization(self.correct, self.mask))

    def risk(self, reduction: str) -> float:
        """The risk R of the set: NLL reduced as an objective is, summed in float64 on the host.

        Args:
          reduction: see `objectives.reduce_losses`.
        """
        losses = np.asarray(gd(jnp.asarray(self.logp), jnp.asarray(self.mask)), np.float64)
        if reduction == "token_mean":
            return float(losses.sum() / self.mask.sum())
        if reduction == "sequence_mean":
            losses = losses / np.maximum(self.tokens, 1)
        return float(losses.sum() / (self.tokens > 0).sum())


class SetStatistics(NamedTuple):
    """Statistics of the forget set D_u and of the retain set D_r at one theta."""

    forget: Statistics
    retain: Statistics

    @property
    def finite(self) -> bool:
        """Whether every label of both sets has a finite log-probability."""
        return all(bool(np.isfinite(stats.logp).all()) for stats in self)

    def risks(self, reduction: str) -> dict[str, float]:
        """R(D_u) and R(D_r), by their names in tables."""
        return {"unlearn": self.forget.risk(reduction), "retain": self.retain.risk(reduction)}

    def summary(self) -> dict[str, float]:
        """NLL, extraction strength and exact memorisation of both sets, see `DEFINITIONS`."""
        numbers = {}
        for name, stats in self._asdict().items():
            numbers[f"{name}_nll"] = stats.nll
            numbers[f"{name}_es"] = float(stats.extraction_strength.mean())
            numbers[f"{name}_em"] = float(stats.exact_memorization.mean())
        return numbers


class Splits(NamedTuple):
    """The two sets that every measurement covers, as batches."""

    forget: Split
    retain: Split

    def statistics(self, params: Tree, model: decoder.DecoderConfig) -> SetStatistics:
        """Statistics of both sets at one theta."""
        return SetStatistics(*(statistics(params, split, model) for split in self))


def statistics(params: Tree, split: Split, model: decoder.DecoderConfig) -> Statistics:
    """Log-probability and argmax of every label of a set."""
    batches = [label_statistics(params, rows.packed, model=model) for rows in split.batches]
    logp, correct = (split.by_sample([batch[i] for batch in batches]) for i in (0, 1))
    return Statistics(logp, correct.astype(bool), split.mask)


@partial(jax.jit, static_argnames="model")
def label_statistics(params, packed, *, model):
    """log p and correctness of the labels of packed rows, [B, S] each, compiled."""
    labels = decoder.forward(params, packed, model, head=decoder.label_statistics).labels
    return unpack(labels["logp"], packed), unpack(labels["correct"], packed)
