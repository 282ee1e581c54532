"""Forgetting at equal retention: unlearning with control (UWC, Wang et al. 2024, arXiv 2406.09179).

A model that forgot more than another is not better if it also retains less. UWC mixes each with the
model before unlearning, theta_alpha = (1 - alpha) theta_0 + alpha theta_u, takes the largest alpha
at which enough is retained, and compares what is forgotten there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.metrics.definitions import Definition

SHARE = 0.95
"""tau, the share of the retention before unlearning that must be kept."""
ROUNDING = 1e-6  # of means of strengths, which are float32

DEFINITIONS = {
    d.name: d
    for d in (
        Definition("uwc.alpha", 2, "largest alpha (bisection) with ES_retain >= 0.95 before's"),
        Definition("uwc.retention", 2, "retain ES (suffix) at uwc.alpha"),
        Definition("uwc.extraction_strength", 2, "forget ES (suffix) at uwc.alpha"),
    )
}


def least_retention(before: float) -> float:
    """The retain ES that a model must keep: SHARE of that before unlearning, up to rounding.

    Strengths of samples are float32, so that a mean of exactly the share may come out below it.

    >>> least_retention(1.0) < float(jnp.float32(0.95)) < 0.95
    True
    """
    return SHARE * before - ROUNDING


class Calibration(NamedTuple):
    """A mixing weight, and the search for it.

    Attributes:
      alpha: the weight.
      retention: at alpha; at least the target.
      trace: every (alpha, retention) that was evaluated, in this order.
    """

    alpha: float
    retention: float
    trace: tuple[tuple[float, float], ...]


def calibrate(
    retention_fn: Callable[[float], float],
    target: float,
    *,
    steps: int = 6,
    tolerance: float = 0.0,
) -> Calibration:
    """The largest alpha in 0..1 with retention >= target, by bisection.

    Where the retention falls with alpha, the largest such alpha is less than 2^-steps above the
    result. Otherwise the result keeps the target and is within 2^-steps below an alpha that does
    not: a crossing, but not always the last one.

    Args:
      retention_fn: alpha -> retention of the mixed model. 0 is the model before unlearning, 1 the
        unlearned one.
      target: the least retention allowed.
      steps: halvings; the function is called at most steps + 2 times.
      tolerance: if positive, stop as soon as the retention is no more than this above the target:
        the result may then be further below the largest alpha.

    Returns:
      Calibration; alpha is 1 where the unlearned model keeps the target.

    Raises:
      ValueError: the model before unlearning misses the target, or a bad option.

    >>> calibrate(lambda alpha: 1 - alpha, 0.75).alpha
    0.25
    """
    if steps < 0 or tolerance < 0:
        raise ValueError(f"steps={steps} and tolerance={tolerance} must be 0 or more")
    trace: list[tuple[float, float]] = []

    def keeps(alpha: float) -> bool:
        trace.append((alpha, float(retention_fn(alpha))))
        return trace[-1][1] >= target

    if keeps(1.0):
        return Calibration(*trace[0], tuple(trace))
    if not keeps(0.0):
        raise ValueError(
            f"the model before unlearning has a retention of {trace[-1][1]}, below {target}: no"
            " mixture has to reach it"
        )
    best, over = trace[-1], 1.0
    for _ in range(steps):
        if tolerance and best[1] <= target + tolerance:
            break
        middle = (best[0] + over) / 2
        if keeps(middle):
            best = trace[-1]
        else:
            over = middle
    return Calibration(*best, tuple(trace))


def mix(before: Tree, unlearned: Tree, alpha: float) -> Tree:
    """(1 - alpha) before + alpha unlearned: a third copy of the parameters, with their sharding.

    Args:
      before: theta_0.
      unlearned: theta_u, a tree of the same shape.
      alpha: 0 gives `before`, 1 `unlearned`, both exactly.

    Returns:
      theta_alpha.

    >>> mix({"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, 0.25)["w"].tolist()
    [0.75]
    """
    return _mix(before, unlearned, jnp.asarray(alpha, float))


@jax.jit
def _mix(before, unlearned, alpha):
    def mean(a, b):
        weight = alpha.astype(trees.wide(a).dtype)
        mixed = ((1 - weight) * a + weight * b).astype(a.dtype)
        # 0 times infinity is no number: the ends are taken as they are.
        return jnp.where(weight == 0, a, jnp.where(weight == 1, b, mixed))

    return jax.tree.map(mean, before, unlearned)
