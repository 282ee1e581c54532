"""Figures of the risk: its predicted and realised change, and the confidence of the model."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxunlearn.reporting.figures import panels, scales, series
from jaxunlearn.reporting.figures.panels import RISK_NAMES, RISKS, STYLE, swatch

PREDICTED = {"linestyle": "--", "linewidth": 1.1, "markerfacecolor": "white"}
OPEN = {"linestyle": "", "markerfacecolor": "none", "markersize": 4, "markeredgewidth": 0.7}
ONE_STEP = ("update_effect", "step_change")
STATISTICS = ("mean", "q05", "q25", "q50", "q75", "q95")


@matplotlib.rc_context(STYLE)
def risk_change(tables: Mapping[str, Any]) -> Figure | None:
    """R(theta_t) - R(theta_0) on both sets, with the change that first order predicts.

    The prediction sums grad R(theta_t) . (theta_next - theta_t) over the measured intervals.

    Args:
      tables: with `g_effect` (its `total` rows).

    Returns:
      One panel per objective on shared axes; None without rows.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.select(series.read(tables, "g_effect"), layer="total")
    names = series.distinct(table, "objective")
    if not names:
        return None
    first = min(series.distinct(table, "step"))  # theta_0, unless it is not measured
    figure, axes = panels.small_multiples(
        names, panel=(2.7, 2.1), xlabel="optimiser step",
        ylabel=rf"$R(\theta_t)-R(\theta_{{{first}}})$  [nats]",
    )  # fmt: skip
    changes = [_draw_changes(ax, series.select(table, objective=name)) for name, ax in axes.items()]
    values = np.concatenate(changes)
    width = scales.linear_width(values)
    for name, ax in axes.items():
        scales.scale_axis(ax.yaxis, values, width)
        _label_changes(ax, series.select(table, objective=name))
    caption = (
        f"NLL in nats ({series.provenance(table)}). Predicted: the running sum of"
        r" $\nabla R(\theta_t)\cdot(\theta_{next}-\theta_t)$ over measured intervals,"
        " correct to first order only. A late $e$ near zero is not recovery: $e$ is a slope, and"
        " the damage done stays in this figure."
        + (f" Symmetric log scale, linear within ±{scales.decade(width)}." if width else "")
    )
    meta = tables.get("meta") or {}
    return panels.finish(figure, meta, "Change of the risk", caption, _change_legend())


@matplotlib.rc_context(STYLE)
def predicted_vs_realised(tables: Mapping[str, Any]) -> Figure | None:
    """The change of R over one optimiser step: predicted, as grad R . update, and realised.

    Open marks: -lr e, the change that a plain gradient step of the same learning rate predicts.

    Args:
      tables: with `g_effect` (its `total` rows).

    Returns:
      One panel per objective having both values, on shared axes; None without any.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.select(series.read(tables, "g_effect"), layer="total")
    names = series.distinct(series.where_both(table, *ONE_STEP), "objective")
    if not names:
        return None
    figure, axes = panels.small_multiples(
        names, panel=(2.5, 2.75), xlabel="predicted change of $R$ [nats]",
        ylabel="realised change of $R$ [nats]",
    )  # fmt: skip
    table = series.with_sgd(table)
    columns = (*ONE_STEP, series.SGD)
    values = np.concatenate([series.numbers(table, column)[0] for column in columns])
    width = scales.linear_width(values)
    for name, ax in axes.items():
        _draw_identity(ax, values, width)
        _draw_steps(ax, series.select(table, objective=name))
    caption = (
        r"One optimiser step. Predicted: $\nabla R(\theta_t)\cdot$ the update that was applied"
        r" (optimiser, clipping and decay included); realised: $R(\theta_{t+1})-R(\theta_t)$; NLL"
        f" in nats ({series.provenance(table)}). On the dotted line first order explains all. Open:"
        r" $-\eta e$, what a plain gradient step of the same rate η predicts instead; AdamW"
        " rescales every parameter, so only the sign compares. Ratio: median realised / predicted."
        + (f" Symmetric log axes, linear within ±{scales.decade(width)}." if width else "")
    )
    handles = [swatch(RISK_NAMES[risk], **(RISKS[risk] | {"linestyle": ""})) for risk in RISKS]
    handles.append(swatch(r"$-\eta e$", **(OPEN | {"color": "#555555", "marker": "o"})))
    handles.append(swatch("realised = predicted", color="#777777", linestyle=":"))
    meta = tables.get("meta") or {}
    return panels.finish(figure, meta, "Predicted and realised change", caption, handles)


@matplotlib.rc_context(STYLE)
def confidence(tables: Mapping[str, Any]) -> Figure | None:
    """The inverse confidence 1/p of the label tokens of D_u by step: mean, median and quantiles.

    Args:
      tables: with `confidence` (log10 of 1/p, so that no value overflows).

    Returns:
      One panel per objective on a shared log axis; None without rows.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.read(tables, "confidence")
    names = series.distinct(table, "objective")
    if not names:
        return None
    figure, axes = panels.small_multiples(
        names, panel=(2.7, 2.0), xlabel="optimiser step", ylabel="$1/p$ of a label token"
    )
    every = series.objectives(tables)
    for name, ax in axes.items():
        color = panels.objective_style(name, every)["color"]
        _draw_confidence(ax, series.select(table, objective=name), color)
    handles = [
        swatch("median", color="#555555", marker="o"),
        swatch("mean", color="#222222", linestyle="--"),
        Patch(label="25–75 %", facecolor="#555555", alpha=0.4),
        Patch(label="5–95 %", facecolor="#555555", alpha=0.18),
    ]
    caption = (
        "Inverse confidence over the label tokens of the forget set $D_u$, on a log scale: 1 is"
        " certainty, and gradient ascent drives it up without bound."
    )
    return panels.finish(figure, tables.get("meta") or {}, "Inverse confidence", caption, handles)


def _draw_changes(ax: Axes, table: series.Table) -> np.ndarray:
    """Draws the realised and the predicted change on both sets; returns their values."""
    ax.axhline(0.0, color="#777777", linewidth=0.7)
    lines = []
    for risk, style in RISKS.items():
        rows = series.select(table, risk=risk)
        lines += [(style, series.realised_change(rows))]
        lines += [(style | PREDICTED, series.predicted_change(rows))]
    for style, line in lines:
        ax.plot(line.steps, line.values, **style)
    panels.note(ax, sum(x.dropped for _, x in lines), any(len(x.steps) for _, x in lines))
    scales.steps_axis(ax)
    return np.concatenate([line.values for _, line in lines])


def _label_changes(ax: Axes, table: series.Table) -> None:
    """Names the realised changes at their ends, on the axis as it is at last."""
    lines = {
        f"$D_{risk[0]}$": (style, series.realised_change(series.select(table, risk=risk)))
        for risk, style in RISKS.items()
    }
    ends = {name: float(line.values[-1]) for name, (_, line) in lines.items() if len(line.values)}
    panels.label_ends(ax, ends, {name: style["color"] for name, (style, _) in lines.items()})


def _change_legend() -> list[Any]:
    kinds = (("realised", {}), ("first-order prediction", PREDICTED))
    return [
        swatch(f"{RISK_NAMES[risk]}, {kind}", **(style | extra))
        for risk, style in RISKS.items()
        for kind, extra in kinds
    ]


def _draw_identity(ax: Axes, values: np.ndarray, width: float | None) -> None:
    """Equal axes around zero and the values, with the line on which both agree."""
    finite = np.append(values[np.isfinite(values)], 0.0)
    low, high = finite.min(), finite.max()
    # A margin on both sides of zero, in the units of the axis.
    margin = width if width else 0.08 * ((high - low) or 1.0)
    ends = (low * (2.5 if width else 1.0) - margin, high * (2.5 if width else 1.0) + margin)
    for axis in (ax.xaxis, ax.yaxis):
        scales.scale_axis(axis, np.array(ends), width, tick_count=5)
    ax.set(xlim=ends, ylim=ends, box_aspect=1)
    ax.axhline(0.0, color="#777777", linewidth=0.7)
    ax.axvline(0.0, color="#777777", linewidth=0.7)
    ax.plot(ends, ends, color="#777777", linestyle=":", linewidth=1.0)


def _draw_steps(ax: Axes, table: series.Table) -> None:
    dropped = count = 0
    for place, (risk, style) in enumerate(RISKS.items()):
        rows = series.select(table, risk=risk)
        plain = series.pairs(rows, series.SGD, "step_change")
        if len(plain.x):
            ax.plot(plain.x, plain.y, **(style | OPEN))
        pairs = series.pairs(rows, *ONE_STEP)
        ax.plot(pairs.x, pairs.y, **(style | {"linestyle": "", "alpha": 0.8}))
        agree = int((np.sign(pairs.x) == np.sign(pairs.y)).sum())
        text = f"$D_{risk[0]}$: {agree}/{len(pairs.x)} same sign{_ratio(pairs)}"
        panels.corner_text(ax, text, place, color=style["color"])
        dropped, count = dropped + pairs.dropped, count + len(pairs.x)
    panels.note(ax, dropped, count > 0)


def _ratio(pairs: series.Pairs) -> str:
    """The median of realised / predicted, where something was predicted."""
    nonzero = pairs.x != 0
    if not nonzero.any():
        return ""
    with np.errstate(over="ignore"):
        return f", ratio {np.median(pairs.y[nonzero] / pairs.x[nonzero]):#.3g}"


def _draw_confidence(ax: Axes, table: series.Table, color: str) -> None:
    lines = {
        statistic: series.series(series.select(table, statistic=statistic), "log10_inverse")
        for statistic in STATISTICS
    }
    for low, high, alpha in (("q05", "q95", 0.15), ("q25", "q75", 0.3)):
        steps, at_low, at_high = np.intersect1d(
            lines[low].steps, lines[high].steps, return_indices=True
        )
        bounds = lines[low].values[at_low], lines[high].values[at_high]
        ax.fill_between(steps, *bounds, color=color, alpha=alpha, linewidth=0)
    ax.plot(lines["q50"].steps, lines["q50"].values, color=color, marker="o")
    ax.plot(lines["mean"].steps, lines["mean"].values, color="#222222", linestyle="--")
    dropped = sum(line.dropped for line in lines.values())
    panels.note(ax, dropped, any(len(line.steps) for line in lines.values()))
    scales.steps_axis(ax)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda power, _: scales.power_of_ten(power)))
