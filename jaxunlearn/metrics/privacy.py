"""Metrics of membership attacks, computed from their scores: AUC and PrivLeak."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.metrics.definitions import Definition, metric_row, missing_row

DEFINITIONS = {
    d.name: d
    for d in (
        Definition("mia.loss", 1, "AUC of -mean NLL"),
        Definition("mia.zlib", 1, "AUC of -mean NLL per compressed byte"),
        Definition("mia.min_k", 1, "AUC of the mean of the lowest 40 % of log p"),
        Definition("mia.min_k_plus_plus", 1, "AUC of mia.min_k of standardised log p"),
        Definition("mia.min_k_no_eos", 1, "AUC of mia.min_k without the last label (EOS)"),
        Definition(
            "mia.min_k_plus_plus_no_eos", 1, "AUC of mia.min_k_plus_plus without the last label"
        ),
        Definition("mia.reference", 1, "AUC of the reference model's mean NLL - mean NLL"),
        Definition("mia.gradient_norm", 1, "AUC of -norm of the gradient of the mean NLL"),
        Definition(
            "mia.gradient_norm_tensors",
            1,
            "AUC of -mean over tensors of the norm of the gradient of the mean NLL, without EOS",
        ),
        Definition("privleak", 1, "100 (AUC_retain - AUC) / (1 - AUC_retain)"),
    )
}


class Auc(NamedTuple):
    """An AUC, and the ends of its bootstrap interval."""

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
    """AUC with a percentile bootstrap interval; each of the two sets is resampled on its own.

    Args:
      members, others: as in `auc`.
      confidence: of the interval.
      resamples: number of draws.
      seed: of the draws; equal seeds give equal intervals.

    Returns:
      Auc. A perfect separation gives an interval of width 0: every resample is perfectly separated.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence={confidence} must be in 0..1, resamples={resamples} positive")
    value = auc(members, others)
    members, others = (np.sort(np.asarray(x, np.float64)) for x in (members, others))
    rng = np.random.default_rng(seed)

    def resample(scores: np.ndarray) -> np.ndarray:
        # Sorted indices of sorted scores keep the resample sorted, as `_auc` requires.
        return scores[np.sort(rng.integers(0, scores.size, scores.size))]

    values = [_auc(resample(members), resample(others)) for _ in range(resamples)]
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
      ValueError: retain_auc is 1: the two sets differ even for a model that saw neither.

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
      "high", the ends of its 95 % interval. A PrivLeak that is not defined (see `privleak`), and
      both where a score of the model is NaN, are None, with a "reason".

    Raises:
      ValueError: the mappings hold different attacks.
    """
    for scores in (holdout, *(retain_model or ())):
        if scores.keys() != forget.keys():
            raise ValueError(
                f"attacks differ: {sorted(forget)} and {sorted(scores)}; give every set of"
                " texts the same"
            )
    rows = []
    for attack in forget:
        definition = DEFINITIONS[f"mia.{attack}"]
        if np.isnan([*forget[attack], *holdout[attack]]).any():
            reason = "the score of a text is not a number"
            rows.append(missing_row(f"mia_{attack}", "forget, holdout", reason, definition))
            if retain_model is not None:
                rows.append(_no_privleak(f"privleak_{attack}", reason))
            continue
        area = auc_interval(forget[attack], holdout[attack], seed=seed)
        ends = {"low": area.low, "high": area.high}
        rows.append(metric_row(f"mia_{attack}", "forget, holdout", area.value, definition, **ends))
        if retain_model is not None:
            of_retain = [scores[attack] for scores in retain_model]
            if np.isnan(np.concatenate(of_retain)).any():
                reason = "the retain model's score of a text is not a number"
                rows.append(_no_privleak(f"privleak_{attack}", reason))
                continue
            rows.append(_privleak_row(f"privleak_{attack}", area.value, auc(*of_retain)))
    return rows


def _privleak_row(name: str, model_auc: float, retain_auc: float) -> dict[str, Any]:
    try:
        value = privleak(model_auc, retain_auc)
    except ValueError as error:
        return _no_privleak(name, str(error))
    return metric_row(name, "forget, holdout", value, DEFINITIONS["privleak"])


def _no_privleak(name: str, reason: str) -> dict[str, Any]:
    return missing_row(name, "forget, holdout", reason, DEFINITIONS["privleak"])


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    """`auc` of scores that are sorted already."""
    below = np.searchsorted(others, members, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(others, members, side="right").sum(dtype=np.int64)
    return float(below + not_above) / (2 * members.size * others.size)
