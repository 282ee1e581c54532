"""The official code's estimate of gradients against the exact ones: bias, spread, conclusions.

The official code (github.com/tmlr-group/G-effect) keeps, of each gradient, a running mean over
bfloat16 micro-batches: g <- 0.6 g + 0.4 g_batch. About the last 16 sequences count, and the two
gradients whose product is e_u come from the same ones, so that their errors do not average out.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.study.facts import SIX
from jaxunlearn import data, effects, objectives
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.planning import Sample
from jaxunlearn.measurement.gradients import unlearn_gradients
from jaxunlearn.metrics import uwc
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.prepare import Prepared, prepare
from jaxunlearn.record.folder import BASE, RunFolder
from jaxunlearn.training.arrays import REF_LOGP
from jaxunlearn.training.batch import Batch, Rows
from jaxunlearn.training.losses import Risk, Term
from jaxunlearn.training.references import label_references

METHODS = ("GA", "WGA", "NPO", "TNPO")
DECAY = 0.6
MICRO_BATCH = 4
KEPT = 12
"""Micro-batches of a running mean; what came before them would weigh 0.6^12 = 0.2 %."""
REDUCTION = "sequence_sum"


class Effects(NamedTuple):
    """e_u and e_r of one objective at one theta."""

    unlearn: float
    retain: float


class Sets(NamedTuple):
    """Both sets, one sample a row, with the reference's log-probabilities of D_u.

    Attributes:
      forget: D_u.
      retain: D_r.
    """

    forget: Rows
    retain: Rows


def compare(
    run: Path, arguments: Sequence[str], places: Sequence[float], repeats: int
) -> dict[str, Any]:
    """Exact and estimated effects at some places on the way of each objective of a run.

    Args:
      run: a finished run with the four objectives of `METHODS`.
      arguments: of the command, for the record.
      places: where effects are measured: theta_0 + place (theta_T - theta_0).
      repeats: orders of the samples; 0 measures exact sums in bfloat16 alone.

    Returns:
      {"about", "study", "repeats", "states"}, and of each state {"method", "place", "exact",
      "bfloat16", "estimates"}: an effect is [e_u, e_r], "estimates" has one for each repeat.
    """
    folder = RunFolder(run)
    prepared = prepare(stored.configuration(folder))
    base = stored.stage_params(folder, prepared, BASE)
    sets = _sets(prepared, base)
    states = []
    for method in METHODS:
        loss, hyper = SIX[method]
        final = stored.stage_params(folder, prepared, _name(prepared, method))
        for place in places:
            params = uwc.mix(base, final, place)
            exact, half = (_term(prepared.model, loss, hyper, t) for t in ("float32", "bfloat16"))
            estimates = [_estimated(params, half, sets, seed) for seed in range(repeats)]
            states.append(
                {
                    "method": method,
                    "place": place,
                    "exact": _exact(params, exact, sets),
                    "bfloat16": _exact(params, half, sets),
                    "estimates": estimates,
                }
            )
            print(method, place, *states[-1].values(), flush=True)
    return {
        "about": record.about("study", arguments, torch_threads=False),
        "study": prepared.config.name,
        "repeats": repeats,
        "states": states,
    }


def _name(prepared: Prepared, method: str) -> str:
    """The run's objective that stands for a method."""
    wanted = objectives.get(SIX[method][0], **SIX[method][1])
    tasks = (t for t in prepared.tasks if t.retain is None)
    return next(t.name for t in tasks if t.objective == wanted)


def _sets(prepared: Prepared, base: Tree) -> Sets:
    forget, retain = _padded(prepared.sets.forget), _padded(prepared.retain_eval)
    logp = label_references(base, forget.packed, model=prepared.model, tap=None).labels
    return Sets(forget._replace(values={REF_LOGP.name: np.asarray(logp)}), retain)


def _padded(samples: Sequence[Sample]) -> Rows:
    return Rows(data.padded(samples))


def _term(model: DecoderConfig, loss: str, hyper: Any, dtype: Any) -> Term:
    computed = dataclasses.replace(model, dtype=dtype)
    return Term(objectives.get(loss, **hyper), computed, REDUCTION, 0, "forget")


def _exact(params: Tree, term: Term, sets: Sets) -> Effects:
    """Both effects, from every sample once."""
    forget, retain = (list(_batches(rows, np.arange(_count(rows)), 20)) for rows in sets)
    unlearn = unlearn_gradients(params, term, [Batch(rows) for rows in forget])
    risk = effects.dataset_gradient(Risk(term.model, REDUCTION), params, retain)
    return _effects(unlearn.risk.gradient, risk.gradient, unlearn.objective.gradient)


def _estimated(params: Tree, term: Term, sets: Sets, seed: int) -> Effects:
    """Both effects by running means over micro-batches in a random order."""
    order = np.random.default_rng(seed)
    size = KEPT * MICRO_BATCH
    forget, retain = (order.permutation(_count(rows))[-size:] for rows in sets)
    on_forget = objective = on_retain = None
    for rows in _batches(sets.forget, forget, MICRO_BATCH):
        gradients = unlearn_gradients(params, term, [Batch(rows)])
        on_forget = _mean(on_forget, gradients.risk.gradient)
        objective = _mean(objective, gradients.objective.gradient)
    for rows in _batches(sets.retain, retain, MICRO_BATCH):
        gradient = effects.dataset_gradient(Risk(term.model, REDUCTION), params, [rows])
        on_retain = _mean(on_retain, gradient.gradient)
    return _effects(on_forget, on_retain, objective)


def _mean(mean: Tree | None, gradient: Tree) -> Tree:
    """The running mean with one more micro-batch, which is rounded to bfloat16."""
    return _rounded(gradient) if mean is None else _updated(mean, gradient)


@jax.jit
def _rounded(gradient):
    return jax.tree.map(lambda g: g.astype(jnp.bfloat16).astype(g.dtype), gradient)


@jax.jit
def _updated(mean, gradient):
    return jax.tree.map(lambda m, g: DECAY * m + (1 - DECAY) * g, mean, _rounded(gradient))


def _effects(on_forget: Tree, on_retain: Tree, objective: Tree) -> Effects:
    return Effects(float(_dot(on_forget, objective)), float(_dot(on_retain, objective)))


_dot = jax.jit(trees.dot)


def _count(rows: Rows) -> int:
    return len(rows.packed.sample_ids)


def _batches(rows: Rows, samples: np.ndarray, size: int) -> Iterator[Rows]:
    """The rows of these samples, so many at a time."""
    for first in range(0, len(samples), size):
        yield jax.tree.map(partial(np.take, indices=samples[first : first + size], axis=0), rows)
