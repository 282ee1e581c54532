"""The tables of the step between two checkpoints of a model.

theta_before and theta_after are the checkpoints, the step is their difference. Columns have the
names of a run's tables where they mean the same. A table is written whole, by the first process.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from jaxunlearn.core import hosts
from jaxunlearn.record import tables


class StepGEffectRow(TypedDict):
    """A row of `g_effect`: what the step does to one set, to first order, through one layer.

    R is the risk (the NLL, in nats).

    Attributes:
      risk: the set that R is over, "unlearn" (D_u) or "retain" (D_r).
      layer: a layer's name, or "total".
      interval_predicted: grad R(theta_before) . (theta_after - theta_before).
      interval_change: R(theta_after) - R(theta_before); total only.
      step_cosine: of grad R(theta_before) and the step; null where no gradient is formed.
      risk_norm: |grad R(theta_before)|; null where no gradient is formed.
      step_norm: |theta_after - theta_before|.
      risk_value: R(theta_before); total only.
      reduction: how R is reduced, such as "sequence_mean".
      estimator: how the gradient was estimated; "exact" for a full pass.
      precision: of the model's matrix products.
    """

    risk: str
    layer: str
    interval_predicted: float
    interval_change: float | None
    step_cosine: float | None
    risk_norm: float | None
    step_norm: float
    risk_value: float | None
    reduction: str
    estimator: str
    precision: str


class StepPgEffectRow(TypedDict):
    """A row of `pg_effect`: what the step does to the log-likelihood of one sample s.

    Attributes:
      split: "forget" (D_u) or "retain" (D_r).
      sample: the index of the sample in its split.
      layer: "total" for all parameters, else the name of a layer or of a tensor.
      log_prob: log p(s) at theta_before, nats; total only.
      log_prob_predicted: grad log p(s) . (theta_after - theta_before), over the parameters that
        `layer` names.
      log_prob_change: log p(s) at theta_after less that at theta_before; total only.
      estimator: how the effect was estimated.
      precision: of the model's matrix products.
    """

    split: str
    sample: int
    layer: str
    log_prob: float | None
    log_prob_predicted: float
    log_prob_change: float | None
    estimator: str
    precision: str


class StepTokenEffectRow(TypedDict):
    """A row of `token_effect`: what the step does to the log-likelihood of one label token.

    Attributes:
      split: "forget" (D_u) or "retain" (D_r).
      sample: the index of the sample in its split.
      position: the place i of the token in the answer, from 0.
      token: its id in the vocabulary.
      log_prob: log p_i at theta_before, nats.
      log_prob_predicted: grad log p_i . (theta_after - theta_before).
      log_prob_change: log p_i at theta_after less that at theta_before.
      estimator: how the effect was estimated.
      precision: of the model's matrix products.
    """

    split: str
    sample: int
    position: int
    token: int
    log_prob: float
    log_prob_predicted: float
    log_prob_change: float
    estimator: str
    precision: str


ROWS: dict[str, Any] = {
    "g_effect": StepGEffectRow,
    "pg_effect": StepPgEffectRow,
    "token_effect": StepTokenEffectRow,
}
SCHEMAS: dict[str, pa.Schema] = {name: tables.schema(row) for name, row in ROWS.items()}
"""The Arrow schema of every table, by its name."""


def write(folder: Path, rows: Mapping[str, tables.TableRows]) -> None:
    """Writes the tables, NAME.parquet each; of one without rows an earlier file is removed.

    Args:
      folder: where they go.
      rows: {name: its rows}, a column that is absent is null.
    """
    if not hosts.is_first():
        return
    for name, schema in SCHEMAS.items():
        file = folder / f"{name}.parquet"
        if rows.get(name):
            tables.write_parquet(pa.Table.from_pylist(list(rows[name]), schema), file)
        else:
            file.unlink(missing_ok=True)
