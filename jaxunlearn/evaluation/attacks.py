"""Relearning attacks on a model.

An attack has a name, the ids of the samples that it trains on (name, ids and settings say whether a
stored result can be used again), and `run`, which attacks one model. A new attack is a row of
`ALWAYS` here, and one of `NAMED_ATTACKS` in `metrics.relearning`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.order import Stream, attack_ids
from jaxunlearn.data.planning import Sample
from jaxunlearn.measurement import statistics
from jaxunlearn.measurement.statistics import Statistics
from jaxunlearn.metrics import relearning
from jaxunlearn.metrics.relearning import ALL, BENIGN, INT8, Settings
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.record.stages import Stage
from jaxunlearn.training.batch import Split
from jaxunlearn.training.feed import FineTuneInput, FineTunePlan
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.losses import GROUPING, FineTuning, Risk
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.prefetch import Prefetch
from jaxunlearn.training.step import Trainer, init_state, optimizer

TableRows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class AttackContext:
    """The inputs that all attacks on all models of a run share.

    Attributes:
      model: the models' configuration.
      layout: how samples become batches.
      seed: of the run, for the choice and the order of samples.
      settings: how attacks fine-tune.
      offload: where parameters and moments are parked.
      forget_samples: the forget set D_u.
      retain_samples: the retain set D_r.
      forget: D_u as batches.
      base_strength: [n] extraction strength of each sample of D_u before unlearning.
    """

    model: DecoderConfig
    layout: Layout
    seed: int
    settings: Settings
    offload: Offload
    forget_samples: list[Sample]
    retain_samples: list[Sample]
    forget: Split
    base_strength: np.ndarray


class Result(NamedTuple):
    """The result of one attack on one model.

    Attributes:
      before: {"forget_es", "unseen_es"} of the model before unlearning.
      records: a row for each evaluated step.
      layers: a row for each layer at each evaluated step.
    """

    before: dict[str, float | None]
    records: TableRows
    layers: TableRows


class Progress(Protocol):
    """Takes the steps done so far, and the newest values."""

    def __call__(self, step: int, /, *, nll: float, es: float) -> None: ...


class Attack(Protocol):
    """One way to attack a model."""

    @property
    def name(self) -> str:
        """Its name, see `metrics.relearning`."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """The samples it trains on: of D_u, or of D_r where it is benign."""
        ...

    def run(
        self,
        context: AttackContext,
        model: str,
        parked: Tree,
        progress: Progress,
        stage: Stage,
    ) -> Result:
        """Attacks a model.

        Args:
          context: of the run.
          model: the model's name, for the rows.
          parked: its parameters, parked; they stay valid.
          progress: called at every evaluated step.
          stage: takes the time of its training and of its evaluations.
        """
        ...


# ------------------------------------------------------------------------------- fine-tuning


@dataclasses.dataclass(frozen=True)
class FineTuneOn:
    """Fine-tunes on some samples.

    Attributes:
      name: of the attack.
      ids: the samples, of D_u or of D_r.
      unseen: [n] bool, the samples of D_u that it does not show.
      samples: the samples as batches; where they are all of D_u, the batches of the context.
      plan: the batch of every step.
    """

    name: str
    ids: tuple[int, ...]
    unseen: np.ndarray
    samples: Split
    plan: FineTunePlan

    def run(
        self,
        context: AttackContext,
        model: str,
        parked: Tree,
        progress: Progress,
        stage: Stage,
    ) -> Result:
        """Fine-tunes a copy of the model, and evaluates it on the way, see `Attack.run`."""
        steps, offload = self.plan.steps, context.offload
        evaluated = relearning.evaluated_steps(steps)
        records, layers = [], []
        tx = optimizer()
        trainer = Trainer(init_state(offload.fresh(parked), tx), FineTuning(context.model), tx)
        place = partial(self.plan.placed, layout=context.layout, model=context.model)
        with Prefetch[FineTuneInput]() as ahead, stage.part("train") as train:
            ahead.plan(range(steps), place)
            for step in range(steps + 1):
                if step in evaluated:
                    with (
                        stage.part("evaluate", after=trainer.state),
                        trainer.parked_moments(offload),
                    ):
                        record, by_layer = self._evaluate(context, model, step, trainer.params)
                    records.append(record)
                    layers += by_layer
                    progress(step, nll=record["forget_nll"], es=_number(record["forget_es"]))
                if step < steps:
                    inputs = ahead.take(step)
                    trainer.update(inputs.rows, context.settings.lr)
                    train.add(inputs.tokens, inputs.flops)
            train.waiting += ahead.waited
        return Result(strengths_before(context.base_strength, self.unseen), records, layers)

    def _evaluate(
        self, context: AttackContext, model: str, step: int, params: Tree
    ) -> tuple[dict[str, Any], TableRows]:
        """The record of a step, and its rows by layer."""
        stats = statistics.statistics(params, context.forget, context.model)
        row = record(model, self.name, len(self.ids), step, stats, self.unseen)
        total, by_layer = self._effect(context, params)
        common = {"model": model, "attack": self.name, "step": step}
        return row | total, [common | entries for entries in by_layer]

    def _effect(self, context: AttackContext, params: Tree) -> tuple[dict[str, float], TableRows]:
        """grad R(D_u) . grad L of the fine-tuning loss over the samples: total, and by layer."""
        risk_fn = Risk(context.model, "token_mean")
        risk = effects.dataset_gradient(risk_fn, params, context.forget.batches)
        loss = risk
        if self.samples is not context.forget:
            loss = effects.dataset_gradient(risk_fn, params, self.samples.batches)
        effect = effects.g_effect_between(risk.gradient, loss.gradient, grouping=GROUPING)
        total = effect.total()
        columns = [trees.on_host(x).tolist() for x in effect[:4]]
        keys = ("value", "cosine", "risk_norm", "loss_norm")
        by_layer = [
            {"layer": layer} | dict(zip(keys, numbers, strict=True))
            for layer, *numbers in zip(effect.rows or (), *columns, strict=True)
        ]
        value, cosine = (float(trees.on_host(x)) for x in total[:2])
        return {"loss": float(loss.value), "effect": value, "cosine": cosine}, by_layer


def on_forget(context: AttackContext, count: int) -> FineTuneOn:
    """The attack that fine-tunes on `count` samples of D_u."""
    pool = context.forget_samples
    ids = attack_ids(context.seed, len(pool), count)
    unseen = ~np.isin(np.arange(len(pool)), ids)
    if count == len(pool):
        return _fine_tune_on(context, ALL, ids, pool, unseen, context.forget)
    return _fine_tune_on(context, str(count), ids, pool, unseen)


def on_retain(context: AttackContext) -> FineTuneOn:
    """The attack that fine-tunes on samples of D_r: as many as D_u has, or all of them."""
    pool, forget = context.retain_samples, len(context.forget_samples)
    ids = attack_ids(context.seed, len(pool), min(forget, len(pool)))
    return _fine_tune_on(context, BENIGN, ids, pool, np.ones(forget, bool))


def _fine_tune_on(
    context: AttackContext,
    name: str,
    ids: np.ndarray,
    pool: Sequence[Sample],
    unseen: np.ndarray,
    split: Split | None = None,
) -> FineTuneOn:
    """The attack that fine-tunes on samples of a pool; `split` holds their batches, if given."""
    samples, settings, layout = [pool[i] for i in ids], context.settings, context.layout
    batch_size = min(len(ids), settings.batch_size)
    # A few samples get a shape that fits others too: seeds that run together then share programs.
    few = len(ids) == batch_size < len(pool)
    shape = layout.plan_any(pool, batch_size) if few else None
    plan = FineTunePlan.make(
        samples,
        layout,
        batch_size=batch_size,
        steps=settings.steps,
        seed=context.seed,
        stream=Stream.ATTACK,
        shape=shape,
    )
    split = layout.split(samples, plan=shape) if split is None else split
    return FineTuneOn(name, tuple(ids.tolist()), unseen, split, plan)


# ------------------------------------------------------------------------------- without training


@dataclasses.dataclass(frozen=True)
class ChangeWeights:
    """Changes the weights at once; nothing is trained.

    Attributes:
      name: of the attack.
      change: parameters -> parameters of the same shapes, pure.
      ids: none, for it shows no samples.
    """

    name: str
    change: Callable[[Tree], Tree]
    ids: tuple[int, ...] = ()

    def run(
        self,
        context: AttackContext,
        model: str,
        parked: Tree,
        progress: Progress,
        stage: Stage,
    ) -> Result:
        """Evaluates the model (step 0) and its changed weights (step 1), see `Attack.run`."""
        params = context.offload.back(parked)
        unseen = np.ones(context.forget.samples, bool)
        shardings = jax.tree.map(lambda x: x.sharding, params)
        changed = jax.jit(self.change, out_shardings=shardings)
        records = []
        for step, weights in enumerate((lambda tree: tree, changed)):
            with stage.part("evaluate"):
                stats = statistics.statistics(weights(params), context.forget, context.model)
            records.append(record(model, self.name, len(self.ids), step, stats, unseen))
            progress(step, nll=records[-1]["forget_nll"], es=_number(records[-1]["forget_es"]))
        return Result(strengths_before(context.base_strength, unseen), records, [])


ROUNDING = ChangeWeights(INT8, relearning.int8_rounded)
"""Rounds the weights to int8."""

# ------------------------------------------------------------------------------- all attacks

ALWAYS: dict[str, Callable[[AttackContext], Attack]] = {INT8: lambda context: ROUNDING}
"""The attacks that are made whatever was requested, by name: (context) -> attack."""


def make_attacks(context: AttackContext, counts: Sequence[int], benign: bool) -> list[Attack]:
    """The attacks on every model of a run.

    Args:
      context: of the run.
      counts: numbers of forget samples to show, an attack each.
      benign: whether to fine-tune on samples of D_r too.

    Returns:
      Those that fine-tune come first; those of `ALWAYS`, which may need no moments, last.
    """
    attacks: list[Attack] = [on_forget(context, count) for count in counts]
    attacks += [on_retain(context)] if benign else []
    return attacks + [make(context) for make in ALWAYS.values()]


# ------------------------------------------------------------------------------- rows


def record(
    model: str, attack: str, samples: int, step: int, stats: Statistics, unseen: np.ndarray
) -> dict[str, Any]:
    """The row of one evaluated step.

    Args:
      model, attack: their names.
      samples: how many the attack trains on.
      step: updates made.
      stats: of D_u.
      unseen: [n] bool, the samples of D_u that the attack does not show; where there are none,
        their columns are None. Strengths are None where the NLL of D_u is not finite: such a model
        has no most likely tokens.
    """
    rest = Statistics(*(x[unseen] for x in stats)) if unseen.any() else None
    strength = _mean if np.isfinite(stats.nll) else lambda values: None
    return {
        "model": model,
        "attack": attack,
        "samples": samples,
        "step": step,
        "forget_nll": stats.nll,
        "forget_es": strength(stats.extraction_strength),
        "unseen_nll": rest.nll if rest else None,
        "unseen_es": strength(rest.extraction_strength) if rest else None,
    }


def strengths_before(strength: np.ndarray, unseen: np.ndarray) -> dict[str, float | None]:
    """Mean extraction strengths before unlearning: of all of D_u, and of the samples not shown.

    Args:
      strength: [n], of each sample of D_u.
      unseen: [n] bool, the samples not shown; None in their place where there are none.
    """
    return {
        "forget_es": _mean(strength),
        "unseen_es": _mean(strength[unseen]) if unseen.any() else None,
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
