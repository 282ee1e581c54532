"""What a run came to: evaluations and the summary table, recomputed from the tables."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxunlearn import config as config_lib
from jaxunlearn.run import tables
from jaxunlearn.run.measure import Statistics

LITTLE = 0.3
DEFINITIONS = {
    "definitions": {
        "nll": "mean negative log-likelihood of the label tokens (answer and EOS), nats per token",
        "es": "extraction strength, teacher-forced suffix form: mean over samples of 1 - k/L",
        "em": "exact memorisation: mean over samples of the share of labels whose argmax is right",
        "version": 1,
    }
}
COLUMNS = (
    "objective",
    "forget NLL",
    "forget ES",
    "retain NLL",
    "retain ES",
    "peak e_u (step)",
    "peak e_r (step)",
    "time [s]",
)


def evaluation(forget: Statistics, retain: Statistics) -> dict[str, float]:
    """NLL, extraction strength and exact memorisation on D_u and D_r."""
    found = {}
    for name, stats in (("forget", forget), ("retain", retain)):
        found[f"{name}_nll"] = stats.nll
        found[f"{name}_es"] = float(stats.extraction_strength.mean())
        found[f"{name}_em"] = float(stats.exact_memorization.mean())
    return found


def warning(before: dict[str, float]) -> str | None:
    """A caution for every figure, where the starting model hardly knows the data."""
    if before["forget_es"] >= LITTLE:
        return None
    return f"little to forget: the starting model's forget ES is {before['forget_es']:.2f}"


def warn_if_little_to_forget(before: dict[str, float], console: Console) -> None:
    """Says so before any objective is run."""
    text = warning(before)
    console.print(
        f"before unlearning: forget NLL {before['forget_nll']:.3f}, ES {before['forget_es']:.3f};"
        f" retain NLL {before['retain_nll']:.3f}, ES {before['retain_es']:.3f}",
        markup=False,
    )
    if text:
        console.print(f"warning: {text}", style="yellow", markup=False)


def read_run(out: Path) -> tuple[dict[str, Any], config_lib.Config]:
    """The evaluations and the configuration of a finished run.

    Raises:
      FileNotFoundError: there is none; names the file that is missing.
    """
    for name in ("config.yaml", "evaluation.json"):
        if not (out / name).exists():
            raise FileNotFoundError(f"{out}: no finished run here ({name} is missing)")
    return read_json(out / "evaluation.json")["models"], config_lib.load(out / "config.yaml")


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def summary_rows(out: Path, results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the summary table, as text."""
    peaks, seconds = _peaks(out), _seconds(out)
    rows = []
    for name, found in results.items():
        numbers = [found[k] for k in ("forget_nll", "forget_es", "retain_nll", "retain_es")]
        effects = [peaks.get((name, risk), "-") for risk in ("unlearn", "retain")]
        stage = "base" if name == "before" else name
        spent = f"{seconds[stage]:.0f}" if stage in seconds else "-"
        stopped = found.get("steps") != found.get("of_steps")
        label = f"{name} (stopped at {found['steps']})" if stopped else name
        shown = ("-" if x is None else f"{x:.3f}" for x in numbers)
        rows.append((label, *shown, *effects, spent))
    return rows


def _peaks(out: Path) -> dict[tuple[str, str], str]:
    """The G-effect of largest magnitude, by objective and risk."""
    table = tables.read(out, "g_effect")
    best: dict[tuple[str, str], tuple[float, int]] = {}
    columns = (table[k] for k in ("objective", "risk", "layer", "value", "step"))
    for objective, risk, layer, value, step in zip(*columns, strict=True):
        key = (objective, risk)
        if layer == "total" and abs(value) >= abs(best.get(key, (0.0, 0))[0]):
            best[key] = (value, step)
    return {key: f"{_short(value)} ({step})" for key, (value, step) in best.items()}


def _short(value: float) -> str:
    """Two digits: -5.4e3, -83, 0.21."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _seconds(out: Path) -> dict[str, float]:
    spent: dict[str, float] = {}
    for record in tables.records(out / "timings.jsonl"):
        spent[record["stage"]] = spent.get(record["stage"], 0.0) + record["seconds"]
    return spent


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def put(table: Table, console: Console) -> None:
    """Prints a table, wider than the terminal where its cells would be cut otherwise."""
    needed = Console(width=1000).measure(table).maximum
    wide = Console(file=console.file, quiet=console.quiet, width=max(needed, console.width))
    wide.print(table)


def drawn(rows: list[tuple[str, ...]], title: str) -> Table:
    """The summary table for the terminal."""
    from rich import box
    from rich.markup import escape

    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(COLUMNS):  # two lines of header: the table fits 80 columns
        head = escape("\n".join(name.rsplit(" ", 1)))
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
