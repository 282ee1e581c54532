"""The FLOPs that a forward pass needs: what a model's sizes demand, not what a program computes."""

import numpy as np

from jaxunlearn.models.decoder.config import DecoderConfig
from jaxunlearn.models.decoder.lora import adapter_leaves

GRADIENT = 3
"""Forward passes that a gradient takes: the reverse pass has two products for each forward one."""


def gradient_passes(config: DecoderConfig) -> int:
    """Forward passes that the gradient of what trains takes.

    Beside adapters the matrices are frozen: the product that forms a matrix's gradient is not
    needed, only that which hands the gradient on to its input.
    """
    return GRADIENT if config.lora is None else GRADIENT - 1


def forward_flops(
    config: DecoderConfig, tokens: np.ndarray, labels: np.ndarray, *, blocks: int | None = None
) -> np.ndarray:
    """FLOPs of each of some sequences, with no padding, no masked score and no unread logit.

    Only matrix products count, 2 FLOPs for a multiply-add. Throughput in these FLOPs over a peak is
    the model FLOPs utilisation (MFU): padding and recomputation lower it.

    Args:
      config: the model.
      tokens: [n], of each sequence.
      labels: [n], those of them whose probability is read.
      blocks: blocks to run, without a head after them; None: all blocks and the head.

    Returns:
      [n] int64.
    """
    tokens, labels = np.asarray(tokens, np.int64), np.asarray(labels, np.int64)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    block += sum(leaf.shape[1] * leaf.shape[2] for leaf in adapter_leaves(config))
    layers = config.num_layers if blocks is None else blocks
    full = layers if config.sliding_window is None else sum(i < layers for i in config.full_layers)
    # Scores and their mix, of a token with itself and those before it, at most a window of them.
    window = np.minimum(tokens, config.sliding_window or tokens)
    pairs = full * _pairs(tokens, tokens) + (layers - full) * _pairs(tokens, window)
    head = labels * config.hidden_size * config.vocab_size if blocks is None else 0
    return 2 * (layers * tokens * block + 2 * pairs * queries + head)


def _pairs(tokens: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Queries and keys that meet in sequences of which a query sees at most a window."""
    return window * (window + 1) // 2 + (tokens - window) * window
