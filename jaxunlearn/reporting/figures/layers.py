"""The figure of PG-effects by sample and layer: which layers the effect of a sample comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from jaxunlearn.reporting.figures import panels, scales, series
from jaxunlearn.reporting.figures.panels import RISK_NAMES, RISKS, STYLE, plain

MOST_STEPS = 4
PANEL_HEIGHT = 1.9
"""Inches."""
LABEL_ROOM = 0.12
"""The least distance between the labels of two layers, in inches."""

Grids = dict[tuple[str, int], series.LayerGrid]


@matplotlib.rc_context(STYLE)
def pg_layers(
    tables: Mapping[str, Any], objective: str, steps: Sequence[int] | None = None
) -> Figure | None:
    """PG-effects of an objective's samples by layer: a heat map per step and set.

    PG(s, l) = grad_l R . grad_l log p(s), over the parameters of layer l; its sum over layers is
    the PG-effect of Wang et al. (2025).

    Args:
      tables: with `pg_effect`, and the layer groups in `meta`.
      objective: its name in the table.
      steps: the checkpoints to show; by default all of them, or four spread evenly where there are
        more.

    Returns:
      A row of panels per set, a column per step; in each a row per sample and a column per layer.
      None where the table has nothing but totals.

    Raises:
      ValueError: a required column is missing, or a layer belongs to no group.
    """
    meta = tables.get("meta") or {}
    groups = meta.get("groups") or {}
    table = series.select(series.read(tables, "pg_effect"), objective=objective)
    layers = series.layer_order(table, groups)
    grids = _grids(table, layers, steps)
    if not grids:
        return None
    values = np.concatenate([grid.values.ravel() for grid in grids.values()])
    norm, width = _color_scale(values)
    layer_groups = [
        group for group, members in groups.items() for layer in layers if layer in members
    ]
    present = list(dict.fromkeys(layer_groups))
    figure, axes = _heat_map_axes(grids)
    columns = len({step for _, step in grids})
    room = (figure.get_size_inches()[0] - 1.5) / columns  # less the colour bar and y labels
    for key, ax in axes.items():
        _draw_grid(ax, grids[key], norm)
        _mark_groups(ax, present, layer_groups)
        _label_layers(ax, layers, room)
    bar = figure.colorbar(
        ScalarMappable(norm, panels.DIVERGING), ax=list(axes.values()), pad=0.01, aspect=35,
        label=r"$\nabla R\cdot\nabla\log p(s)$ of a layer  [nats² per parameter²]",
    )  # fmt: skip
    bar.ax.yaxis.set_major_locator(FixedLocator(scales.symlog_ticks(values, width, 8)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scales.decade(value)))
    title = f"PG-effects by layer: {plain(objective, 48, 2)}"
    handles = [Patch(label=name, facecolor=_group_color(name, present)) for name in present]
    if np.isnan(values).any():
        handles.append(Patch(label="not measured or not finite", facecolor=panels.MISSING))
    return panels.finish(figure, meta, title, _caption(table, width), handles)


def _grids(table: series.Table, layers: Sequence[str], steps: Sequence[int] | None) -> Grids:
    """The effects of each (risk, step) that has any; a step orders its samples in one way."""
    grids: Grids = {}
    if not layers:
        return grids
    by_layer = series.without(table, layer="total")
    if steps is None:
        steps = series.evenly(sorted(series.distinct(by_layer, "step")), MOST_STEPS)
    for step in steps:
        samples = series.sample_order(series.select(table, step=step))
        for risk in RISKS:
            rows = series.select(by_layer, step=step, risk=risk)
            if len(rows["step"]):
                grids[risk, step] = series.layer_grid(rows, samples, layers)
    return grids


def _color_scale(values: np.ndarray) -> tuple[SymLogNorm, float]:
    """One symmetric log scale for all panels, and the half width of its linear part."""
    width = scales.linear_width(values, always=True) or 1.0
    sizes = np.abs(values[np.isfinite(values)])
    reach = max(sizes.max(initial=0.0), width)
    return SymLogNorm(linthresh=width, linscale=0.6, vmin=-reach, vmax=reach, base=10), width


def _heat_map_axes(grids: Grids) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """A panel per grid: sets below each other, steps side by side."""
    risks = [risk for risk in RISKS if any(key[0] == risk for key in grids)]
    steps = sorted({step for _, step in grids})
    width = max(panels.MIN_WIDTH, 2.3 * len(steps) + 0.8)
    figure = Figure(figsize=(width, PANEL_HEIGHT * len(risks) + 0.5))
    layout = figure.add_gridspec(len(risks), len(steps))
    axes = {}
    for risk, step in grids:
        row, column = risks.index(risk), steps.index(step)
        ax = axes[risk, step] = figure.add_subplot(layout[row, column])
        ax.set_title(f"step {step}, {RISK_NAMES[risk]}", pad=10)
        if column == 0:
            ax.set_ylabel("sample (rank)")
        if row == len(risks) - 1:
            ax.set_xlabel("layer (numbers: blocks)")
    return figure, axes


def _draw_grid(ax: Axes, grid: series.LayerGrid, norm: SymLogNorm) -> None:
    ax.grid(visible=False)
    ax.imshow(
        np.ma.masked_invalid(grid.values), cmap=panels.DIVERGING, norm=norm, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    ax.set_autoscale_on(False)  # what marks the groups adds no margin
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels.note(ax, grid.dropped, bool(np.isfinite(grid.values).any()))


def _mark_groups(ax: Axes, groups: Sequence[str], layer_groups: Sequence[str]) -> None:
    """A line between neighbouring groups of layers, and a bar above each in its colour.

    Args:
      ax: the panel.
      groups: the groups that have layers.
      layer_groups: the group of each layer.
    """
    for group in groups:
        places = [place for place, name in enumerate(layer_groups) if name == group]
        ends = [places[0] - 0.5, places[-1] + 0.5]
        if places[0]:
            ax.axvline(ends[0], color="#222222", linewidth=0.8)
        ax.plot(
            ends, [1.035, 1.035], transform=ax.get_xaxis_transform(), clip_on=False, marker="",
            linestyle="-", color=_group_color(group, groups), linewidth=3, solid_capstyle="butt",
        )  # fmt: skip


def _group_color(group: str, groups: Sequence[str]) -> str:
    """The colour that the group has in the other figures."""
    return panels.group_style(group, groups)["color"]


def _label_layers(ax: Axes, layers: Sequence[str], room: float) -> None:
    """Labels as many layers as there is room for: the ends, other parts than blocks, then blocks.

    A block is labelled by its number.

    Args:
      ax: the panel.
      layers: their names.
      room: the width of the panel, in inches.
    """
    apart = max(1, int(np.ceil(LABEL_ROOM * len(layers) / room)))
    last = len(layers) - 1
    parts = [place for place, layer in enumerate(layers) if not layer.startswith("block_")]
    blocks = [place for place, layer in enumerate(layers) if layer.startswith("block_")]
    labelled: list[int] = []
    for place in (0, last, *parts, *blocks):
        if all(abs(place - other) >= apart for other in labelled):
            labelled.append(place)
    labels = [
        panels.shortened(layers[place].removeprefix("block_"), 12) for place in sorted(labelled)
    ]
    ax.set_xticks(sorted(labelled), labels, rotation=90, fontsize=6.5)


def _caption(table: series.Table, width: float) -> str:
    tensors = any(series.layer_of(name) != name for name in series.distinct(table, "layer"))
    return (
        r"$\nabla R\cdot\nabla\log p(s)$ over the parameters of one layer; the sum over layers is"
        f" the PG-effect of sample $s$ ({series.provenance(table)}). A row is a sample of $D_u$,"
        " at the same height on both sets: samples are ranked by their PG-effect on $D_u$, the"
        " most negative on top. A column is a layer, in the order of the model; lines separate the"
        " groups."
        + (" Tensors are summed over their layer." if tensors else "")
        + " Weighting a sample up raises $R$ through its blue layers and lowers it through its red"
        " ones: blue removes on $D_u$, and harms on $D_r$. Symmetric log colours, linear within"
        f" ±{scales.decade(width)}."
    )
