"""The device mesh, and the sharding of each array on it.

One mesh of three axes: `data` replicates parameters, `fsdp` splits them and the rows of a batch,
`tensor` splits heads, the MLP's width and the vocabulary. The axes are Auto: the compiler
propagates shardings from the parameters, the batch and the few points pinned by `constrain`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxunlearn.core.trees import Tree

if TYPE_CHECKING:
    from jaxunlearn.models.decoder.config import DecoderConfig

Axis = str | tuple[str, ...] | None

AXES = ("data", "fsdp", "tensor")
"""Axes of the mesh."""

ROWS = ("data", "fsdp")
"""The axes that split the rows of a batch."""

# - "layers": the axis that `scan` runs along; every device needs every layer.
# - "rank": of adapters, which are small.
# - "norm", "head", "width": vectors, or the outputs of o and down. Vectors are too small to split;
#   the outputs are the residual stream, of which every device of a row's group holds all columns.
# - `tensor` splits heads and the MLP's width: q, k, v, gate and up by their outputs, with their
#   biases and norms, o and down by their inputs. One all-reduce follows o and one follows down.
# - `fsdp` splits the first dimension of every matrix. Gathered, such shards follow one another in
#   memory. Along the last dimension they would not, and the compiler would first copy the matrices
#   of all blocks into another layout.
# - "table", the rows of the embedding, are split by both. Split by columns over `fsdp`, which also
#   splits the batch, its gather would be rematerialised whole on every device.
RULES: dict[str, Axis] = {
    "layers": None,
    "norm": None,
    "width": None,
    "head": None,
    "table": ("fsdp", "tensor"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "heads_in": ("tensor", "fsdp"),
    "mlp": "tensor",
    "mlp_in": ("tensor", "fsdp"),
    "vocab": "tensor",
    "rank": None,
}
"""Logical dimension of a parameter -> mesh axis or axes, None for a copy on every device."""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` devices with Auto axes.

    Args:
      data: replicas of the parameters.
      fsdp: shards of the parameters that also split the rows of a batch.
      tensor: shards of heads, MLP and vocabulary.
      devices: None takes all devices.

    Returns:
      The mesh; make it current with `jax.set_mesh`.

    Raises:
      ValueError: the product is not the number of devices.

    >>> make_mesh(data=jax.device_count()).axis_names
    ('data', 'fsdp', 'tensor')
    """
    sizes = (data, fsdp, tensor)
    devices = jax.devices() if devices is None else list(devices)
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {math.prod(sizes)} devices, "
            f"but {len(devices)} are given"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_shardings(config: "DecoderConfig", mesh: Mesh) -> Tree:
    """The sharding of each parameter, from the leaf table and `RULES`.

    Args:
      config: the model.
      mesh: from `make_mesh`.

    Returns:
      A tree of `NamedSharding`, shaped like the parameters.

    Raises:
      ValueError: a dimension that its mesh axes do not divide, named with its leaf.
    """
    tree: dict[str, Any] = {}
    for leaf in config.leaves():
        axes = [RULES[dim] for dim in leaf.dims]
        for dim, axis, size in zip(leaf.dims, axes, leaf.shape, strict=True):
            _check_divides("/".join(leaf.path), dim, axis, size, mesh)
        leaf.put(tree, NamedSharding(mesh, _shortest(axes, mesh)))
    return tree


def _shortest(axes: Sequence[Axis], mesh: Mesh) -> PartitionSpec:
    """Axes of a parameter as JAX writes them for the results of a program.

    Without mesh axes of one device, and without None at the end. Two ways to write one sharding are
    two to a compiled program, which would be compiled again for parameters that a step returned.

    >>> tuple(_shortest((("fsdp", "tensor"), None), make_mesh(data=jax.device_count())))
    ()
    """
    split = [tuple(name for name in _names(axis) if mesh.shape[name] > 1) for axis in axes]
    while split and not split[-1]:
        split.pop()
    return PartitionSpec(*(group[0] if len(group) == 1 else group or None for group in split))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`: the sharding of every leaf of a packed batch."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def place(tree: Tree, shardings: Tree) -> Tree:
    """Puts a tree on the devices.

    Args:
      tree: arrays.
      shardings: one sharding for all of them, or a tree of shardings.

    Returns:
      The tree of placed arrays.
    """
    return jax.device_put(tree, shardings)


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """Pins an array of a traced function to the current mesh; without a mesh, returns it as it is.

    Args:
      x: array of len(axes) dimensions.
      *axes: the mesh axis or axes of each dimension; one that does not divide its dimension is
        dropped and left to the compiler, as `jax.vmap` leaves batches of one row.

    Returns:
      x
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) <= set(mesh.axis_names):
        return x
    fits = lambda axis, size: size % _extent(axis, mesh) == 0
    spec = [
        axis if fits(axis, size) else PartitionSpec.UNCONSTRAINED
        for axis, size in zip(axes, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def row_shards() -> int:
    """The number of devices that share the rows of a batch on the current mesh; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in ROWS)


def _extent(axis: Axis, mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in _names(axis))


def _names(axis: Axis) -> tuple[str, ...]:
    """The mesh axes of a dimension, however many they are."""
    return (axis,) if isinstance(axis, str) else axis or ()


def _check_divides(leaf: str, dim: str, axis: Axis, size: int, mesh: Mesh) -> None:
    extent = _extent(axis, mesh)
    if size % extent:
        names = " x ".join(_names(axis))
        raise ValueError(
            f"{leaf}: dimension {dim!r} of size {size} is not divisible by the {extent} devices of "
            f"mesh axis {names}; choose a mesh whose {names} divides it"
        )
