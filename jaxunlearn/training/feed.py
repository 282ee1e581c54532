"""The batches of every step of unlearning, of its measurements, and of fine-tuning."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.config import Unlearn
from jaxunlearn.data import order, packing
from jaxunlearn.data.packing import Packed
from jaxunlearn.data.planning import Plan, Sample
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.objectives import rmu_target
from jaxunlearn.training.arrays import GUIDE, label_values, substitute_values
from jaxunlearn.training.batch import (
    Array,
    Batch,
    Constants,
    LabelCache,
    Rows,
    Split,
    partner_slots,
)
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.references import References
from jaxunlearn.training.schedule import epochs_of_step
from jaxunlearn.training.sets import Draw, SampleSets
from jaxunlearn.training.tasks import Task

MEASURED_SAMPLES = 64  # forget samples of a measured batch that also carries their substitutes

# Tokens of two passes, over forget and over retain rows, over those of one pass over both, at
# least. One pass reads the parameters once, and adds up one gradient.
SHARED_PASS = 0.9


class StepInput(NamedTuple):
    """The batch of a step, with its number of tokens.

    Attributes:
      batch: on the devices; with a leading axis of parts where gradients are accumulated.
      tokens: the number of tokens in its rows, without padding.
      real_share: their share of all tokens that are computed, padding included.
    """

    batch: Batch
    tokens: int
    real_share: float


class StepBatches:
    """The batches of one objective; each is a pure function of (seed, step)."""

    def __init__(
        self,
        task: Task,
        sets: SampleSets,
        references: References,
        *,
        layout: Layout,
        unlearn: Unlearn,
        seed: int,
    ):
        """Plans one static shape for all steps, so that the train step is compiled once.

        Args:
          task: the objective.
          sets: the samples to draw from.
          references: quantities of these samples under the model before unlearning.
          layout: the mesh and the shapes.
          unlearn: the schedule.
          seed: of the run.
        """
        self._task, self._sets, self._references = task, sets, references
        self._layout, self._seed, self._size = layout, seed, unlearn.batch_size
        self.steps = order.num_steps(len(sets.forget), unlearn.batch_size, unlearn.epochs)
        self._has_substitutes = "substitute" in task.needs
        self._constants = self._make_constants()
        # Slots of a batch, cut into the parts whose gradients are accumulated.
        self._parts = np.split(np.arange(self._size), unlearn.accumulate)
        self._plan = self._plan_steps(sets.forget, self._forget_ids)
        if task.retain is not None:
            self._retain_plan = self._plan_steps(sets.retain, self._retain_ids)
            if task.loss.shares_a_pass:
                self._share_a_shape()
        if self._has_substitutes:
            self._substitute_plan = layout.plan_groups(
                [
                    [sets.refusals.draw(*draw) for draw in self._draws(step, part)]
                    for step in range(self.steps)
                    for part in self._parts
                ]
            )

    def step(self, step: int, guide: np.ndarray | None = None) -> StepInput:
        """Makes the batch of a step.

        Args:
          step: from 0.
          guide: [n, S], the weights of all forget tokens, for a loss that takes them; None: 1 each.
        """
        parts = [self._part(step, slots, guide) for slots in self._parts]
        packs = [packed for part in parts for packed in part.packs]
        tokens = sum(int((packed.segments >= 0).sum()) for packed in packs)
        batch = parts[0]
        if len(parts) > 1:
            batch = jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
        placed = self._layout.shard_rows(batch, parts=len(parts))
        share = packing.real_token_share(packs)
        return StepInput(placed._replace(constants=self._constants), tokens, share)

    def measured(self, forget: Split, guide: np.ndarray | None = None) -> list[Batch]:
        """Makes batches of the objective that hold all of D_u, each sample once.

        Args:
          forget: D_u with the objective's references; its rows are used where the objective reads
            no substitute answers, which must share a batch with their samples.
          guide: as in `step`.
        """
        if not self._has_substitutes:
            return [
                Batch(self._with_guide(rows, packed, guide), constants=self._constants)
                for rows, packed in zip(forget.batches, forget.packed, strict=True)
            ]
        samples = np.arange(len(self._sets.forget))
        groups = np.array_split(samples, -(-len(samples) // MEASURED_SAMPLES))
        draws: list[list[Draw]] = [[(int(i), None) for i in ids] for ids in groups]
        plan = self._layout.plan_groups([[self._sets.forget[i] for i in ids] for ids in groups])
        answers = [[self._sets.refusals.draw(*draw) for draw in group] for group in draws]
        substitute_plan = self._layout.plan_groups(answers)
        batches = []
        for ids, group in zip(groups, draws, strict=True):
            batch = Batch(self._forget_rows(ids, plan, guide))
            batch = self._with_substitutes(batch, group, substitute_plan)
            batches.append(self._layout.shard_rows(batch)._replace(constants=self._constants))
        return batches

    def needed_flops(self, step: int) -> int:
        """FLOPs that the gradient of a step's loss needs, see `decoder.forward_flops`.

        Those of the reference's head, where a loss reads its logits, are left out.
        """
        term, retain = self._task.loss.unlearn, self._task.retain
        terms = []
        if not term.substitutes_alone:
            terms.append((term, [self._sets.forget[i] for i in self._forget_ids(step)]))
        if self._has_substitutes:
            draws = self._draws(step, np.arange(self._size))
            terms.append((term, [self._sets.refusals.draw(*draw) for draw in draws]))
        if retain is not None:
            terms.append((retain, [self._sets.retain[i] for i in self._retain_ids(step)]))
        forwards = (sample_flops(t.model, samples, t.blocks) for t, samples in terms)
        return decoder.gradient_passes(term.model) * sum(forwards)

    def _part(self, step: int, slots: np.ndarray, guide: np.ndarray | None) -> Batch:
        """The part of a step's batch in some of its slots, in numpy."""
        batch = Batch(self._forget_rows(self._forget_ids(step)[slots], self._plan, guide))
        if self._has_substitutes:
            draws = self._draws(step, slots)
            batch = self._with_substitutes(batch, draws, self._substitute_plan)
        if self._task.retain is not None:
            batch = batch._replace(retain=self._retain_rows(self._retain_ids(step)[slots]))
        return batch

    def _forget_rows(self, ids: np.ndarray, plan: Plan, guide: np.ndarray | None) -> Rows:
        """Rows of some forget samples with all that the objective reads of their labels."""
        packed = packing.pack_step(self._sets.forget, ids, plan, sample_ids=range(len(ids)))
        values = {
            value.name: self._references.forget[value.name].lay_out(packed, ids)
            for value in label_values([self._task.loss.unlearn])
            if value.of_reference is not None
        }
        return Rows(packed, {**values, **self._guide_values(packed, ids, guide)})

    def _with_guide(self, rows: Rows, packed: Packed, guide: np.ndarray | None) -> Rows:
        """Rows that are on the devices, with the guide's weights laid out like them."""
        values = self._layout.shard_rows(self._guide_values(packed, None, guide))
        return Rows(rows.packed, {**rows.values, **values})

    def _guide_values(
        self, packed: Packed, ids: np.ndarray | None, guide: np.ndarray | None
    ) -> Mapping[str, Array]:
        """The guide's weights in the layout of rows, where the objective takes any."""
        if "guide" not in self._task.needs:
            return {}
        if guide is None:
            return {GUIDE.name: np.ones(packed.label_tokens.shape, np.float32)}
        counts = [sample.labels for sample in self._sets.forget]
        return {GUIDE.name: LabelCache.of_table(guide, counts).lay_out(packed, ids)}

    def _retain_rows(self, ids: np.ndarray) -> Rows:
        """Rows of some samples of the retain pool."""
        assert self._task.retain is not None
        packed = packing.pack_step(
            self._sets.retain, ids, self._retain_plan, sample_ids=range(len(ids))
        )
        values = label_values([self._task.retain])
        caches = self._references.retain
        return Rows(packed, {v.name: caches[v.name].lay_out(packed, ids) for v in values})

    def _with_substitutes(self, batch: Batch, draws: Sequence[Draw], plan: Plan) -> Batch:
        """A batch of forget samples with the substitute answer of each."""
        answers = [self._sets.refusals.draw(*draw) for draw in draws]
        packed = packing.pack_step(answers, range(len(answers)), plan)
        term, cache = self._task.loss.unlearn, self._references.substitute
        values: dict[str, Array] = {}
        if cache is not None and substitute_values([term]):
            entries = np.array([self._references.entries[draw] for draw in draws])
            values = {v.name: cache.lay_out(packed, entries) for v in substitute_values([term])}
        # A loss that reads both answers of a sample needs the slot of each in the other packing.
        alone = term.substitutes_alone
        partner = None if alone else partner_slots(batch.forget.packed, packed)
        return batch._replace(substitute=Rows(packed, values), partner=partner)

    def _forget_ids(self, step: int) -> np.ndarray:
        return order.batch_ids(self._seed, step, len(self._sets.forget), self._size)

    def _retain_ids(self, step: int) -> np.ndarray:
        return order.retain_ids(self._seed, step, len(self._sets.retain), self._size)

    def _draws(self, step: int, slots: np.ndarray) -> list[Draw]:
        """(sample, epoch) of some slots of a step's batch."""
        ids = self._forget_ids(step)
        epochs = epochs_of_step(step, self._size, len(self._sets.forget))
        return [(int(i), int(e)) for i, e in zip(ids[slots], epochs[slots], strict=True)]

    def _plan_steps(self, samples: list[Sample], draw: Callable[[int], np.ndarray]) -> Plan:
        """The static shape that the parts of all steps fit in."""
        return self._layout.plan_steps(samples, self._all_parts(draw))

    def _all_parts(self, draw: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        """The samples of every part of every step."""
        return [draw(step)[slots] for step in range(self.steps) for slots in self._parts]

    def _share_a_shape(self) -> None:
        """Gives forget and retain rows one shape, where that adds few tokens to a step.

        Their losses then come from one pass over both, see `losses.UnlearnLoss`.
        """
        forget, retain = (self._all_parts(ids) for ids in (self._forget_ids, self._retain_ids))
        after = len(self._sets.forget)
        samples = [*self._sets.forget, *self._sets.retain]
        plan = self._layout.plan_steps(samples, [*forget, *(part + after for part in retain)])
        apart = sum(one.rows * one.width for one in (self._plan, self._retain_plan))
        if apart >= SHARED_PASS * 2 * plan.rows * plan.width:
            self._plan = self._retain_plan = plan

    def _make_constants(self) -> Constants:
        """The numbers of the objective, and what its terms read: a target, the reference's head."""
        terms = [term for term in (self._task.loss.unlearn, self._task.retain) if term is not None]
        arrays = {name for term in terms for name in term.objective.arrays}
        task = self._task
        numbers = {"hyper": task.hyper, "gamma": task.gamma, "retain_weight": task.retain_weight}
        numbers = jax.tree.map(np.float32, numbers)
        constants = Constants(**self._layout.replicate(numbers))
        if "target" in arrays:
            # One target for the whole run: drawn again at each step it would be noise.
            key = jax.random.fold_in(jax.random.key(self._seed), 1)
            target = rmu_target(
                key,
                terms[0].model.hidden_size,
                scale=self._task.scale,
                unit_norm=self._task.unit_norm,
            )
            constants = constants._replace(target=self._layout.replicate(target))
        if "ref_logits" in arrays:
            constants = constants._replace(reference_head=self._references.head)
        return constants


@dataclasses.dataclass(frozen=True)
class FineTunePlan:
    """The steps of a fine-tuning: how many there are, and the batch of each.

    Attributes:
      samples: the samples to train on.
      batch_size: samples of a step.
      steps: at most; fine-tuning may stop earlier.
      seed: of the run, for the order of the samples.
      stream: what the training is for, so that no two share their order.
      shape: the one static shape of all batches.
    """

    samples: Sequence[Sample]
    batch_size: int
    steps: int
    seed: int
    stream: order.Stream
    shape: Plan

    @classmethod
    def make(
        cls,
        samples: Sequence[Sample],
        layout: Layout,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        stream: order.Stream,
        shape: Plan | None = None,
    ) -> "FineTunePlan":
        """Plans the static shape in which the batches of all steps fit, unless it is given."""
        if shape is None:
            draw = lambda step: order.batch_ids(seed, step, len(samples), batch_size, stream=stream)
            shape = layout.plan_steps(samples, [draw(step) for step in range(steps)])
        return cls(samples, batch_size, steps, seed, stream, shape)

    def batch(self, step: int) -> Packed:
        """The rows of a step, a pure function of it."""
        return packing.pack_step(self.samples, self._ids(step), self.shape)

    def needed_flops(self, step: int, model: DecoderConfig) -> int:
        """FLOPs that the gradient of a step needs, see `decoder.forward_flops`."""
        samples = [self.samples[i] for i in self._ids(step)]
        return decoder.GRADIENT * sample_flops(model, samples)

    def placed(self, step: int, layout: Layout, model: DecoderConfig) -> "FineTuneInput":
        """The rows of a step on the devices, with their real tokens and the FLOPs they need."""
        packed = self.batch(step)
        tokens = int((packed.segments >= 0).sum())
        rows = layout.shard_rows(Rows(packed))
        return FineTuneInput(rows, tokens, self.needed_flops(step, model))

    def _ids(self, step: int) -> np.ndarray:
        count, size = len(self.samples), self.batch_size
        return order.batch_ids(self.seed, step, count, size, stream=self.stream)


class FineTuneInput(NamedTuple):
    """The batch of a step of fine-tuning.

    Attributes:
      rows: on the devices.
      tokens: the number of tokens in them, without padding.
      flops: that the gradient needs.
    """

    rows: Rows
    tokens: int
    flops: int


def sample_flops(model: DecoderConfig, samples: Sequence[Sample], blocks: int | None = None) -> int:
    """FLOPs that a forward pass over some samples needs, see `decoder.forward_flops`."""
    tokens = np.array([len(sample.tokens) for sample in samples])
    labels = np.array([sample.labels for sample in samples])
    return int(decoder.forward_flops(model, tokens, labels, blocks=blocks).sum())
