"""The benchmark's results as a table, a few ratios, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pg_way import UNIT

Row = dict[str, Any]
OURS = ("jvp", "gates", "gates, remat")
TICKS = [m * 10**e for e in range(-2, 6) for m in (1, 1.5, 2, 3, 5, 7)]
VMAP, TORCH_VMAP = "vmap(grad), dot", "torch vmap(grad), dot"


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line a way and K; "x" is in units of the first row, the batch gradient."""
    unit = rows[0]
    cells = [_cells(row, unit) for row in rows]
    titles = [t for t in cells[0] if any(line[t] != "-" for line in cells)]
    widths = {t: max(len(t), *(len(line[t]) for line in cells)) for t in titles}

    def line(row: dict[str, str]) -> str:
        left = ("way", "gives", "fed")
        texts = (row[t].ljust(widths[t]) if t in left else row[t].rjust(widths[t]) for t in titles)
        return "| " + " | ".join(texts) + " |"

    rule = "|" + "|".join("-" * (widths[t] + 2) for t in titles) + "|"
    return "\n".join([line({t: t for t in titles}), rule, *map(line, cells)])


def _cells(row: Row, unit: Row) -> dict[str, str]:
    number = lambda value, form: "-" if value is None else format(value, form)
    mega = lambda value: number(value and value / 1e6, ".0f")
    layout = row["rows"] + (f"; {row['variant']}" if row["variant"] else "")
    return {
        "way": row["way"],
        "K": str(row["k"] or "-"),
        "gives": row["gives"],
        "fed": layout,
        "FLOPs x": number(ratio(row, unit, "flops"), ".2f"),
        "temp MB": mega(row["temp"]),
        "peak MB": mega(row.get("peak")),
        "seconds": number(row["seconds"], ".3f"),
        "x": number(ratio(row, unit, "seconds"), ".2f"),
        "error": number(row["error"], ".0e"),
    }


def ratio(row: Row | None, other: Row | None, key: str) -> float | None:
    """One row's value over another's; None where one of them has none."""
    if row is None or other is None or not row.get(key) or not other.get(key):
        return None
    return row[key] / other[key]


def find(rows: Sequence[Row], way: str, k: int) -> Row | None:
    return next((row for row in rows if (row["way"], row["k"]) == (way, k)), None)


def fastest(rows: Sequence[Row], k: int, *, torch: bool) -> Row | None:
    """The fastest of the library's fast ways, or of PyTorch's that give the same numbers."""
    able = [
        row
        for row in rows
        if row["k"] == k
        and row["seconds"]
        and not row["linear_only"]
        and (row["way"].startswith("torch") if torch else row["way"] in OURS)
    ]
    return min(able, key=lambda row: row["seconds"], default=None)


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The ratios that the project holds itself to; those whose rows were measured."""
    row = lambda way, k=2: find(rows, way, k)
    unit = row(UNIT, 0)
    ratios = {
        "FLOPs, jvp K=1 / batch gradient": ratio(row("jvp", 1), unit, "flops"),
        "FLOPs, gates K=1 / batch gradient": ratio(row("gates", 1), unit, "flops"),
        "FLOPs, jvp K=2 / batch gradient": ratio(row("jvp"), unit, "flops"),
        "FLOPs, gates K=2 / batch gradient": ratio(row("gates"), unit, "flops"),
        "FLOPs, gates with remat K=2 / batch gradient": ratio(row("gates, remat"), unit, "flops"),
        "temp, jvp K=2 / vmap(grad)": ratio(row("jvp"), row(VMAP), "temp"),
        "temp, gates with remat K=2 / vmap(grad)": ratio(row("gates, remat"), row(VMAP), "temp"),
    }
    for way in OURS:
        name = f"peak, {way} K=2 / torch vmap(grad)"
        ratios[name] = ratio(row(way), row(TORCH_VMAP), "peak")
    for k in (1, 2):
        ours, theirs = fastest(rows, k, torch=False), fastest(rows, k, torch=True)
        if ours and theirs:
            name = f"seconds K={k}, {ours['way']} / {theirs['way']}, the fastest of each"
            ratios[name] = ratio(ours, theirs, "seconds")
    return {name: value for name, value in ratios.items() if value is not None}


def draw(points: Sequence[dict[str, Any]], k: int, title: str, file: Path) -> None:
    """Cost against batch size, in units of one batch gradient, with the physical floor.

    Args:
      points: {"samples": B, "rows": rows} for every batch size.
      k: directions.
      title: of the figure.
      file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    time, memory = figure.subplots(1, 2)
    names = [row["way"] for row in points[-1]["rows"] if row["k"] == k]
    for number, name in enumerate(names):
        style = _style(name, number)
        rows = [(p["samples"], find(p["rows"], name, k), p["rows"][0]) for p in points]
        cost = [(b, ratio(row, unit, "seconds")) for b, row, unit in rows if row]
        temp = [(b, row["temp"] / 1e6) for b, row, _ in rows if row and row["temp"]]
        _line(time, [(b, y) for b, y in cost if y], style, name)
        _line(memory, temp, style, name)
    unit = [(p["samples"], p["rows"][0]["temp"] / 1e6) for p in points]
    _line(memory, unit, dict(color="black", linestyle="--"), UNIT)
    time.axhline(1, color="black", linestyle="--", linewidth=1, label="one batch gradient")
    floors = {"reverse": (2 + k) / 3, "forward": (1 + 2 * k) / 3}
    for (mode, floor), dots in zip(floors.items(), (":", "-."), strict=True):
        label = f"floor, {mode} mode: {floor:.2f} x its FLOPs"
        time.axhline(floor, color="black", linestyle=dots, linewidth=1.5, label=label)
    _axes(time, points, f"seconds, in batch gradients (K={k})", "time")
    _axes(memory, points, "temporaries, MB (compiled ways)", "memory")
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=150)


def _style(name: str, number: int) -> dict[str, Any]:
    peer = name.startswith("torch") or name.startswith("kron")
    return {
        "color": f"C{OURS.index(name)}" if name in OURS else f"C{3 + number % 7}",
        "linewidth": 2.5 if name in OURS else 1.2,
        "marker": "s" if peer else "o",
        "markersize": 5 if name in OURS else 4,
        "linestyle": "--" if peer else "-",
    }


def _line(axes: Any, points: list[tuple[int, float]], style: dict[str, Any], label: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _axes(axes: Any, points: Sequence[dict[str, Any]], label: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    axes.set_yticks([y for y in TICKS if low <= y <= high], minor=False)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_xticks([p["samples"] for p in points], [str(p["samples"]) for p in points])
    axes.set_xlabel("samples in the batch")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
