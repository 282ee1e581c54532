"""Figures of the effect weights: by step, and against the PG-effects of the samples."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from jaxunlearn.reporting.figures import panels, scales, series
from jaxunlearn.reporting.figures.panels import STYLE, plain, swatch

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEAST_CONTOUR = 20
"""Samples of a bin below which it has no contours."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
REGION = {"facecolor": "#009E73", "alpha": 0.16, "edgecolor": "#009E73", "linewidth": 0.8}


@matplotlib.rc_context(STYLE)
def weights(tables: Mapping[str, Any]) -> Figure | None:
    """Effect weights by step: mean and quantiles over samples (Wang et al. 2025, figure 5a).

    Args:
      tables: with `samples`.

    Returns:
      One panel per objective whose weights are not all 1; None without any.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.read(tables, "samples")
    names = series.varying_weights(table)
    if not names:
        return None
    figure, axes = panels.small_multiples(
        names, panel=(2.7, 2.0), xlabel="optimiser step", ylabel="weight $w$ of a sample"
    )
    every = series.objectives(tables)
    for name, ax in axes.items():
        color = panels.objective_style(name, every)["color"]
        _draw_bands(ax, series.select(table, objective=name), color)
    axes[names[0]].set_ylim(bottom=0.0)
    handles = [
        swatch("mean over samples", color="#333333", marker="o"),
        Patch(label="25–75 %", facecolor="#333333", alpha=0.4),
        Patch(label="5–95 %", facecolor="#333333", alpha=0.18),
        swatch("$w=1$, as in gradient ascent", color="#555555", linestyle=":", linewidth=0.9),
    ]
    measured = series.provenance(series.read(tables, "g_effect"))
    caption = (
        r"$\nabla L_u$ sums $w\,\nabla\log p$"
        + (f" ({measured})" if measured else "")
        + ". Weights per token (WGA, TNPO) are averaged over a sample's label tokens; NPO has one"
        " weight per sequence, between 0 and 2, and starts at 1."
    )
    return panels.finish(figure, tables.get("meta") or {}, "Effect weights", caption, handles)


@matplotlib.rc_context(STYLE)
def pg_density(
    tables: Mapping[str, Any], objective: str, steps: Sequence[int] | None = None
) -> Figure | None:
    """PG-effects of an objective's samples by bin of weight (Wang et al. 2025, figure 5b).

    PG_D(s) = grad R(D) . grad log p(s): x is D = D_u, y is D = D_r. Bins of weight hold equally
    many samples: with bins of equal width nearly all samples of some objectives are in one.

    Args:
      tables: with `pg_effect`.
      objective: its name in the table.
      steps: the checkpoints to pool; by default the first three measured after step 0.

    Returns:
      The joint density with one strip per bin on either side; None without points.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.select(series.read(tables, "pg_effect"), objective=objective, layer="total")
    later = sorted(step for step in series.distinct(table, "step") if step > 0)
    points = series.pg_points(table, later[:3] if steps is None else steps)
    if not len(points.weights):
        return None
    figure, joint, top, side = _joint_axes()
    widths = [scales.body_width(values) for values in (points.unlearn, points.retain)]
    scales.scale_axis(joint.xaxis, points.unlearn, widths[0], linear_decades=1.5)
    scales.scale_axis(joint.yaxis, points.retain, widths[1], linear_decades=1.5)
    bins, spans = _weight_bins(points.weights)
    # Darker is a larger weight, as in the paper.
    colors = matplotlib.colormaps["viridis_r"](np.linspace(0.1, 1.0, max(len(spans), 2)))
    colors = colors[-len(spans) :]
    markers = dict(zip(np.unique(points.steps), itertools.cycle(MARKERS), strict=False))
    contours = _draw_joint(joint, points, bins, colors, markers)
    _draw_strips(top, points.unlearn, bins, spans, colors)
    _draw_strips(side, points.retain, bins, spans, colors, upright=True)
    panels.note(joint, points.dropped)
    handles = [
        *(
            swatch(f"step {step:g}", color="#3B528B", marker=marker, linestyle="")
            for step, marker in markers.items()
        ),
        *([swatch("a quarter and a half of a bin's density", color="#333333")] * contours),
        Patch(label="good to weight up", **REGION),
        swatch("bin: median, 25–75 %, 5–95 %", color="#333333", marker="o"),
    ]
    title = f"PG-effects by weight: {plain(objective, 48, 2)}"
    meta = tables.get("meta") or {}
    caption = _density_caption(table, points, widths, contours)
    return panels.finish(figure, meta, title, caption, handles)


def _draw_bands(ax: Axes, table: series.Table, color: str) -> None:
    weight = series.spread(table, "weight", QUANTILES)
    for low, high, alpha in ((0.05, 0.95, 0.15), (0.25, 0.75, 0.3)):
        bounds = weight.quantiles[low], weight.quantiles[high]
        ax.fill_between(weight.steps, *bounds, color=color, alpha=alpha, linewidth=0)
    ax.plot(weight.steps, weight.mean, color=color, marker="o")
    ax.axhline(1.0, color="#555555", linewidth=0.9, linestyle=":")
    panels.note(ax, weight.dropped)
    scales.steps_axis(ax)


def _joint_axes() -> tuple[Figure, Axes, Axes, Axes]:
    figure = Figure(figsize=(panels.MIN_WIDTH, 5.4))
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 1.2), height_ratios=(1.2, 3))
    joint = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=joint)
    side = figure.add_subplot(grid[1, 1], sharey=joint)
    joint.set_xlabel(r"unlearn PG  $\nabla R(D_u)\cdot\nabla\log p(s)$  [nats² per parameter²]")
    joint.set_ylabel(r"retain PG  $\nabla R(D_r)\cdot\nabla\log p(s)$  [nats² per parameter²]")
    top.set_ylabel("weight")
    side.set_xlabel("weight")
    top.xaxis.set_tick_params(labelbottom=False)
    side.yaxis.set_tick_params(labelleft=False)
    return figure, joint, top, side


def _weight_bins(weights: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The bin of each weight, and the span of each bin, the smallest weights first."""
    bins = series.weight_bins(weights)
    ends = [(weights[bins == i].min(), weights[bins == i].max()) for i in range(bins.max() + 1)]
    return bins, [f"{low:.2g}" if low == high else f"{low:.2g}–{high:.2g}" for low, high in ends]


def _draw_joint(
    ax: Axes,
    points: series.PgPoints,
    bins: np.ndarray,
    colors: np.ndarray,
    markers: Mapping[float, str],
) -> bool:
    """Draws the region that is good to weight up, the samples, and contours of their bins.

    Returns:
      Whether there are contours: a bin of few samples has none, since it would show the kernel.
    """
    far, near = good_bounds(points)
    edge = min(points.unlearn.min(), far)
    ax.add_patch(Rectangle((edge, -near), far - edge, 2 * near, zorder=1.5, **REGION))
    for step, marker in markers.items():
        at = points.steps == step
        ax.scatter(
            points.unlearn[at], points.retain[at], c=colors[bins][at], marker=marker, s=12,
            linewidths=0.3, edgecolors="white", alpha=0.8,
        )  # fmt: skip
    places = ax.transScale.transform(np.column_stack([points.unlearn, points.retain]))
    large = [place for place in range(len(colors)) if (bins == place).sum() >= LEAST_CONTOUR]
    for place in large:
        x, y, density = _density(ax, places, places[bins == place])
        levels = density.max() * np.array([0.25, 0.5])
        ax.contour(x, y, density, levels=levels, colors=[colors[place]], linewidths=(0.8, 1.6))
    return bool(large)


def _density(
    ax: Axes, every: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smoothed histogram in the axes' own scale, as a grid in data coordinates.

    Args:
      ax: the panel.
      every: [n, 2] places of all points, whose range the grid has.
      places: [m, 2] those that are counted.
    """
    margin = 0.12 * np.ptp(every, axis=0) + 1e-9
    limits = list(zip(every.min(axis=0) - margin, every.max(axis=0) + margin, strict=True))
    density, *edges = np.histogram2d(*places.T, bins=48, range=limits)
    apart = np.subtract.outer(np.arange(48), np.arange(48))
    bell = np.exp(-0.5 * (apart / 2.0) ** 2)
    density = bell @ density @ bell
    centres = np.column_stack([(edge[1:] + edge[:-1]) / 2 for edge in edges])
    x, y = ax.transScale.inverted().transform(centres).T
    return x, y, density.T


def good_bounds(points: series.PgPoints) -> tuple[float, float]:
    """The region that is good to weight up: unlearn PG <= first, |retain PG| <= second.

    The quarters of the pooled samples with the most negative unlearn PG and smallest |retain PG|.
    """
    far = min(float(np.quantile(points.unlearn, 0.25)), 0.0)
    return far, float(np.quantile(np.abs(points.retain), 0.25))


def _draw_strips(
    ax: Axes,
    values: np.ndarray,
    bins: np.ndarray,
    spans: Sequence[str],
    colors: np.ndarray,
    *,
    upright: bool = False,
) -> None:
    """One line per bin of weight: 5-95 % thin, 25-75 % thick, the median a dot."""
    for place, color in enumerate(colors):
        part = values[bins == place]
        if len(part):
            low, first, middle, third, high = np.quantile(part, QUANTILES)
            ends = (([low, high], 1.0), ([first, third], 4.0))
            for span, width in ends:
                across = [place, place]
                xy = (across, span) if upright else (span, across)
                ax.plot(*xy, color=color, linewidth=width, solid_capstyle="butt")
            dot = (place, middle) if upright else (middle, place)
            ax.plot(*dot, "o", color="white", markeredgecolor=color, markersize=4.5)
    labels = [f"{span} ({(bins == place).sum()})" for place, span in enumerate(spans)]
    axis = ax.xaxis if upright else ax.yaxis
    axis.set_ticks(range(len(colors)), labels, fontsize=6.8, rotation=90 if upright else 0)
    (ax.set_xlim if upright else ax.set_ylim)(-0.7, len(colors) - 0.3)


def _density_caption(
    table: series.Table,
    points: series.PgPoints,
    widths: Sequence[float | None],
    contours: bool,
) -> str:
    steps = ", ".join(f"{step:g}" for step in np.unique(points.steps))
    logarithmic = [
        f" {axis}: symmetric log, linear within ±{scales.decade(width)}."
        for axis, width in zip(("Unlearn PG", "Retain PG"), widths, strict=True)
        if width is not None
    ]
    return (
        f"{len(points.weights)} points: one per sample at the checkpoints after steps {steps}"
        f" ({series.provenance(table)}), coloured by bin of weight, darker for larger ones, as in"
        " the strips (count in brackets)."
        + (" Contours: a quarter and a half of the largest density of a bin." if contours else "")
        + "".join(logarithmic)
        + " Good to weight up: unlearn PG in its most negative quarter and |retain PG| in its"
        " smallest quarter; it removes much and hardly changes the risk on $D_r$."
    )
