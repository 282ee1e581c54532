"""The figure of relearning attacks: extraction strength and G-effect by fine-tuning step."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxunlearn.metrics.relearning import LEAST, ROUNDING
from jaxunlearn.record.folder import RETRAINED
from jaxunlearn.reporting import palette
from jaxunlearn.reporting.figures import panels, scales, series
from jaxunlearn.reporting.figures.panels import STYLE, plain, swatch

KINDS = {
    "forget_es": "ES of $D_u$",
    "unseen_es": "ES of the samples\nof $D_u$ not shown",
    "effect": "$e=\\nabla R(D_u)\\cdot\\nabla L$\n[nats$^2$ / param.$^2$]",
}
CAPTION = (
    "Fine-tuning the unlearned models on some samples of the forget set $D_u$, or on data to"
    " retain. Dotted: half-way back from a model's own ES to that before"
    " unlearning; ring: the first evaluated step there. $e$: a gradient step of size η on the"
    " fine-tuning loss $L$ changes the risk $R(D_u)$ by about −η$e$; both are mean NLL per token."
    " $e>0$ relearns."
)


@matplotlib.rc_context(STYLE)
def relearn(tables: Mapping[str, Any]) -> Figure | None:
    """ES by step of fine-tuning and the relearning G-effect, one column per attack.

    Args:
      tables: with `relearn`, and in `meta` also "models", the order that colours follow, and
        "before", the ES before unlearning.

    Returns:
      The figure; None without rows.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.read(tables, "relearn")
    attacks = series.distinct(table, "attack")
    if not attacks:
        return None
    meta = tables.get("meta") or {}
    present = series.distinct(table, "model")
    order = [*meta.get("models", ()), *present]
    styles = {name: _style(name, list(dict.fromkeys(order))) for name in present}
    titles = {attack: _title(attack, series.select(table, attack=attack)) for attack in attacks}
    figure, axes = panels.stacks(list(titles.values()), list(KINDS), panel=(2.3, 1.65))
    effects = series.numbers(table, "effect")[0]
    width = scales.linear_width(effects)
    for attack, title in titles.items():
        stack, rows = axes[title], series.select(table, attack=attack)
        for kind in ("forget_es", "unseen_es"):
            _draw_strength(stack[kind], rows, kind, styles, meta.get("before"))
        _draw_effect(stack["effect"], rows, styles, effects, width)
    # The models by name, next to the last column's lines.
    rows, stack = series.select(table, attack=attacks[-1]), axes[titles[attacks[-1]]]
    colors = {name: style["color"] for name, style in styles.items()}
    for kind, ax in stack.items():
        lines = {m: series.series(series.select(rows, model=m), kind) for m in styles}
        ends = {m: float(x.values[-1]) for m, x in lines.items() if len(x.values)}
        panels.label_ends(ax, ends, colors, panels.end_label)
    for title in list(axes)[:: panels.columns_for(len(axes), most=6)]:
        for kind, label in KINDS.items():
            axes[title][kind].set_ylabel(label)
    caption = CAPTION
    caption += " Grey: a model that never saw $D_u$." if RETRAINED in present else ""
    caption += f" Symmetric log scale, linear within ±{scales.decade(width)}." if width else ""
    handles = [swatch(plain(name, 40), **style) for name, style in styles.items()]
    if meta.get("before") is not None:
        handles.append(swatch("before unlearning", color="#777777", linestyle="--", linewidth=0.9))
    return panels.finish(figure, meta, "Relearning attacks", caption, handles)


def _style(model: str, models: Sequence[str]) -> dict[str, Any]:
    """The style of a model's lines: that of the other figures, or grey for the retrained model."""
    if model == RETRAINED:
        return {"color": palette.OTHER, "linestyle": "--", "linewidth": 2.0}
    return panels.objective_style(model, [name for name in models if name != RETRAINED])


def _title(attack: str, table: series.Table) -> str:
    count = series.distinct(table, "samples")[0]
    kind = "retain" if attack == "benign" else "forget"
    every = "all " if attack == "all" else ""
    return f"on {every}{count} {kind} sample{'s' if count > 1 else ''}"


def _draw_strength(
    ax: Axes,
    table: series.Table,
    kind: str,
    styles: Mapping[str, dict[str, Any]],
    before: float | None,
) -> None:
    """A line per model, its half-way line, and a ring at the first step that reaches it."""
    dropped = count = 0
    if before is not None and kind == "forget_es":
        ax.axhline(before, color="#777777", linestyle="--", linewidth=0.9)
    for model, style in styles.items():
        line = series.series(series.select(table, model=model), kind)
        ax.plot(line.steps, line.values, **style)
        dropped, count = dropped + line.dropped, count + len(line.steps)
        if before is not None and kind == "forget_es" and len(line.steps):
            _draw_half(ax, line, before, style["color"])
    if not count and kind == "unseen_es":
        panels.corner_text(ax, "all are shown", 0, color="#555555")
    else:
        panels.note(ax, dropped, count > 0)
    ax.set_ylim(-0.04, 1.04)
    ax.set_yticks([0, 0.5, 1])
    scales.steps_axis(ax)


def _draw_half(ax: Axes, line: series.Series, before: float, color: str) -> None:
    if before - line.values[0] < LEAST - ROUNDING:
        return  # nothing was forgotten
    half = line.values[0] + 0.5 * (before - line.values[0])
    ax.axhline(half, color=color, linestyle=":", linewidth=0.8, alpha=0.7)
    reached = np.flatnonzero(line.values >= half - ROUNDING)
    if len(reached):
        at = (line.steps[reached[0]], line.values[reached[0]])
        ax.plot(*at, marker="o", markersize=5.5, markerfacecolor="white", color=color)


def _draw_effect(
    ax: Axes,
    table: series.Table,
    styles: Mapping[str, dict[str, Any]],
    values: np.ndarray,
    width: float | None,
) -> None:
    ax.axhline(0.0, color="#777777", linewidth=0.7)
    lines = {m: series.series(series.select(table, model=m), "effect") for m in styles}
    for model, line in lines.items():
        ax.plot(line.steps, line.values, **styles[model])
    dropped = sum(line.dropped for line in lines.values())
    panels.note(ax, dropped, any(len(line.steps) for line in lines.values()))
    scales.steps_axis(ax)
    scales.scale_axis(ax.yaxis, values, width)
