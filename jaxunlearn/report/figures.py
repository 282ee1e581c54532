"""The figures of a run: long tables in, matplotlib figures out.

`tables` is a dict of tables, each a dict of columns (`g_effect`, `samples`, `confidence`,
`pg_effect`, `relearn`; None is a null), with `tables["meta"]` = {"title": str, "warning": str or
None, "groups": {group: [layer names]}}. Every figure is a pure function of it, and None when its
table is missing or has nothing to show.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxunlearn.report import series
from jaxunlearn.report.effect_figures import g_effect, plane
from jaxunlearn.report.relearn_figures import relearn
from jaxunlearn.report.risk_figures import confidence, predicted_vs_realised, risk_change
from jaxunlearn.report.weight_figures import pg_density, weights

__all__ = [
    "confidence",
    "draw_all",
    "g_effect",
    "pg_density",
    "plane",
    "predicted_vs_realised",
    "relearn",
    "risk_change",
    "weights",
]
DPI = 150


def draw_all(tables: Mapping[str, Any], out_dir: str | os.PathLike) -> list[Path]:
    """Draws every figure that the tables can fill and writes it as a PNG.

    Each file is written under a temporary name and renamed, so that none is ever half there.

    Args:
      tables: {table name: {column: values}} and `meta`.
      out_dir: the folder, made when missing.

    Returns:
      The paths written, in reading order; a figure without data is not among them.

    Raises:
      ValueError: a table lacks a required column, or a layer belongs to no group.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(figure, folder / f"{name}.png") for name, figure in _figures(tables) if figure]


def _figures(tables: Mapping[str, Any]) -> Iterator[tuple[str, Figure | None]]:
    yield "g_effect", g_effect(tables)
    yield "plane", plane(tables)
    yield "risk_change", risk_change(tables)
    yield "predicted_vs_realised", predicted_vs_realised(tables)
    yield "confidence", confidence(tables)
    yield "weights", weights(tables)
    weighted = series.varying_weights(series.read(tables, "pg_effect"))
    for objective, stem in zip(weighted, _stems(weighted), strict=True):
        yield f"pg_density_{stem}", pg_density(tables, objective)
    yield "relearn", relearn(tables)


def _stems(names: list[str]) -> list[str]:
    """File names for objectives, which may be any text: safe, short and distinct."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9.=+-]+", "_", str(name).lower()).strip("._")[:60] or "objective"
        numbered = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        stems.append(next(free for free in numbered if free not in stems))
    return stems


def _write(figure: Figure, path: Path) -> Path:
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=DPI)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
