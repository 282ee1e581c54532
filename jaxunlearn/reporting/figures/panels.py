"""The layout and style of the figures: colours, grids of panels, title, legend and caption."""

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from jaxunlearn.reporting import palette

BLACK, WARNING = "#000000", "#D55E00"
MISSING = "#EADFA6"  # no colour of the scales, which are blue, red and grey
"""What a heat map has no value for."""
DIVERGING = matplotlib.colormaps["RdBu_r"].with_extremes(bad=MISSING)
"""Values of both signs: blue below zero, red above."""
RISKS: dict[str, dict[str, Any]] = {
    "unlearn": {"color": palette.RISKS["unlearn"], "linestyle": "-", "marker": "o"},
    "retain": {"color": palette.RISKS["retain"], "linestyle": "-", "marker": "s"},
}
RISK_NAMES = {"unlearn": "forget set $D_u$", "retain": "retain set $D_r$"}
_GROUP_LINES = {
    "embed": {"linestyle": ":", "marker": "v"},
    "shallow": {"linestyle": "-", "marker": "s"},
    "middle": {"linestyle": "--", "marker": "D"},
    "deep": {"linestyle": "-.", "marker": "^"},
    "lm": {"linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "P"},
}
GROUPS: dict[str, dict[str, Any]] = {
    group: {"color": color, **_GROUP_LINES[group]} for group, color in palette.GROUPS.items()
}
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "lines.linewidth": 1.4,
    "lines.markersize": 3.2,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
MIN_WIDTH = 6.8
LABEL_GAP = 0.085
"""Between the labels of two lines, as a share of a panel's height."""


def plain(text: Any, width: int = 0, max_lines: int | None = None) -> str:
    """Text from data or users, escaped for matplotlib: no mathtext, one paragraph, wrapped.

    >>> plain("cost $5 or $6")
    'cost \\\\$5 or \\\\$6'
    """
    words = " ".join(str(text).split())
    lines = textwrap.wrap(words, width, max_lines=max_lines, placeholder=" …") if width else [words]
    return "\n".join(lines).replace("$", r"\$")


def shortened(text: Any, width: int) -> str:
    """`plain` text of at most so many letters, without its middle: names often differ at the end.

    >>> shortened("npo_beta_0.1_retain_weight_2", 16), shortened("npo", 16)
    ('npo_bet…weight_2', 'npo')
    """
    words = " ".join(str(text).split())
    if len(words) > width:
        head = (width - 1) // 2
        words = f"{words[:head]}…{words[head + 1 - width :]}"
    return plain(words)


def visible_length(text: str) -> int:
    """The approximate width of a text with mathtext, in letters.

    >>> visible_length(r"$\\nabla R(D_u)$")
    6
    """

    def letters(math_text: re.Match[str]) -> str:
        # A command such as \\nabla is one symbol; braces and the like are not visible.
        symbols = re.sub(r"\\[a-z]+", "x", math_text[0])
        return re.sub(r"[${}_^\\, ]", "", symbols)

    return len(re.sub(r"\$[^$]*\$", letters, text))


def fill(text: str, width: int) -> str:
    """Wraps a caption by its visible width; never breaks inside $...$."""
    lines = [""]
    for word in re.findall(r"(?:\\\$|\$[^$]*\$|\S)+", text):
        if lines[-1] and visible_length(lines[-1]) + 1 + visible_length(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def objective_style(objective: str, objectives: Sequence[str]) -> dict[str, Any]:
    """The colour and dash of an objective, by its position among all objectives of the run."""
    place = list(objectives).index(objective)
    lap = place // len(palette.OBJECTIVES)
    return {"color": palette.objective(place), "linestyle": DASHES[lap % len(DASHES)]}


def group_style(group: str, groups: Sequence[str]) -> dict[str, Any]:
    """The style of a layer group: fixed for those in `GROUPS`, by position for others."""
    return GROUPS.get(group) or objective_style(group, groups)


def label_ends(
    ax: Axes,
    ends: Mapping[str, float],
    colors: Mapping[str, str],
    text: Callable[[str], str] = str,
) -> None:
    """Writes names next to the right ends of lines, moved apart where they would overlap.

    Args:
      ax: with its final limits and scale.
      ends: {name: the value at which its line ends}.
      colors: {name: of its line}.
      text: makes what matplotlib writes of a name.
    """
    if not ends:
        return
    names = sorted(ends, key=ends.__getitem__)
    gap = min(LABEL_GAP, 1 / len(names))
    points = np.column_stack([np.ones(len(names)), [ends[name] for name in names]])
    heights = ax.transLimits.transform(ax.transScale.transform(points))[:, 1]
    places = spread_out([float(height) for height in heights], gap)
    for name, place in zip(names, places, strict=True):
        options: dict[str, Any] = {"color": colors[name], "fontsize": 7, "va": "center"}
        ax.text(1.01, place, text(name), transform=ax.transAxes, **options)


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places in 0..1, moved as little as it takes to be a gap apart.

    >>> [round(x, 2) for x in spread_out([0.5, 0.5, 1.0], 0.1)]
    [0.5, 0.6, 1.0]
    >>> [round(x, 2) for x in spread_out([0.97, 1.0], 0.1)]
    [0.9, 1.0]
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def end_label(name: str) -> str:
    """The name of an objective or model at the end of its line."""
    return shortened(name, 24)


def columns_for(count: int, most: int = 4) -> int:
    """The columns of a grid of `count` panels: at most `most`, in rows of about equal length.

    >>> [columns_for(count) for count in (1, 4, 5, 8, 9)]
    [1, 4, 3, 4, 3]
    """
    return math.ceil(count / math.ceil(count / most))


def small_multiples(
    names: Sequence[str],
    *,
    panel: tuple[float, float],
    xlabel: str,
    ylabel: str,
) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one titled panel of `panel` inches per name, wrapped, on shared axes."""
    columns = columns_for(len(names))
    rows = math.ceil(len(names) / columns)
    width = max(MIN_WIDTH, columns * panel[0])
    height = panel[1] * min(1.4, width / (columns * panel[0]))
    figure = Figure(figsize=(width, rows * height))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in grid.flat[len(names) :]:
        ax.remove()
    axes = dict(zip(names, grid.flat, strict=False))
    for place, (name, ax) in enumerate(axes.items()):
        ax.set_title(plain(name, 32, 3))
        if place % columns == 0:
            ax.set_ylabel(ylabel)
        if place + columns >= len(names):
            ax.set_xlabel(xlabel)
            ax.xaxis.set_tick_params(labelbottom=True)
    return figure, axes


def stacks(
    names: Sequence[str], kinds: Sequence[str], *, panel: tuple[float, float]
) -> tuple[Figure, dict[str, dict[str, Axes]]]:
    """A figure with one column of panels per name, one panel per kind, wrapped by whole columns.

    All share x; the first kind shares y across names.
    """
    columns = columns_for(len(names), most=6)
    rows = math.ceil(len(names) / columns) * len(kinds)
    figure = Figure(figsize=(max(MIN_WIDTH, columns * panel[0]), rows * panel[1]))
    grid = figure.add_gridspec(rows, columns)
    first, axes = None, {}
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        axes[name] = {}
        for offset, kind in enumerate(kinds):
            cell = grid[row * len(kinds) + offset, column]
            ax = figure.add_subplot(cell, sharex=first, sharey=None if offset else first)
            ax.xaxis.set_tick_params(labelbottom=kind == kinds[-1])
            first = first or ax
            axes[name][kind] = ax
        axes[name][kinds[0]].set_title(plain(name, 24, 3))
        axes[name][kinds[0]].yaxis.set_tick_params(labelleft=column == 0)
        axes[name][kinds[-1]].set_xlabel("optimiser step")
    return figure, axes


def finish(
    figure: Figure,
    meta: Mapping[str, Any],
    title: str,
    caption: str,
    handles: Sequence[Any] = (),
) -> Figure:
    """Adds title, warning and legend above the panels and the caption below; the figure grows.

    Their heights are counted in lines first, so that nothing overlaps whatever their length.
    """
    width, height = figure.get_size_inches()
    name, run = title, plain(meta.get("title") or "", int(width * 15))
    warning = plain(meta["warning"], int(width * 14)) if meta.get("warning") else ""
    caption = fill(caption, int(width * 15.5))
    columns = _legend_columns(handles, width)
    legend = 0.21 * math.ceil(len(handles) / columns) + 0.08 if handles else 0.0
    blocks = [(name, 0.25, 11), (run, 0.17, 8.5), (warning, 0.18, 8.5)]
    header = 0.15 + sum(_inches(text, line) for text, line, _ in blocks) + legend
    footer = 0.2 + _inches(caption, 0.145)
    total = height + header + footer
    figure.set_size_inches(width, total)
    colors, weights = ("#000000", "#555555", WARNING), ("bold", "normal", "bold")
    top = total - 0.08
    for (text, line, size), color, weight in zip(blocks, colors, weights, strict=True):
        if text:
            at = {"x": 0.1 / width, "y": top / total, "s": text, "va": "top", "ha": "left"}
            figure.text(**at, fontsize=size, color=color, fontweight=weight)
        top -= _inches(text, line)
    if handles:
        anchor = (0.05 / width, (top + 0.02) / total)
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=anchor, ncols=columns, borderpad=0.3
        )
    figure.text(0.1 / width, 0.06 / total, caption, va="bottom", fontsize=7.5, color="#333333")
    rect = (0, footer / total, 1, height / total)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=rect, h_pad=0.06))
    return figure


def note(ax: Axes, dropped: int, has_values: bool = True) -> None:
    """Notes in the panel how many values it cannot show.

    Args:
      ax: the panel.
      dropped: values that are not finite.
      has_values: whether any value is shown.
    """
    parts = [] if has_values else ["no finite value"]
    parts += [f"{dropped} non-finite not drawn"] if dropped else []
    if parts:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        at = {"xytext": (-2, 2), "xycoords": "axes fraction", "textcoords": "offset points"}
        ax.annotate("; ".join(parts), (1, 0), **at, ha="right", fontsize=7, color=WARNING, bbox=box)


def corner_text(ax: Axes, text: str, line: int, color: str) -> None:
    """A line of small text in the upper left corner of a panel."""
    ax.annotate(
        text,
        (0, 1),
        xytext=(4, -4 - 10 * line),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=7,
        color=color,
        path_effects=[withStroke(linewidth=2.0, foreground="white", alpha=0.8)],
    )


def swatch(label: str, **style: Any) -> Line2D:
    """A legend entry."""
    return Line2D([], [], label=label, **style)


def _inches(text: str, line: float) -> float:
    return line * (text.count("\n") + 1) if text else 0.0


def _legend_columns(handles: Sequence[Any], width: float) -> int:
    """The most columns whose widest entries fit next to each other.

    Matplotlib fills them in turn; the first ones have an entry more where need be.
    """
    sizes = [0.6 + 0.066 * visible_length(str(handle.get_label())) for handle in handles]
    for columns in range(len(sizes), 1, -1):
        parts = np.array_split(np.array(sizes), columns)
        if sum(part.max() for part in parts) <= width - 0.1:
            return columns
    return 1
