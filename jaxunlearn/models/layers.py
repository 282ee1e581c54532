"""The parts of a Llama: Flax modules used functionally, on packed rows.

Letters: R rows, T tokens of a row, D model width, K directions of a probe. Every parameter is read
in one place, `_read`, where a probe adds its gated directions.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.models.architecture import LlamaConfig
from jaxunlearn.models.sharding import ROWS, constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # query, key, value

QUERY_BLOCK = 64  # fewest queries of a block of attention
MAX_QUERY_BLOCKS = 8  # bounds the size of the program


def wide(dtype: Any) -> Any:
    """float32, or wider where the computation is."""
    return jnp.promote_types(dtype, jnp.float32)


def _wide_einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum added up and kept in float32; its reverse takes half-precision factors too."""
    half = a.dtype == jnp.bfloat16
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if half else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=wide(a.dtype))


def _read(module: nn.Module, name: str, use: Callable, x: jax.Array) -> jax.Array:
    """use(x, W), and under a probe the gated directions: use(x, W + sum_k a_k V_k) at a = 0.

    Args:
      module: holds W in "params"; under a probe (V_1, .., V_K) in "direction" and a, [R, T, K], in
        "gates".
      name: of the parameter.
      use: the map (x, W) -> [R, T, ..], linear in the parameter.
      x: [R, T, ...].
    """
    y = use(x, module.get_variable("params", name))
    if not module.has_variable("gates", name):
        return y
    gates, directions = (module.get_variable(kind, name) for kind in ("gates", "direction"))
    return _gated(use, y, gates, jax.lax.stop_gradient(x), directions)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gated(use, y, gates, x, directions):
    """y + sum_k a_k use(x, V_k) at a = 0, which is y."""
    return y


@_gated.defjvp
def _gated_tangent(use, primals, tangents):
    y, _, x, directions = primals
    dy, d_gates, *_ = tangents

    # Under remat the reverse pass keeps x and contracts it with V_k there: the forward pass neither
    # computes nor keeps use(x, V_k), so there is nothing that could be shared with it.
    @partial(jax.checkpoint, prevent_cse=False)
    def along(d_gates, x, directions):
        parts = [
            d_gates[..., k, None] * use(x, v).astype(d_gates.dtype)
            for k, v in enumerate(directions)
        ]
        return sum(parts[1:], parts[0]).astype(y.dtype)

    return y, dy + along(d_gates, x, directions)


class Linear(nn.Module):
    """x @ kernel."""

    dtype: str

    def __call__(self, x: jax.Array) -> jax.Array:
        use = lambda x, kernel: x @ kernel.astype(self.dtype)
        return _read(self, "kernel", use, x.astype(self.dtype))


class Unembed(nn.Module):
    """x @ kernel, added up and kept in float32."""

    dtype: str

    def __call__(self, x: jax.Array) -> jax.Array:
        use = lambda x, kernel: _wide_einsum("rtd,dv->rtv", x, kernel.astype(self.dtype))
        return _read(self, "kernel", use, x.astype(self.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32."""

    eps: float

    def __call__(self, x: jax.Array) -> jax.Array:
        full = x.astype(wide(x.dtype))
        normalised = full * jax.lax.rsqrt(jnp.mean(full**2, -1, keepdims=True) + self.eps)
        use = lambda x, scale: x * scale.astype(x.dtype)
        return _read(self, "scale", use, normalised).astype(x.dtype)


class Embed(nn.Module):
    """Rows of the embedding, and `attend`, the tied unembedding."""

    dtype: str

    def __call__(self, tokens: jax.Array) -> jax.Array:
        use = lambda tokens, table: jnp.take(table, tokens, axis=0).astype(self.dtype)
        return _read(self, "embedding", use, tokens)

    def attend(self, x: jax.Array) -> jax.Array:
        use = lambda x, table: _wide_einsum("rtd,vd->rtv", x, table.astype(self.dtype))
        return _read(self, "embedding", use, x.astype(self.dtype))


class Attention(nn.Module):
    """Attention with grouped queries; its keys and values are sown into "cache" for decoding."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple, attend: Attend):
        config = self.config
        linear = lambda name: Linear(config.dtype, name=name)
        heads = lambda name: linear(name)(x).reshape(*x.shape[:2], -1, config.head_dim)
        query, key, value = _rotate(heads("q"), rope), _rotate(heads("k"), rope), heads("v")
        self.sow("cache", "key", key)
        self.sow("cache", "value", value)
        mixed = attend(query, key, value).reshape(*x.shape[:2], -1)
        return linear("o")(constrain(mixed, ROWS, None, "tensor"))


class MLP(nn.Module):
    """(silu(x @ gate) * (x @ up)) @ down."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = lambda name: Linear(self.config.dtype, name=name)
        gated = nn.silu(linear("gate")(x)) * linear("up")(x)
        return linear("down")(constrain(gated, ROWS, None, "tensor"))


class Block(nn.Module):
    """One transformer block; Attention and MLP share its scope, so its parameters are flat."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple, attend: Attend):
        norm = lambda name: RMSNorm(self.config.norm_eps, name=name)
        attention, mlp = Attention(self.config), MLP(self.config)
        nn.share_scope(self, attention)
        nn.share_scope(self, mlp)
        x = x + attention(norm("attn_norm")(x), rope, attend)
        return x + mlp(norm("mlp_norm")(x))


def causal_attention(config: LlamaConfig, mask: jax.Array) -> Attend:
    """Attention of a whole sequence to itself where the mask [R, 1, T, T] is True."""
    if config.attention == "cudnn":
        return partial(jax.nn.dot_product_attention, mask=mask, implementation="cudnn")
    return partial(_attend_causally, mask=mask)


def _attend_causally(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """`attend` in blocks of queries, each with the keys up to its own end: nearly half the scores
    of packed rows lie in the future, and are not computed."""
    tokens = query.shape[1]
    size = max(QUERY_BLOCK, -(-tokens // MAX_QUERY_BLOCKS))
    blocks = [(first, min(first + size, tokens)) for first in range(0, tokens, size)]
    mixed = [
        attend(query[:, first:end], key[:, :end], value[:, :end], mask[:, :, first:end, :end])
        for first, end in blocks
    ]
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(H)) v, [R, T, heads, H]; a query head reads its group's key head.

    jax.nn.dot_product_attention is the same but for its softmax, float32 even in float64.
    """
    rows, tokens, heads, head_dim = query.shape
    query = query.reshape(rows, tokens, key.shape[2], -1, head_dim)
    scores = _wide_einsum("rtkgh,rskh->rkgts", query, key) / math.sqrt(head_dim)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("rkgts,rskh->rtkgh", weights, value).reshape(rows, tokens, heads, head_dim)


def attention_mask(segments: jax.Array) -> jax.Array:
    """[R, 1, T, T] bool: not later, and of the same segment; padding sees padding."""
    columns = jnp.arange(segments.shape[1])
    causal = columns[:, None] >= columns
    return (causal & (segments[:, :, None] == segments[:, None, :]))[:, None]


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Rotary frequencies, [H / 2] in radians a token (arXiv 2104.09864).

    theta^(-2i/H); with Llama 3's scaling, wavelengths over context / low_freq_factor are stretched
    by `factor`, those under context / high_freq_factor kept, and those between blended.
    """
    frequency = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_context * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


def rope_tables(positions: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [R, T, 1, H / 2]."""
    dtype = wide(config.dtype)
    frequencies = jnp.asarray(rope_frequencies(config), dtype)
    angle = positions[..., None, None].astype(dtype) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates [R, T, heads, H] in pairs (i, i + H / 2), as Hugging Face's files have it."""
    cos, sin = rope
    first, second = jnp.split(x.astype(cos.dtype), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
