"""The figures of docs/fidelity.md, drawn from the results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from benchmarks.study.facts import Facts, Studies, methods
from jaxunlearn.reporting import palette

COLORS = palette.RISKS
NAMES = {"unlearn": "e_u, on what is forgotten", "retain": "e_r, on what is retained"}


def draw(studies: Studies, compared: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Writes every figure that the results can fill."""
    folder.mkdir(parents=True, exist_ok=True)
    for study, runs in studies.items():
        _save(curves(study, runs), folder / f"curves_{study}.png")
    for content in (content for content in compared if content["repeats"]):
        _save(estimators(content), folder / f"estimators_{content['study']}.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)


def curves(study: str, runs: Sequence[Facts]) -> Figure:
    """Both total effects of the six methods over the steps, a line a seed."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    found = methods(runs)
    columns = 3 if len(found) > 4 else 2
    grid = figure.subplots(-(-len(found) // columns), columns, sharex=True, squeeze=False)
    axes = list(grid.flat)
    for ax in axes[len(found) :]:
        ax.remove()
    for ax, (label, names) in zip(axes, found.items(), strict=False):
        largest = 0.0
        for run, name in names:
            for risk, color in COLORS.items():
                values = run.curve(name, risk)
                ax.plot(run.measured(name), values, color=color, marker="o", ms=3, lw=1.2)
                largest = max(largest, float(np.nanmax(np.abs(values))))
        _symmetric_log(ax, largest)
        ax.set_title(label)
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set_xlabel("step")
        ax.tick_params(labelbottom=True)  # also above a place that is empty
    lines = [ax.plot([], [], color=color)[0] for color in COLORS.values()]
    figure.legend(lines, list(NAMES.values()), loc="outside lower center", ncols=2)
    seeds = ", ".join(str(run.content["seed"]) for run in runs)
    figure.suptitle(
        f"{study}: G-effect (dot product of gradients, sums over a sequence's tokens) over all"
        f" samples\nseeds {seeds}; linear within 1 % of the largest value"
    )
    return figure


def _symmetric_log(ax: Axes, largest: float) -> None:
    threshold = max(largest / 100, np.finfo(float).tiny)
    ax.set_yscale("symlog", linthresh=threshold)
    # None within the linear part but 0: their labels would overlap its label.
    powers = 10.0 ** (np.ceil(np.log10(threshold)) + np.arange(3))
    ax.yaxis.set_major_locator(FixedLocator([*-powers[::-1], 0, *powers]))


def estimators(content: Mapping[str, Any]) -> Figure:
    """Each repeat's running mean over the exact effect, method by method and place by place."""
    states = content["states"]
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    ax = figure.subplots()
    for place, state in enumerate(states):
        exact, found = np.array(state["exact"]), np.array(state["estimates"])
        for shift, (column, color) in enumerate(zip((0, 1), COLORS.values(), strict=True)):
            x = np.full(len(found), place + 0.25 * shift - 0.12)
            ax.plot(x, found[:, column] / exact[column], "o", color=color, ms=3, alpha=0.5)
            mean = found[:, column].mean() / exact[column]
            ax.plot(x[:1], [mean], "_", color=color, ms=16, mew=2)
    ax.axhline(1, color="0.4", lw=1)
    if max(abs(limit) for limit in ax.get_ylim()) > 10:
        ax.set_yscale("symlog", linthresh=1)  # near 1 its axis would have a single tick
    names = [f"{s['method']}\n{s['place']:.1f}" for s in states]
    ax.set_xticks(range(len(states)), names)
    ax.set_xlabel("method, and the share of its way from theta_0 at which effects are measured")
    ax.set_ylabel("estimate / exact")
    lines = [ax.plot([], [], "o", color=color)[0] for color in COLORS.values()]
    figure.legend(lines, ["e_u", "e_r"], loc="outside right upper")
    figure.suptitle(
        f"{content['study']}: the running mean of micro-batches over the exact effect;"
        f" {content['repeats']} orders of the samples, dashes are means"
    )
    return figure
