"""The long tables of a run: their columns, and how they are written, merged and read.

| table | a row is | class |
|---|---|---|
| `g_effect` | the G-effect of one layer (or the total) on one set at one step | `GEffectRow` |
| `pg_effect` | the PG-effect of one sample on one set at one step | `PgEffectRow` |
| `token_effect` | the PG-effect of one label token | `TokenEffectRow` |
| `samples` | the likelihood, memorisation and weight of one sample | `SampleRow` |
| `confidence` | one statistic of the confidence over the label tokens | `ConfidenceRow` |
| `evaluation_steps` | one metric of a suite, measured during unlearning | `EvaluationRow` |

A table is written as one part per (objective, step), each renamed into place when it is whole, and
merged into one file at the end: a run that is interrupted loses no part, and one that resumes drops
the parts it is going to compute again. Wall-clock time is in `timings.jsonl` alone, so that all
tables are the same when a run is repeated. Where a run has several processes, the first one writes
and these functions do nothing on the others.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from jaxunlearn.core import files, hosts
from jaxunlearn.record.folder import RunFolder

TableRows = list[dict[str, Any]]
"""Rows of a table, a mapping of columns each; a column that is absent is null."""

# --------------------------------------------------------------------------- columns


class GEffectRow(TypedDict):
    """A row of `g_effect`: the G-effect of one layer on one set at one measured step.

    R is the risk (the NLL, in nats), L_u the objective, theta_t the parameters at this step,
    theta_next those at the next measured step or at the end. What is measured for the total alone
    is null in the rows of layers.

    Attributes:
      step: the number of optimiser updates before it.
      objective: its name in the configuration.
      risk: the set that R is over, "unlearn" (D_u) or "retain" (D_r).
      layer: a layer's name, or "total".
      value: e = grad R . grad L_u.
      cosine: of the two gradients.
      risk_norm: |grad R|.
      objective_norm: |grad L_u|.
      risk_value: R(theta_t); total only.
      update_effect: grad R(theta_t) . (theta_{t+1} - theta_t), the predicted change of one update.
      step_change: R(theta_{t+1}) - R(theta_t), the realised one; total only.
      interval_steps: updates until the next measurement.
      interval_predicted: grad R(theta_t) . (theta_next - theta_t).
      interval_change: R(theta_next) - R(theta_t); total only.
      lr: the learning rate of the update after this step.
      reduction: how R and L_u are reduced, such as "sequence_mean".
      estimator: how the gradients were estimated; "exact" for a full pass.
      precision: of the model's matrix products, such as "float32 highest" or "bfloat16".
    """

    step: int
    objective: str
    risk: str
    layer: str
    value: float
    cosine: float
    risk_norm: float
    objective_norm: float
    risk_value: float | None
    update_effect: float | None
    step_change: float | None
    interval_steps: int | None
    interval_predicted: float | None
    interval_change: float | None
    lr: float
    reduction: str
    estimator: str
    precision: str


class PgEffectRow(TypedDict):
    """A row of `pg_effect`: the PG-effect of one forget sample on one set.

    Attributes:
      step: the number of optimiser updates before it.
      objective: its name in the configuration.
      sample: the index of the sample s in D_u.
      layer: "total" for all parameters, else the name of a layer ("block_0") or of a tensor
        ("block_0.q.kernel").
      risk: the set that R is over, "unlearn" (D_u) or "retain" (D_r).
      value: grad R . grad log p(s), over the parameters that `layer` names.
      weight: the objective's weight of the sample, the mean over its label tokens where they are
        weighted one by one; null where the objective is no weighted likelihood.
      reduction: how R is reduced.
      estimator: how the gradient of R was estimated.
      precision: of the model's matrix products.
    """

    step: int
    objective: str
    sample: int
    layer: str
    risk: str
    value: float
    weight: float | None
    reduction: str
    estimator: str
    precision: str


class TokenEffectRow(TypedDict):
    """A row of `token_effect`: the PG-effect of one label token.

    Attributes:
      step: the number of optimiser updates before it.
      objective: its name in the configuration.
      sample: the index of the sample in D_u.
      position: the place i of the token in the answer, from 0.
      token: its id in the vocabulary.
      risk: the set that R is over, "unlearn" (D_u) or "retain" (D_r).
      value: grad R . grad log p_i.
      weight: the objective's weight of the token, or of its sample where it weighs samples.
      reduction: how R is reduced.
      estimator: how the gradient of R was estimated.
      precision: of the model's matrix products.
    """

    step: int
    objective: str
    sample: int
    position: int
    token: int
    risk: str
    value: float
    weight: float | None
    reduction: str
    estimator: str
    precision: str


class SampleRow(TypedDict):
    """A row of `samples`: likelihood, memorisation and weight of one sample.

    Attributes:
      step: the number of optimiser updates before it.
      objective: its name in the configuration.
      split: "forget" (D_u) or "retain" (D_r).
      sample: the index of the sample in its split.
      log_prob: sum of log p over the label tokens, nats.
      tokens: how many label tokens there are.
      extraction_strength: 1 - k/L, teacher forced.
      weight: as in `pg_effect.parquet`; null for samples of D_r.
    """

    step: int
    objective: str
    split: str
    sample: int
    log_prob: float
    tokens: int
    extraction_strength: float
    weight: float | None


class ConfidenceRow(TypedDict):
    """A row of `confidence`: one statistic of 1/p over the label tokens of D_u.

    Attributes:
      step: the number of optimiser updates before it.
      objective: its name in the configuration.
      statistic: "mean", or a quantile, "q05", "q25", "q50", "q75", "q95".
      log10_inverse: its base-10 logarithm; 1/p itself would overflow.
    """

    step: int
    objective: str
    statistic: str
    log10_inverse: float


class EvaluationRow(TypedDict):
    """A row of `evaluation_steps`: one metric of an evaluation suite during unlearning.

    Attributes:
      step: the number of optimiser updates before it.
      objective: its name in the configuration.
      suite: "tofu" or "memorization".
      metric: the suite's name of the number.
      set: the data it is over; several sets are joined by `+` or a comma.
      value: the number, null where it cannot be measured.
      definition: the name of its definition.
      version: the version of that definition.
      items: how many items it is a mean over; null where it is no mean.
      reason: why the value is null, where it is.
      settings: digest of all that extraction strength and forget quality depend on apart from the
        model; only rows with equal ones can be compared. Null in rows of earlier versions.
    """

    step: int
    objective: str
    suite: str
    metric: str
    set: str | None
    value: float | None
    definition: str
    version: int
    items: int | None
    reason: str | None
    settings: str | None


_ROWS: dict[str, Any] = {
    "g_effect": GEffectRow,
    "pg_effect": PgEffectRow,
    "token_effect": TokenEffectRow,
    "samples": SampleRow,
    "confidence": ConfidenceRow,
    "evaluation_steps": EvaluationRow,
}
_ARROW = {int: pa.int32(), float: pa.float64(), str: pa.string()}


def schema(row: Any) -> pa.Schema:
    """The Arrow schema of a row; every column may be null on disk."""
    columns = typing.get_type_hints(row).items()
    return pa.schema([(name, _ARROW[without_none(kind)]) for name, kind in columns])


def without_none(kind: Any) -> type:
    if isinstance(kind, types.UnionType):
        (kind,) = set(typing.get_args(kind)) - {type(None)}
    return kind


SCHEMAS: dict[str, pa.Schema] = {name: schema(row) for name, row in _ROWS.items()}
"""The Arrow schema of every table, by its name."""

ADDED = {("evaluation_steps", "settings")}
"""(table, column) of the last columns that runs of earlier versions lack."""

FIGURE_COLUMNS: dict[str, tuple[str, ...]] = {
    "g_effect": ("step", "objective", "risk", "layer", "value"),
    "samples": ("step", "objective", "sample", "weight"),
    "confidence": ("step", "objective", "statistic", "log10_inverse"),
    "pg_effect": ("step", "objective", "sample", "layer", "risk", "value", "weight"),
    "token_effect": ("step", "objective", "sample", "position", "risk", "value", "weight"),
    "texts": ("sample", "tokens"),
    "relearn": ("model", "attack", "samples", "step", "forget_es", "unseen_es", "effect"),
}
"""The tables that figures are drawn from, with the columns they cannot do without.

All but the last two are in `SCHEMAS`: `texts` are those of the forget set in `RunFolder.texts`, and
`relearn` is the lines of `RunFolder.relearn_records`.
"""

# --------------------------------------------------------------------------- writing


def write_part(
    run: Path, table: str, objective: str, step: int, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the rows of one (objective, step) of a table.

    Args:
      run: the run's folder.
      table: a key of `SCHEMAS`.
      objective: the value of that column.
      step: the value of that column.
      rows: the other columns; those that a row lacks are null.
    """
    complete = [{"step": step, "objective": objective, **row} for row in rows]
    file = RunFolder(run).part(table, objective, step)
    write_parquet(pa.Table.from_pylist(complete, SCHEMAS[table]), file)


def drop_parts(run: Path, objective: str, from_step: int) -> None:
    """Removes an objective's parts from a step on, before they are computed again."""
    if not hosts.is_first():
        return
    for table in SCHEMAS:
        for step, part in _parts(run, table, objective):
            if step >= from_step:
                part.unlink()


def parts_of(run: Path, objective: str, before: int) -> list[Path]:
    """An objective's parts of all tables, of the steps before one."""
    found = [part for table in SCHEMAS for part in _parts(run, table, objective)]
    return [part for step, part in found if step < before]


def merge(run: Path, objectives: Sequence[str]) -> None:
    """Merges the parts into one file per table, in the order of the objectives, then of steps.

    A table without parts has no file.
    """
    if not hosts.is_first():
        return
    for table in SCHEMAS:
        parts = [part for name in objectives for _, part in _parts(run, table, name)]
        if parts:
            merged = pa.concat_tables([_completed(read_parquet(part), table) for part in parts])
            write_parquet(merged, RunFolder(run).table(table))
        else:
            RunFolder(run).table(table).unlink(missing_ok=True)


# --------------------------------------------------------------------------- reading


def read(run: Path, table: str) -> dict[str, list[Any]]:
    """A merged table as columns; empty columns where the run has none.

    Args:
      run: the run's folder.
      table: a key of `SCHEMAS`.

    Raises:
      ValueError: the file does not hold the columns of `SCHEMAS`, or is damaged.
    """
    path, names = RunFolder(run).table(table), SCHEMAS[table].names
    if not path.exists():
        return {name: [] for name in names}
    content = _completed(read_parquet(path), table)
    if content.schema.names != names:
        raise ValueError(f"{path}: expected columns {names}, found {content.schema.names}")
    return content.to_pydict()


def _completed(content: pa.Table, table: str) -> pa.Table:
    """A table with nulls in the columns that an earlier version did not write."""
    for field in SCHEMAS[table]:
        if (table, field.name) in ADDED and field.name not in content.schema.names:
            content = content.append_column(field, pa.nulls(len(content), field.type))
    return content


def _parts(run: Path, table: str, objective: str) -> list[tuple[int, Path]]:
    """The whole parts of an objective with their steps, by step.

    The step is what follows the last dash, so that no objective gets the parts of another whose
    name begins with its own. What a crash left half written ends in `.tmp` and is not among them.
    """
    parts = []
    for file in RunFolder(run).parts(table).glob("*.parquet"):
        name, _, step = file.stem.rpartition("-")
        if name == objective:
            parts.append((int(step), file))
    return sorted(parts)


def read_parquet(path: Path) -> pa.Table:
    """Reads a file.

    Raises:
      ValueError: it is no such file, or damaged; names it.
    """
    try:
        table = pq.read_table(path)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
    return table


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a file, whole or not at all."""
    files.replace_whole(path, lambda temporary: pq.write_table(table, temporary))
