"""Assembles the page: charts with their data, tables, texts, and what the run was made with.

The page is one file. It holds the charts' library and needs no network. All text from data is
escaped, in HTML by the template's auto-escape and in the page's script by `<` as a code.
"""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from jaxunlearn.core.extras import Extra
from jaxunlearn.record.folder import BASE, RETRAINED
from jaxunlearn.reporting import page, palette, summary
from jaxunlearn.reporting.page import charts, content
from jaxunlearn.reporting.page.content import Data, Kept
from jaxunlearn.reporting.page.source import Source
from jaxunlearn.reporting.page.verdicts import verdict
from jaxunlearn.reporting.terminal import shown_name

with Extra("report"):
    import vl_convert

STRENGTHS = ("forget_es", "retain_es", "forget_nll", "retain_nll")
"""The numbers of a model in the first chart."""

GENERATED = 6
"""Questions whose generated answers are shown."""


class Chart(NamedTuple):
    """A chart of the page.

    Attributes:
      key: its place in the page and in the script.
      title, text: above it.
      spec: in Vega-Lite; it names its data.
      data: the rows that the link below it saves.
      scales: whether its axes can be switched to linear ones.
      note: what is left out.
    """

    key: str
    title: str
    text: str
    spec: charts.Spec
    data: str
    scales: bool = False
    note: str = ""


def render(source: Source) -> str:
    """The page as HTML."""
    by_sample, by_token = (source.tables.get(k) or {} for k in ("pg_effect", "token_effect"))
    kept = content.kept_samples(by_sample, by_token, content.MOST_ROWS)
    datasets = _datasets(source, kept)
    shown = _charts(source, datasets, kept)
    objectives = _objectives(source)
    samples = set(kept.points)
    return fill(
        "report.html.j2",
        shown,
        datasets,
        objectives,
        {
            str(t.sample): {"question": t.question, "answer": t.answer, "tokens": t.tokens}
            for t in source.texts
            if t.split == "forget" and t.sample in samples
        },
        title=source.title,
        source=source,
        verdicts=[verdict(name, source.models, source.attacks) for name in objectives],
        tables=list(source.text_tables),
        generations=_generations(source, objectives),
        warning=source.tables["meta"]["warning"],
        shown_name=shown_name,
    )


def fill(
    template: str,
    shown: Sequence[Chart],
    datasets: Mapping[str, Data],
    objectives: Sequence[str],
    texts: Mapping[str, Any],
    **values: Any,
) -> str:
    """A page of charts, from a template of this folder.

    Args:
      template: the name of its file.
      shown: the charts.
      datasets: the data that they name.
      objectives: as charts name them, in the order of their colours; a box each switches them off.
      texts: {sample: its texts}, for the page's script.
      **values: what else the template names.
    """
    payload = {
        "data": {name: data.plain() for name, data in datasets.items()},
        "charts": {chart.key: {"spec": chart.spec, "scales": chart.scales} for chart in shown},
        "texts": texts,
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxunlearn.reporting", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    read = lambda name: (importlib.resources.files(page) / name).read_text(encoding="utf-8")
    return environment.get_template(template).render(
        charts={chart.key: chart for chart in shown},
        payload=_script_safe(json.dumps(payload, allow_nan=False, separators=(",", ":"))),
        bundle=_closed(vl_convert.javascript_bundle("window.embed = vegaEmbed;")),
        toggles=[(name, palette.objective(i)) for i, name in enumerate(objectives)],
        style=read("report.css"),
        script=read("report.js"),
        **values,
    )


def _objectives(source: Source) -> list[str]:
    return [name for name in source.models if name not in (BASE, RETRAINED)]


# --------------------------------------------------------------------------- data and charts


def model_row(label: str, name: str, numbers: Sequence[Any]) -> list[Any]:
    """A model as charts have it: what it is called, what it is, and `STRENGTHS`."""
    return [label, {BASE: "before", RETRAINED: "retrained"}.get(name, "unlearned"), *numbers]


def _datasets(source: Source, kept: Kept) -> dict[str, Data]:
    tables, groups = source.tables, source.tables["meta"]["groups"]
    effects = tables.get("g_effect") or {}
    by_sample, by_token = (tables.get(name) or {} for name in ("pg_effect", "token_effect"))
    models = [
        model_row(shown_name(name), name, [result.get(key) for key in STRENGTHS])
        for name, result in source.models.items()
    ]
    of_layers = content.rows_of(by_sample, kept.details, totals=False)
    everything = {
        "models": content.models(models),
        "effects": content.effects(effects, groups),
        "layers": content.layers(effects),
        "points": content.points(content.rows_of(by_sample, kept.points, totals=True)),
        "profiles": content.profiles(of_layers),
        "tokens": content.tokens(content.rows_of(by_token, kept.details)),
        "changes": content.changes(effects),
        "risks": content.risks(effects),
        "relearning": content.relearning(tables.get("relearn") or {}),
    }
    return {name: data for name, data in everything.items() if data.rows}


def _early(source: Source) -> str:
    """Says which models diverged: their numbers are those of the last state before."""
    names = [shown_name(name) for name, r in source.models.items() if summary.stopped(r)]
    return f" Stopped early, as the loss was no longer finite: {', '.join(names)}." if names else ""


def _charts(source: Source, data: Mapping[str, Data], kept: Kept) -> list[Chart]:
    """The charts for which there are data, in the order of the page."""
    groups = source.tables["meta"]["groups"]
    models = [shown_name(name) for name in source.models]
    objectives = _objectives(source)
    layers = [layer for members in groups.values() for layer in members]
    found = [
        Chart(
            "pareto",
            "Forgetting against retention",
            "Each point is a model. The retrained model never saw the forget set. The dashed line"
            " is the front: no unlearned model is to its upper left." + _early(source),
            charts.pareto(models, objectives, data["models"].distinct("side")),
            "models",
        )
    ]
    if "effects" in data:
        found.append(
            Chart(
                "effects",
                "G-effect over the steps",
                "e = ∇R · ∇Lᵤ: below zero a step of gradient descent on the objective raises the"
                " risk. On Dᵤ that removes, on Dᵣ it harms.",
                charts.effects(list(groups), objectives, largest(data["effects"], "value")),
                "effects",
                scales=True,
            )
        )
    if "layers" in data:
        names = data["layers"].distinct("objective")
        found.append(
            Chart(
                "layers",
                "Which layers carry it",
                "The share of every layer in an objective's effect at every step.",
                charts.heat_map(names, layers, largest(data["layers"], "share")),
                "layers",
            )
        )
    if "points" in data:
        found.append(_plane(data, kept))
    if "profiles" in data:
        names = data["profiles"].distinct("layer")
        order = [n for n in layers if n in names] + [n for n in names if n not in layers]
        chart = charts.profile(order)
        text = "Where in the model the selected sample's effects arise."
        note = _left_out(kept.details, kept)
        found.append(Chart("profile", "The sample by layer", text, chart, "profiles", note=note))
    if "changes" in data:
        text = "What the gradients predicted up to the next measurement, and what came about."
        chart = charts.changes(objectives, largest(data["changes"], "predicted", "change"))
        title = "Predicted and realised change"
        found.append(Chart("changes", title, text, chart, "changes", scales=True))
    if "risks" in data:
        text = "R is the negative log-likelihood of the answers, reduced as the objective is."
        found.append(
            Chart("risks", "Risks over the steps", text, charts.risks(objectives), "risks")
        )
    if "relearning" in data:
        text = "Fine-tuning of the unlearned models: how fast does what they forgot come back?"
        attacks = data["relearning"].distinct("attack")
        chart = charts.relearning(models, objectives, attacks, source.models[BASE]["forget_es"])
        found.append(Chart("relearning", "Relearning attacks", text, chart, "relearning"))
    return found


def _plane(data: Mapping[str, Data], kept: Kept) -> Chart:
    points = data["points"]
    names = points.distinct("objective")
    # An objective whose weights differ shows what the colours mean.
    weighted = [row[0] for row in points.rows if row[-1] in content.PLACES]
    steps = sorted(points.distinct("step"))
    reach = largest(points, "unlearn"), largest(points, "retain")
    return Chart(
        "plane",
        "PG-effects of samples",
        "Each point is a sample to forget: how its own gradient acts on both risks, coloured by the"
        " weight that the objective gives it. Select a sample by a click or in the list.",
        charts.plane(names, steps, reach, next(iter(weighted), names[0])),
        "points",
        scales=True,
        note=_left_out(kept.points, kept),
    )


def _left_out(samples: Sequence[int], kept: Kept) -> str:
    """Says how many samples are shown, where that is not all."""
    some = len(samples) < kept.of
    return f"{len(samples)} of {kept.of} samples, evenly spaced, are in the page." if some else ""


def largest(data: Data, *columns: str) -> float:
    """The largest magnitude in some columns; 1 where all are 0."""
    places = [data.columns.index(column) for column in columns]
    values = [abs(row[i]) for row in data.rows for i in places if row[i] is not None]
    return float(np.max(values, initial=0.0)) or 1.0


# --------------------------------------------------------------------------- texts


def _generations(source: Source, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Some questions with the answers of the model before unlearning and of every objective."""
    before = source.generated.get(BASE, {})
    found = []
    for question, (text, truth) in list(before.items())[:GENERATED]:
        answers = [
            (name, source.generated[name][question][0])
            for name in objectives
            if question in source.generated.get(name, {})
        ]
        found.append({"question": question, "truth": truth, "before": text, "after": answers})
    return found


def _script_safe(text: str) -> str:
    """JSON that no HTML parser can take for the end of a script."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _closed(script: str) -> str:
    """A script of a library, in which the end of a script can stand in strings alone."""
    return script.replace("</script", "<\\/script")
