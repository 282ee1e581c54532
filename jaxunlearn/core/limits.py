"""Upper bounds of what users ask for: what is beyond them is a slip, and would fill the memory."""

from collections.abc import Mapping

SIZES: Mapping[str, int] = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_layers": 10_000,
    "num_heads": 2**14,
    "num_kv_heads": 2**14,
    "head_dim": 2**16,
    "context": 2**30,
}
"""More than any model has, by the field of `DecoderConfig`."""

STEPS = 10**7
"""More than any training takes; each is planned before the first one."""

SEEDS = 1000
"""More than anybody compares."""
