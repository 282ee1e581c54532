"""Draws every figure of a run and writes it as PNG and PDF.

All figures take the same argument, `tables`: a dict of tables by name (`record.tables` lists those
that figures need), each a dict of columns in which None is a null, and `tables["meta"]`, which is
{"title": str, "warning": str or None, "groups": {group: [layer names]}, "warm_up": the steps in
which learning rates rise, or None}. Every figure is a pure function of `tables`, and None where its
table is missing or has nothing to show.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from jaxunlearn.config import between, check_number
from jaxunlearn.core import files
from jaxunlearn.core.names import numbered
from jaxunlearn.record.tables import FIGURE_COLUMNS
from jaxunlearn.reporting.figures import series
from jaxunlearn.reporting.figures.effect import g_effect, harm_ratio, plane
from jaxunlearn.reporting.figures.layers import pg_layers
from jaxunlearn.reporting.figures.relearn import relearn
from jaxunlearn.reporting.figures.risk import confidence, predicted_vs_realised, risk_change
from jaxunlearn.reporting.figures.tokens import pg_tokens
from jaxunlearn.reporting.figures.weight import pg_density, weights

__all__ = [
    "confidence",
    "draw_all",
    "g_effect",
    "harm_ratio",
    "pg_density",
    "pg_layers",
    "pg_tokens",
    "plane",
    "predicted_vs_realised",
    "relearn",
    "remove_others",
    "risk_change",
    "weights",
]
DPI = 150
PROCESSES = between(1, 1024)
AHEAD = 2  # figures that other processes draw more than the one that writes a page too

Draw = Callable[[Mapping[str, Any]], Figure | None]

FIGURES: dict[str, Draw] = {
    "g_effect": g_effect,
    "plane": plane,
    "harm_ratio": harm_ratio,
    "risk_change": risk_change,
    "predicted_vs_realised": predicted_vs_realised,
    "confidence": confidence,
    "weights": weights,
    "relearn": relearn,
}
"""The figures that show all objectives at once, by the names of their files."""


OF_OBJECTIVES = (pg_density, pg_layers, pg_tokens)
"""The figures of one objective each; the names of their files begin with those of the functions."""


def remove_others(folder: Path, drawn: Sequence[Path]) -> None:
    """Removes figures of earlier reports that have no data any more.

    Args:
      folder: of the figures; files of other names, and those without a PDF, stay.
      drawn: from `draw_all`.
    """
    beginnings = tuple(_file_name(draw, "") for draw in OF_OBJECTIVES)
    for file in set(folder.glob("*.png")) - set(drawn):
        known = file.stem in FIGURES or file.stem.startswith(beginnings)
        if known and file.with_suffix(".pdf").is_file():
            file.unlink()
            file.with_suffix(".pdf").unlink()


def draw_all(
    tables: Mapping[str, Any],
    out_dir: str | os.PathLike,
    *,
    processes: int = 1,
    meanwhile: Callable[[], object] | None = None,
) -> list[Path]:
    """Draws every figure that the tables can fill and writes it as PNG and PDF.

    Each file is written under a temporary name and renamed, so that no half-written file is left.

    Args:
      tables: {table name: {column: values}} and `meta`.
      out_dir: the folder of the figures; it is created if it is missing.
      processes: that draw at the same time, each with a copy of the tables; with several the main
        module is imported again, as `multiprocessing` does it with its method "spawn".
      meanwhile: called by this process before it draws its share; by then the others have begun.

    Returns:
      The PNG files that were written, in reading order; a figure without data has none.

    Raises:
      ValueError: a table lacks a required column, a layer belongs to no group, or there is no
        process to draw.
    """
    check_number("processes", PROCESSES, processes)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # Once for all figures: columns of millions of rows take seconds.
    tables = {**tables, **{name: series.read(tables, name) for name in FIGURE_COLUMNS}}
    figures = list(_figures(tables).items())
    own, *shares = _shares(figures, processes, ahead=0 if meanwhile is None else AHEAD)
    with contextlib.ExitStack() as stack:
        begun = []
        if shares:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(len(shares), mp_context=spawn, initializer=_only_draw)
            stack.enter_context(pool)
            begun = [pool.submit(_draw, tables, folder, share) for share in shares]
        if meanwhile is not None:
            meanwhile()
        written = set(_draw(tables, folder, own))
        written.update(*(future.result() for future in begun))
    return [path for name, _ in figures if (path := folder / f"{name}.png") in written]


def _shares(figures: Sequence[Any], processes: int, *, ahead: int) -> list[list[Any]]:
    """Deals figures to processes, of which the first gets fewer by `ahead`, perhaps none.

    Neighbours take about the same time, so that all get about the same work.

    >>> _shares("abcdef", 2, ahead=0), _shares("abcdef", 2, ahead=2), _shares("a", 3, ahead=0)
    ([['a', 'c', 'e'], ['b', 'd', 'f']], [['c', 'e'], ['a', 'b', 'd', 'f']], [['a']])
    """
    hands: list[list[Any]] = [[] for _ in range(processes)]
    loads = [ahead] + [0] * (processes - 1)
    for figure in figures:
        to = loads.index(min(loads))
        hands[to].append(figure)
        loads[to] += 1
    return [hands[0], *filter(None, hands[1:])]


def _only_draw() -> None:
    """Prepares a process that draws, which ends with the main one however that ends."""
    jax.config.update("jax_platforms", "cpu")  # accelerators are the main process's
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Waits for the end of the process that began this one; one that is killed tells nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _draw(
    tables: Mapping[str, Any], folder: Path, figures: Sequence[tuple[str, Draw]]
) -> list[Path]:
    """Draws and writes some of the figures; returns the PNG files."""
    drawn = ((name, figure(tables)) for name, figure in figures)
    return [_write(figure, folder / f"{name}.png") for name, figure in drawn if figure]


def _figures(tables: Mapping[str, Any]) -> dict[str, Draw]:
    """All figures, in reading order, by the names of their files."""
    figures = dict(FIGURES)
    by_sample = series.read(tables, "pg_effect")
    names = series.distinct(by_sample, "objective")
    stems = dict(zip(names, _stems(names), strict=True))
    for name in series.varying_weights(by_sample):
        figures[_file_name(pg_density, stems[name])] = partial(pg_density, objective=name)
    for name, stem in stems.items():
        figures[_file_name(pg_layers, stem)] = partial(pg_layers, objective=name)
    by_token = series.distinct(series.read(tables, "token_effect"), "objective")
    for name, stem in zip(by_token, _stems(by_token), strict=True):
        figures[_file_name(pg_tokens, stem)] = partial(pg_tokens, objective=name)
    return figures


def _file_name(draw: Callable[..., Figure | None], stem: str) -> str:
    """The name of the file of a figure of one objective."""
    return f"{draw.__name__}_{stem}"


def _stems(names: list[str]) -> list[str]:
    """File names for objectives, whose names may be any text: safe, short and distinct."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9.=+-]+", "_", str(name).lower()).strip("._")[:60] or "objective"
        stems.append(numbered(stem, stems, "{}-{}"))
    return stems


def _write(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, and next to it as PDF for papers; returns the first."""
    files.replace_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))
    figure.set_layout_engine("none")  # what was laid out stays; it takes half of the time
    # Without a date a figure is the same file whenever it is drawn.
    paper: Any = {"format": "pdf", "metadata": {"CreationDate": None}}
    files.replace_whole(
        path.with_suffix(".pdf"), lambda temporary: figure.savefig(temporary, **paper)
    )
    return path
