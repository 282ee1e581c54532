"""The page that compares runs: a point a seed, and curves with bands over seeds."""

import math
from collections.abc import Sequence

import numpy as np

from jaxunlearn.record.folder import BASE, RETRAINED
from jaxunlearn.reporting.compare import Comparison, labelled
from jaxunlearn.reporting.page import charts, content
from jaxunlearn.reporting.page.content import Data
from jaxunlearn.reporting.page.render import STRENGTHS, Chart, fill, largest, model_row


def render(compared: Comparison) -> str:
    """The page as HTML."""
    groups = {group: layers for run in compared.runs for group, layers in run.layer_groups.items()}
    datasets = {
        "seeds": _points(compared),
        "runs": _means(compared),
        "bands": _bands(compared),
    }
    objectives = [
        label for label, name, _ in labelled(compared.groups) if name not in (BASE, RETRAINED)
    ]
    models = [label for label, _, _ in labelled(compared.groups)]
    several = len(datasets["seeds"].rows) > len(datasets["runs"].rows)
    shown = [
        Chart(
            "runs",
            "Forgetting against retention",
            "Large marks are means over seeds, small ones single runs. The dashed line is the front"
            " of the means: no unlearned model's mean is to its upper left."
            if several
            else "The dashed line is the front: no unlearned model is to its upper left.",
            charts.pareto(
                models,
                objectives,
                datasets["runs"].distinct("side"),
                "runs",
                "seeds" if several else None,
            ),
            "seeds",
        )
    ]
    if datasets["bands"].rows:
        shown.append(
            Chart(
                "bands",
                "G-effect over the steps",
                "Lines are means over seeds, bands reach from the least to the largest.",
                charts.bands(list(groups), objectives, largest(datasets["bands"], "low", "high")),
                "bands",
                scales=True,
            )
        )
    return fill(
        "comparison.html.j2",
        shown,
        {name: data for name, data in datasets.items() if data.rows},
        objectives,
        {},
        title=", ".join(compared.groups),
        groups=[
            (label, [(str(run.folder), run.config.seed, compared.link(run)) for run in members])
            for label, members in compared.groups.items()
        ],
        tables=list(compared.tables),
    )


def _points(compared: Comparison) -> Data:
    """Every model of every run."""
    rows = [
        [*model_row(label, name, [run.models[name].get(key) for key in STRENGTHS]), run.config.seed]
        for label, name, members in labelled(compared.groups)
        for run in members
    ]
    return Data(("model", "kind", *STRENGTHS, "seed"), rows)


def _means(compared: Comparison) -> Data:
    """Every model of a group, with the means over its seeds."""
    rows = []
    for label, name, members in labelled(compared.groups):
        columns = [[run.models[name].get(key) for run in members] for key in STRENGTHS]
        rows.append(model_row(label, name, [_mean(column) for column in columns]))
    return content.models(rows)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, where all of them are known and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if len(known) == len(values) else None


def _bands(compared: Comparison) -> Data:
    """Effects of all layers and of their groups: mean, least and largest over the seeds."""
    effects = {
        run.folder: content.effects(run.effects, run.layer_groups).rows for run in compared.runs
    }
    found: dict[tuple[str, str, int, str], list[float]] = {}
    for label, name, members in labelled(compared.groups):
        for run in members:
            for objective, risk, step, group, value in effects[run.folder]:
                if objective == name and value is not None:
                    found.setdefault((label, risk, step, group), []).append(value)
    rows = [
        [
            *key,
            *(float(f"{v:.4g}") for v in (np.mean(values), min(values), max(values))),
            len(values),
        ]
        for key, values in found.items()
    ]
    return Data(("objective", "risk", "step", "group", "value", "low", "high", "seeds"), rows)
