"""Groups of the decoder's layers in which the paper and the reports show effects."""

import math
from collections.abc import Sequence

GROUPS = ("embed", "shallow", "middle", "deep", "lm")


def is_block(name: str) -> bool:
    """Whether a layer of this name is a block of the decoder."""
    return name.startswith("block_")


def layer_groups(
    names: Sequence[str], cuts: tuple[int, int] | None = None
) -> dict[str, tuple[str, ...]]:
    """The layers that form `embed`, `shallow`, `middle`, `deep` and `lm`.

    The paper (arXiv 2502.19301) shows layers 1-11, 12-22 and 23-33 of Llama-2-7B, counting its 32
    blocks and the embedding's output. Here the blocks are cut in thirds (32 blocks: 0-10, 11-21,
    22-31), the final norm counts as deep, and a tied head has no `lm`.

    Args:
      names: names of the decoder's layers, as `effects.layer_names` gives them.
      cuts: first block of `middle` and of `deep`; default: thirds.

    Returns:
      {group: names}, only groups that have members.

    Raises:
      ValueError: cuts that are out of order or beyond the last block.

    >>> layer_groups(["block_0", "block_1", "block_2", "embed", "norm"])["deep"]
    ('block_2', 'norm')
    """
    blocks = sorted(filter(is_block, names), key=lambda n: int(n[6:]))
    first, second = cuts or (math.ceil(len(blocks) / 3), math.ceil(2 * len(blocks) / 3))
    if not 0 <= first <= second <= len(blocks):
        raise ValueError(
            f"layer cuts {cuts} do not fit {len(blocks)} blocks; expected two numbers in"
            f" 0..{len(blocks)}, the smaller one first"
        )
    members = {
        "embed": [n for n in names if n == "embed"],
        "shallow": blocks[:first],
        "middle": blocks[first:second],
        "deep": blocks[second:] + [n for n in names if n == "norm"],
        "lm": [n for n in names if n == "lm_head"],
    }
    return {group: tuple(members[group]) for group in GROUPS if members[group]}
