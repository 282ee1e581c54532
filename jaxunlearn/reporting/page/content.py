"""The data of the page, from a run's tables: compact, and sampled where it would be too large."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.metrics.relearning import attack_kind
from jaxunlearn.reporting.figures import series

MOST_ROWS = 40_000
"""Rows of a dataset beyond which samples are left out."""

PLACES = ("lowest", "low", "middle", "high", "highest")
ALIKE, NO_WEIGHT = "all alike", "no weight"
WEIGHT_BINS = (*PLACES, ALIKE, NO_WEIGHT)
"""What is said of a sample's weight among those of the other samples."""

SIDES = ("ne", "se", "nw", "sw")
"""Where the label of a point can be, the best place first."""
SIZE, LETTER, LINE = (600.0, 300.0), 7.0, 14.0
"""The size of the chart of models, and of its letters, in pixels: about, since charts stretch."""

Columns = Mapping[str, Sequence[Any]]


class Data(NamedTuple):
    """Rows of one dataset of the page.

    Attributes:
      columns: their names.
      rows: the values, in the order of the columns; numbers have four digits.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]

    def distinct(self, column: str) -> list[Any]:
        """The values of a column, each once, in their order."""
        place = self.columns.index(column)
        return list(dict.fromkeys(row[place] for row in self.rows))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"columns": list(self.columns), "rows": self.rows}


def models(rows: Sequence[Sequence[Any]]) -> Data:
    """Models with the side of each on which its label covers no other label or point.

    Args:
      rows: (label, kind, forget ES, retain ES, forget NLL, retain NLL).
    """
    columns = ("model", "kind", "forget_es", "retain_es", "forget_nll", "retain_nll", "side")
    sides = label_sides([str(row[0]) for row in rows], [(row[2], row[3]) for row in rows])
    return Data(columns, [[*row, side] for row, side in zip(rows, sides, strict=True)])


def label_sides(labels: Sequence[str], points: Sequence[tuple[float, float]]) -> list[str]:
    """The side of every point for its label, one of `SIDES`; the best where all are taken.

    >>> label_sides(["left", "right", "far"], [(0.5, 0.5), (0.51, 0.5), (1.0, 1.0)])
    ['nw', 'ne', 'ne']
    """
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    places = (np.array(points, float) - low) / np.where(high > low, high - low, 1.0) * SIZE
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]  # of the points
    sides = []
    for label, (x, y) in zip(labels, places, strict=True):
        covered = {}
        for side in SIDES:
            left = x + 8 if "e" in side else x - 8 - LETTER * len(label)
            base = y + 2 if "n" in side else y - 2 - LINE
            box = (left, base, left + LETTER * len(label), base + LINE)
            covered[side] = sum(_overlap(box, other) for other in boxes), box
        side = min(SIDES, key=lambda side: covered[side][0])
        boxes.append(covered[side][1])
        sides.append(side)
    return sides


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, low, right, high) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


class Kept(NamedTuple):
    """The samples of which the page holds something, evenly spaced where all would be too many.

    Attributes:
      points: samples that the plane shows.
      details: those among them of which layers and tokens are shown.
      of: the number of all samples.
    """

    points: list[int]
    details: list[int]
    of: int


def kept_samples(by_sample: Columns, by_token: Columns, most: int) -> Kept:
    """Which samples the page can hold.

    Args:
      by_sample: the table `pg_effect`.
      by_token: the table `token_effect`.
      most: the rows of a dataset, and the numbers of tokens, that fit into the page.
    """
    whole = np.asarray(by_sample.get("layer", ()), object) == "total"
    samples = sorted({*by_sample.get("sample", ()), *by_token.get("sample", ())})
    # Both risks of a sample are one row of the page.
    sizes = [whole.sum() / 2, max((~whole).sum(), len(by_token.get("sample", ()))) / 2]
    points = _evenly(samples, len(samples), sizes[0], most)
    return Kept(points, _evenly(points, len(samples), sizes[1], most), len(samples))


def _evenly(samples: list[int], of: int, rows: float, most: int) -> list[int]:
    """As many of the samples, evenly spaced, as fit, where all `of` them have these rows."""
    count = len(samples) if rows <= most else min(len(samples), max(1, int(of * most / rows)))
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).astype(int).tolist()]


def rows_of(table: Columns, samples: Sequence[int], *, totals: bool | None = None) -> Columns:
    """The rows of some samples; of those, only totals over layers, only layers, or both."""
    if not table:
        return table
    keep = np.isin(np.asarray(table["sample"]), samples)
    if totals is not None:
        keep &= (np.asarray(table["layer"], object) == "total") == totals
    places = np.flatnonzero(keep).tolist()
    return {key: [column[i] for i in places] for key, column in table.items()}


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
    return Data(("objective", "step", "sample", "unlearn", "retain", "weight", "bin"), rows)


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
    """Both PG-effects of samples by layer; the sum over its tensors where these alone are there."""
    merged: dict[tuple, dict[str, float]] = {}
    rows = _rows(table, "layer", "objective", "step", "sample", "risk", "value")
    with_rows = {row[:3] for row in rows if series.layer_of(row[0]) == row[0]}
    for layer, objective, step, sample, risk, value in rows:
        owner = series.layer_of(layer)
        if layer != "total" and (layer == owner or (owner, objective, step) not in with_rows):
            entry = merged.setdefault((objective, step, sample, owner), {})
            entry[risk] = entry.get(risk, 0.0) + _number(value)
    rows = [[*key, _short(e.get("unlearn")), _short(e.get("retain"))] for key, e in merged.items()]
    return Data(("objective", "step", "sample", "layer", "unlearn", "retain"), rows)


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
    return Data(("objective", "step", "sample", "unlearn", "retain", "weight"), rows)


def relearning(table: Columns) -> Data:
    """The forget ES of every model while it is attacked."""
    rows = [
        [model, attack_kind(attack).trains_on, step, _short(es), _short(nll)]
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


def _number(value: Any) -> float:
    return 0.0 if value is None else float(value)


def _short(value: Any) -> float | None:
    """Four digits; None for what is no finite number, which JSON has not."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
