"""The step between two checkpoints: what it does to both risks and to every sample.

To first order a step d = theta_after - theta_before changes a risk by grad R(theta_before) . d and
the log-likelihood of a sample by grad log p(s) . d, the PG-effect along the step. Next to these
stand the real changes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn import effects
from jaxunlearn.config import Measure
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.measurement import gradients, rows
from jaxunlearn.measurement.gradients import MeasuredRisk
from jaxunlearn.measurement.statistics import SetStatistics, Splits, Statistics
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.record.tables import TableRows
from jaxunlearn.training.batch import Split
from jaxunlearn.training.losses import GROUPING, Risk
from jaxunlearn.training.offload import Offload

RISKS = {"unlearn": "forget", "retain": "retain"}
"""{risk: the set it is over}"""


class StepTables(NamedTuple):
    """Rows of the tables of `record.step_tables`."""

    g_effect: TableRows
    pg_effect: TableRows
    token_effect: TableRows


class Statistic(NamedTuple):
    """Statistics of both sets at theta_before and at theta_after."""

    before: SetStatistics
    after: SetStatistics


def step_tables(
    before: Tree,
    after: Tree,
    splits: Splits,
    model: DecoderConfig,
    spec: Measure,
    reduction: str,
) -> StepTables:
    """Measures the step.

    Args:
      before: theta_before, sharded.
      after: theta_after, sharded in the same way.
      splits: D_u and D_r.
      model: the model's configuration.
      spec: `gradients` and `pg_by` are read.
      reduction: of the risks, see `objectives.reduce_losses`.
    """
    stats = Statistic(splits.statistics(before, model), splits.statistics(after, model))
    step = gradients.difference(after, before)
    g_effect: TableRows = []
    for name, split in zip(RISKS, splits, strict=True):
        risk = Risk(model, reduction)
        changes = [getattr(stats, at).risks(reduction)[name] for at in stats._fields]
        g_effect += _risk_rows(name, risk, split, before, step, changes, spec.gradients)
    pg_effect, token_effect = [], []
    for name, split in zip(splits._fields, splits, strict=True):
        pair = (getattr(stats.before, name), getattr(stats.after, name))
        by_sample, by_token = _likelihood_rows(name, split, before, step, pair, model, spec.pg_by)
        pg_effect += by_sample
        token_effect += by_token
    return StepTables(g_effect, pg_effect, token_effect)


def _risk_rows(
    name: str,
    risk: Risk,
    split: Split,
    before: Tree,
    step: Tree,
    values: Sequence[float],
    how: str,
) -> TableRows:
    """Rows of `g_effect` of one risk, whose values at both checkpoints are known."""
    formed = effects.dataset_gradient(risk, before, split.batches) if how == "full" else None
    measured = MeasuredRisk(risk, split, formed)
    effect = measured.effect(before, step, Offload(False))
    common = {"reduction": risk.reduction, "estimator": "exact"}
    found = rows.g_effect_rows(name, effect, values[0], **common, precision=risk.model.arithmetic)
    table = [
        {_STEP_COLUMNS.get(column, column): value for column, value in row.items()} for row in found
    ]
    table[-1]["interval_change"] = values[1] - values[0]
    return table


# What a run's rows call the columns of a direction that is a gradient.
_STEP_COLUMNS = {
    "value": "interval_predicted",
    "cosine": "step_cosine",
    "objective_norm": "step_norm",
}


def _likelihood_rows(
    name: str,
    split: Split,
    before: Tree,
    step: Tree,
    stats: tuple[Statistics, Statistics],
    model: DecoderConfig,
    by: Sequence[str],
) -> tuple[TableRows, TableRows]:
    """Rows of `pg_effect` and of `token_effect` of one set."""
    common = {"split": name, "estimator": "exact", "precision": model.arithmetic}
    logp, change = stats[0].logp, stats[1].logp - stats[0].logp
    by_sample: TableRows = []
    by_token: TableRows = []
    if "sample" in by or "token" in by:
        predicted = gradients.token_effects(before, model, split, {"step": step})["step"]
        columns = {
            "log_prob": logp,
            "log_prob_predicted": predicted,
            "log_prob_change": change,
        }
        sums = {key: x.sum(-1, dtype=np.float64) for key, x in columns.items()}
        if "sample" in by:
            by_sample += [
                common
                | {"sample": i, "layer": "total"}
                | {key: float(x[i]) for key, x in sums.items()}
                for i in range(split.samples)
            ]
        if "token" in by:
            by_token += [
                common | place | {key: float(x[i, t]) for key, x in columns.items()}
                for (i, t), place in rows.token_places(split, stats[0].mask)
            ]
    names = {"layer": effects.layer_names, "tensor": effects.tensor_names}
    # In the order of `names`: a set's differs from process to process, and all must gather in turn.
    for kind in (kind for kind in names if kind in by):
        values = gradients.row_effects(before, model, split, {"step": step}, kind)["step"]
        columns_of = names[kind](before, grouping=GROUPING)
        by_sample += [
            common | {"sample": i, "layer": layer, "log_prob_predicted": float(value)}
            for i, row in enumerate(trees.on_host(values))
            for layer, value in zip(columns_of, row, strict=True)
        ]
    return by_sample, by_token
