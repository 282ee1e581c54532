"""The table of an evaluation: one row a model, recomputed from `assessment.json`."""

from typing import Any

from rich.table import Table

Rows = list[dict[str, Any]]

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
    " missing (see `parts` and `items`)",
    "UWC ES": "UWC ES: forget ES where 95 % of the retain ES is kept",
    MEMBERSHIP: "MIA AUC: the attack farthest from 0.5; both sides of it give the forget set away",
}


def table(models: dict[str, dict[str, Any]], title: str) -> Table:
    """The table of some models.

    Args:
      models: {model: {suite: {"results": rows}}}.
    """
    from rich import box
    from rich.markup import escape

    columns = {name: [_cell(suites, name) for suites in models.values()] for name in COLUMNS}
    columns[MEMBERSHIP] = [_attack(suites) for suites in models.values()]
    shown = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells)}
    drawn = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("model", *shown):
        drawn.add_column(
            "\n".join(name.rsplit(" ", 1)), justify="left" if name == "model" else "right"
        )
    for model, *cells in zip(models, *shown.values(), strict=True):
        drawn.add_row(escape(model), *cells)
    drawn.caption = "\n".join(text for name, text in CAPTIONS.items() if name in shown)
    drawn.caption_justify = "left"
    return drawn


def reasons(models: dict[str, dict[str, Any]]) -> list[str]:
    """Why numbers are missing: each reason once, with what it took."""
    found: dict[str, dict[str, None]] = {}
    for suites in models.values():
        for name, suite in suites.items():
            if "reason" in suite:
                found.setdefault(suite["reason"], {})[name] = None
            for row in suite["results"]:
                if "reason" in row:
                    found.setdefault(row["reason"], {})[row["metric"]] = None
    return [f"{', '.join(metrics)}: {reason}" for reason, metrics in found.items()]


def _cell(suites: dict[str, Any], column: str) -> str:
    suite, metric, over, definition = COLUMNS[column]
    for row in _results(suites, suite):
        fits = over in (None, row["set"]) and definition in (None, row["definition"])
        if row["metric"] == metric and fits and row["value"] is not None:
            return _short(row["value"])
    return "-"


def _attack(suites: dict[str, Any]) -> str:
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


def _results(suites: dict[str, Any], suite: str) -> Rows:
    return suites.get(suite, {}).get("results", [])


def _short(value: float) -> str:
    return f"{value:.3f}" if value == 0 or value >= 0.001 else f"{value:.0e}"
