"""Evaluation on the way: suites at some steps of unlearning, and which of the steps was best.

Rows are parts of the table `evaluation_steps`, one a step: a resumed run drops those after its
checkpoint and measures them again, so none is lost and none is there twice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.config import Config
from jaxunlearn.evaluate.calibrate import SHARE
from jaxunlearn.run import summary, tables
from jaxunlearn.run.assess_sets import BEFORE, Exam, finite
from jaxunlearn.run.offload import Offload
from jaxunlearn.run.step import State

Rows = list[dict[str, Any]]

TABLE = "evaluation_steps"
ON_THE_WAY = ("tofu", "memorization")  # cheap, and they read no other model's parameters
STRENGTH = ("extraction_strength", "extraction_strength.suffix")
QUALITY = ("forget_quality", "forget_quality.geometric")


def evaluated_steps(config: Config, steps: int) -> range:
    """Steps to evaluate before; step 0 is the model before unlearning, the last is the result.

    >>> from jaxunlearn.config import Config, Evaluate
    >>> list(evaluated_steps(Config(evaluate=Evaluate(every=20)), 60))
    [20, 40]
    """
    every = config.evaluate.every
    return range(every, steps, every) if every else range(0)


def evaluate(exam: Exam, offload: Offload, name: str, step: int, state: State) -> State:
    """Measures theta_t of an objective, and writes the step's rows.

    Args:
      exam: all suites of the run; those of ON_THE_WAY are measured.
      offload: where the optimiser's moments wait meanwhile.
      name: the objective.
      step: updates made.
      state: what is measured; given up for what is returned.

    Returns:
      The state, unchanged.
    """
    moments = offload.away(state.opt_state)
    state = state._replace(opt_state=None)
    model, rows = f"{name}-{step:06d}", []
    with tables.timed(exam.job.run, f"assess {model}"):
        if finite(state.params):
            suites = [suite for suite in exam.suites if suite.name in ON_THE_WAY]
            found = {suite.name: suite.measure(model, state.params) for suite in suites}
            rows = [{"suite": suite, **_known(r)} for suite, rs in found.items() for r in rs]
        tables.write_part(exam.job.run, TABLE, name, step, rows)
    return state._replace(opt_state=offload.back(moments))


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table has columns for."""
    return {key: row[key] for key in tables.SCHEMAS[TABLE].names if key in row}


def summarise(run: Path, models: Mapping[str, Any]) -> dict[str, Any]:
    """The last and the best step of every objective that was evaluated on the way.

    Args:
      run: the run's folder.
      models: {model: {suite: {"results": rows}}} after the last step, and before unlearning.

    Returns:
      {objective: {"evaluated": steps, "last": step, "least_forget_es": {"step", "forget_es",
      "retain_es"} among steps that keep SHARE of the retain ES before unlearning, None where none
      does, "best_forget_quality": {"step", "value"} or None}}.
    """
    by_objective: dict[str, dict[int, Rows]] = {}
    for row in _rows(run):
        by_objective.setdefault(row["objective"], {}).setdefault(row["step"], []).append(row)
    kept = _value(_flat(models.get(BEFORE, {})), *STRENGTH, "retain")
    found = {}
    for name, by_step in by_objective.items():
        if name in models:
            last = summary.read_json(run / "objectives" / name / "result.json")["steps"]
            found[name] = _best(by_step | {last: _flat(models[name])}, kept) | {"last": last}
    return found


def _best(by_step: Mapping[int, Rows], kept: float | None) -> dict[str, Any]:
    """The steps to name, the earliest of equals."""
    strengths = {
        step: [_value(rows, *STRENGTH, over) for over in ("forget", "retain")]
        for step, rows in by_step.items()
    }
    allowed = {
        step: (forget, retain)
        for step, (forget, retain) in strengths.items()
        if kept and forget is not None and retain is not None and retain >= SHARE * kept
    }
    qualities = {
        step: value
        for step, rows in by_step.items()
        if (value := _value(rows, *QUALITY, "forget")) is not None
    }
    found: dict[str, Any] = {
        "evaluated": sorted(by_step),
        "least_forget_es": None,
        "best_forget_quality": None,
    }
    if allowed:
        step = min(sorted(allowed), key=lambda s: allowed[s][0])
        forget, retain = allowed[step]
        found["least_forget_es"] = {"step": step, "forget_es": forget, "retain_es": retain}
    if qualities:
        step = max(sorted(qualities), key=lambda s: qualities[s])
        found["best_forget_quality"] = {"step": step, "value": qualities[step]}
    return found


def _rows(run: Path) -> Rows:
    table = tables.read(run, TABLE)
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _flat(suites: Mapping[str, Any]) -> Rows:
    """The rows of a model's suites."""
    return [row for name in ON_THE_WAY for row in suites.get(name, {}).get("results", [])]


def _value(rows: Rows, metric: str, definition: str, over: str) -> float | None:
    wanted = (metric, definition, over)
    for row in rows:
        if (row["metric"], row["definition"], row["set"]) == wanted:
            return row["value"]
    return None
