"""Turns samples into batches on a mesh: chooses shapes, packs, and places rows on devices."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

from jaxunlearn.data import packing, planning
from jaxunlearn.data.planning import Plan, Sample
from jaxunlearn.models import sharding
from jaxunlearn.training.batch import LabelCache, Rows, Split

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh of a run and the shapes of its batches.

    Attributes:
      mesh: the devices, with axes `data`, `fsdp` and `tensor`.
      context: the widest row allowed, in tokens.
      width_step: rows are a multiple of so many tokens wide.
      batch_tokens: tokens of a batch in a pass over a whole set.
      abstract: whether placement returns shapes with shardings and puts nothing on a device, as
        forecasts need it for devices that this machine does not have.
    """

    mesh: jax.sharding.Mesh
    context: int
    width_step: int
    batch_tokens: int
    abstract: bool = False

    @property
    def row_multiple(self) -> int:
        """Rows of a batch are a multiple of this: the devices that share the rows."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def _limits(self) -> dict[str, int]:
        """What every plan must keep to."""
        return {
            "max_width": self.context,
            "row_multiple": self.row_multiple,
            "width_step": self.width_step,
        }

    def plan_steps(self, samples: Sequence[Sample], id_lists: Iterable[Iterable[int]]) -> Plan:
        """Returns a static shape that fits every step, see `data.planning.plan_steps`."""
        return planning.plan_steps(samples, id_lists, **self._limits)

    def plan_groups(self, groups: Sequence[Sequence[Sample]]) -> Plan:
        """Returns a static shape that fits every group of samples."""
        flat = [sample for group in groups for sample in group]
        ends = np.cumsum([len(group) for group in groups])
        id_lists = [range(end - len(group), end) for group, end in zip(groups, ends, strict=True)]
        return self.plan_steps(flat, id_lists)

    def plan_any(self, samples: Sequence[Sample], count: int) -> Plan:
        """Returns a static shape that fits any few of the samples, see `data.planning.plan_any`."""
        return planning.plan_any(samples, count, **self._limits)

    def split(
        self,
        samples: Sequence[Sample],
        caches: Mapping[str, LabelCache] | None = None,
        *,
        plan: Plan | None = None,
    ) -> Split:
        """Packs a whole set into batches on the devices.

        Args:
          samples: the set; each is in one batch.
          caches: label values that the batches carry, by name.
          plan: the shape of a batch; None chooses.

        Returns:
          Split.
        """
        if plan is None:
            plan = planning.plan_dataset(samples, target_tokens=self.batch_tokens, **self._limits)
        packed = packing.dataset_batches(samples, plan)
        batches = []
        for rows in packed:
            values = {name: cache.lay_out(rows) for name, cache in (caches or {}).items()}
            batches.append(self.shard_rows(Rows(rows, values)))
        return Split(batches, packed, len(samples))

    def shard_rows(self, tree: T, *, parts: int = 1) -> T:
        """Puts arrays on the devices, split along their rows over `data` and `fsdp`.

        Args:
          tree: arrays whose first axis is the row, the same on every process: each process hands
            over the rows of its own devices alone.
          parts: where there are several, the arrays hold parts of a batch along a leading axis,
            and their second axis is the row.
        """
        rows = sharding.batch_sharding(self.mesh)
        if parts > 1:
            rows = jax.NamedSharding(self.mesh, jax.P(None, *rows.spec))
        return self._place(tree, rows)

    def replicate(self, tree: T) -> T:
        """Puts whole arrays on every device."""
        return self._place(tree, jax.NamedSharding(self.mesh, jax.P()))

    def _place(self, tree: T, where: jax.sharding.Sharding) -> T:
        def one(x: np.ndarray):
            if self.abstract:
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
            return jax.make_array_from_callback(np.shape(x), where, lambda index: x[index])

        return jax.tree.map(one, jax.tree.map(np.asarray, tree))
