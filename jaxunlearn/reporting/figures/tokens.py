"""The figure of PG-effects by token: which words of a sample its effect comes from."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxunlearn.reporting.figures import panels, scales, series
from jaxunlearn.reporting.figures.panels import RISK_NAMES, RISKS, STYLE, plain

MOST_SAMPLES = 3
MOST_TOKENS = 64
"""Tokens of a sample that have room next to each other."""
ROW, TOKEN = 0.26, 0.17
"""The height of a row and the least width of a token, in inches."""
SEQUENTIAL = matplotlib.colormaps["Greys"].with_extremes(bad=panels.MISSING)


@matplotlib.rc_context(STYLE)
def pg_tokens(tables: Mapping[str, Any], objective: str, step: int | None = None) -> Figure | None:
    """PG-effects and weights of the tokens of a few samples at one checkpoint.

    PG(s, i) = grad R . grad log p(s_i | s_<i); its sum over the tokens of a sample is the PG-effect
    of Wang et al. (2025).

    Args:
      tables: with `token_effect`, and `texts` with the text of every label token.
      objective: its name in the table.
      step: the checkpoint; by default the middle one of those at which tokens were measured.

    Returns:
      For three samples, from the one that removes most to the one that removes least, a row per
      set and one for the weights. None where no tokens were measured.

    Raises:
      ValueError: a required column is missing.
    """
    table = series.select(series.read(tables, "token_effect"), objective=objective)
    steps = sorted(series.distinct(table, "step"))
    if not steps:
        return None
    step = steps[len(steps) // 2] if step is None else step
    table = series.select(table, step=step)
    samples = _picked(table)
    if not samples:
        return None
    texts = series.read(tables, "texts")
    words = dict(zip(texts.get("sample", ()), texts.get("tokens", ()), strict=True))
    grids = {sample: _grid(series.select(table, sample=sample)) for sample in samples}
    longest = max(grid.shape[1] for grid in grids.values())
    room = 3 * ROW + 0.75  # the tokens stand upright below their rows
    figure = Figure(figsize=(max(panels.MIN_WIDTH, 1.2 + TOKEN * longest), room * len(samples)))
    axes = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
    for ax, (sample, grid) in zip(axes, grids.items(), strict=True):
        _draw_sample(ax, grid, words.get(sample, []))
        ax.set_title(f"sample {sample}", loc="left", fontsize=8)
    return panels.finish(
        figure,
        tables.get("meta") or {},
        f"PG-effects by token: {plain(objective, 48, 2)}",
        _caption(table, step, longest),
        [Patch(label="not measured, not finite, or no weight", facecolor=panels.MISSING)],
    )


def _picked(table: series.Table) -> list[int]:
    """The samples whose tokens together remove most, in the middle, and least."""
    rows = series.select(table, risk="unlearn")
    values, samples = series.numbers(rows, "value")[0], series.distinct(rows, "sample")
    sums = np.array([values[rows["sample"] == sample].sum() for sample in samples])
    order = np.argsort(sums, kind="stable").tolist()  # what is not finite comes last
    return [samples[place] for place in series.evenly(order, MOST_SAMPLES)]


def _grid(table: series.Table) -> np.ndarray:
    """[3, tokens]: the effects on D_u and D_r and the weight of a sample; NaN where there is none.

    Of a long sample, the first tokens.
    """
    positions = sorted(series.distinct(table, "position"))[:MOST_TOKENS]
    column = {position: place for place, position in enumerate(positions)}
    grid = np.full((len(RISKS) + 1, len(positions)), np.nan)
    for row, risk in enumerate(RISKS):
        part = series.select(table, risk=risk)
        values, weights = (series.numbers(part, name)[0] for name in ("value", "weight"))
        for position, value, weight in zip(part["position"], values, weights, strict=True):
            if position in column:
                grid[row, column[position]], grid[-1, column[position]] = value, weight
    return np.where(np.isfinite(grid), grid, np.nan)


def _draw_sample(ax: Axes, grid: np.ndarray, words: list[str]) -> None:
    """Each row has a scale of its own; its largest magnitude stands at the row's end."""
    ax.grid(visible=False)
    names = [*RISK_NAMES.values(), "weight $w$"]
    for row, values in enumerate(grid):
        finite = np.abs(values[np.isfinite(values)])
        largest = float(finite.max(initial=0.0))
        signed = row < len(RISKS)
        # The largest weight is grey and not black, since that of a sequence fills its row.
        norm = Normalize(-largest, largest or 1.0) if signed else Normalize(0.0, 2 * largest or 1.0)
        colors = panels.DIVERGING if signed else SEQUENTIAL
        ax.imshow(
            np.ma.masked_invalid(values[None]), cmap=colors, norm=norm, aspect="auto",
            interpolation="nearest", extent=(-0.5, grid.shape[1] - 0.5, row + 0.5, row - 0.5),
        )  # fmt: skip
        if len(finite):
            ax.text(
                1.005, row, ("±" if signed else "0–") + scales.number(float(f"{largest:.2g}")),
                transform=ax.get_yaxis_transform(), va="center", fontsize=6.5, color="#555555",
            )  # fmt: skip
    ax.set(xlim=(-0.5, grid.shape[1] - 0.5), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), names)
    shown = [plain(word) or "·" for word in words[: grid.shape[1]]]
    ax.set_xticks(range(len(shown)), shown, rotation=90, fontsize=6.5)
    ax.tick_params(length=0)


def _caption(table: series.Table, step: int, longest: int) -> str:
    return (
        r"$\nabla R\cdot\nabla\log p$ of each label token, given those before it, at the checkpoint"
        f" after step {step} ({series.provenance(table)}): the sum over tokens is the PG-effect of"
        " the sample. Blue on $D_u$ removes when it is weighted up, blue on $D_r$ harms. Samples,"
        " from above: the one that removes most, the median, the one that removes least. Each row"
        " has its own scale, up to the number at its end."
        + (f" The first {MOST_TOKENS} tokens of a sample." if longest == MOST_TOKENS else "")
    )
