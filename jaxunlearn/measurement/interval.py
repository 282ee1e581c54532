"""A measurement and the changes that followed it, from one measured step to the next.

Some columns of a measurement are known only later: the change made by the update, and the change up
to the next measurement. So a measurement is opened at its step, completed in part after the update,
and closed and written at the next measured step or at the end.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxunlearn import effects
from jaxunlearn.config import Measure
from jaxunlearn.core.trees import Tree
from jaxunlearn.measurement import gradients, rows
from jaxunlearn.measurement.gradients import MeasuredRisk
from jaxunlearn.measurement.statistics import SetStatistics, Splits
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.objectives import Objective
from jaxunlearn.record import tables
from jaxunlearn.training.batch import Batch, Split
from jaxunlearn.training.losses import GROUPING, Risk, Term
from jaxunlearn.training.offload import Offload

SharedGradients = dict[Risk, effects.Gradient]

# Arrays that an `Interval` keeps, each of the size of what trains: theta_t, and the gradients of
# both risks if they are formed. A forecast of a run's memory adds these up.
INTERVAL_TREES = {"full": 3, "gates": 1}
# Those that `Measurer.shared` keeps for each reduction among the objectives.
SHARED_TREES = {"full": 1, "gates": 0}


@dataclasses.dataclass(frozen=True)
class Measurer:
    """Takes the measurements of one objective; holds the settings that they share.

    Attributes:
      name: the objective's name in tables.
      objective: the objective, its hyper-parameters bound.
      term: its loss on D_u.
      splits: D_u with the objective's references, and D_r.
      base: statistics of the model before unlearning.
      spec: what is measured.
      offload: where gradients and parameters are parked between measurements.
      folder: of the run, for its tables.
      shared: grad R(D_r) at theta_0 by risk, parked. At step 0 all objectives share theta_0: the
        first to measure there leaves it for the others.
      trainable: which parameters take part in the effects.
    """

    name: str
    objective: Objective
    term: Term
    splits: Splits
    base: SetStatistics
    spec: Measure
    offload: Offload
    folder: Path
    shared: SharedGradients
    trainable: effects.Trainable = None

    @property
    def model(self) -> DecoderConfig:
        """The model that is measured."""
        return self.term.model

    @property
    def risk(self) -> Risk:
        """R, reduced as the objective is."""
        return Risk(self.model, self.term.reduction)

    @property
    def _provenance(self) -> dict[str, str]:
        """The columns that say how the effects were computed."""
        return {
            "reduction": self.term.reduction,
            "estimator": "exact",
            "precision": self.model.arithmetic,
        }

    def statistics(self, params: Tree, step: int | None = None) -> SetStatistics:
        """Statistics of both sets; at step 0 they are those of the model before unlearning."""
        return self.base if step == 0 else self.splits.statistics(params, self.model)

    def open(
        self,
        step: int,
        params: Tree,
        stats: SetStatistics,
        batches: Sequence[Batch],
        guide: np.ndarray | None,
        lr: float,
    ) -> "Interval":
        """Measures theta_t, writes the tables by sample, and opens the step's interval.

        Args:
          step: t.
          params: theta_t.
          stats: from `statistics`.
          batches: all of D_u as batches of the objective.
          guide: the weights that a guided loss takes, [n, S].
          lr: learning rate of the update that follows.

        Returns:
          The interval from this step to the next measured one.
        """
        # --- by sample: weights, likelihoods, confidence ------------------------------------------
        weights = rows.sample_weights(self.objective, stats.forget, self.base.forget, guide)
        by_sample = rows.sample_rows("forget", stats.forget, weights)
        self._write("samples", step, by_sample + rows.sample_rows("retain", stats.retain))
        self._write("confidence", step, rows.confidence_rows(stats.forget))

        # --- by layer: the G-effect on both risks -------------------------------------------------
        measure = self._gated if self.spec.gradients == "gates" else self._formed
        risks, effect_rows = measure(step, params, stats, batches, lr)

        # --- PG-effects along the gradients of both risks -----------------------------------------
        if step in self.spec.pg_steps:
            self._write_pg_effects(step, params, stats, risks, weights)
        return Interval(
            measurer=self,
            step=step,
            rows=effect_rows,
            risks=risks,
            params=self.offload.copied(effects.partition(params, self.trainable)[0]),
            values=stats.risks(self.term.reduction),
        )

    def _formed(
        self,
        step: int,
        params: Tree,
        stats: SetStatistics,
        batches: Sequence[Batch],
        lr: float,
    ) -> tuple[dict[str, MeasuredRisk], tables.TableRows]:
        """Both risks with their gradients, parked, and the rows of `g_effect`."""
        # grad R(D_r) comes first and is parked: one pass over D_u then forms two more gradients,
        # and the third would not fit next to them on a device that a model nearly fills.
        retain_gradient = self._retain_gradient(step, params)
        unlearn = gradients.unlearn_gradients(params, self.term, batches, self.trainable)
        direction = unlearn.objective.gradient
        retain = self._risk_over(self.splits.retain, retain_gradient)
        on_forget = effects.g_effect_between(unlearn.risk.gradient, direction, grouping=GROUPING)
        on_retain = retain.effect(params, direction, self.offload)
        effect_rows = self._effect_rows("unlearn", on_forget, float(unlearn.risk.value), lr)
        effect_rows += self._effect_rows("retain", on_retain, float(retain_gradient.value), lr)
        parked = self.offload.away(unlearn.risk)
        forget = self._risk_over(self.splits.forget, parked)
        return {"unlearn": forget, "retain": retain}, effect_rows

    def _gated(
        self,
        step: int,
        params: Tree,
        stats: SetStatistics,
        batches: Sequence[Batch],
        lr: float,
    ) -> tuple[dict[str, MeasuredRisk], tables.TableRows]:
        """Both risks without gradients, and the rows of `g_effect`, read through gates."""
        direction = gradients.objective_gradient(
            params, self.term, batches, self.trainable
        ).gradient
        risks = {
            name: self._risk_over(split, None)
            for name, split in zip(("unlearn", "retain"), self.splits, strict=True)
        }
        values = stats.risks(self.term.reduction)
        effect_rows: tables.TableRows = []
        for name, risk in risks.items():
            effect = risk.effect(params, direction, self.offload)
            effect_rows += self._effect_rows(name, effect, values[name], lr)
        return risks, effect_rows

    def _risk_over(self, split: Split, gradient: effects.Gradient | None) -> MeasuredRisk:
        return MeasuredRisk(self.risk, split, gradient, self.trainable)

    def _retain_gradient(self, step: int, params: Tree) -> effects.Gradient:
        """grad R(D_r), parked."""
        if step == 0 and self.risk in self.shared:
            return self.shared[self.risk]
        retain = self.splits.retain.batches
        formed = effects.dataset_gradient(self.risk, params, retain, trainable=self.trainable)
        gradient = self.offload.away(formed)
        del formed  # its copy on the devices is not needed any more
        if step == 0:
            self.shared[self.risk] = gradient
        return gradient

    def _write_pg_effects(
        self,
        step: int,
        params: Tree,
        stats: SetStatistics,
        risks: Mapping[str, MeasuredRisk],
        weights: np.ndarray | None,
    ) -> None:
        """Writes PG-effects by sample, by token, by layer and by tensor, as the run asks for."""
        forget, by = self.splits.forget, self.spec.pg_by
        # Where the G-effect goes through gates, the risks' gradients are formed here alone.
        directions = {
            name: self.offload.back(risk.gradient).gradient
            if risk.gradient is not None
            else effects.dataset_gradient(
                risk.risk, params, risk.split.batches, trainable=self.trainable
            ).gradient
            for name, risk in risks.items()
        }
        common = self._provenance
        mask = stats.forget.mask
        table: tables.TableRows = []
        tokens = step in self.spec.token_steps or "token" in by
        if tokens or "sample" in by:
            values = gradients.token_effects(params, self.model, forget, directions, self.trainable)
            totals = {risk: v.sum(-1, dtype=np.float64)[:, None] for risk, v in values.items()}
            table += rows.pg_rows(totals, ("total",), weights, mask, **common)
            if tokens:
                by_token = rows.token_rows(values, forget, weights, mask, **common)
                self._write("token_effect", step, by_token)
        row_names = {"layer": effects.layer_names, "tensor": effects.tensor_names}
        for kind, names in row_names.items():
            if kind in by:
                values = gradients.row_effects(
                    params, self.model, forget, directions, kind, self.trainable
                )
                columns = names(params, grouping=GROUPING, trainable=self.trainable)
                table += rows.pg_rows(values, columns, weights, mask, **common)
        self._write("pg_effect", step, table)

    def _effect_rows(
        self, risk: str, effect: effects.GEffect, value: float, lr: float
    ) -> tables.TableRows:
        return rows.g_effect_rows(risk, effect, value, **self._provenance, lr=lr)

    def _write(self, table: str, step: int, table_rows: tables.TableRows) -> None:
        tables.write_part(self.folder, table, self.name, step, table_rows)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measurement that is open: its rows stay incomplete until the next one closes it.

    Attributes:
      measurer: of the objective.
      step: the measured step t.
      rows: the rows of `g_effect`.
      risks: both risks at theta_t.
      params: a copy of the parameters of theta_t that train, parked.
      values: R(D_u) and R(D_r) at theta_t.
    """

    measurer: Measurer
    step: int
    rows: tables.TableRows
    risks: Mapping[str, MeasuredRisk]
    params: Tree
    values: Mapping[str, float]

    def after_update(self, params: Tree) -> None:
        """Records what the update of step t was predicted to change, and what it changed.

        Args:
          params: theta_{t+1}.
        """
        stats = self.measurer.statistics(params)
        self._record(params, stats, predicted="update_effect", realised="step_change")

    def close(self, step: int, params: Tree, stats: SetStatistics) -> None:
        """Records what all steps up to the next measurement changed, and writes the rows.

        Args:
          step: the next measured step, or the steps of the run.
          params: the parameters there.
          stats: their statistics.
        """
        self._record(params, stats, predicted="interval_predicted", realised="interval_change")
        for row in self.rows:
            row["interval_steps"] = step - self.step
        measurer = self.measurer
        tables.write_part(measurer.folder, "g_effect", measurer.name, self.step, self.rows)

    def totals(self) -> dict[str, float]:
        """The total G-effects, for a progress line."""
        totals = {row["risk"]: row["value"] for row in self.rows if row["layer"] == "total"}
        return {"e_u": totals["unlearn"], "e_r": totals["retain"]}

    def _record(self, params: Tree, stats: SetStatistics, *, predicted: str, realised: str) -> None:
        """Fills in two columns: the first-order change of the risks, and the real one."""
        trainable, reduction = self.measurer.trainable, self.measurer.term.reduction
        names = effects.layer_names(params, grouping=GROUPING, trainable=trainable)
        after = stats.risks(reduction)
        for risk, measured in self.risks.items():
            change = measured.predicted_change(self.params, params, self.measurer.offload)
            by_layer = dict(zip(names, map(float, change), strict=True))
            by_layer["total"] = float(change.sum())
            for row in self.rows:
                if row["risk"] == risk:
                    row[predicted] = by_layer[row["layer"]]
                    if row["layer"] == "total":
                        row[realised] = after[risk] - self.values[risk]
