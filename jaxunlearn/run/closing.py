"""How a run ends for its reader: figures, the summary, and the table of its evaluation.

Everything is recomputed from the tables in the run's folder.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.effects import layers
from jaxunlearn.run import assess_table, relearned, summary, tables
from jaxunlearn.run.assess_sets import BEFORE, TWIN
from jaxunlearn.run.assess_table import Sheet

FIGURED = ("g_effect", "samples", "confidence", "pg_effect")


def finish(out: Path, console: Console) -> None:
    """Draws the figures, prints the summary and the evaluation of a run; writes `summary.md`.

    Raises:
      FileNotFoundError: the folder holds no finished run.
    """
    from jaxunlearn.report import figures

    results, config = summary.read_run(out)
    rows = summary.summary_rows(out, results)
    found = _figure_tables(out, config, results)
    drawn = figures.draw_all(found, out / "figures")
    texts = [summary.markdown(summary.COLUMNS, rows)]
    texts += [_markdown(sheet) for _, sheet in _sheets(out, config)]
    tables.write_text(out / "summary.md", "\n".join(texts))
    summary.put(summary.drawn(rows, config.name), console)
    if found["meta"]["warning"]:
        console.print(f"warning: {found['meta']['warning']}", style="yellow", markup=False)
    console.print(f"{len(drawn)} figures in {out / 'figures'}", markup=False, highlight=False)
    attacked = relearned.read(out)
    if attacked and (len(relearned.trained(attacked)) > 1 or not _measured(out, config, None)):
        summary.put(relearned.drawn(attacked, config.name), console)
    show(out, config, console)


def show(out: Path, config: Config, console: Console, names: Sequence[str] | None = None) -> None:
    """Prints the evaluation of a run, if there is one.

    Args:
      out: the run's folder.
      config: its configuration.
      console: where it goes.
      names: these of its models alone; default: all that were measured.
    """
    sheets = list(_sheets(out, config, names))
    for title, sheet in sheets:
        summary.put(assess_table.drawn(sheet, title), console)
    if not sheets:
        return
    for text in assess_table.reasons(_measured(out, config, names)):
        console.print(text, markup=False, highlight=False)
    file = out / assess_table.FILE
    console.print(f"all numbers are in {file}", markup=False, highlight=False)


def show_relearning(out: Path, config: Config, console: Console) -> None:
    """Draws the figure of relearning, and prints its table, if there is one."""
    from jaxunlearn.report import figures

    if attacked := relearned.read(out):
        figures.draw_all(relearned.figure_tables(out, config, attacked), out / "figures")
        summary.put(relearned.drawn(attacked, config.name), console)


def _figure_tables(out: Path, config: Config, results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: tables.read(out, name) for name in FIGURED}
    found["metrics"] = tables.columns(tables.records(out / "metrics.jsonl"))
    present = dict.fromkeys(n for n in found["g_effect"]["layer"] if n != "total")
    meta = {
        "title": config.name,
        "warning": summary.warning(results["before"]),
        "groups": layers.groups(list(present), config.measure.layer_cuts),
    }
    if attacked := relearned.read(out):
        more = relearned.figure_tables(out, config, attacked)
        return found | more | {"meta": more["meta"] | meta}
    return found | {"meta": meta}


def _sheets(
    out: Path, config: Config, names: Sequence[str] | None = None
) -> Iterator[tuple[str, Sheet]]:
    """The tables of an evaluation, with their titles."""
    measured = _measured(out, config, names)
    if measured:
        yield f"{config.name}: evaluation", assess_table.sheet(measured, relearned.read(out))
    steps = assess_table.read(out).get("steps", {})
    if chosen := {name: found for name, found in steps.items() if name in measured}:
        yield f"{config.name}: best step", assess_table.steps_sheet(chosen)


def _measured(out: Path, config: Config, names: Sequence[str] | None) -> dict[str, Any]:
    """Models as they are shown: that before unlearning first, objectives as configured."""
    found = assess_table.read(out)["models"]
    order = (BEFORE, TWIN, *config.objectives)
    return {n: found[n] for n in order if found.get(n) and (names is None or n in names)}


def _markdown(sheet: Sheet) -> str:
    notes = "".join(f"\n{text}\n" for text in sheet.captions)
    return summary.markdown(sheet.columns, sheet.rows) + notes
