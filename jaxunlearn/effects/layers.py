"""Names and groups of layers.

A parameter tree is a mapping whose top-level keys are layers. A key in `stacked` holds many layers:
all its leaves have a leading axis over them, and they are called `block_0`, `block_1`, ..
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

STACKED = ("blocks",)
GROUPS = ("embed", "shallow", "middle", "deep", "lm")


def layer_names(params: Mapping[str, Any], *, stacked: tuple[str, ...] = STACKED) -> list[str]:
    """The layers of a parameter tree, in the order of its sorted keys.

    >>> layer_names({"embed": {"w": jnp.ones((2, 3))}, "blocks": {"w": jnp.ones((2, 4))}})
    ['block_0', 'block_1', 'embed']
    """
    names = []
    for key in sorted(params):
        if key in stacked:
            names += [f"{key.removesuffix('s')}_{i}" for i in range(depth(params[key]))]
        else:
            names.append(key)
    return names


def tensor_names(params: Mapping[str, Any], *, stacked: tuple[str, ...] = STACKED) -> list[str]:
    """The tensors of a parameter tree, layer by layer.

    >>> tensor_names({"embed": {"w": jnp.ones((2, 3))}, "blocks": {"w": jnp.ones((2, 4))}})
    ['block_0.w', 'block_1.w', 'embed.w']
    """
    names = []
    for layer in layer_names(params, stacked=stacked):
        key = layer if layer in params else layer.rpartition("_")[0] + "s"
        paths = jax.tree_util.tree_flatten_with_path(params[key])[0]
        names += [
            f"{layer}.{jax.tree_util.keystr(path, simple=True, separator='.')}" for path, _ in paths
        ]
    return names


def depth(stack: Any) -> int:
    """The number of layers in a stacked subtree."""
    return jax.tree.leaves(stack)[0].shape[0]


def to_rows(values: Mapping[str, Any], *, stacked: tuple[str, ...] = STACKED) -> jax.Array:
    """Per-layer or per-tensor values as one array.

    Args:
      values: {key: [...], or [L, ...] for a stacked key}, or a tree of such arrays a key.

    Returns:
      [rows, ...], a row a layer in the order of `layer_names`, or a tensor in that of
      `tensor_names`.
    """

    def rows(key: str) -> jax.Array:
        leaves = jax.tree.leaves(values[key])
        if key not in stacked:
            return jnp.stack(leaves)
        table = jnp.stack(leaves, axis=1)  # [L, tensors, ...]
        return table.reshape(-1, *table.shape[2:])

    return jnp.concatenate([rows(key) for key in sorted(values)])


def groups(names: Sequence[str], cuts: tuple[int, int] | None = None) -> dict[str, tuple[str, ...]]:
    """Which layers form `embed`, `shallow`, `middle`, `deep` and `lm`.

    The paper (arXiv 2502.19301) shows layers 1-11, 12-22 and 23-33 of Llama-2-7B, counting its 32
    blocks and the embedding's output. Here the blocks are cut in thirds (32 blocks: 0-10, 11-21,
    22-31), the final norm counts as deep, and a tied head has no `lm`.

    Args:
      names: layer names, as `layer_names` gives them.
      cuts: first block of `middle` and of `deep`; default: thirds.

    Returns:
      {group: names}, only groups that have members.

    >>> groups(["block_0", "block_1", "block_2", "embed", "norm"])["deep"]
    ('block_2', 'norm')
    """
    blocks = sorted((n for n in names if n.startswith("block_")), key=lambda n: int(n[6:]))
    first, second = cuts or (math.ceil(len(blocks) / 3), math.ceil(2 * len(blocks) / 3))
    if not 0 <= first <= second <= len(blocks):
        raise ValueError(f"layer cuts {cuts} do not fit {len(blocks)} blocks")
    members = {
        "embed": [n for n in names if n == "embed"],
        "shallow": blocks[:first],
        "middle": blocks[first:second],
        "deep": blocks[second:] + [n for n in names if n == "norm"],
        "lm": [n for n in names if n == "lm_head"],
    }
    return {group: tuple(members[group]) for group in GROUPS if members[group]}
