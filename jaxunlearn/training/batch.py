"""Batches: packed rows with what an objective reads of each label, and sets of samples as batches.

`layout.Layout` makes them and puts them on the devices.

Letters: R rows, M slots of a row, N labels of a row, S labels of the longest answer.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.packing import Packed

Array = np.ndarray | jax.Array


class Rows(NamedTuple):
    """Packed rows, and quantities of their labels that the model does not compute.

    Attributes:
      packed: tokens, positions, segments and labels.
      values: {name: [R, N, ...]} in the layout of the rows, 0 on padding; `arrays.LabelValue` says
        which there are. Empty where the objective reads nothing but the model.
    """

    packed: Packed
    values: Mapping[str, Array] = {}

    @property
    def mask(self) -> Array:
        """[R * M, S] bool: which entries of the unpacked layout are labels."""
        mask = self.packed.mask
        return mask.reshape(-1, mask.shape[-1])


class Constants(NamedTuple):
    """The inputs of an objective that do not depend on the batch; replicated on every device.

    Attributes:
      target: [D], the vector towards which rmu drives hidden states.
      reference_head: the parameters that turn the reference's final hidden states into logits.
      hyper: {"forget", "retain": {name: []}}, the hyper-parameters that the losses on these rows
        leave open, see `objectives.Objective.opened`.
      gamma: [], the weight of the objective; None: 1.
      retain_weight: [], that of the retain term; None: 1.
    """

    target: Array | None = None
    reference_head: Tree | None = None
    hyper: Mapping[str, Mapping[str, Array]] = {}
    gamma: Array | None = None
    retain_weight: Array | None = None


class Batch(NamedTuple):
    """The input of an objective; fields that it does not read are None.

    Attributes:
      forget: rows of the forget set D_u.
      retain: rows of the retain pool, one sample for each forget sample.
      substitute: rows of the substitute answers, one for each forget sample.
      partner: [R, M] int32, for each slot of `forget` the flat slot of its substitute.
      constants: the inputs that all batches share.
    """

    forget: Rows
    retain: Rows | None = None
    substitute: Rows | None = None
    partner: Array | None = None
    constants: Constants = Constants()

    @property
    def packs(self) -> list[Packed]:
        """The packed rows of every kind that is there."""
        kinds = (self.forget, self.substitute, self.retain)
        return [rows.packed for rows in kinds if rows is not None]


class Split(NamedTuple):
    """A whole set of samples as batches, on the devices and on the host.

    Attributes:
      batches: rows on the devices.
      packed: the same rows in numpy, without label values.
      samples: the number of samples, which `packed[i].sample_ids` index.
    """

    batches: list[Rows]
    packed: list[Packed]
    samples: int

    @property
    def mask(self) -> np.ndarray:
        """[samples, S] bool, the labels of each sample."""
        return self.by_sample([Rows(packed).mask for packed in self.packed])

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of each sample, [samples] each."""
        tokens, labels = [], []
        for packed in self.packed:
            slots = np.arange(packed.sample_ids.shape[1])
            tokens.append((np.asarray(packed.segments)[:, None] == slots[:, None]).sum(-1))
            labels.append(np.asarray(packed.mask).sum(-1))
        flat = ([x.reshape(-1) for x in arrays] for arrays in (tokens, labels))
        tokens_of, labels_of = (self.by_sample(arrays) for arrays in flat)
        return tokens_of, labels_of

    def by_sample(self, values: Sequence[Array]) -> np.ndarray:
        """Values of flat slots, [B, ...] a batch, as one array [samples, ...] in sample order.

        A sample that no batch holds stays 0.
        """
        ids = np.concatenate([np.asarray(packed.sample_ids).reshape(-1) for packed in self.packed])
        flat = np.concatenate([trees.on_host(value) for value in values])
        table = np.zeros((self.samples, *flat.shape[1:]), flat.dtype)
        table[ids[ids >= 0]] = flat[ids >= 0]
        return table


@dataclasses.dataclass(frozen=True)
class LabelCache:
    """A quantity of every label of every sample of a set, independent of any packing.

    Attributes:
      values: [labels of all samples, ...], sample after sample.
      offsets: [samples + 1], where each sample's labels begin.
    """

    values: np.ndarray
    offsets: np.ndarray

    def lay_out(self, packed: Packed, samples: np.ndarray | None = None) -> np.ndarray:
        """Returns the values in the layout of packed rows, 0 on padding.

        Args:
          packed: rows; `sample_ids` are this cache's samples, or indices into `samples`.
          samples: the cache's sample of each id, where ids do not name them directly.

        Returns:
          [R, N, ...]
        """
        rows = np.zeros((*packed.label_tokens.shape, *self.values.shape[1:]), self.values.dtype)
        for row, slot in _filled_slots(packed):
            name = packed.sample_ids[row, slot]
            sample = name if samples is None else samples[name]
            values = self.values[self.offsets[sample] : self.offsets[sample + 1]]
            start = packed.label_start[row, slot]
            rows[row, start : start + len(values)] = values
        return rows

    @classmethod
    def gather(
        cls, batches: Iterable[Packed], values: Iterable[np.ndarray], samples: int
    ) -> "LabelCache":
        """Collects values in the layout of packed rows, [R, N, ...] a batch.

        Raises:
          ValueError: a sample is in none of the batches.
        """
        parts: dict[int, np.ndarray] = {}
        for packed, rows in zip(batches, values, strict=True):
            for row, slot in _filled_slots(packed):
                start, count = packed.label_start[row, slot], packed.mask[row, slot].sum()
                parts[int(packed.sample_ids[row, slot])] = rows[row, start : start + count]
        missing = [i for i in range(samples) if i not in parts]
        if missing:
            raise ValueError(f"no reference for samples {missing[:5]}")
        ordered = [parts[i] for i in range(samples)]
        return cls(np.concatenate(ordered), np.cumsum([0, *map(len, ordered)]))

    @classmethod
    def of_table(cls, table: np.ndarray, counts: Sequence[int]) -> "LabelCache":
        """Takes values from one row a sample, [samples, S], the first `counts` of each are real."""
        is_label = np.arange(table.shape[1]) < np.asarray(counts)[:, None]
        return cls(table[is_label], np.cumsum([0, *counts]))


def partner_slots(packed: Packed, substitute: Packed) -> np.ndarray:
    """Finds the slot of each sample of one batch in another batch.

    Returns:
      [R, M] int32, flat slots of `substitute`; 0 where the slot of `packed` is empty.
    """
    slots = {int(name): i for i, name in enumerate(np.asarray(substitute.sample_ids).reshape(-1))}
    find = np.vectorize(lambda name: slots[int(name)] if name >= 0 else 0, otypes=[np.int32])
    return find(np.asarray(packed.sample_ids))


def _filled_slots(packed: Packed) -> Iterable[tuple[int, int]]:
    """(row, slot) of every sample of packed rows."""
    return zip(*np.nonzero(np.asarray(packed.sample_ids) >= 0), strict=True)
