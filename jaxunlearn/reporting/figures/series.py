"""Turns long tables into the series that figures draw.

A table is a dict of columns (what pyarrow's `to_pydict()` gives); None is a null: not measured.
NaN and infinities are measured values: a series leaves them out and counts them in `dropped`.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.record.tables import FIGURE_COLUMNS

Table = dict[str, np.ndarray]
SGD = "sgd_change"

WEIGHT_BINS = 5
"""The most bins of weights, see `weight_bins`."""
SAME_WEIGHT = 1e-6


class Series(NamedTuple):
    """Finite values by increasing step.

    Attributes:
      steps, values: [n].
      dropped: the number of values that are left out because they are not finite.
    """

    steps: np.ndarray
    values: np.ndarray
    dropped: int


class Spread(NamedTuple):
    """Mean and quantiles over samples, one entry per step.

    Attributes:
      steps, mean: [n].
      quantiles: {level: [n]}.
      dropped: as in `Series`.
    """

    steps: np.ndarray
    mean: np.ndarray
    quantiles: dict[float, np.ndarray]
    dropped: int


class PgPoints(NamedTuple):
    """The two PG-effects and the weight of each (step, sample).

    Attributes:
      steps, weights: [n].
      unlearn, retain: [n] the PG-effects on D_u and on D_r.
      dropped: the number of entries that are left out because a value is not finite.
    """

    steps: np.ndarray
    unlearn: np.ndarray
    retain: np.ndarray
    weights: np.ndarray
    dropped: int


class Pairs(NamedTuple):
    """Two columns in the rows where both are finite.

    Attributes:
      x, y: [n] the first and the second column.
      dropped: the number of rows that are left out because a value is not finite.
    """

    x: np.ndarray
    y: np.ndarray
    dropped: int


class LayerGrid(NamedTuple):
    """PG-effects of samples by layer.

    Attributes:
      values: [samples, layers], NaN where no finite value was measured.
      dropped: the number of measured entries that are not finite.
    """

    values: np.ndarray
    dropped: int


def read(tables: Mapping[str, Any], name: str) -> Table:
    """A table as equally long object columns; `{}` when it is missing or has no rows.

    Args:
      tables: {table name: {column: values}}.
      name: a key of `FIGURE_COLUMNS`, which lists the columns that are required.

    Raises:
      ValueError: a required column is missing, or the columns differ in length.
    """
    table = {key: objects(values) for key, values in (tables.get(name) or {}).items()}
    if not any(map(len, table.values())):
        return {}
    for key in FIGURE_COLUMNS[name]:
        if key not in table:
            near = difflib.get_close_matches(key, table, n=1)
            hint = f"; perhaps it is {near[0]!r}?" if near else ""
            raise ValueError(f"table {name!r} has no column {key!r}, only {sorted(table)}{hint}")
    lengths = {key: len(column) for key, column in table.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of table {name!r} differ in length: {lengths}")
    return table


def objects(values: Sequence | np.ndarray) -> np.ndarray:
    """The values as an object array, so that None stays None; such an array as it is."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        return values
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)  # which leaves values that are lists alone
    return column


def objectives(tables: Mapping[str, Any]) -> list[str]:
    """All objectives of the run in a fixed order, so that each keeps its colour in every figure."""
    by_table = [distinct(read(tables, table), "objective") for table in FIGURE_COLUMNS]
    return list(dict.fromkeys(name for names in by_table for name in names))


def provenance(table: Table) -> str:
    """The reductions, estimators and precisions of a table, as text for a caption."""
    kinds = ("reduction", "estimator", "precision")
    values = {kind: ", ".join(map(str, distinct(table, kind))) for kind in kinds}
    return "; ".join(f"{kind} {names}" for kind, names in values.items() if names)


def select(table: Table, **equal: Any) -> Table:
    """The rows whose columns equal the given values."""
    if not table:
        return table
    keep = np.logical_and.reduce([table[key] == value for key, value in equal.items()])
    return {key: column[keep] for key, column in table.items()}


def without(table: Table, **equal: Any) -> Table:
    """The rows whose columns differ from the given values."""
    if not table:
        return table
    drop = np.logical_or.reduce([table[key] == value for key, value in equal.items()])
    return {key: column[~drop] for key, column in table.items()}


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
    return finite_series(steps, values, null)


def realised_change(table: Table) -> Series:
    """R(theta_t) - R(theta_0) at every measured step, and at the end of the last interval.

    Where theta_0 was not measured the first step that was takes its place.
    """
    steps, _ = numbers(table, "step")
    if not len(steps):
        return finite_series(steps, steps, np.zeros(0, bool))
    values, null = numbers(table, "risk_value")
    last = np.argmax(steps)
    length, change = (numbers(table, n)[0][last] for n in ("interval_steps", "interval_change"))
    first = values[np.argmin(steps)]
    with np.errstate(invalid="ignore"):  # inf - inf is not finite, and counted as such
        values = np.append(values, values[last] + change) - first
    steps = np.append(steps, steps[last] + length)
    return finite_series(steps, values, np.append(null, not np.isfinite(length)))


def with_sgd(table: Table) -> Table:
    """The table with a column -lr e: the change of R that a plain gradient step predicts."""
    (lr, _), (value, _) = numbers(table, "lr"), numbers(table, "value")
    with np.errstate(invalid="ignore", over="ignore"):
        change = -lr * value
    has_rate = np.isfinite(lr)
    return table | {SGD: objects([x if k else None for x, k in zip(change, has_rate, strict=True)])}


def predicted_change(table: Table) -> Series:
    """The running sum of `interval_predicted`, at the end of each interval, from 0 at the start.

    The sum ends at the first interval without a finite prediction, since later sums are unknown.
    """
    steps, _ = numbers(table, "step")
    order = np.argsort(steps, kind="stable")
    steps = steps[order]
    predicted, null = (part[order] for part in numbers(table, "interval_predicted"))
    lengths = numbers(table, "interval_steps")[0][order]
    ends = np.where(np.isfinite(lengths), steps + lengths, np.append(steps[1:], np.nan))
    finite = np.isfinite(predicted) & np.isfinite(ends)
    count = int(np.cumprod(finite).sum())
    totals = np.append(0.0, np.cumsum(predicted[:count]))
    dropped = int((~np.isfinite(predicted) & ~null).sum())
    return Series(np.append(steps[:1], ends[:count]), totals[: count + len(steps[:1])], dropped)


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


def spread(table: Table, name: str, at: Sequence[float]) -> Spread:
    """Mean and quantiles of a column over the samples of each step."""
    column = series(table, name)
    steps = np.unique(column.steps)
    parts = [column.values[column.steps == step] for step in steps]
    rows = [np.quantile(part, at) for part in parts]
    columns = np.array(rows).reshape(-1, len(at)).T
    mean = np.array([part.mean() for part in parts])
    return Spread(steps, mean, dict(zip(at, columns, strict=True)), column.dropped)


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them: the first, the last, and even ones between.

    >>> evenly([0, 5, 10, 15, 20], 3), evenly([0, 5], 3)
    ([0, 10, 20], [0, 5])
    """
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[place] for place in places]


def pg_points(table: Table, steps: Sequence[int]) -> PgPoints:
    """Joins the unlearn and retain PG-effects of each (step, sample) that has a weight."""
    total = select(table, layer="total")
    retain = select(total, risk="retain")
    retain_values, null = numbers(retain, "value")
    entries = zip(_keys(retain), retain_values, null, strict=True)
    by_key = {key: value for key, value, is_null in entries if not is_null}
    unlearn = select(total, risk="unlearn")
    values, no_value = numbers(unlearn, "value")
    weights, no_weight = numbers(unlearn, "weight")
    keys = _keys(unlearn)
    partner = np.array([by_key.get(key, np.nan) for key in keys], dtype=np.float64)
    paired = np.array([key in by_key for key in keys], dtype=bool)
    at = numbers(unlearn, "step")[0]
    complete = np.isin(at, list(steps)) & paired & ~no_value & ~no_weight
    finite = np.isfinite(values) & np.isfinite(weights) & np.isfinite(partner)
    keep = complete & finite
    dropped = int((complete & ~finite).sum())
    return PgPoints(at[keep], values[keep], partner[keep], weights[keep], dropped)


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to; the name of a layer stays as it is.

    >>> layer_of("block_0.q.kernel"), layer_of("block_0")
    ('block_0', 'block_0')
    """
    return name.partition(".")[0]


def layer_order(table: Table, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The layers of a table: group by group, or as they first appear where there are no groups.

    Raises:
      ValueError: there are groups, but a layer is in none of them.
    """
    present = dict.fromkeys(map(layer_of, distinct(table, "layer")))
    present.pop("total", None)
    grouped = [layer for members in groups.values() for layer in members]
    lost = sorted(set(present) - set(grouped))
    if groups and lost:
        raise ValueError(f"layers {lost} are in no group of {dict(groups)}")
    return [layer for layer in grouped or present if layer in present]


def sample_order(table: Table) -> list:
    """The samples of one step by their PG-effect on D_u, the most negative first.

    It is the `total` row's, or the sum over layers where there is none.
    """
    unlearn = select(table, risk="unlearn")
    total = select(unlearn, layer="total")
    samples = distinct(table, "sample")
    if total and len(total["sample"]):
        by_sample = dict(zip(total["sample"], numbers(total, "value")[0], strict=True))
        effects = np.array([by_sample.get(sample, np.nan) for sample in samples])
    else:
        grid = layer_grid(unlearn, samples, layer_order(unlearn, {}))
        effects = np.nansum(grid.values, axis=1)
    return [samples[at] for at in np.argsort(effects, kind="stable")]


def layer_grid(table: Table, samples: Sequence, layers: Sequence[str]) -> LayerGrid:
    """PG-effects of samples by layer, from rows of one step and one risk.

    Tensors are summed over their layer, except where the layer has rows of its own. A sum is finite
    or dropped whole.
    """
    names = table.get("layer", np.array([], dtype=object))
    with_rows = {name for name in distinct(table, "layer") if layer_of(name) == name}
    owners = [name if name in with_rows else layer_of(name) for name in names]
    counts = [
        name in with_rows or owner not in with_rows
        for name, owner in zip(names, owners, strict=True)
    ]
    row, column = ({key: at for at, key in enumerate(keys)} for keys in (samples, layers))
    inside = np.array(
        [
            use and owner in column and sample in row
            for use, owner, sample in zip(counts, owners, table.get("sample", ()), strict=True)
        ],
        dtype=bool,
    )
    indices = np.flatnonzero(inside)
    at = (
        np.array([row[table["sample"][i]] for i in indices], dtype=int),
        np.array([column[owners[i]] for i in indices], dtype=int),
    )
    values, null = numbers(table, "value")
    shape = (len(samples), len(layers))
    sums, parts, nulls = np.zeros(shape), np.zeros(shape, int), np.zeros(shape, int)
    with np.errstate(invalid="ignore", over="ignore"):
        np.add.at(sums, at, values[inside])
    np.add.at(parts, at, 1)
    np.add.at(nulls, at, null[inside].astype(int))
    absent = (parts == 0) | (nulls > 0)
    finite = np.isfinite(sums) & ~absent
    return LayerGrid(np.where(finite, sums, np.nan), int((~finite & ~absent).sum()))


def varying_weights(table: Table) -> list[str]:
    """The objectives with a finite weight other than 1; a constant 1 is plain gradient ascent."""
    weights, _ = numbers(table, "weight")
    vary = np.isfinite(weights) & (weights != 1.0)
    return distinct({key: column[vary] for key, column in table.items()}, "objective")


def _keys(table: Table) -> list[tuple]:
    return list(zip(table.get("step", ()), table.get("sample", ()), strict=True))


def finite_series(steps: np.ndarray, values: np.ndarray, null: np.ndarray) -> Series:
    """The finite values by increasing step; those that are neither null nor finite are counted."""
    finite = np.isfinite(values)
    order = np.argsort(steps[finite], kind="stable")
    dropped = int((~finite & ~null).sum())
    return Series(steps[finite][order], values[finite][order], dropped)


def weight_bins(weights: np.ndarray) -> np.ndarray:
    """The bin of each weight, from 0 for the smallest; bins have as many samples each.

    A weight's bin follows from its rank, equal weights have the mean of their ranks. So they share
    a bin, and weights of two values never do. Weights are equal where they differ by no more than
    rounding, `SAME_WEIGHT` of the largest: that of a sample is a mean over its tokens.

    Args:
      weights: [n], finite, n > 0.

    Returns:
      [n] int, below `WEIGHT_BINS`; fewer bins where weights are equal.

    >>> weight_bins(np.arange(6.0)).tolist(), weight_bins(np.ones(3)).tolist()
    ([0, 1, 2, 3, 4, 4], [0, 0, 0])
    >>> weight_bins(np.array([0.0, 0.0, 0.0, 1.0, 1.0 + 1e-8])).tolist()
    [0, 0, 0, 1, 1]
    """
    order = np.argsort(weights, kind="stable")
    gaps = np.diff(weights[order]) > SAME_WEIGHT * np.abs(weights).max()
    value = np.concatenate([[0], np.cumsum(gaps)])  # which of the different values, by rank
    first = np.searchsorted(value, value, side="left")
    last = np.searchsorted(value, value, side="right") - 1
    # Twice the mean rank, in whole numbers: a rank on a border belongs to the bin above it.
    most = max(2 * (len(weights) - 1), 1)
    bins = np.empty(len(weights), int)
    bins[order] = np.minimum(WEIGHT_BINS * (first + last) // most, WEIGHT_BINS - 1)
    return np.unique(bins, return_inverse=True)[1]
