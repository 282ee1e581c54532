"""The tables of an evaluation, made from the stored results of its suites."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.record import shapes
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import relearn_table
from jaxunlearn.reporting.terminal import TextTable, probability, shown_name

MetricRows = list[dict[str, Any]]

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
"""What each column shows: (suite, metric, set, definition), None where there is only one."""

MEMBERSHIP = "MIA AUC"
CAPTIONS = {
    "forget quality": "forget quality: p-value against the model without the forget set",
    "partial utility": "partial utility: not TOFU's model utility, some of its sets or texts are"
    " missing",
    "UWC ES": "UWC ES: forget ES where 95 % of the retain ES is kept",
    MEMBERSHIP: "MIA AUC: the attack farthest from 0.5; both sides of it give the forget set away",
}


def read(run: Path) -> dict[str, Any]:
    """The stored evaluation of a run.

    Returns:
      {"models": {model: {suite: {"settings", "results": rows}}}, "definitions", "steps"}; without
      models, and without the other two, where nothing was evaluated.
    """
    file = RunFolder(run).evaluation
    return files.read_json(file, shapes.Evaluations) if file.is_file() else {"models": {}}


def evaluation_table(
    models: Mapping[str, Mapping[str, Any]], attacks: Mapping[str, Any] | None = None
) -> TextTable:
    """One row per model, one column per metric; columns without any number are left out.

    Args:
      models: {model: {suite: {"results": rows}}}.
      attacks: the summary of relearning (`record.attack_results.read`), where there is one; a
        column shows one of its attacks.
    """
    columns = {name: [_cell(suites, name) for suites in models.values()] for name in COLUMNS}
    columns[MEMBERSHIP] = [_membership(suites) for suites in models.values()]
    captions = dict(CAPTIONS)
    if attacks and (attack := relearn_table.headline(attacks)):
        head = f"relearn ({attack})"
        columns[head] = [relearn_table.cell(attacks, model, attack) for model in models]
        captions[head] = f"{head}: {relearn_table.meaning(attacks, attack)}"
    filled = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells)}
    names = map(shown_name, models)
    rows = [(name, *cells) for name, *cells in zip(names, *filled.values(), strict=True)]
    notes = [text for name, text in captions.items() if name in filled]
    return TextTable(("model", *filled), rows, (*notes, *_unequal(models)))


def _unequal(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Says of every suite whether it measured some of the models otherwise than the others.

    `evaluate --only` may have used other data, texts or logs than an evaluation before.
    """
    for suite in dict.fromkeys(suite for suites in models.values() for suite in suites):
        measured: dict[str, list[str]] = {}
        for name, suites in models.items():
            if suite in suites:
                settings = json.dumps(suites[suite].get("settings"), sort_keys=True)
                measured.setdefault(settings, []).append(shown_name(name))
        if len(measured) > 1:
            each = "; ".join(", ".join(names) for names in measured.values())
            yield (
                f"{suite}: measured with different settings ({each}), so that these numbers cannot"
                " be compared"
            )


def best_steps_table(steps: Mapping[str, Any]) -> TextTable:
    """The last and the best step of every objective that was evaluated during unlearning.

    Args:
      steps: from `evaluation.best_step.summarise`.
    """
    columns = ("model", "last step", "least forget ES", "its retain ES", "best quality")
    rows = []
    for name, best in steps.items():
        es, quality = best["least_forget_es"], best["best_forget_quality"]
        least = ("none", "-")
        if es:
            least = (_with_step(es, "forget_es"), probability(es["retain_es"]))
        highest = _with_step(quality, "value") if quality else "-"
        rows.append((name, str(best["last"]), *least, highest))
    # Objectives that were added to a run later may have been evaluated more or less often.
    models: dict[str, list[str]] = {}
    for name, best in steps.items():
        models.setdefault(", ".join(map(str, best["evaluated"])), []).append(name)
    each = "; of ".join(f"{', '.join(names)}: {numbers}" for numbers, names in models.items())
    among = next(iter(models)) if len(models) == 1 else f"of {each}"
    compared = "" if len(models) < 2 else " The best of more steps looks better."
    notes = (
        f"The best of the steps {among}, in brackets.{compared}",
        "least forget ES: among steps that keep 95 % of the retain ES before unlearning",
    )
    return TextTable(columns, rows, notes)


def reasons(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Explains the cells that are empty: each reason once, after the metrics it affects.

    Args:
      models: {model: {suite: {"results": rows, "reason": why a suite has no rows}}}.
    """
    # The metrics of a reason are the keys of a dict, which keeps their order.
    affected: dict[str, dict[str, None]] = {}
    for suites in models.values():
        for name, suite in suites.items():
            if "reason" in suite:
                affected.setdefault(suite["reason"], {})[name] = None
            for row in suite["results"]:
                if "reason" in row and (name == "mia" or _in_column(name, row)):
                    affected.setdefault(row["reason"], {})[row["metric"]] = None
    return [f"{', '.join(metrics)}: {reason}" for reason, metrics in affected.items()]


def _in_column(suite: str, row: Mapping[str, Any]) -> bool:
    """Whether a column shows this number; a row may be over several sets."""
    sets = (None, *row["set"].replace("+", ", ").split(", "))
    return any(
        (of_suite, metric) == (suite, row["metric"])
        and over in sets
        and definition in (None, row["definition"])
        for of_suite, metric, over, definition in COLUMNS.values()
    )


def _cell(suites: Mapping[str, Any], column: str) -> str:
    suite, metric, over, definition = COLUMNS[column]
    for row in _results(suites, suite):
        fits = over in (None, row["set"]) and definition in (None, row["definition"])
        if row["metric"] == metric and fits and row["value"] is not None:
            return probability(row["value"])
    return "-"


def _membership(suites: Mapping[str, Any]) -> str:
    """The AUC of the membership attack that is farthest from chance, with its name."""
    aucs = [
        row
        for row in _results(suites, "mia")
        if row["metric"].startswith("mia_") and row["value"] is not None
    ]
    if not aucs:
        return "-"
    best = max(aucs, key=lambda row: abs(row["value"] - 0.5))
    name = best["metric"].removeprefix("mia_").replace("_plus_plus", "++").replace("_", "-")
    return f"{probability(best['value'])} {name}"


def _results(suites: Mapping[str, Any], suite: str) -> MetricRows:
    return suites.get(suite, {}).get("results", [])


def _with_step(best: Mapping[str, Any], key: str) -> str:
    """A number, with its step in brackets."""
    return f"{probability(best[key])} ({best['step']})"
