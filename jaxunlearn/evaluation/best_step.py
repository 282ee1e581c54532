"""Evaluation during unlearning: suites at some steps of an objective, and the best step.

The rows of a step are one part of the table `evaluation_steps`. A resumed run drops the parts after
its checkpoint and measures these steps again, so that no step is missing or there twice.
"""

from collections.abc import Mapping
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.digests import of_json
from jaxunlearn.evaluation.suite import Evaluation, MetricRows, all_finite
from jaxunlearn.evaluation.suites import DURING_UNLEARNING
from jaxunlearn.metrics.uwc import least_retention
from jaxunlearn.record import shapes, tables
from jaxunlearn.record.folder import BASE, RunFolder

TABLE = "evaluation_steps"
STRENGTH = ("extraction_strength", "extraction_strength.suffix")
"""Metric and definition of the extraction strength that steps are compared by."""
OF_TEXT = ("generated", "max_new_tokens")
"""Settings of suites that neither of the two depends on."""
QUALITY = ("forget_quality", "forget_quality.geometric")
"""Metric and definition of the forget quality that steps are compared by."""


def evaluate(evaluation: Evaluation, folder: RunFolder, name: str, step: int, params: Tree) -> None:
    """Measures theta_t of an objective, and writes the step's rows.

    Args:
      evaluation: all suites of the run; those of `DURING_UNLEARNING` are measured.
      folder: of the run.
      name: the objective.
      step: t, updates made.
      params: theta_t; where they are not finite the step has no rows.
    """
    model, rows = f"{name}-{step:06d}", []
    if all_finite(params):
        rows = [
            {"suite": suite_name, "settings": _digest(suite.settings)} | _table_columns(row)
            for suite_name, suite in evaluation.suites.items()
            if suite_name in DURING_UNLEARNING
            for row in suite.measure(model, params)
        ]
    tables.write_part(folder.path, TABLE, name, step, rows)


def _table_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a row that the table has columns for."""
    return {key: row[key] for key in tables.SCHEMAS[TABLE].names if key in row}


def summarise(folder: RunFolder, models: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Finds the best step of every objective that was evaluated during unlearning.

    Args:
      folder: of the run.
      models: {model: {suite: {"settings", "results": rows}}} of the final models and of the one
        before unlearning.

    Returns:
      {objective: {"evaluated": steps, "last": step, "least_forget_es": {"step", "forget_es",
      "retain_es"} among steps that keep SHARE of the retain ES before unlearning, None where none
      does, "best_forget_quality": {"step", "value"} or None}}; and the objectives that have no
      entry because their steps and their final models were not measured with equal settings.
    """
    by_objective: dict[str, dict[int, MetricRows]] = {}
    for row in _table_rows(folder):
        by_objective.setdefault(row["objective"], {}).setdefault(row["step"], []).append(row)
    retained_before = _value(_suite_rows(models.get(BASE, {})), *STRENGTH, "retain")
    summary, unlike = {}, []
    for name, by_step in by_objective.items():
        if not (name in models and folder.result(name).exists()):
            continue
        if not _are_comparable(by_step, models[name]):
            unlike.append(name)
            continue
        last = files.read_json(folder.result(name), shapes.ObjectiveResult)["steps"]
        of_last = _suite_rows(models[name])
        every = by_step | ({last: of_last} if of_last else {})
        summary[name] = best_of(every, retained_before) | {"last": last}
    return summary, unlike


def _are_comparable(by_step: Mapping[int, MetricRows], final: Mapping[str, Any]) -> bool:
    """Whether each suite measured all steps of an objective with one kind of settings."""
    kinds = {(row["suite"], row["settings"]) for rows in by_step.values() for row in rows}
    for suite in {suite for suite, _ in kinds} & final.keys():
        kinds.add((suite, _digest(final[suite]["settings"])))
    return len(kinds) == len({suite for suite, _ in kinds})


def _digest(settings: Mapping[str, Any]) -> str:
    """Of the settings that the compared numbers depend on: all but those of generated text."""
    return of_json({key: settings[key] for key in settings if key not in OF_TEXT})


def best_of(by_step: Mapping[int, MetricRows], retained_before: float | None) -> dict[str, Any]:
    """Finds the best steps of one objective; among equal steps, the earliest.

    Args:
      by_step: rows of the suites at each step.
      retained_before: the retain ES before unlearning; without it no step has a least forget ES.

    Returns:
      {"evaluated", "least_forget_es", "best_forget_quality"}, see `summarise`; both of the latter
      are None where a step lacks the number.
    """
    # Only where every step has a number: otherwise the last one, which a later evaluation may have
    # measured with more suites or compared with a retrained model, would be the best of itself.
    # --- the least forget ES, among steps that keep enough of the retain ES -----------------------
    least = None
    strengths = {
        step: [_value(by_step[step], *STRENGTH, over) for over in ("forget", "retain")]
        for step in sorted(by_step)
    }
    complete = all(None not in both for both in strengths.values())
    for step, (forget, retain) in strengths.items() if complete else ():
        if not retained_before or forget is None or retain is None:
            continue
        keeps = retain >= least_retention(retained_before)
        if keeps and (least is None or forget < least["forget_es"]):
            least = {"step": step, "forget_es": forget, "retain_es": retain}

    # --- the best forget quality ------------------------------------------------------------------
    best = None
    qualities = {step: _value(by_step[step], *QUALITY, "forget") for step in sorted(by_step)}
    known = {step: quality for step, quality in qualities.items() if quality is not None}
    if known and len(known) == len(qualities):
        step = max(known, key=known.__getitem__)  # the first of equals
        best = {"step": step, "value": known[step]}
    return {
        "evaluated": sorted(by_step),
        "least_forget_es": least,
        "best_forget_quality": best,
    }


def _table_rows(folder: RunFolder) -> MetricRows:
    """The merged table of all evaluated steps, row by row."""
    table = tables.read(folder.path, TABLE)
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _suite_rows(suites: Mapping[str, Any]) -> MetricRows:
    """The rows of a model's suites that are also measured during unlearning."""
    return [row for name in DURING_UNLEARNING for row in suites.get(name, {}).get("results", [])]


def _value(rows: MetricRows, metric: str, definition: str, over: str) -> float | None:
    """A number of one step, None where it was not measured."""
    for row in rows:
        if (row["metric"], row["definition"], row["set"]) == (metric, definition, over):
            return row["value"]
    return None
