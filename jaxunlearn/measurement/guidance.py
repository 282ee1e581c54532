"""Weights guided by PG-effects: recomputed during unlearning, and stored in the run's folder.

The PG-effects are those of all of D_u along grad R(D_u) and along grad R of some retain samples.
These samples are drawn from the retain pool once a run, as many as D_r has; D_r itself, on which
retention is measured, must not guide the weights.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxunlearn import effects
from jaxunlearn.config import Guide
from jaxunlearn.core import files, trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import order
from jaxunlearn.data.planning import Sample
from jaxunlearn.measurement.gradients import token_effects
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.training.batch import Split
from jaxunlearn.training.losses import Risk
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.tasks import Task


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Computes and stores the weights of a guided objective.

    Attributes:
      task: the objective.
      steps: the steps before whose updates the weights are recomputed; empty for an objective that
        takes none.
      forget: D_u.
      mask: [n, S] bool, its labels.
      retain: the samples whose risk gradient defines harm; None where `steps` is empty.
      folder: the run's, which stores the weights in one file for each of `steps`.
      offload: parks one gradient while the other is formed.
      trainable: which parameters take part.
    """

    task: Task
    steps: range
    forget: Split
    mask: np.ndarray
    retain: Split | None
    folder: RunFolder
    offload: Offload
    trainable: effects.Trainable = None

    def before(self, step: int) -> np.ndarray | None:
        """The weights that hold before a step of an interrupted run, [n, S], or None.

        Raises:
          FileNotFoundError: their file is missing.
        """
        earlier = [at for at in self.steps if at < step]
        return np.load(self._file(earlier[-1]), allow_pickle=False) if earlier else None

    def refresh(self, step: int, params: Tree) -> np.ndarray:
        """Computes the weights at theta_t, and writes them before they are used.

        Returns:
          [n, S] float32, 0 off the labels.
        """
        assert self.retain is not None  # there are steps
        term = self.task.loss.unlearn
        risk = Risk(term.model, term.reduction)
        gradient_over = lambda split: effects.dataset_gradient(
            risk, params, split.batches, trainable=self.trainable
        )
        # The retain gradient is parked first: forming a gradient takes more memory than holding it.
        parked = self.offload.away(gradient_over(self.retain))
        unlearn = gradient_over(self.forget)
        directions = {"unlearn": unlearn.gradient, "retain": self.offload.back(parked).gradient}
        norms = {name: _norm(direction) for name, direction in directions.items()}
        values = token_effects(params, term.model, self.forget, directions, self.trainable)
        weights = weigh(values, norms, self.mask, self.task.guide)
        files.write_array(self._file(step), weights)
        return weights

    def _file(self, step: int) -> Path:
        return self.folder.guide_weights(self.task.name, step)


def refresh_steps(task: Task, steps: int) -> range:
    """The steps before whose updates an objective's weights are recomputed.

    Args:
      task: the objective; one that takes no weights has none.
      steps: of the run.
    """
    return range(0, steps, task.guide.every) if "guide" in task.needs else range(0)


def guide_retain_samples(pool: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """The fixed samples whose risk gradient defines harm when weights are computed.

    Args:
      pool: the retain pool.
      count: how many, at most.
      seed: of the run.
    """
    return [pool[i] for i in order.subset_ids(seed, len(pool), count)]


def weigh(
    values: Mapping[str, np.ndarray],
    norms: Mapping[str, jax.Array | float],
    mask: np.ndarray,
    spec: Guide,
) -> np.ndarray:
    """The weight of each label token.

    Args:
      values: PG-effects by token along the gradients of the risks, "unlearn" and "retain", [n, S].
      norms: of these gradients.
      mask: [n, S] bool, the labels.
      spec: the settings of guided weights.

    Returns:
      [n, S] float32, 0 off the labels.
    """
    unlearn, retain, labels = values["unlearn"], values["retain"], mask
    if spec.by == "sample":
        # Effects are summed over a sample, and all its tokens get the same weight.
        unlearn, retain, labels = unlearn.sum(-1), retain.sum(-1), mask.any(-1)
    pair = (trees.on_host(norms["unlearn"]), trees.on_host(norms["retain"]))
    options = {"penalty": spec.penalty, "power": spec.power}
    weights = np.asarray(effects.guide_weights(unlearn, retain, labels, norms=pair, **options))
    return np.where(mask, weights.reshape(len(mask), -1), np.float32(0))


@jax.jit
def _norm(tree):
    return trees.norm(tree)
