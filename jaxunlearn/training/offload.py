"""Parks arrays in host memory while the programs that run do not need them.

Between measurements a run keeps theta_0, theta_t and the gradients of both risks, and during a
measurement it keeps the moments of the optimiser. Where a model nearly fills its devices, these are
parked in pinned host memory; each host keeps the shards of its own devices.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import Tree


@dataclasses.dataclass(frozen=True)
class Offload:
    """Parks trees of arrays in pinned host memory, or leaves them where they are.

    Attributes:
      enabled: whether anything is moved; if not, a parked tree is the tree itself.
    """

    enabled: bool

    def away(self, tree: Tree) -> Tree:
        """Moves a tree to host memory. Drop your own reference, or the device copy stays."""
        return _move(tree, "pinned_host") if self.enabled else tree

    def copied(self, tree: Tree) -> Tree:
        """Parks a copy of a tree, which stays valid when the tree is donated."""
        return self.away(tree) if self.enabled else jax.tree.map(jnp.copy, tree)

    def fresh(self, parked: Tree) -> Tree:
        """Copies a parked tree to the devices; the copy may be donated, the parked one stays."""
        return self.back(parked) if self.enabled else self.copied(parked)

    def back(self, tree: Tree) -> Tree:
        """Brings a parked tree back to the devices."""
        return _move(tree, "device") if self.enabled else tree


def _move(tree: Tree, kind: str) -> Tree:
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), tree))
