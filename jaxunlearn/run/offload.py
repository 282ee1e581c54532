"""Where a run keeps what the next program does not need: on the devices, or in host memory.

Between measurements a run remembers theta_0, theta_t and the gradients of both risks, and while it
measures it needs no moments of the optimiser. Beside a model that nearly fills its devices all of
these wait in pinned host memory, each host keeping the shards of its own devices.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


@dataclasses.dataclass(frozen=True)
class Offload:
    """Moves trees of arrays between the devices and the host, or leaves them where they are."""

    enabled: bool

    def away(self, tree: Tree) -> Tree:
        """The tree as it waits; the caller drops the one it gave."""
        return _move(tree, "pinned_host") if self.enabled else tree

    def copied(self, tree: Tree) -> Tree:
        """A copy as it waits, which a donation of the tree does not touch."""
        return self.away(tree) if self.enabled else jax.tree.map(jnp.copy, tree)

    def fresh(self, waiting: Tree) -> Tree:
        """A copy of a waiting tree on the devices, which may be donated."""
        return self.back(waiting) if self.enabled else self.copied(waiting)

    def back(self, tree: Tree) -> Tree:
        """A waiting tree on the devices."""
        return _move(tree, "device") if self.enabled else tree


def _move(tree: Tree, kind: str) -> Tree:
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), tree))
