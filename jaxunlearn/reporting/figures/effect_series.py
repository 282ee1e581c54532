"""The series that figures of the G-effect draw: paths, sums and shares of layer groups."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.reporting.figures.series import (
    Series,
    Table,
    distinct,
    finite_series,
    numbers,
    select,
    series,
)


class EffectPath(NamedTuple):
    """e_u and e_r by increasing step, where both are finite.

    Attributes:
      steps: [n].
      e_u, e_r: [n] the G-effects on D_u and on D_r.
      dropped: as in `Series`, of both columns together.
    """

    steps: np.ndarray
    e_u: np.ndarray
    e_r: np.ndarray
    dropped: int


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
            sums[group] = finite_series(steps, total, absent)
    return sums


def group_shares(table: Table, groups: Mapping[str, Sequence[str]]) -> dict[str, Series]:
    """The share of each group in the magnitudes of all groups by step, with the group's sign.

    A step at which some group has no finite value, or at which all are 0, is left out.

    Raises:
      ValueError: as `group_sums`.
    """
    sums = group_sums(table, groups)
    steps = [line.steps for line in sums.values()]
    common = functools.reduce(np.intersect1d, steps) if steps else np.array([])
    at = {group: line.values[np.isin(line.steps, common)] for group, line in sums.items()}
    sizes = np.sum([np.abs(values) for values in at.values()], axis=0)
    some = sizes > 0
    return {
        group: Series(common[some], at[group][some] / sizes[some], line.dropped)
        for group, line in sums.items()
    }
