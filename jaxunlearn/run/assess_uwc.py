"""The calibration suite of a run: what each objective forgets where all retain alike (UWC)."""

import functools
from typing import Any

from jaxunlearn.evaluate import calibrate
from jaxunlearn.evaluate.definitions import absent, row
from jaxunlearn.models.llama import LlamaConfig
from jaxunlearn.run import measure
from jaxunlearn.run.assess_sets import (
    BEFORE,
    Job,
    Suite,
    encode_items,
    need_rows,
    split_of,
    versions,
)
from jaxunlearn.run.measure import Split

Tree = Any

STEPS = 6


def uwc_suite(job: Job) -> Suite:
    """Reads and encodes the forget and the measured retain set.

    It holds three models: before, unlearned, and their mixture.
    """
    data = job.config.data
    names = {"forget": data.forget, "retain": data.measured_retain}
    own = lambda row: [(row["question"], row["answer"])]
    items = {
        name: encode_items(job.prepared, need_rows(job.config, split), own, split)
        for name, split in names.items()
    }
    splits = {name: split_of(job.prepared, [found]) for name, found in items.items()}
    settings = {
        "items": {name: len(found.rows) for name, found in items.items()},
        "share": calibrate.SHARE,
        "steps": STEPS,
        "definitions": versions(calibrate.DEFINITIONS),
    }
    before = functools.cache(lambda: job.load(BEFORE))

    def rows(name: str, params: Tree) -> list[dict[str, Any]]:
        del name
        return _rows(before(), params, splits, job.prepared.model)

    return Suite("uwc", settings, rows, only_unlearned=True)


def _rows(
    before: Tree, params: Tree, splits: dict[str, Split], model: LlamaConfig
) -> list[dict[str, Any]]:
    strength = lambda params, name: float(
        measure.statistics(params, splits[name], model).extraction_strength.mean()
    )
    at = lambda alpha: calibrate.mix(before, params, alpha)
    kept = strength(before, "retain")
    alpha, retention, forgotten = calibrate.DEFINITIONS.values()
    if not kept:
        reason = "the model before unlearning has a retain ES of 0: there is nothing to keep"
        over = ((alpha, "retain"), (retention, "retain"), (forgotten, "forget"))
        return [absent(_metric(d.name), name, reason, d) for d, name in over]
    found = calibrate.calibrate(
        lambda alpha: strength(at(alpha), "retain"), calibrate.SHARE * kept, steps=STEPS
    )
    return [
        row(_metric(alpha.name), "retain", found.alpha, alpha, trace=found.trace),
        row(_metric(retention.name), "retain", found.retention, retention),
        row(_metric(forgotten.name), "forget", strength(at(found.alpha), "forget"), forgotten),
    ]


def _metric(name: str) -> str:
    return name.replace(".", "_")
