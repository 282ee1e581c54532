"""Llama in PyTorch, written plainly: the peer of `jaxunlearn.models.decoder` in the benchmarks.

Weights are a flat dict in PyTorch's own layout, [out, in], made from the JAX tree. The model is one
function of `read`, where read(name, x) applies the weight of that name to x. Ways that change how
weights are applied (a ghost dot product, modules with hooks) pass a `read` of their own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jaxunlearn.data.packing import Packed
from jaxunlearn.models.decoder import DecoderConfig

Weights = dict[str, Tensor]
Read = Callable[[str, Tensor], Tensor]
LINEAR = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")


class Batch(NamedTuple):
    """One sequence a row, padded on the right, where causal attention does not read it.

    Attributes:
      tokens: [B, T].
      label_at: [B, N], the column that predicts the label.
      labels: [B, N].
      mask: [B, N].
    """

    tokens: Tensor
    label_at: Tensor
    labels: Tensor
    mask: Tensor


def to_batch(packed: Packed, device: str = "cpu") -> Batch:
    """The same samples, from rows that hold one sequence each."""
    arrays = (packed.tokens, packed.label_at, packed.label_tokens, packed.mask[:, 0])
    tokens, at, labels, mask = (torch.tensor(np.asarray(x), device=device) for x in arrays)
    return Batch(tokens.long(), at.long(), labels.long(), mask)


def to_weights(tree: Mapping[str, Any], device: str = "cpu") -> Weights:
    """{"embed", "blocks.0.q", .., "norm", "lm_head": weight} of a JAX tree of parameters."""
    weights: Weights = {}
    for key, group in tree.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(group)[0]:
            names, array = [p.key for p in path], np.asarray(leaf)
            if names[-1] == "kernel":
                array = np.ascontiguousarray(np.swapaxes(array, -1, -2))
            tensor = _tensor(array).to(device)
            if key == "blocks":
                weights |= {f"blocks.{i}.{names[0]}": part for i, part in enumerate(tensor)}
            else:
                weights[key] = tensor
    return dict(sorted(weights.items()))


def _tensor(array: np.ndarray) -> Tensor:
    """A copy in PyTorch, which reads no bfloat16 arrays of numpy."""
    if array.dtype == jnp.bfloat16:
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def is_linear(name: str) -> bool:
    """Whether a weight is that of a matrix product (not an embedding's or a norm's)."""
    return name.rpartition(".")[2] in LINEAR


def apply(name: str, weight: Tensor, x: Tensor) -> Tensor:
    """Applies a weight to x; the result is linear in the weight."""
    if name == "embed":
        return F.embedding(x, weight)
    return F.linear(x, weight) if is_linear(name) else x * weight


def reader(weights: Weights) -> Read:
    """Applies the weights of a dict."""
    return lambda name, x: apply(name, weights[name], x)


def sample_logp(read: Read, batch: Batch, config: DecoderConfig) -> Tensor:
    """log p of every sample, [B]; the head runs where labels are predicted, and only there."""
    x = read("embed", batch.tokens)
    rope = _rope(batch.tokens.shape[1], config, x)
    for i in range(config.num_layers):
        x = _block(lambda name, x, i=i: read(f"blocks.{i}.{name}", x), x, rope, config)
    at = batch.label_at[..., None].expand(*batch.label_at.shape, x.shape[-1])
    x = read("norm", _normalise(torch.gather(x, 1, at), config))
    logp = F.log_softmax(_wide(read("lm_head", x)), -1)
    label_logp = torch.gather(logp, -1, batch.labels[..., None])[..., 0]
    return torch.where(batch.mask, label_logp, 0.0).sum(-1)


def _block(read: Read, x: Tensor, rope: tuple[Tensor, Tensor], config: DecoderConfig) -> Tensor:
    heads = lambda name, x: read(name, x).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
    normal = partial(_normalise, config=config)
    y = read("attn_norm", normal(x))
    query, key, value = _rotate(heads("q", y), rope), _rotate(heads("k", y), rope), heads("v", y)
    repeats = config.num_heads // config.num_kv_heads
    if repeats > 1:
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + read("o", mixed.transpose(1, 2).flatten(2))
    y = read("mlp_norm", normal(x))
    return x + read("down", F.silu(read("gate", y)) * read("up", y))


def _normalise(x: Tensor, config: DecoderConfig) -> Tensor:
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + config.norm_eps)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """Float32 or wider, in which norms and likelihoods are computed."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _rope(length: int, config: DecoderConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    options = {"device": like.device, "dtype": torch.float64}
    powers = torch.arange(0, config.head_dim, 2, **options) / config.head_dim
    angle = torch.arange(length, **options)[:, None] * config.rope_theta**-powers
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
