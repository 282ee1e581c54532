"""The charts of the page, as Vega-Lite specifications; the page's script gives them their data.

Every chart names its data and its description, which screen readers read. Effects span many orders
of magnitude, so their axes are symmetric logarithms; the page can switch them to linear ones.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from jaxunlearn.core.extras import Extra
from jaxunlearn.reporting import palette
from jaxunlearn.reporting.page.content import WEIGHT_BINS

with Extra("report"):
    import altair as alt

RISKS = {"unlearn": "on what is forgotten (Dᵤ)", "retain": "on what is retained (Dᵣ)"}
TOTALS, SAMPLES = 0.01, 1e-5
"""Effects below this share of the largest one are drawn on the linear part of the axis. Those of
samples differ more, by step and by objective."""

DASHES = ([1, 0], [6, 3], [2, 2])
"""Of lines, for objectives beyond the number of colours."""

Spec = dict[str, Any]


def pareto(
    models: Sequence[str],
    objectives: Sequence[str],
    sides: Collection[str],
    data: str = "models",
    seeds: str | None = None,
) -> Spec:
    """Every model by the ES of both sets; wanted is up and left.

    Args:
      models: the labels of all of them.
      objectives: those that unlearned, in the order of their colours.
      sides: the sides on which labels are, some of `content.SIDES`.
      data: the models, from `content.models`.
      seeds: the same of every seed, where the models are means over seeds; they are small marks.
    """
    named = alt.Chart(alt.NamedData(data)).transform_filter(_shown("model"))
    color = _objective(objectives, "model", models).legend(None)
    kind = alt.Shape("kind:N", legend=None)
    tips = ["model:N", "forget_es:Q", "retain_es:Q", "forget_nll:Q", "retain_nll:Q"]
    axes = _strength_axes()
    marks = named.mark_point(filled=True, size=90, opacity=0.9).encode(
        **axes, tooltip=tips, color=color, shape=kind
    )
    labels = [
        named.mark_text(
            align="left" if "e" in side else "right", dx=8 if "e" in side else -8,
            dy=-8 if "n" in side else 10, fontSize=12,
        ).transform_filter(f"datum.side === '{side}'").encode(**axes, text="model:N")
        for side in sides
    ]  # fmt: skip
    # The best retention that a model with this forget ES or a lower one has: a staircase.
    front = (
        alt.Chart(alt.NamedData(data))
        .transform_filter(f"{_shown('model')} && datum.kind !== 'retrained'")
        .transform_window(best="max(retain_es)", sort=[alt.SortField("forget_es")])
        .mark_line(interpolate="step-after", color="#888888", strokeDash=[4, 4])
        .encode(x=axes["x"], y=alt.Y("best:Q"))
    )
    layers = [front, marks, *labels]
    if seeds is not None:
        small = alt.Chart(alt.NamedData(seeds)).transform_filter(_shown("model"))
        layers.insert(
            1,
            small.mark_point(filled=True, size=45, opacity=0.6).encode(
                **axes, tooltip=["seed:N", *tips], color=color, shape=kind
            ),
        )
    chart = alt.layer(*layers).add_params(_hidden())
    return _spec(
        chart,
        "Forgetting against retention: extraction strength of the forget set and of the retain set"
        " for every model. Wanted is the upper left. The dashed line is the front: no"
        " unlearned model is to its upper left.",
    )


def effects(groups: Sequence[str], objectives: Sequence[str], largest: float) -> Spec:
    """The G-effect over steps, an objective a line; a group of layers is chosen below it."""
    group = _group_choice(groups)
    chart = (
        _by_risk(_effect_lines(objectives, largest, "group:N") + _zero(), "effects", 300)
        .add_params(group, _hidden())
        .transform_filter(f"datum.group === group && {_shown()}")
    )
    return _spec(
        chart,
        "G-effect of every objective on both risks over the steps. Below zero a step removes or"
        " harms.",
        width=False,
    )


def bands(groups: Sequence[str], objectives: Sequence[str], largest: float) -> Spec:
    """The G-effect over steps: means over seeds, and bands from the least to the largest."""
    group = _group_choice(groups)
    band = (
        alt.Chart()
        .mark_area(opacity=0.25)
        .encode(
            x=_steps_axis(),
            y=_effect_axis("low", "G-effect e", largest),
            y2="high:Q",
            color=_objective(objectives),
        )
    )
    lines = _effect_lines(objectives, largest, "low:Q", "high:Q", "seeds:Q")
    chart = (
        _by_risk(band + lines + _zero(), "bands", 300)
        .add_params(group, _hidden())
        .transform_filter(f"datum.group === group && {_shown()}")
    )
    return _spec(
        chart, "G-effect of every objective on both risks, with its range over seeds.", width=False
    )


def heat_map(objectives: Sequence[str], layers: Sequence[str], largest: float) -> Spec:
    """The share of every layer in the effects of one objective, step by step."""
    objective = _objective_choice(objectives)
    chart = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("step:O", title="step"),
            y=alt.Y("layer:N", sort=list(layers), title=None),
            color=alt.Color(
                "share:Q",
                title="share",
                scale=alt.Scale(scheme="blueorange", domain=[-largest, 0, largest]),
                legend=alt.Legend(format=".0%"),
            ),
            tooltip=[
                "layer:N",
                "step:O",
                _digits("value"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
        .properties(width=400, height=max(160, min(640, 17 * len(layers))))
        .facet(column=_risk_facet(), data=alt.NamedData("layers"))
        .add_params(objective)
        .transform_filter("datum.objective === objective")
    )
    return _spec(
        chart,
        "Share of every layer in the G-effect at every step, with its sign: of the sum of all"
        " layers' magnitudes.",
        width=False,
    )


def plane(
    objectives: Sequence[str], steps: Sequence[int], largest: tuple[float, float], first: str
) -> Spec:
    """The PG-effects of samples at one step of one objective; a click selects a sample.

    Args:
      objectives: those that the reader can choose.
      steps: the steps at which samples were measured.
      largest: the largest magnitudes on both axes.
      first: the objective that is chosen at first.
    """
    objective = _objective_choice(objectives, first)
    place = alt.param(
        name="place",
        value=0,
        bind=alt.binding_range(min=0, max=max(0, len(steps) - 1), step=1, name="step: "),
    )
    chosen = alt.param(name="chosen", value=None)
    is_chosen = "datum.sample === chosen"
    points = (
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=70, opacity=0.75, cursor="pointer")
        .encode(
            x=_effect_axis("unlearn", "PG-effect on Dᵤ (left: removes)", largest[0], "x", SAMPLES),
            y=_effect_axis("retain", "PG-effect on Dᵣ (down: harms)", largest[1], share=SAMPLES),
            # Weights of objectives and steps differ by orders of magnitude: their order has one
            # scale for all.
            color=alt.Color(
                "bin:N",
                title="weight, of all",
                scale=alt.Scale(domain=list(WEIGHT_BINS), range=list(palette.WEIGHT_BINS)),
            ),
            stroke=alt.condition(is_chosen, alt.value(palette.CHOSEN), alt.value("#888888")),
            strokeWidth=alt.condition(is_chosen, alt.value(2.5), alt.value(0.6)),
            tooltip=[
                "sample:Q",
                "question:N",
                "answer:N",
                _digits("weight"),
                _digits("unlearn"),
                _digits("retain"),
            ],
        )
        .add_params(objective, place, chosen)
        .transform_filter(f"datum.objective === objective && datum.step === {list(steps)}[place]")
        .properties(height=420)
    )
    return _spec(
        points,
        "PG-effect of every forget sample on both risks, coloured by the weight that the objective"
        " gives it.",
    )


def profile(layers: Sequence[str]) -> Spec:
    """The PG-effects of the selected sample by layer."""
    chart = (
        alt.Chart(alt.NamedData("profile"))
        .mark_bar()
        .encode(
            x=alt.X("value:Q", title="PG-effect", axis=alt.Axis(tickCount=6)),
            y=alt.Y("layer:N", sort=list(layers), title=None),
            color=alt.Color(
                "risk:N",
                title=None,
                scale=alt.Scale(domain=["Dᵤ", "Dᵣ"], range=list(palette.RISKS.values())),
            ),
            yOffset="risk:N",
            tooltip=["layer:N", "risk:N", _digits("value")],
        )
        .properties(height=max(140, min(700, 22 * len(layers))))
    )
    return _spec(chart, "PG-effects of the selected sample by layer.")


def changes(objectives: Sequence[str], largest: float) -> Spec:
    """Predicted against realised change of the risks, from one measurement to the next."""
    points = (
        alt.Chart()
        .transform_filter(_shown())
        .mark_point(filled=True, size=55, opacity=0.9)
        .encode(
            x=_effect_axis("predicted", "predicted change [nats]", largest, "x"),
            y=_effect_axis("change", "realised change [nats]", largest),
            color=_objective(objectives),
            tooltip=[
                "objective:N",
                "step:Q",
                "steps:Q",
                _digits("predicted"),
                _digits("change"),
            ],
        )
    )
    ends = alt.Data(values=[{"v": -largest}, {"v": 0}, {"v": largest}])
    identity = (
        alt.Chart(ends)
        .mark_line(color="#888888", strokeDash=[4, 4])
        .encode(x=alt.X("v:Q"), y=alt.Y("v:Q"))
    )
    chart = _by_risk(alt.layer(identity, points), "changes", 330).add_params(_hidden())
    return _spec(
        chart,
        "Change of both risks between measurements: predicted to first order from the gradient,"
        " against the one that came about. On the dashed line they are equal.",
        width=False,
    )


def risks(objectives: Sequence[str]) -> Spec:
    """Both risks over the steps."""
    lines = (
        alt.Chart()
        .mark_line(point=True)
        .encode(
            x=_steps_axis(),
            y=alt.Y("nll:Q", title="risk [nats]"),
            **_line(objectives),
            tooltip=["objective:N", "step:Q", _digits("nll")],
        )
    )
    chart = (
        _by_risk(lines, "risks", 240)
        .resolve_scale(y="independent")
        .add_params(_hidden())
        .transform_filter(_shown())
    )
    return _spec(chart, "Both risks of every objective over the steps.", width=False)


def relearning(
    models: Sequence[str], objectives: Sequence[str], attacks: Sequence[str], before: float
) -> Spec:
    """The forget ES of every model while it is fine-tuned, a chart for each kind of data."""
    line = (
        alt.Chart()
        .mark_line(point=True)
        .encode(
            x=_steps_axis("steps of fine-tuning"),
            y=alt.Y("es:Q", title="forget ES"),
            **_line(objectives, "model", models),
            tooltip=["model:N", "attack:N", "step:Q", alt.Tooltip("es:Q", format=".3f")],
        )
    )
    rule = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[4, 4]).encode(y=alt.datum(before))
    chart = (
        alt.layer(line, rule)
        .properties(width=300, height=240)
        .facet(
            facet=alt.Facet("attack:N", title="fine-tuning on", sort=list(attacks)),
            columns=3,
            data=alt.NamedData("relearning"),
        )
        .add_params(_hidden())
        .transform_filter(_shown("model"))
    )
    return _spec(
        chart,
        "Forget ES during relearning attacks; the dashed line is the model before unlearning.",
        width=False,
    )


# --------------------------------------------------------------------------- parts of charts


def _hidden() -> Any:
    """The objectives that the reader has switched off, which the page sets in all its charts."""
    return alt.param(name="hidden", value=[])


def _shown(field: str = "objective") -> str:
    """A filter that leaves out the rows of objectives that are switched off."""
    return f"indexof(hidden, datum.{field}) < 0"


def _group_choice(groups: Sequence[str]) -> Any:
    """All layers together or a group of them, chosen in a list."""
    choice = alt.binding_select(options=["total", *groups], name="layers: ")
    return alt.param(name="group", value="total", bind=choice)


def _objective_choice(objectives: Sequence[str], first: str | None = None) -> Any:
    """One objective that is chosen in a list."""
    choice = alt.binding_select(options=list(objectives), name="objective: ")
    return alt.param(name="objective", value=first or objectives[0], bind=choice)


def _strength_axes() -> dict[str, Any]:
    """Forget ES to the right, retain ES up."""
    scale = alt.Scale(zero=False)
    return {
        "x": alt.X("forget_es:Q", title="forget ES (lower: removed)", scale=scale),
        "y": alt.Y("retain_es:Q", title="retain ES (higher: retained)", scale=scale),
    }


def _effect_lines(objectives: Sequence[str], largest: float, *more: str) -> Any:
    """A line of e over the steps for each objective."""
    return (
        alt.Chart()
        .mark_line(point=True)
        .encode(
            x=_steps_axis(),
            y=_effect_axis("value", "G-effect e", largest),
            **_line(objectives),
            tooltip=["objective:N", "step:Q", _digits("value"), *more],
        )
    )


def _by_risk(chart: Any, data: str, height: int) -> Any:
    """The chart twice, for both risks."""
    sized = chart.properties(width=430, height=height)
    return sized.facet(column=_risk_facet(), data=alt.NamedData(data))


def _steps_axis(title: str = "step") -> alt.X:
    return alt.X("step:Q", title=title, axis=alt.Axis(tickMinStep=1))


def _digits(field: str) -> alt.Tooltip:
    """A number with four digits where the mouse is."""
    return alt.Tooltip(f"{field}:Q", format=".4g")


def _objective(
    objectives: Sequence[str], field: str = "objective", shown: Sequence[str] | None = None
) -> alt.Color:
    """The colour of an objective, the same in every chart; other models are grey."""
    colors = {name: palette.objective(i) for i, name in enumerate(objectives)}
    names = list(objectives if shown is None else shown)
    scale = alt.Scale(domain=names, range=[colors.get(name, palette.OTHER) for name in names])
    return alt.Color(f"{field}:N", title=None, scale=scale)


def _line(
    objectives: Sequence[str], field: str = "objective", shown: Sequence[str] | None = None
) -> dict[str, Any]:
    """The colour of an objective's line, and its dash where there are more than colours."""
    channels: dict[str, Any] = {"color": _objective(objectives, field, shown)}
    if len(objectives) > len(palette.OBJECTIVES):
        laps = {name: i // len(palette.OBJECTIVES) for i, name in enumerate(objectives)}
        names = list(objectives if shown is None else shown)
        dashes = [DASHES[laps.get(name, 0) % len(DASHES)] for name in names]
        scale = alt.Scale(domain=names, range=dashes)
        channels["strokeDash"] = alt.StrokeDash(f"{field}:N", title=None, scale=scale)
    return channels


def _risk_facet() -> alt.Column:
    labels = " : ".join(f"datum.value === '{k}' ? '{v}'" for k, v in RISKS.items()) + " : ''"
    return alt.Column(
        "risk:N",
        sort=list(RISKS),
        title=None,
        header=alt.Header(labelExpr=labels, labelFontSize=13),
    )


def _effect_axis(
    field: str, title: str, largest: float, axis: str = "y", share: float = TOTALS
) -> Any:
    channel = alt.X if axis == "x" else alt.Y
    scale = alt.Scale(type="symlog", constant=max(largest, 1e-30) * share)
    ticks = alt.Axis(format="~g", labelOverlap=True, values=symlog_ticks(largest, share))
    return channel(f"{field}:Q", title=title, scale=scale, axis=ticks)


def symlog_ticks(largest: float, share: float = TOTALS) -> list[float]:
    """Zero and powers of ten on both sides, from the linear part of the axis to the largest value.

    >>> symlog_ticks(2500.0)
    [-1000.0, -100.0, 0.0, 100.0, 1000.0]
    """
    top = math.floor(math.log10(max(largest, 1e-30)))
    powers = [10.0**p for p in range(top + round(math.log10(share)) + 1, top + 1)]
    return [*(-p for p in reversed(powers)), 0.0, *powers]


def _zero() -> alt.Chart:
    rule = alt.Chart(alt.Data(values=[{}])).mark_rule(color="#888888", strokeDash=[2, 2])
    return rule.encode(y=alt.datum(0))


def _spec(chart: Any, description: str, *, width: bool = True) -> Spec:
    """The specification with what all charts share; a chart without facets fills its place."""
    chart = chart.properties(description=description)
    spec = chart.properties(width="container").to_dict() if width else chart.to_dict()
    spec.pop("config", None)  # the page has a light and a dark one
    return spec
