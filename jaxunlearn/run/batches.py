"""From encoded samples to batches on the devices: packing, references, substitutes."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxunlearn.data.packing import Packed
from jaxunlearn.effects import trees
from jaxunlearn.models import sharding

Tree = Any


@dataclasses.dataclass(frozen=True)
class LabelCache:
    """A quantity of the reference model for every label of every sample of a set."""

    values: np.ndarray  # [labels of all samples, ...]
    offsets: np.ndarray  # [samples + 1]

    def lay_out(self, packed: Packed, samples: np.ndarray | None = None) -> np.ndarray:
        """The cached values in the layout of packed rows, 0 on padding.

        Args:
          packed: rows; `sample_ids` are this cache's samples, or indices into `samples`.

        Returns:
          [R, N, ...]
        """
        rows = np.zeros((*packed.label_tokens.shape, *self.values.shape[1:]), self.values.dtype)
        for row, slot in zip(*np.nonzero(np.asarray(packed.sample_ids) >= 0), strict=True):
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
        """Collects values in packed layout, [R, N, ...] a batch, by sample."""
        parts: list[np.ndarray | None] = [None] * samples
        for packed, rows in zip(batches, values, strict=True):
            for row, slot in zip(*np.nonzero(np.asarray(packed.sample_ids) >= 0), strict=True):
                start, count = packed.label_start[row, slot], packed.mask[row, slot].sum()
                parts[packed.sample_ids[row, slot]] = rows[row, start : start + count]
        missing = [i for i, part in enumerate(parts) if part is None]
        if missing:
            raise ValueError(f"no reference for samples {missing[:5]}")
        offsets = np.cumsum([0, *(len(part) for part in parts)])  # pyright: ignore[reportArgumentType]
        return cls(np.concatenate(parts), offsets)  # pyright: ignore[reportArgumentType, reportCallIssue]

    @classmethod
    def of_table(cls, table: np.ndarray, counts: Sequence[int]) -> "LabelCache":
        """Values laid out one sample a row, [samples, S], of which `counts` are of its labels."""
        real = np.arange(table.shape[1]) < np.asarray(counts)[:, None]
        return cls(table[real], np.cumsum([0, *counts]))


def by_sample(values: Sequence[np.ndarray], batches: Sequence[Packed], samples: int) -> np.ndarray:
    """Values of flat slots, [B, ...] a batch, as one array in the order of the sample ids.

    Returns:
      [samples, ...]; a sample that no batch holds stays 0.
    """
    ids = np.concatenate([np.asarray(batch.sample_ids).reshape(-1) for batch in batches])
    flat = np.concatenate([trees.on_host(value) for value in values])
    out = np.zeros((samples, *flat.shape[1:]), flat.dtype)
    out[ids[ids >= 0]] = flat[ids >= 0]
    return out


def partners(packed: Packed, substitute: Packed) -> np.ndarray:
    """For each slot of one batch, the flat slot of the same sample in another; 0 where empty.

    Returns:
      [R, M] int32
    """
    slots = {int(name): i for i, name in enumerate(np.asarray(substitute.sample_ids).reshape(-1))}
    find = np.vectorize(lambda name: slots[int(name)] if name >= 0 else 0, otypes=[np.int32])
    return find(np.asarray(packed.sample_ids))


def place(batch: Tree, mesh: jax.sharding.Mesh, parts: int = 1) -> Tree:
    """Puts a batch on the devices: rows split over `data` and `fsdp`, constants everywhere.

    Each process gives its own devices' rows alone.

    Args:
      batch: {"constants": .., kind of rows: ..}.
      mesh: from `make_mesh`.
      parts: of the batch; where there are several, the rows are the second axis.
    """
    put = lambda x, where: jax.make_array_from_callback(np.shape(x), where, lambda i: x[i])
    return _map(put, jax.tree.map(np.asarray, batch), mesh, parts)


def shapes(batch: Tree, mesh: jax.sharding.Mesh, parts: int = 1) -> Tree:
    """What `place` would give, as shapes with shardings."""
    abstract = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return _map(abstract, batch, mesh, parts)


def _map(one: Callable, batch: Tree, mesh: jax.sharding.Mesh, parts: int) -> Tree:
    split, whole = sharding.batch_sharding(mesh), jax.NamedSharding(mesh, jax.P())
    if parts > 1:
        split = jax.NamedSharding(mesh, jax.P(None, *split.spec))
    where = {key: whole if key == "constants" else split for key in batch}
    return {key: jax.tree.map(partial(one, where=where[key]), batch[key]) for key in batch}
