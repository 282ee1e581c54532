"""The calibration suite: forgetting of each model at equal retention (UWC)."""

import functools

import numpy as np

from jaxunlearn.core.trees import Tree
from jaxunlearn.evaluation.suite import (
    Context,
    MetricRows,
    Suite,
    digests,
    lacks_set,
    own_set,
    split_of,
    versions,
)
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics import uwc
from jaxunlearn.metrics.definitions import metric_row, missing_row
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.record.folder import BASE
from jaxunlearn.training.batch import Split

NO_BASE = "needs the model before unlearning: --base for a model"
"""The reason given where there is no such model."""

STEPS = 6
"""Halvings of the bisection on the mixing weight."""

_ALPHA, _RETENTION, _STRENGTH = uwc.DEFINITIONS.values()
_OVER = ((_ALPHA, "retain"), (_RETENTION, "retain"), (_STRENGTH, "forget"))


def uwc_suite(context: Context) -> Suite:
    """Reads and encodes the forget set and the retain set D_r.

    Measuring holds three models in memory: the one before unlearning, the unlearned one, and their
    mixture.
    """
    if not context.base:
        return _no_suite(NO_BASE)
    items = {}
    for over, key in (("forget", "forget"), ("retain", "measured_retain")):
        split, rows = own_set(context, key)
        if rows is None:
            return _no_suite(lacks_set(context, key))
        items[over] = context.encoder.own(rows, split)
    splits = {over: split_of(context, [encoded]) for over, encoded in items.items()}
    settings = {
        "items": {over: len(encoded.rows) for over, encoded in items.items()},
        "data": digests(items),
        "share": uwc.SHARE,
        "steps": STEPS,
        "definitions": versions(uwc.DEFINITIONS),
    }
    base = functools.cache(lambda: context.load(BASE))

    def measure(name: str, params: Tree) -> MetricRows:
        del name
        return _rows(base(), params, splits, context.model)

    return Suite(settings, measure)


def _no_suite(reason: str) -> Suite:
    """The suite of data or models that do not do for it: every number has the reason."""
    settings = {"absent": reason, "definitions": versions(uwc.DEFINITIONS)}
    rows = _missing(reason)
    return Suite(settings, lambda name, params: rows)


def _missing(reason: str) -> MetricRows:
    return [missing_row(_metric(d.name), over, reason, d) for d, over in _OVER]


def _rows(base: Tree, params: Tree, splits: dict[str, Split], model: DecoderConfig) -> MetricRows:
    """The largest mixing weight that retains enough, and both strengths there."""

    def strengths(mixture: Tree, over: str) -> np.ndarray:
        return statistics.statistics(mixture, splits[over], model).extraction_strength

    def retention(mixture: Tree) -> float:
        return float(strengths(mixture, "retain").mean(dtype=np.float64))

    retained_before = retention(base)
    if not retained_before:
        reason = "the model before unlearning has a retain ES of 0: there is nothing to keep"
        return _missing(reason)
    calibration = uwc.calibrate(
        lambda alpha: retention(uwc.mix(base, params, alpha)),
        uwc.least_retention(retained_before),
        steps=STEPS,
    )
    forgotten = strengths(uwc.mix(base, params, calibration.alpha), "forget")
    values = (calibration.alpha, calibration.retention, float(forgotten.mean()))
    # By sample too, so that a comparison of runs can tell how sure the mean is.
    by_sample = [round(float(strength), 4) for strength in forgotten]
    extra = ({"trace": calibration.trace}, {}, {"by_sample": by_sample})
    return [
        metric_row(_metric(definition.name), over, value, definition, **more)
        for (definition, over), value, more in zip(_OVER, values, extra, strict=True)
    ]


def _metric(name: str) -> str:
    return name.replace(".", "_")
