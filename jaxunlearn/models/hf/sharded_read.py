"""Reads sharded arrays from files piece by piece: the host holds a piece, never a whole shard.

Every process reads the parts of its own devices, each part once, and waits until a piece is on its
device before it reads the next.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Box = tuple[tuple[int, int], ...]
"""Start and stop along each axis."""

Read = Callable[[tuple[slice, ...]], np.ndarray]
"""Slices of an array -> their values."""


def read_array(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    sharding: jax.sharding.Sharding,
    read: Read,
    max_in_flight: int,
) -> jax.Array:
    """Reads an array onto the devices that hold it, each shard from its own part of the files.

    Args:
      shape: of the whole array.
      dtype: of its values.
      sharding: where it lives.
      read: slices of the array -> their values.
      max_in_flight: upper bound on the elements that this process transfers at once.

    Returns:
      The array.
    """
    # All shards have one shape, so that one list of pieces cuts each of them the same way.
    local, owners = sharding.shard_shape(shape), _owners(shape, sharding)
    devices = -(-len(sharding.device_set) // jax.process_count())
    pieces = list(_pieces(tuple((0, size) for size in local), max(max_in_flight // devices, 1)))
    part = partial(_read_piece, shape, sharding, owners, read)
    if len(pieces) == 1:
        return part(pieces[0])
    whole = _zeros(shape, dtype, sharding)
    for piece in pieces:
        starts = [start for start, _ in piece]
        whole = jax.block_until_ready(_insert(whole, part(piece), starts, sharding))
    shards = [shard.data for shard in whole.addressable_shards]  # jit rewrites equal shardings
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _owners(shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> dict[Box, list[Any]]:
    """The boxes of this process, and the devices that hold each of them."""
    owners: dict[Box, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        slices = zip(index or (), shape, strict=True)
        box = tuple(part.indices(size)[:2] for part, size in slices)
        owners.setdefault(box, []).append(device)
    return owners


def _pieces(box: Box, most: int) -> Iterator[Box]:
    """Boxes of at most `most` elements that make up a box, cut along its first axes."""
    sizes = [stop - start for start, stop in box]
    row = math.prod(sizes[1:])
    if math.prod(sizes) <= most:
        yield box
    elif row <= most:
        start, stop = box[0]
        for cut in range(start, stop, most // row):
            yield ((cut, min(cut + most // row, stop)), *box[1:])
    else:
        for cut in range(*box[0]):
            yield from (((cut, cut + 1), *rest) for rest in _pieces(box[1:], most))


def _read_piece(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    owners: dict[Box, list[Any]],
    read: Read,
    piece: Box,
) -> jax.Array:
    """The same piece of every shard, as an array sharded as the whole is."""
    shards = []
    for box, devices in owners.items():
        index = [
            slice(a + start, a + stop) for (a, _), (start, stop) in zip(box, piece, strict=True)
        ]
        shards += _put(read(tuple(index)), devices)
    local = sharding.shard_shape(shape)
    sizes = [stop - start for start, stop in piece]
    sizes = tuple(size * n // part for size, n, part in zip(sizes, shape, local, strict=True))
    return jax.make_array_from_single_device_arrays(sizes, sharding, shards)


def _put(values: np.ndarray, devices: list[Any]) -> list[jax.Array]:
    return jax.block_until_ready([jax.device_put(values, device) for device in devices])


@partial(jax.jit, static_argnames=("shape", "dtype", "sharding"))
def _zeros(shape: tuple[int, ...], dtype: DTypeLike, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


@partial(jax.jit, static_argnames="sharding", donate_argnames="whole")
def _insert(
    whole: jax.Array, part: jax.Array, starts: list[int], sharding: jax.sharding.Sharding
) -> jax.Array:
    """Writes a piece into every shard, in place."""
    # 16-bit floats as bits: the CPU's compiler would widen the whole array to write a piece.
    bits = jnp.uint16 if whole.dtype.itemsize == 2 else whole.dtype

    def insert(whole: jax.Array, part: jax.Array, starts: list[int]) -> jax.Array:
        return jax.lax.dynamic_update_slice(whole.view(bits), part.view(bits), starts)

    if isinstance(sharding, jax.NamedSharding):
        spec = sharding.spec
        specs: Any = {"in_specs": (spec, spec, jax.P()), "out_specs": spec}
        insert = jax.shard_map(insert, mesh=sharding.mesh, check_vma=False, **specs)
    return insert(whole, part, starts).view(whole.dtype)
