"""What the scores of a membership attack give away: AUC and PrivLeak."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.evaluate.definitions import Definition, absent, row

DEFINITIONS = {
    d.name: d
    for d in (
        Definition("mia.loss", 1, "AUC of -mean NLL"),
        Definition("mia.zlib", 1, "AUC of -mean NLL per compressed byte"),
        Definition("mia.min_k", 1, "AUC of the mean of the lowest 40 % of log p"),
        Definition("mia.min_k_plus_plus", 1, "AUC of mia.min_k of standardised log p"),
        Definition("mia.reference", 1, "AUC of the reference model's mean NLL - mean NLL"),
        Definition("mia.gradient_norm", 1, "AUC of -norm of the gradient of the mean NLL"),
        Definition("privleak", 1, "100 (AUC_retain - AUC) / (1 - AUC_retain)"),
    )
}


class Auc(NamedTuple):
    """An AUC and its bootstrap interval."""

    value: float
    low: float
    high: float


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """P(score of a member > score of another) + P(equal) / 2.

    1: all members score higher; 0.5: no better than chance; 0: all members score lower.

    Args:
      members: [n] scores of the texts in question: the forget set.
      others: [m] scores of texts that were never trained on: the held-out set.

    Returns:
      The area under the ROC curve.

    Raises:
      ValueError: no scores, or a NaN.

    >>> auc(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    0.625
    """
    members, others = (np.sort(np.asarray(x, np.float64)) for x in (members, others))
    for name, values in (("members", members), ("others", others)):
        if values.size == 0 or np.isnan(values).any():
            raise ValueError(f"auc: {name} has {'no scores' if not values.size else 'a NaN'}")
    return _auc(members, others)


def auc_interval(
    members: np.ndarray,
    others: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Auc:
    """AUC with a percentile bootstrap interval; both sets are drawn again, each from itself.

    Args:
      members, others: as in `auc`.
      confidence: of the interval.
      resamples: number of draws.
      seed: of the draws; equal seeds give equal intervals.

    Returns:
      Auc. A perfect separation gives an interval of no width: the bootstrap cannot see beyond it.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence={confidence} must be in 0..1, resamples={resamples} positive")
    value = auc(members, others)
    members, others = (np.sort(np.asarray(x, np.float64)) for x in (members, others))
    rng = np.random.default_rng(seed)
    # Sorted draws of sorted scores: indices are sorted, which is all that counting needs.
    draw = lambda x: x[np.sort(rng.integers(0, x.size, x.size))]
    values = [_auc(draw(members), draw(others)) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Auc(value, float(low), float(high))


def privleak(model_auc: float, retain_auc: float) -> float:
    """PrivLeak = 100 (AUC_retain - AUC) / (1 - AUC_retain), in per cent (MUSE, OpenUnlearning).

    0: the forget set looks as it does to a model that never saw it. Negative: it still looks like
    training data (-100 where its AUC is 1). Positive: it looks less familiar than unseen text,
    which gives it away as well.

    Args:
      model_auc: of the model, forget set against held-out set.
      retain_auc: of the retain model, by the same attack on the same sets.

    Returns:
      Per cent.

    Raises:
      ValueError: retain_auc is 1: the two sets are told apart without any membership.

    >>> privleak(0.75, 0.5)
    -50.0
    """
    if retain_auc >= 1:
        raise ValueError(
            "privleak: the retain model, which saw neither set, tells them apart with an AUC of "
            f"{retain_auc}; take a held-out set that is like the forget set"
        )
    return 100 * (retain_auc - model_auc) / (1 - retain_auc)


def table(
    forget: Mapping[str, np.ndarray],
    holdout: Mapping[str, np.ndarray],
    *,
    retain_model: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """AUC and PrivLeak of every attack, each with its definition's name and version.

    Args:
      forget: {attack: scores of the forget set}, from `membership.scores`.
      holdout: {attack: scores of texts never trained on}, the same attacks.
      retain_model: the same two of a model that never saw the forget set, for PrivLeak.
      seed: of the intervals.

    Returns:
      Rows {"metric", "set", "value", "definition", "version"}; those of an AUC also have "low" and
      "high", the ends of its 95 % interval. A PrivLeak without a yardstick (see `privleak`) is
      None, with a "reason".

    Raises:
      ValueError: the mappings hold different attacks.
    """
    for given in (holdout, *(retain_model or ())):
        if given.keys() != forget.keys():
            raise ValueError(f"attacks differ: {sorted(forget)} and {sorted(given)}")
    rows = []
    for attack in forget:
        found = auc_interval(forget[attack], holdout[attack], seed=seed)
        definition = DEFINITIONS[f"mia.{attack}"]
        ends = {"low": found.low, "high": found.high}
        rows.append(row(f"mia_{attack}", "forget, holdout", found.value, definition, **ends))
        if retain_model is not None:
            of_retain = auc(retain_model[0][attack], retain_model[1][attack])
            rows.append(_privleak_row(f"privleak_{attack}", found.value, of_retain))
    return rows


def _privleak_row(name: str, model_auc: float, retain_auc: float) -> dict[str, Any]:
    definition = DEFINITIONS["privleak"]
    try:
        value = privleak(model_auc, retain_auc)
    except ValueError as error:
        return absent(name, "forget, holdout", str(error), definition)
    return row(name, "forget, holdout", value, definition)


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    """Of sorted scores."""
    below = np.searchsorted(others, members, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(others, members, side="right").sum(dtype=np.int64)
    return float(below + not_above) / (2 * members.size * others.size)
