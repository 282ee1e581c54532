"""From long tables to the series that a figure draws.  Numpy only.

A table is a dict of columns (what pyarrow's `to_pydict()` gives); None is a null: not measured.
NaN and infinities were measured: they are left out of a series and counted in its `dropped`.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

REQUIRED = {
    "g_effect": ("step", "objective", "risk", "layer", "value"),
    "samples": ("step", "objective", "sample", "weight"),
    "confidence": ("step", "objective", "statistic", "log10_inverse"),
    "pg_effect": ("step", "objective", "sample", "layer", "risk", "value", "weight"),
}
Table = dict[str, np.ndarray]
SGD = "sgd_change"


class Series(NamedTuple):
    """Finite values by increasing step, and how many non-finite ones were left out."""

    steps: np.ndarray
    values: np.ndarray
    dropped: int


class Spread(NamedTuple):
    """Mean and quantiles over samples, one entry a step."""

    steps: np.ndarray
    mean: np.ndarray
    quantiles: dict[float, np.ndarray]
    dropped: int


class PgPoints(NamedTuple):
    """One entry a (step, sample): its two PG-effects and its weight."""

    steps: np.ndarray
    unlearn: np.ndarray
    retain: np.ndarray
    weights: np.ndarray
    dropped: int


class Pairs(NamedTuple):
    """Two columns where both are finite."""

    x: np.ndarray
    y: np.ndarray
    dropped: int


class EffectPath(NamedTuple):
    """e_u and e_r by increasing step, where both are finite."""

    steps: np.ndarray
    e_u: np.ndarray
    e_r: np.ndarray
    dropped: int


def read(tables: Mapping[str, Any], name: str) -> Table:
    """A table as equally long object columns; `{}` when it is missing or has no rows.

    Args:
      tables: {table name: {column: values}}.
      name: one of `REQUIRED`.

    Raises:
      ValueError: a required column is missing, or the columns differ in length.
    """
    table = {key: objects(values) for key, values in (tables.get(name) or {}).items()}
    if not any(map(len, table.values())):
        return {}
    for key in REQUIRED[name]:
        if key not in table:
            near = difflib.get_close_matches(key, table, n=1)
            hint = f"; perhaps it is {near[0]!r}?" if near else ""
            raise ValueError(f"table {name!r} has no column {key!r}, only {sorted(table)}{hint}")
    lengths = {key: len(column) for key, column in table.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of table {name!r} differ in length: {lengths}")
    return table


def objects(values: Sequence | np.ndarray) -> np.ndarray:
    """The values as an object array, so that None stays None."""
    return np.array(list(values), dtype=object)


def objectives(tables: Mapping[str, Any]) -> list[str]:
    """All objectives of the run in a fixed order, so that each keeps its colour in every figure."""
    found = [distinct(read(tables, name), "objective") for name in REQUIRED]
    return list(dict.fromkeys(name for names in found for name in names))


def provenance(table: Table) -> str:
    """How the table was measured, for a caption: its reductions and estimators."""
    kinds = ("reduction", "estimator")
    found = {kind: ", ".join(map(str, distinct(table, kind))) for kind in kinds}
    return "; ".join(f"{kind} {names}" for kind, names in found.items() if names)


def select(table: Table, **equal: Any) -> Table:
    """The rows whose columns equal the given values."""
    if not table:
        return table
    keep = np.logical_and.reduce([table[key] == value for key, value in equal.items()])
    return {key: column[keep] for key, column in table.items()}


def distinct(table: Table, name: str) -> list:
    """The distinct values of a column in order of first appearance, nulls left out."""
    return [value for value in dict.fromkeys(table.get(name, ())) if value is not None]


def numbers(table: Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64 (null becomes NaN) and where it is null; all null when it is absent.

    >>> values, null = numbers({"a": objects([1.0, None, float("inf")])}, "a")
    >>> values.tolist(), null.tolist()
    ([1.0, nan, inf], [False, True, False])
    """
    size = len(next(iter(table.values()), ()))
    column = table.get(name, np.full(size, None, dtype=object))
    null = np.array([value is None for value in column], dtype=bool)
    values = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
    return values, null


def series(table: Table, name: str) -> Series:
    """A column by step: sorted, nulls left out, non-finite values left out and counted."""
    steps, _ = numbers(table, "step")
    values, null = numbers(table, name)
    return _finite(steps, values, null)


def realised_change(table: Table) -> Series:
    """R(theta_t) - R(theta_0) at every measured step, and at the end of the last interval."""
    steps, _ = numbers(table, "step")
    if not len(steps):
        return _finite(steps, steps, np.zeros(0, bool))
    values, null = numbers(table, "risk_value")
    last = np.argmax(steps)
    length, moved = (numbers(table, n)[0][last] for n in ("interval_steps", "interval_change"))
    first = values[np.argmin(steps)]
    with np.errstate(invalid="ignore"):  # inf - inf is not finite, and counted as such
        values = np.append(values, values[last] + moved) - first
    steps = np.append(steps, steps[last] + length)
    return _finite(steps, values, np.append(null, not np.isfinite(length)))


def with_sgd(table: Table) -> Table:
    """The table with a column -lr e: the change of R that a plain gradient step predicts."""
    (lr, _), (value, _) = numbers(table, "lr"), numbers(table, "value")
    with np.errstate(invalid="ignore", over="ignore"):
        change = -lr * value
    known = np.isfinite(lr)
    return table | {SGD: objects([x if k else None for x, k in zip(change, known, strict=True)])}


def predicted_change(table: Table) -> Series:
    """The cumulated `interval_predicted`, placed at the end of each interval, 0 at the start.

    The sum ends at the first interval without a finite prediction: what follows is unknown.
    """
    steps, _ = numbers(table, "step")
    order = np.argsort(steps, kind="stable")
    steps = steps[order]
    predicted, null = (part[order] for part in numbers(table, "interval_predicted"))
    lengths = numbers(table, "interval_steps")[0][order]
    ends = np.where(np.isfinite(lengths), steps + lengths, np.append(steps[1:], np.nan))
    finite = np.isfinite(predicted) & np.isfinite(ends)
    known = int(np.cumprod(finite).sum())
    totals = np.append(0.0, np.cumsum(predicted[:known]))
    dropped = int((~np.isfinite(predicted) & ~null).sum())
    return Series(np.append(steps[:1], ends[:known]), totals[: known + len(steps[:1])], dropped)


def where_both(table: Table, first: str, second: str) -> Table:
    """The rows where neither of two columns is null."""
    keep = ~(numbers(table, first)[1] | numbers(table, second)[1])
    return {key: column[keep] for key, column in table.items()}


def pairs(table: Table, first: str, second: str) -> Pairs:
    """Two columns row by row: nulls left out, non-finite ones left out and counted."""
    both = where_both(table, first, second)
    x, y = numbers(both, first)[0], numbers(both, second)[0]
    finite = np.isfinite(x) & np.isfinite(y)
    return Pairs(x[finite], y[finite], int((~finite).sum()))


def effect_path(total: Table) -> EffectPath:
    """The path of (e_u, e_r) over the steps measured for both, from `total` rows."""
    unlearn, retain = (series(select(total, risk=risk), "value") for risk in ("unlearn", "retain"))
    steps, at_u, at_r = np.intersect1d(unlearn.steps, retain.steps, return_indices=True)
    dropped = unlearn.dropped + retain.dropped
    return EffectPath(steps, unlearn.values[at_u], retain.values[at_r], dropped)


def group_sums(table: Table, groups: Mapping[str, Sequence[str]]) -> dict[str, Series]:
    """The `value` of each group of layers by step; a group's sum is finite or dropped whole.

    Raises:
      ValueError: a layer of the table is in no group, so that groups would not sum to the total.
    """
    lost = set(distinct(table, "layer")) - {"total"} - {x for g in groups.values() for x in g}
    if groups and lost:
        raise ValueError(f"layers {sorted(lost)} are in no group of {dict(groups)}")
    sums = {}
    for group, layers in groups.items():
        member = np.isin(table["layer"].astype(str), list(layers))
        values, null = numbers(table, "value")
        steps, at = np.unique(numbers(table, "step")[0][member], return_inverse=True)
        with np.errstate(invalid="ignore"):
            total = np.bincount(at, weights=values[member], minlength=len(steps))
        absent = np.bincount(at, weights=null[member], minlength=len(steps)) > 0
        if member.any():
            sums[group] = _finite(steps, total, absent)
    return sums


def spread(table: Table, name: str, at: Sequence[float]) -> Spread:
    """Mean and quantiles of a column over the samples of each step."""
    found = series(table, name)
    steps = np.unique(found.steps)
    parts = [found.values[found.steps == step] for step in steps]
    rows = [np.quantile(part, at) for part in parts]
    columns = np.array(rows).reshape(-1, len(at)).T
    mean = np.array([part.mean() for part in parts])
    return Spread(steps, mean, dict(zip(at, columns, strict=True)), found.dropped)


def pg_points(table: Table, steps: Sequence[int]) -> PgPoints:
    """Joins the unlearn and retain PG-effects of each (step, sample) that has a weight."""
    total = select(table, layer="total")
    retain = select(total, risk="retain")
    retained, null = numbers(retain, "value")
    by_key = {key: v for key, v, no in zip(_keys(retain), retained, null, strict=True) if not no}
    unlearn = select(total, risk="unlearn")
    values, no_value = numbers(unlearn, "value")
    weights, no_weight = numbers(unlearn, "weight")
    keys = _keys(unlearn)
    partner = np.array([by_key.get(key, np.nan) for key in keys], dtype=np.float64)
    paired = np.array([key in by_key for key in keys], dtype=bool)
    at = numbers(unlearn, "step")[0]
    wanted = np.isin(at, list(steps)) & paired & ~no_value & ~no_weight
    finite = np.isfinite(values) & np.isfinite(weights) & np.isfinite(partner)
    keep = wanted & finite
    dropped = int((wanted & ~finite).sum())
    return PgPoints(at[keep], values[keep], partner[keep], weights[keep], dropped)


def varying_weights(table: Table) -> list[str]:
    """Objectives some of whose weights are finite and not 1: a constant 1 is plain ascent."""
    weights, _ = numbers(table, "weight")
    vary = np.isfinite(weights) & (weights != 1.0)
    return distinct({key: column[vary] for key, column in table.items()}, "objective")


def _keys(table: Table) -> list[tuple]:
    return list(zip(table.get("step", ()), table.get("sample", ()), strict=True))


def _finite(steps: np.ndarray, values: np.ndarray, null: np.ndarray) -> Series:
    finite = np.isfinite(values)
    order = np.argsort(steps[finite], kind="stable")
    dropped = int((~finite & ~null).sum())
    return Series(steps[finite][order], values[finite][order], dropped)
