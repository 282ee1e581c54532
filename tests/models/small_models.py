"""Small models and packed batches, shared by the tests of models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder

UNTIED = decoder.DecoderConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    context=64,
)
TIED = dataclasses.replace(UNTIED, tied=True)
GEMMA = dataclasses.replace(
    TIED,
    norm_placement="both",
    norm_offset=True,
    scaled_embedding=True,
    activation="gelu_tanh",
    qk_norm="head",
    query_scalar=6,
    attention_softcap=1.5,
    logit_softcap=3.0,
    sliding_window=3,
    full_layers=(1,),
    local_rope_theta=100.0,
)
"""What Gemma 2 has and what Gemma 3 has, in one model."""


@functools.cache
def random_params(config: decoder.DecoderConfig, seed: int = 0):
    """Parameters large enough that every leaf matters; norms around 1."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(float(leaf.init == "ones"), 0.2, leaf.shape)
    params: dict = {}
    for leaf in config.leaves():
        leaf.put(params, jnp.asarray(draw(leaf), jnp.float32))
    return params


def random_sequences(lengths, vocab_size: int, seed: int = 0) -> list[planning.Sample]:
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(0, vocab_size, n).astype(np.int32)
    return [planning.Sample(draw(n), max(1, n // 2)) for n in lengths]


def pack(sequences, width: int = 16) -> packing.Packed:
    """All sequences in one batch of as few rows as they need."""
    plan = planning.plan_dataset(sequences, width=width, max_width=width, target_tokens=10**6)
    (batch,) = packing.dataset_batches(sequences, plan)
    return batch


def sample_log_probs(params, batch, config, probe=None):
    """log p of every flat slot's sequence, [B]."""
    labels = decoder.forward(params, batch, config, probe=probe).labels
    return packing.unpack(labels, batch).sum(-1)


def by_id(values, batch) -> np.ndarray:
    """Values of flat slots in the order of the sample ids."""
    ids = np.asarray(batch.sample_ids).reshape(-1)
    out = np.zeros((ids.max() + 1, *np.shape(values)[1:]))
    out[ids[ids >= 0]] = np.asarray(values)[ids >= 0]
    return out


def layer_dots(a, b) -> jax.Array:
    """Inner products by layer, [layers], in the order of the sorted keys."""

    def dots(key):
        first = 1 if key == "blocks" else 0
        parts = jax.tree.map(lambda x, y: (x * y).sum(tuple(range(first, x.ndim))), a[key], b[key])
        return jnp.atleast_1d(sum(jax.tree.leaves(parts)))

    return jnp.concatenate([dots(key) for key in sorted(a)])


def layer_norms(a) -> jax.Array:
    return jnp.sqrt(layer_dots(a, a))
