"""The page that compares runs: a point a seed, and curves with bands over seeds."""

from typing import Any

import numpy as np

from jaxunlearn.record.folder import BASE, RETRAINED
from jaxunlearn.reporting.compare import Comparison, labelled
from jaxunlearn.reporting.page import charts
from jaxunlearn.reporting.page.content import Data
from jaxunlearn.reporting.page.render import Chart, fill, largest


def render(compared: Comparison) -> str:
    """The page as HTML."""
    datasets = {"runs": _points(compared), "bands": _bands(compared)}
    objectives = [
        label for label, name, _ in labelled(compared.groups) if name not in (BASE, RETRAINED)
    ]
    models = [label for label, _, _ in labelled(compared.groups)]
    shown = [
        Chart(
            "runs",
            "Forgetting against retention",
            "Each point is a model of one run; the same objective has the same colour.",
            charts.pareto(models, objectives, "runs"),
            "runs",
        )
    ]
    if datasets["bands"].rows:
        shown.append(
            Chart(
                "bands",
                "G-effect over the steps",
                "Lines are means over seeds, bands reach from the least to the largest.",
                charts.bands(objectives, largest(datasets["bands"], "low", "high")),
                "bands",
                scales=True,
            )
        )
    return fill(
        "comparison.html.j2",
        shown,
        {name: data for name, data in datasets.items() if data.rows},
        {},
        title=", ".join(compared.groups),
        groups=[
            (label, [(str(member.folder), member.config.seed) for member in members])
            for label, members in compared.groups.items()
        ],
        tables=list(compared.tables),
    )


def _points(compared: Comparison) -> Data:
    kinds = {BASE: "before", RETRAINED: "retrained"}
    keys = ("forget_es", "retain_es", "forget_nll", "retain_nll")
    rows: list[list[Any]] = []
    for label, name, members in labelled(compared.groups):
        for member in members:
            numbers = [member.models[name].get(key) for key in keys]
            kind = kinds.get(name, "unlearned")
            rows.append([label, kind, member.config.seed, *numbers])
    return Data(("model", "kind", "seed", *keys), rows)


def _bands(compared: Comparison) -> Data:
    """Total effects: mean, least and largest over the seeds."""
    rows: list[list[Any]] = []
    for label, name, members in labelled(compared.groups):
        found: dict[tuple[str, int], list[float]] = {}
        for member in members:
            columns = (member.effects[k] for k in ("objective", "risk", "layer", "step", "value"))
            for objective, risk, layer, step, value in zip(*columns, strict=True):
                if objective == name and layer == "total" and np.isfinite(value):
                    found.setdefault((risk, step), []).append(value)
        for (risk, step), values in found.items():
            spread = (float(np.mean(values)), min(values), max(values))
            rows.append([label, risk, step, *(float(f"{v:.4g}") for v in spread)])
    return Data(("objective", "risk", "step", "value", "low", "high"), rows)
