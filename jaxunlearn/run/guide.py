"""Weights guided by PG-effects: refreshed on the way, and kept in the run's folder.

The PG-effects are those of all of D_u along grad R(D_u) and along grad R of data to retain. The
latter are drawn once a run from what retain terms draw from, as many samples as D_r has: the rows
that retention is measured on guide nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import config as config_lib
from jaxunlearn import effects
from jaxunlearn.data import order
from jaxunlearn.effects import trees
from jaxunlearn.run import measure, tables
from jaxunlearn.run.feed import make_split
from jaxunlearn.run.losses import Risk
from jaxunlearn.run.measure import Split
from jaxunlearn.run.offload import Offload
from jaxunlearn.run.prepare import Prepared, Task, steps_of

Tree = Any


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How the weights of one objective come about; without steps it takes none."""

    task: Task
    steps: range  # before whose updates the weights are refreshed
    forget: Split  # D_u
    mask: np.ndarray  # its labels, [n, S] bool
    retain: Split | None  # what is to be spared, where there are steps
    folder: Path
    offload: Offload

    def kept(self, step: int) -> np.ndarray | None:
        """The weights that a step of an earlier start had before it, [n, S]; None: there are none.

        Raises:
          FileNotFoundError: their file is gone.
        """
        before = [at for at in self.steps if at < step]
        return np.load(self._file(before[-1]), allow_pickle=False) if before else None

    def refresh(self, step: int, params: Tree) -> np.ndarray:
        """New weights, [n, S] float32, 0 off the labels; they are written before they are used."""
        assert self.retain is not None  # there are steps
        term = self.task.loss.term
        risk = Risk(term.model, term.reduction)
        retain = effects.dataset_gradient(risk, params, self.retain.placed)
        waiting = self.offload.away(retain)
        del retain
        unlearn = effects.dataset_gradient(risk, params, self.forget.placed)
        risks = {"unlearn": unlearn, "retain": self.offload.back(waiting)}
        norms = {name: _norm(found.direction) for name, found in risks.items()}
        values = measure.token_effects(params, term.model, self.forget, risks)
        weights = weigh(values, norms, self.mask, self.task.guide)
        tables.write_array(self._file(step), weights)
        return weights

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.npy"


def guidance(
    prepared: Prepared, task: Task, forget: Split, mask: np.ndarray, out: Path, offload: Offload
) -> Guidance:
    """The guidance of an objective.

    Args:
      prepared: the run.
      task: the objective.
      forget: D_u.
      mask: its labels, [n, S] bool.
      out: the run's folder.
      offload: what waits while the weights are made.
    """
    steps = refreshes(prepared, task)
    retain = spared(prepared) if steps else None
    folder = out / "objectives" / task.name / "guide"
    return Guidance(task, steps, forget, mask, retain, folder, offload)


def refreshes(prepared: Prepared, task: Task) -> range:
    """The steps before whose updates the weights are refreshed; none where the loss takes none."""
    if "guide" not in task.needs:
        return range(0)
    return range(0, steps_of(prepared.config, len(prepared.forget)), task.guide.every)


def spared(prepared: Prepared) -> Split:
    """The data along whose risk gradient harm is measured, the same throughout a run."""
    size = len(prepared.measured)
    ids = order.subset_ids(prepared.config.seed, len(prepared.retain), size)
    return make_split(prepared, [prepared.retain[i] for i in ids], {})


def weigh(
    values: Mapping[str, np.ndarray],
    norms: Mapping[str, Any],
    mask: np.ndarray,
    spec: config_lib.Guide,
) -> np.ndarray:
    """The weight of each label token, [n, S] float32, 0 elsewhere.

    Args:
      values: PG-effects by token along the gradients of the risks, "unlearn" and "retain", [n, S].
      norms: of these gradients.
      mask: of the labels, [n, S] bool.
      spec: how tokens are weighed.
    """
    unlearn, retain, of = values["unlearn"], values["retain"], mask
    if spec.by == "sample":
        unlearn, retain, of = unlearn.sum(-1), retain.sum(-1), mask.any(-1)
    pair = (trees.on_host(norms["unlearn"]), trees.on_host(norms["retain"]))
    options = {"penalty": spec.penalty, "power": spec.power}
    weights = np.asarray(effects.guide(unlearn, retain, of, norms=pair, **options))
    return np.where(mask, weights.reshape(len(mask), -1), np.float32(0))


@jax.jit
def _norm(tree):
    return trees.norm(tree)
