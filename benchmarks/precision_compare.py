"""What a precision changes: errors, signs and orders of effects against those of float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.precision_measure import RISKS, Effects, Scales


def compare(effects: Effects, exact: Effects, scale: Scales, objectives: Sequence[str]) -> dict:
    """The differences between the effects of a setting and the exact ones.

    An error is relative to the value (`relative`), and to the product of the norms of the two
    gradients (`scaled`): a difference of cosines, which is also meaningful for a value near 0.

    Returns:
      {"g": of the G-effects, "pg": of the PG-effects, see `_changes`}; "g" also holds the relative
      error of every objective's e, {objective: {risk: error}}, and whether the order of the
      objectives by e changes, {risk: bool}.
    """
    g = _changes(effects.g, exact.g, scale.g, scale.g_total)
    errors = _relative(effects.g.sum(-1), exact.g.sum(-1))
    g["objectives"] = {
        name: dict(zip(RISKS, map(float, row), strict=True))
        for name, row in zip(objectives, errors, strict=True)
    }
    orders = [np.argsort(x.g.sum(-1), axis=0) for x in (effects, exact)]
    changed = np.any(orders[0] != orders[1], axis=0)
    g["order_changes"] = dict(zip(RISKS, map(bool, changed), strict=True))
    pg = _changes(effects.pg, exact.pg, scale.pg, scale.pg_total)
    pg["rank_correlation_of_samples"] = _least_correlation(effects.pg.sum(-1), exact.pg.sum(-1))
    return {"g": g, "pg": pg}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two arrays of numbers; equal numbers share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _changes(
    values: np.ndarray, exact: np.ndarray, scale: np.ndarray, total_scale: np.ndarray
) -> dict[str, Any]:
    """Errors and changes of effects [rows, columns, layers], of their totals and by layer.

    Returns:
      {"total", "layers"}, each {"median_relative", "largest_relative", "largest_scaled", "signs":
      how many of the "count" values change theirs, "largest_changed": the largest cosine among
      those}; and the least "rank_correlation_of_layers".
    """
    return {
        "total": _errors(values.sum(-1), exact.sum(-1), total_scale),
        "layers": _errors(values, exact, scale),
        "rank_correlation_of_layers": _least_correlation(values, exact),
    }


def _errors(values: np.ndarray, exact: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
    relative = _relative(values, exact)
    scale = np.where(scale > 0, scale, 1)  # a gradient of 0 has no effect to be wrong about
    flipped = np.sign(values) != np.sign(exact)
    cosines = np.abs(exact / scale)
    return {
        "median_relative": float(np.median(relative)),
        "largest_relative": float(relative.max()),
        "largest_scaled": float(np.max(np.abs(values - exact) / scale)),
        "signs": int(flipped.sum()),
        "count": int(flipped.size),
        "largest_changed": float(cosines[flipped].max()) if flipped.any() else 0.0,
    }


def _relative(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|difference| / |exact|, 0 where both are 0."""
    difference = np.abs(np.asarray(values, np.float64) - exact)
    return np.where(difference > 0, difference / np.where(exact == 0, 1, np.abs(exact)), 0)


def _least_correlation(values: np.ndarray, exact: np.ndarray) -> float:
    """The least rank correlation along the last axis."""
    rows = zip(*(x.reshape(-1, x.shape[-1]) for x in (values, exact)), strict=True)
    return min(rank_correlation(a, b) for a, b in rows if np.any(b))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[index]
