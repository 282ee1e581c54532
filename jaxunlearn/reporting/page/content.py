"""The data of the page, from a run's tables: compact, and sampled where it would be too large."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.reporting.figures import series

MOST_POINTS = 40_000
"""Rows of a chart's data beyond which samples are left out, the same ones everywhere."""

PLACES = ("lowest", "low", "middle", "high", "highest")
ALIKE, NO_WEIGHT = "all alike", "no weight"
WEIGHT_BINS = (*PLACES, ALIKE, NO_WEIGHT)
"""What is said of a sample's weight among those of the other samples."""

Columns = Mapping[str, Sequence[Any]]


class Data(NamedTuple):
    """Rows of one dataset of the page.

    Attributes:
      columns: their names.
      rows: the values, in the order of the columns; numbers have four digits.
      note: what was left out, if anything.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"columns": list(self.columns), "rows": self.rows}


def effects(table: Columns, groups: Mapping[str, Sequence[str]]) -> Data:
    """The G-effects of the total and of every group of layers, by objective, risk and step."""
    group_of = {layer: group for group, layers in groups.items() for layer in layers}
    sums: dict[tuple[str, str, int, str], float] = {}
    for objective, risk, step, layer, value in _rows(
        table, "objective", "risk", "step", "layer", "value"
    ):
        key = objective, risk, step, "total" if layer == "total" else group_of[layer]
        sums[key] = sums.get(key, 0.0) + _number(value)
    rows = [[*key, _short(value)] for key, value in sums.items()]
    return Data(("objective", "risk", "step", "group", "value"), rows)


def layers(table: Columns) -> Data:
    """The G-effects of every layer, and the share of the step's layers that it carries."""
    found = [r for r in _rows(table, "objective", "risk", "step", "layer", "value")]
    sizes: dict[tuple, float] = {}
    for objective, risk, step, layer, value in found:
        if layer != "total":
            key = objective, risk, step
            sizes[key] = sizes.get(key, 0.0) + abs(_number(value))
    rows = []
    for objective, risk, step, layer, value in found:
        size = sizes.get((objective, risk, step), 0.0)
        if layer != "total":
            share = _short(_number(value) / size) if size else None
            rows.append([objective, risk, step, layer, _short(value), share])
    return Data(("objective", "risk", "step", "layer", "value", "share"), rows)


def changes(table: Columns) -> Data:
    """Predicted and realised changes of both risks up to the next measurement."""
    names = ("objective", "risk", "step", "interval_steps", "interval_predicted", "interval_change")
    rows = [
        [objective, risk, step, steps, _short(predicted), _short(change)]
        for layer, objective, risk, step, steps, predicted, change in _rows(table, "layer", *names)
        if layer == "total" and predicted is not None and change is not None
    ]
    return Data(("objective", "risk", "step", "steps", "predicted", "change"), rows)


def risks(table: Columns) -> Data:
    """Both risks at every measured step."""
    rows = [
        [objective, risk, step, _short(value)]
        for layer, objective, risk, step, value in _rows(
            table, "layer", "objective", "risk", "step", "risk_value"
        )
        if layer == "total" and value is not None
    ]
    return Data(("objective", "risk", "step", "nll"), rows)


def points(table: Columns) -> Data:
    """Both PG-effects and the weight of every sample at every such step."""
    merged: dict[tuple, dict[str, Any]] = {}
    for layer, objective, step, sample, risk, value, weight in _rows(
        table, "layer", "objective", "step", "sample", "risk", "value", "weight"
    ):
        if layer == "total":
            entry = merged.setdefault((objective, step, sample), {"weight": weight})
            entry[risk] = value
    at_step: dict[tuple, list[dict[str, Any]]] = {}
    for (objective, step, _), entry in merged.items():
        at_step.setdefault((objective, step), []).append(entry)
    for entries in at_step.values():
        for entry, name in zip(entries, weight_bins([e["weight"] for e in entries]), strict=True):
            entry["bin"] = name
    rows = [
        [*key, *(_short(e.get(k)) for k in ("unlearn", "retain", "weight")), e["bin"]]
        for key, e in merged.items()
    ]
    columns = ("objective", "step", "sample", "unlearn", "retain", "weight", "bin")
    return _sampled(Data(columns, rows), "sample", MOST_POINTS)


def weight_bins(weights: Sequence[float | None]) -> list[str]:
    """Where each weight stands among all: what is compared is the order of weights.

    Args:
      weights: of the samples at one step; None or not finite where the objective has none.

    Returns:
      One of `WEIGHT_BINS` each, of equal weights the same one.

    >>> weight_bins([1.0, 5.0, 2.0, 3.0, 4.0])
    ['lowest', 'highest', 'low', 'middle', 'high']
    >>> weight_bins([1.0, 1.0]), weight_bins([None])
    (['all alike', 'all alike'], ['no weight'])
    """
    names = np.full(len(weights), NO_WEIGHT, object)
    known = np.array([w is not None and math.isfinite(w) for w in weights], bool)
    if known.any():
        bins = series.weight_bins(
            np.array([w for w in weights if w is not None and math.isfinite(w)])
        )
        # Where weights are equal there are fewer bins, of which the outer ones keep their names.
        last, outermost = bins.max(), len(PLACES) - 1
        names[known] = [PLACES[round(i * outermost / last)] if last else ALIKE for i in bins]
    return names.tolist()


def profiles(table: Columns) -> Data:
    """Both PG-effects of samples by layer; of parameter tensors where those were recorded."""
    merged: dict[tuple, dict[str, float]] = {}
    for layer, objective, step, sample, risk, value in _rows(
        table, "layer", "objective", "step", "sample", "risk", "value"
    ):
        if layer != "total":
            entry = merged.setdefault((objective, step, sample, series.layer_of(layer)), {})
            entry[risk] = entry.get(risk, 0.0) + _number(value)
    rows = [[*key, _short(e.get("unlearn")), _short(e.get("retain"))] for key, e in merged.items()]
    columns = ("objective", "step", "sample", "layer", "unlearn", "retain")
    return _sampled(Data(columns, rows), "sample", MOST_POINTS)


def tokens(table: Columns) -> Data:
    """Both PG-effects and the weight of label tokens: for each sample three lists."""
    merged: dict[tuple, dict[str, dict[int, Any]]] = {}
    for objective, step, sample, position, risk, value, weight in _rows(
        table, "objective", "step", "sample", "position", "risk", "value", "weight"
    ):
        entry = merged.setdefault((objective, step, sample), {"weight": {}})
        entry.setdefault(risk, {})[position] = _short(value)
        entry["weight"][position] = _short(weight)
    lists = lambda entry, key: [entry.get(key, {})[i] for i in sorted(entry.get(key, {}))]
    rows = [
        [*key, lists(e, "unlearn"), lists(e, "retain"), lists(e, "weight")]
        for key, e in merged.items()
    ]
    longest = max((len(row[3]) for row in rows), default=1)
    columns = ("objective", "step", "sample", "unlearn", "retain", "weight")
    return _sampled(Data(columns, rows), "sample", max(1, MOST_POINTS // max(1, longest)))


def relearning(table: Columns) -> Data:
    """The forget ES of every model while it is attacked."""
    rows = [
        [model, attack, step, _short(es), _short(nll)]
        for model, attack, step, es, nll in _rows(
            table, "model", "attack", "step", "forget_es", "forget_nll"
        )
    ]
    return Data(("model", "attack", "step", "es", "nll"), rows)


def _rows(table: Columns, *names: str) -> list[tuple]:
    """The rows of these columns; none where the table is missing."""
    if not table:
        return []
    return list(zip(*(table[name] for name in names), strict=True))


def _sampled(data: Data, column: str, most: int) -> Data:
    """The data of evenly spaced samples, where all of them would be too many rows."""
    if len(data.rows) <= most:
        return data
    place = data.columns.index(column)
    names = sorted({row[place] for row in data.rows})
    count = max(1, len(names) * most // len(data.rows))
    kept = {names[i] for i in np.linspace(0, len(names) - 1, count).astype(int)}
    note = f"{len(kept)} of {len(names)} samples are shown"
    return data._replace(rows=[row for row in data.rows if row[place] in kept], note=note)


def _number(value: Any) -> float:
    return 0.0 if value is None else float(value)


def _short(value: Any) -> float | None:
    """Four digits; None for what is no finite number, which JSON has not."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
