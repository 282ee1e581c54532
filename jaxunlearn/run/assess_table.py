"""The table of an evaluation: one row a model, recomputed from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from jaxunlearn.run import relearned, summary

Rows = list[dict[str, Any]]

FILE = "assessment.json"
# Column -> suite, metric, set and definition (None: the only one there is).
COLUMNS = {
    "forget quality": ("tofu", "forget_quality", "forget", None),
    "model utility": ("tofu", "model_utility", None, None),
    "partial utility": ("tofu", "partial_utility", None, None),
    "forget ROUGE": ("tofu", "rouge", "forget", None),
    "retain ROUGE": ("tofu", "rouge", "retain", None),
    "forget ES": ("memorization", "extraction_strength", "forget", "extraction_strength.suffix"),
    "retain ES": ("memorization", "extraction_strength", "retain", "extraction_strength.suffix"),
    "UWC ES": ("uwc", "uwc_extraction_strength", "forget", None),
}
MEMBERSHIP = "MIA AUC"
CAPTIONS = {
    "forget quality": "forget quality: p-value against the model without the forget set",
    "partial utility": "partial utility: not TOFU's model utility, some of its sets or texts are"
    " missing",
    "UWC ES": "UWC ES: forget ES where 95 % of the retain ES is kept",
    MEMBERSHIP: "MIA AUC: the attack farthest from 0.5; both sides of it give the forget set away",
}


class Sheet(NamedTuple):
    """A table as text."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    captions: tuple[str, ...]


def read(run: Path) -> dict[str, Any]:
    """What was measured of the models of a run: {"models": {model: {suite: ..}}, ..}."""
    path = run / FILE
    return summary.read_json(path) if path.is_file() else {"models": {}}


def sheet(
    models: Mapping[str, Mapping[str, Any]], attacked: Mapping[str, Any] | None = None
) -> Sheet:
    """The table of some models, without columns that have nothing.

    Args:
      models: {model: {suite: {"results": rows}}}.
      attacked: what `relearned.summarise` found, if it did.
    """
    columns = {name: [_cell(suites, name) for suites in models.values()] for name in COLUMNS}
    columns[MEMBERSHIP] = [_attack(suites) for suites in models.values()]
    captions = dict(CAPTIONS)
    if attacked and (attack := relearned.headline(attacked)):
        head = f"relearn ({attack})"
        columns[head] = [relearned.cell(attacked, model, attack) for model in models]
        captions[head] = f"{head}: {relearned.meaning(attack)}"
    shown = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells)}
    rows = [(model, *cells) for model, *cells in zip(models, *shown.values(), strict=True)]
    told = tuple(text for name, text in captions.items() if name in shown)
    return Sheet(("model", *shown), rows, told)


def steps_sheet(steps: Mapping[str, Any]) -> Sheet:
    """The last and the best step of every objective evaluated on the way.

    Args:
      steps: from `assess_steps.summarise`.
    """
    columns = ("model", "last step", "least forget ES", "its retain ES", "best quality")
    rows = []
    for name, found in steps.items():
        es, quality = found["least_forget_es"], found["best_forget_quality"]
        least = (_at(es, "forget_es"), _short(es["retain_es"])) if es else ("none", "-")
        rows.append((name, str(found["last"]), *least, _at(quality, "value") if quality else "-"))
    evaluated = sorted({step for found in steps.values() for step in found["evaluated"]})
    told = (
        f"The best of the steps {', '.join(map(str, evaluated))}, in brackets.",
        "least forget ES: among steps that keep 95 % of the retain ES before unlearning",
    )
    return Sheet(columns, rows, told)


def drawn(sheet: Sheet, title: str) -> Table:
    """A table for the terminal."""
    from rich import box
    from rich.markup import escape

    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in sheet.columns:  # two lines of header: the table fits 80 columns
        justify = "left" if name == "model" else "right"
        table.add_column("\n".join(name.rsplit(" ", 1)), justify=justify, no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(escape, row))
    table.caption = "\n".join(map(escape, sheet.captions))
    table.caption_justify = "left"
    return table


def reasons(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why numbers of the table are missing: each reason once, with what it took."""
    wanted = {(suite, metric, definition) for suite, metric, _, definition in COLUMNS.values()}
    found: dict[str, dict[str, None]] = {}
    for suites in models.values():
        for name, suite in suites.items():
            if "reason" in suite:
                found.setdefault(suite["reason"], {})[name] = None
            for row in suite["results"]:
                keys = {(name, row["metric"], None), (name, row["metric"], row["definition"])}
                if "reason" in row and (name == "mia" or keys & wanted):
                    found.setdefault(row["reason"], {})[row["metric"]] = None
    return [f"{', '.join(metrics)}: {reason}" for reason, metrics in found.items()]


def _cell(suites: Mapping[str, Any], column: str) -> str:
    suite, metric, over, definition = COLUMNS[column]
    for row in _results(suites, suite):
        fits = over in (None, row["set"]) and definition in (None, row["definition"])
        if row["metric"] == metric and fits and row["value"] is not None:
            return _short(row["value"])
    return "-"


def _attack(suites: Mapping[str, Any]) -> str:
    found = [
        row
        for row in _results(suites, "mia")
        if row["metric"].startswith("mia_") and row["value"] is not None
    ]
    if not found:
        return "-"
    best = max(found, key=lambda row: abs(row["value"] - 0.5))
    name = best["metric"].removeprefix("mia_").replace("_plus_plus", "++").replace("_", "-")
    return f"{_short(best['value'])} {name}"


def _results(suites: Mapping[str, Any], suite: str) -> Rows:
    return suites.get(suite, {}).get("results", [])


def _at(found: Mapping[str, Any], key: str) -> str:
    """A number, and in brackets its step."""
    return f"{_short(found[key])} ({found['step']})"


def _short(value: float) -> str:
    return f"{value:.3f}" if value == 0 or value >= 0.001 else f"{value:.0e}"
