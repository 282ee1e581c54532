"""Figures of the G-effect: by step and layer group, and as a path in the plane of (e_u, e_r)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jaxunlearn.reporting import palette
from jaxunlearn.reporting.figures import effect_series, panels, scales, series
from jaxunlearn.reporting.figures.panels import RISK_NAMES, RISKS, STYLE, swatch

UNIT = "[nats$^2$ / param.$^2$]"
LABELS = {
    "total": "$e$, all layers\n" + UNIT,
    "cosine": "cosine",
    "unlearn": "groups' shares\nof $e_u$",
    "retain": "groups' shares\nof $e_r$",
}
REMOVAL = {"facecolor": palette.RISKS["unlearn"], "alpha": 0.10, "linewidth": 0}
RETENTION = {"facecolor": palette.RISKS["retain"], "alpha": 0.12, "linewidth": 0}
STEP_COLORS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, 256)))


@matplotlib.rc_context(STYLE)
def g_effect(tables: Mapping[str, Any]) -> Figure | None:
    """The G-effect by step: totals and cosine, then the shares of layer groups on D_u and on D_r.

    e(D) = grad R(D) . grad L_u, one column of panels per objective (Wang et al. 2025, figures 3-7).

    Args:
      tables: with `g_effect`, and the layer groups in `meta`.

    Returns:
      The figure; None without rows.

    Raises:
      ValueError: a required column is missing, or a layer belongs to no group.
    """
    table = series.read(tables, "g_effect")
    names = series.distinct(table, "objective")
    if not names:
        return None
    meta = tables.get("meta") or {}
    total = series.select(table, layer="total")
    groups = _present(table, meta.get("groups") or {})
    cosine = bool(np.isfinite(series.numbers(total, "cosine")[0]).any())
    kinds = ["total", *["cosine"] * cosine, *["unlearn", "retain"] * bool(groups)]
    figure, axes = panels.stacks(names, kinds, panel=(2.3, 1.6))
    values = series.numbers(total, "value")[0]
    width = scales.linear_width(values)
    for name, stack in axes.items():
        _draw_stack(stack, series.select(table, objective=name), groups, meta.get("warm_up"))
        scales.scale_axis(stack["total"].yaxis, values, width)
    _label_rows(axes, kinds)
    caption = _effect_caption(table, width, meta.get("warm_up"))
    return panels.finish(figure, meta, "G-effect by step", caption, _effect_legend(groups))


@matplotlib.rc_context(STYLE)
def plane(tables: Mapping[str, Any]) -> Figure | None:
    """Each objective's path in the plane of e_u and e_r, with the regions of removal and retention.

    Removal is e_u < 0, retention e_r >= 0 (Wang et al. 2025, figure 1, here with measured values).

    Args:
      tables: with `g_effect` (its `total` rows).

    Returns:
      One panel per objective on shared symmetric log axes; None without rows.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.select(series.read(tables, "g_effect"), layer="total")
    names = series.distinct(table, "objective")
    if not names:
        return None
    paths = {
        name: effect_series.effect_path(series.select(table, objective=name)) for name in names
    }
    values = np.concatenate([np.append(path.e_u, path.e_r) for path in paths.values()])
    width = scales.linear_width(values, always=True) or 1.0
    latest = max(path.steps.max(initial=0) for path in paths.values())
    color = ScalarMappable(Normalize(0, max(latest, 1)), STEP_COLORS)
    figure, axes = panels.small_multiples(
        names,
        panel=(2.75, 2.85),
        xlabel=rf"$e_u=\nabla R(D_u)\cdot\nabla L_u$  {UNIT}",
        ylabel=rf"$e_r=\nabla R(D_r)\cdot\nabla L_u$  {UNIT}",
    )
    for name, ax in axes.items():
        _draw_plane(ax, values, width)
        for other in names:
            ax.plot(paths[other].e_u, paths[other].e_r, color="#C9C9C9", linewidth=0.8, zorder=1.5)
        _draw_path(ax, paths[name], color)
        panels.note(ax, paths[name].dropped, len(paths[name].steps) > 0)
    figure.colorbar(
        color, ax=list(axes.values()), label="optimiser step", pad=0.01, aspect=30, panchor=False
    )
    caption = _plane_caption(table, width)
    meta = tables.get("meta") or {}
    return panels.finish(figure, meta, "Removal and retention", caption, _plane_legend(len(names)))


@matplotlib.rc_context(STYLE)
def harm_ratio(tables: Mapping[str, Any]) -> Figure | None:
    """The size of e_r as a share of that of e_u by step: the harm that a unit of removal costs.

    Args:
      tables: with `g_effect` (its `total` rows).

    Returns:
      One panel with a line per objective; None where no objective has both effects.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.select(series.read(tables, "g_effect"), layer="total")
    names = series.distinct(table, "objective")
    every, dropped = series.objectives(tables), 0
    figure = Figure(figsize=(panels.MIN_WIDTH, 2.6))
    ax = figure.add_subplot()
    ends: dict[str, float] = {}
    colors: dict[str, str] = {}
    for name in names:
        path = effect_series.effect_path(series.select(table, objective=name))
        # A ratio of zeros is none, and one by zero is beyond every axis.
        some = (path.e_u != 0) & (path.e_r != 0)
        ratios = np.abs(path.e_r[some] / path.e_u[some])
        style = panels.objective_style(name, every)
        ax.plot(path.steps[some], ratios, marker="o", **style)
        if len(ratios):
            ends[name], colors[name] = float(ratios[-1]), style["color"]
        dropped += path.dropped + int((~some).sum())
    if not ends:
        return None
    ax.axhline(1.0, color="#777777", linewidth=0.7)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scales.number(value)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="optimiser step", ylabel=r"$|e_r|\,/\,|e_u|$")
    scales.steps_axis(ax)
    panels.label_ends(ax, ends, colors, panels.end_label)
    panels.note(ax, dropped)
    caption = (
        f"Totals over all layers ({series.provenance(table)}), on a log scale. Below 1 a step acts"
        " more on the forget set than on the retain set. The size says nothing of the direction:"
        " signs are in the figure of the G-effect. It is large where $e_u$ passes zero."
    )
    meta = tables.get("meta") or {}
    return panels.finish(figure, meta, "Harm over removal", caption)


def _present(table: series.Table, groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    layers = set(series.distinct(table, "layer"))
    if not layers - {"total"}:
        return {}
    return {group: list(members) for group, members in groups.items() if layers & set(members)}


def _draw_stack(
    stack: Mapping[str, Axes],
    table: series.Table,
    groups: Mapping[str, Sequence[str]],
    warm_up: int | None,
) -> None:
    """One objective's column: e and its cosine on both sets, then e by group on each."""
    for kind, ax in stack.items():
        if warm_up:
            ax.axvspan(0, warm_up, color="#000000", alpha=0.05, linewidth=0)
        ax.axhline(0.0, color="#777777", linewidth=0.7)
        if kind in RISKS:
            lines = _share_lines(series.select(table, risk=kind), groups)
        else:
            lines = _risk_lines(table, "value" if kind == "total" else "cosine")
        for style, line in lines:
            ax.plot(line.steps, line.values, **style)
        dropped = sum(line.dropped for _, line in lines)
        panels.note(ax, dropped, any(len(line.steps) for _, line in lines))
        scales.steps_axis(ax)
        scales.linear_axis(ax.yaxis)
    if "cosine" in stack:
        stack["cosine"].set_ylim(-1.08, 1.08)
        stack["cosine"].set_yticks([-1, 0, 1])
    for kind in RISKS.keys() & stack.keys():
        stack[kind].set_ylim(-1.08, 1.08)
        stack[kind].set_yticks([-1, 0, 1])


def _risk_lines(table: series.Table, column: str) -> list[tuple[dict, series.Series]]:
    total = series.select(table, layer="total")
    return [
        (style, series.series(series.select(total, risk=risk), column))
        for risk, style in RISKS.items()
    ]


def _share_lines(
    table: series.Table, groups: Mapping[str, Sequence[str]]
) -> list[tuple[dict, series.Series]]:
    shares = effect_series.group_shares(table, groups)
    return [(panels.group_style(group, list(groups)), line) for group, line in shares.items()]


def _label_rows(axes: Mapping[str, Mapping[str, Axes]], kinds: Sequence[str]) -> None:
    for name in list(axes)[:: panels.columns_for(len(axes), most=6)]:
        for kind in kinds:
            axes[name][kind].set_ylabel(LABELS[kind])


def _effect_legend(groups: Mapping[str, Sequence[str]]) -> list[Any]:
    handles = [swatch(f"$e_{risk[0]}$: {RISK_NAMES[risk]}", **RISKS[risk]) for risk in RISKS]
    return handles + [swatch(group, **panels.group_style(group, list(groups))) for group in groups]


def _effect_caption(table: series.Table, width: float | None, warm_up: int | None) -> str:
    return (
        r"$e_u=\nabla R(D_u)\cdot\nabla L_u$ and $e_r=\nabla R(D_r)\cdot\nabla L_u$; $R$: NLL in"
        f" nats ({series.provenance(table)}). An SGD step of size η changes $R$ by about −η$e$:"
        r" $e_u<0$ removes, $e_r\geq 0$ retains. $e$ is in nats² per squared parameter (where $L_u$"
        " is no likelihood, as for RMU, in nats times its unit): its size compares within an"
        " objective, the cosine between objectives. A group's share is its $e$ over the sum of all"
        " groups' magnitudes."
        + (" Grey: warm-up of the learning rate." if warm_up else "")
        + (f" First row: symmetric log, linear within ±{scales.decade(width)}." if width else "")
    )


def _draw_plane(ax: Axes, values: np.ndarray, width: float) -> None:
    """Both regions, their borders and the diagonal |e_r| = |e_u|, on axes wide enough for all."""
    reach = 3.0 * max(np.abs(values).max(initial=0.0), width)
    for axis in (ax.xaxis, ax.yaxis):
        scales.scale_axis(axis, np.array([-reach, reach]) / 3.0, width)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), box_aspect=1)
    ax.axvspan(-reach, 0.0, **REMOVAL)
    ax.axhspan(0.0, reach, **RETENTION)
    ax.axhline(0.0, color="#777777", linewidth=0.7)
    ax.axvline(0.0, color="#777777", linewidth=0.7)
    ax.plot([-reach, reach], [-reach, reach], color="#777777", linestyle=":", linewidth=0.9)
    words = {"transform": ax.transAxes, "fontsize": 6.8, "color": "#444444"}
    ax.text(0.03, 0.97, "removes,\nretains", va="top", **words)
    ax.text(0.97, 0.53, "relearns,\nretains", ha="right", **words)
    ax.text(0.97, 0.03, "relearns,\nharms", ha="right", **words)
    ax.text(0.48, 0.03, "removes,\nharms", ha="right", **words)


def _draw_path(ax: Axes, path: effect_series.EffectPath, color: ScalarMappable) -> None:
    ax.plot(path.e_u, path.e_r, color="#444444", linewidth=1.0, zorder=2.5)
    shades = color.to_rgba(path.steps)
    ax.scatter(path.e_u, path.e_r, c=shades, s=18, zorder=3, edgecolors="white", linewidths=0.5)
    for (x, y), steps in _labelled_steps(ax, path).items():
        label = ", ".join(f"{step:g}" for step in steps)
        note = ax.annotate(
            label, (x, y), xytext=(5, -8), textcoords="offset points", fontsize=7, zorder=4,
            path_effects=[withStroke(linewidth=2.0, foreground="white", alpha=0.8)],
        )  # fmt: skip
        note.set_in_layout(False)  # a label at the border would move the panels apart


def _labelled_steps(
    ax: Axes, path: effect_series.EffectPath
) -> dict[tuple[float, float], list[float]]:
    """The first, the furthest and the last step, by position; labels that collide are joined."""
    points = np.column_stack([path.e_u, path.e_r])
    places = ax.transAxes.inverted().transform(ax.transData.transform(points))
    furthest = [int(np.argmax(np.hypot(path.e_u, path.e_r)))] if len(points) else []
    ends = [0, len(points) - 1] if len(points) else []
    labels: dict[int, list[float]] = {}
    for place in sorted({*ends, *furthest}):
        near = [x for x in labels if np.abs(places[x] - places[place]).max() < 0.07]
        labels.setdefault(near[0] if near else place, []).append(float(path.steps[place]))
    return {(points[x, 0], points[x, 1]): steps for x, steps in labels.items()}


def _plane_legend(count: int) -> list[Any]:
    others = [swatch("the other objectives", color="#C9C9C9")] * (count > 1)
    return [
        Patch(label="removal region, $e_u<0$", **REMOVAL),
        Patch(label=r"retention region, $e_r\geq 0$", **RETENTION),
        swatch("$e_r=e_u$", color="#777777", linestyle=":", linewidth=0.9),
        *others,
    ]


def _plane_caption(table: series.Table, width: float) -> str:
    return (
        f"Totals over all layers; $R$: NLL in nats ({series.provenance(table)}). Symmetric log"
        f" axes, linear within ±{scales.decade(width)}. The goal is the upper left, where both"
        " regions overlap. Numbers next to a path are steps. A path that ends near zero shows that"
        " the slope has vanished, not that $R$ has recovered."
    )
