"""The parts of the decoder: Flax modules used functionally, on packed rows.

Letters: R rows, T tokens of a row, D model width, H head size, K directions of a probe. Every
parameter is read in one place, `_read`, where a probe adds its gated directions.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxunlearn.core import trees
from jaxunlearn.models.decoder.config import DecoderConfig, LinearRopeScaling
from jaxunlearn.models.decoder.products import paired, product
from jaxunlearn.models.sharding import ROWS, constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(query, key, value), each [R, T, heads, H] -> the mixed values [R, T, query heads, H]."""

Rope = tuple[jax.Array, jax.Array]
"""cos and sin of the rotary angles, each [R, T, 1, H / 2]."""

ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": partial(nn.gelu, approximate=True)}
"""The functions that `DecoderConfig.activation` names."""

QUERY_BLOCK = 64
"""Fewest queries of a block of attention."""

MAX_QUERY_BLOCKS = 8
"""Most blocks of attention: every one of them is a part of the compiled program."""


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns float32, or `dtype` where that is wider; `core.trees.wide` does it to arrays."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def _read(module: nn.Module, name: str, use: Callable, x: jax.Array) -> jax.Array:
    """use(x, W), and under a probe the gated directions: use(x, W + sum_k a_k V_k) at a = 0.

    Args:
      module: holds W in "params"; under a probe (V_1, .., V_K) in "direction" and a, [R, T, K], in
        "gates".
      name: of the parameter.
      use: the map (x, W) -> [R, T, ...], linear in the parameter.
      x: [R, T, ...].
    """
    y = use(x, module.get_variable("params", name))
    gates, directions = (module.get_variable(kind, name) for kind in ("gates", "direction"))
    # Without a probe the program is that of the plain model. Frozen parameters have no directions.
    if directions is None:
        return y
    # Gates of the layers below act through y. Inside the gated term they are a second-order effect,
    # which is 0 at a = 0, so no gradient flows into x there.
    return _gated(use, y, gates, jax.lax.stop_gradient(x), directions)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gated(use, y, gates, x, directions):
    """y + sum_k a_k use(x, V_k) at a = 0, which is y.

    The value needs no product with the directions, only the derivative with respect to the gates
    does. A custom rule says so; autodiff would compute the products of the forward pass as well.
    """
    return y


@_gated.defjvp
def _gated_tangent(use, primals, tangents):
    y, _, x, directions = primals
    dy, d_gates, *_ = tangents

    # Under remat the reverse pass keeps x and contracts it with V_k there: the forward pass neither
    # computes nor keeps use(x, V_k). Common subexpressions cannot arise, so they are not prevented.
    @partial(jax.checkpoint, prevent_cse=False)
    def along(d_gates, x, directions):
        # A token's gate scales all of its output, which has one axis or two (heads) after [R, T].
        trailing = (None,) * (y.ndim - 2)
        parts = [
            d_gates[(..., k, *trailing)] * use(x, v).astype(d_gates.dtype)
            for k, v in enumerate(directions)
        ]
        return sum(parts[1:], parts[0]).astype(y.dtype)

    return y, dy + along(d_gates, x, directions)


class Linear(nn.Module):
    """x @ kernel, plus an adapter, plus a bias, where the model has them."""

    config: DecoderConfig
    use_bias: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        use = lambda x, kernel: product(x, kernel, self.config)
        x, lora = x.astype(self.config.dtype), self.config.lora
        y = _read(self, "kernel", use, x)
        if lora is not None and self.name in lora.targets:
            y = y + lora.scale * _read(self, "lora_b", use, _read(self, "lora_a", use, x))
        if not self.use_bias:
            return y
        # The bias is spread over the tokens before it is read, for each has gates of its own.
        # It is cast after that: its gradient, a sum over tokens, is added up before it is rounded.
        spread = lambda y, bias: jnp.broadcast_to(bias, y.shape).astype(y.dtype)
        return y + _read(self, "bias", spread, y)


class Unembed(nn.Module):
    """x @ kernel, added up and kept in float32."""

    config: DecoderConfig

    def __call__(self, x: jax.Array) -> jax.Array:
        use = lambda x, kernel: product(x, kernel, self.config, wide=True)
        return _read(self, "kernel", use, x.astype(self.config.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32 or wider.

    With `norm_offset` the factor is 1 + scale.
    """

    config: DecoderConfig

    def __call__(self, x: jax.Array) -> jax.Array:
        full = trees.wide(x)
        mean = jnp.mean(full**2, -1, keepdims=True)
        normalised = full * jax.lax.rsqrt(mean + self.config.norm_eps)
        use = lambda x, scale: x * jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1))
        y = _read(self, "scale", use, normalised)
        if self.config.norm_offset:
            y = normalised + y
        return y.astype(x.dtype)


class Embed(nn.Module):
    """Rows of the embedding, scaled where the model does so, and `attend`, the tied unembedding."""

    config: DecoderConfig

    def __call__(self, tokens: jax.Array) -> jax.Array:
        dtype = self.config.dtype
        use = lambda tokens, table: jnp.take(table, tokens, axis=0).astype(dtype)
        if self.config.scaled_embedding:
            rows, factor = use, jnp.asarray(math.sqrt(self.config.hidden_size), dtype)
            use = lambda tokens, table: rows(tokens, table) * factor
        return _read(self, "embedding", use, tokens)

    def attend(self, x: jax.Array) -> jax.Array:
        use = lambda x, table: product(x, table, self.config, axis=1, wide=True)
        return _read(self, "embedding", use, x.astype(self.config.dtype))


class Attention(nn.Module):
    """Attention with grouped queries; its keys and values are sown into "cache" for decoding."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: Rope, attend: Attend):
        config = self.config
        linear = lambda name: Linear(config, config.qkv_bias, name=name)(x)
        heads = lambda y: y.reshape(*x.shape[:2], -1, config.head_dim)

        def rotated(name: str) -> jax.Array:
            """Queries or keys: normalised where the model has such norms, then rotated."""
            norm = lambda y: RMSNorm(config, name=f"{name}_norm")(y)
            y = linear(name)
            if config.qk_norm == "projection":
                y = norm(y)
            y = heads(y)
            if config.qk_norm == "head":
                y = norm(y)
            return _rotate(y, rope)

        query, key, value = rotated("q"), rotated("k"), heads(linear("v"))
        # Sown values are dropped unless the caller makes "cache" mutable, as decoding does.
        self.sow("cache", "key", key)
        self.sow("cache", "value", value)
        mixed = attend(query, key, value).reshape(*x.shape[:2], -1)
        # The heads stay split over `tensor`, as `o` contracts them: one all-reduce a block.
        mixed = constrain(mixed, ROWS, None, "tensor")
        return Linear(config, config.o_bias, name="o")(mixed)


class MLP(nn.Module):
    """(act(x @ gate) * (x @ up)) @ down, with biases where the model has them."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = lambda name: Linear(self.config, self.config.mlp_bias, name=name)
        gated = ACTIVATIONS[self.config.activation](linear("gate")(x)) * linear("up")(x)
        return linear("down")(constrain(gated, ROWS, None, "tensor"))


class Block(nn.Module):
    """One transformer block; Attention and MLP share its scope, so its parameters are flat."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: Rope, attend: Attend):
        norm = lambda name: RMSNorm(self.config, name=name)
        attn_norm, mlp_norm = norm("attn_norm"), norm("mlp_norm")
        attention, mlp = Attention(self.config), MLP(self.config)
        nn.share_scope(self, attention)
        nn.share_scope(self, mlp)
        if self.config.norm_placement == "post":
            x = x + attn_norm(attention(x, rope, attend))
            return x + mlp_norm(mlp(x))
        if self.config.norm_placement == "both":
            x = x + norm("attn_out_norm")(attention(attn_norm(x), rope, attend))
            return x + norm("mlp_out_norm")(mlp(mlp_norm(x)))
        x = x + attention(attn_norm(x), rope, attend)
        return x + mlp(mlp_norm(x))


def by_kind(
    positions: jax.Array, mask: Callable[[int | None], jax.Array], config: DecoderConfig
) -> Callable[[Any], tuple[Rope, jax.Array]]:
    """Angles and masks of the blocks, computed once for each kind of block, outside their scan.

    Args:
      positions: [R, T], of the tokens in their sequences.
      mask: the window of a block -> which keys its queries see.
      config: the model.

    Returns:
      The entry of a block in `full_layers` -> its angles and mask. Where all blocks are alike, that
      entry is None, and the program does not choose.
    """

    def make(windowed: bool) -> tuple[Rope, jax.Array]:
        rope = rope_tables(positions, config, windowed=windowed)
        return rope, mask(config.sliding_window if windowed else None)

    if not config.full_layers:
        common = make(config.sliding_window is not None)
        return lambda _: common
    full, windowed = make(False), make(True)
    return lambda is_full: jax.tree.map(partial(jnp.where, is_full), full, windowed)


def full_layers(config: DecoderConfig) -> jax.Array | None:
    """Which blocks attend to all in spite of a window, [L] bool; None where all are alike."""
    if not config.full_layers:
        return None
    return jnp.asarray(np.isin(np.arange(config.num_layers), config.full_layers))


def causal_attention(config: DecoderConfig, mask: jax.Array) -> Attend:
    """Attention of a whole sequence to itself where the mask [R, 1, T, T] is True."""
    if config.attention == "cudnn":
        scale = None if config.query_scalar is None else 1 / math.sqrt(config.query_scalar)
        fused = partial(jax.nn.dot_product_attention, implementation="cudnn")
        return partial(fused, mask=mask, scale=scale)
    return partial(_attend_causally, mask=mask, config=config)


def _attend_causally(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, config: DecoderConfig
) -> jax.Array:
    """`attend` in blocks of queries, each with the keys that its mask can let through.

    Keys end with the block: nearly half the scores of packed rows lie in the future, and are not
    computed. With a window that all layers have they start with that of the block's first query.
    """
    tokens, window = query.shape[1], config.common_window
    size = max(QUERY_BLOCK, -(-tokens // MAX_QUERY_BLOCKS))
    # Brought to the layout of the products once, and not once a block.
    query, key, value = _by_head(query, key, value)
    mixed = []
    for first in range(0, tokens, size):
        end = min(first + size, tokens)
        start = 0 if window is None else max(first - window + 1, 0)
        part = query[..., first:end, :], key[:, :, start:end], value[:, :, start:end]
        mixed.append(_mix(*part, mask[:, :, first:end, start:end], config))
    return _by_token(mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=3))


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, config: DecoderConfig
) -> jax.Array:
    """softmax(q k / sqrt(H)) v, [R, T, heads, H]; a query head reads its group's key head.

    The model may have another divisor than sqrt(H), or cap the scores.

    jax.nn.dot_product_attention is the same but for its softmax, float32 even in float64.
    """
    return _by_token(_mix(*_by_head(query, key, value), mask, config))


def _by_head(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[R, T, heads, H] -> queries [R, key heads, group, T, H], keys and values [R, heads, T, H]."""
    rows, tokens, _, head_dim = query.shape
    query = query.reshape(rows, tokens, key.shape[2], -1, head_dim)
    return query.transpose(0, 2, 3, 1, 4), key.swapaxes(1, 2), value.swapaxes(1, 2)


def _by_token(mixed: jax.Array) -> jax.Array:
    """[R, key heads, group, T, H] -> [R, T, heads, H]."""
    rows, _, _, tokens, head_dim = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, tokens, -1, head_dim)


def _mix(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, config: DecoderConfig
) -> jax.Array:
    """`attend` in the layouts of `_by_head`; the mask is [R, 1, T, S]."""
    rows, heads, group, tokens, head_dim = query.shape
    # The queries of a group are one matrix, because they have their keys in common.
    query = query.reshape(rows, heads, -1, head_dim)
    scores = paired(query, key, config, axis=1, wide=True)
    scores = scores / math.sqrt(config.query_scalar or head_dim)
    scores = softcapped(scores, config.attention_softcap)
    scores = scores.reshape(rows, heads, group, tokens, -1)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = paired(weights.reshape(rows, heads, group * tokens, -1), value, config)
    return mixed.reshape(rows, heads, group, tokens, -1)


def softcapped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap), which is near x where x is small, and never exceeds the cap.

    >>> softcapped(jnp.array([0.0, 100.0]), 5.0).tolist()
    [0.0, 5.0]
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention_mask(segments: jax.Array, window: int | None = None) -> jax.Array:
    """Which keys a query sees: those not later, of the same segment, and inside the window.

    Args:
      segments: [R, T] int32, -1 on padding; padding sees padding.
      window: tokens that a query sees, itself included; None for all. A segment's columns are
        contiguous, so a distance in columns is one in positions of the segment.

    Returns:
      [R, 1, T, T] bool, queries before keys.
    """
    columns = jnp.arange(segments.shape[1])
    causal = columns[:, None] >= columns[None]
    if window is not None:
        causal &= columns[:, None] - columns[None] < window
    return (causal[None] & (segments[:, :, None] == segments[:, None, :]))[:, None]


def rope_frequencies(config: DecoderConfig, *, windowed: bool = False) -> np.ndarray:
    """Rotary frequencies, [H / 2] in radians a token (arXiv 2104.09864).

    theta^(-2i/H); linear scaling stretches all wavelengths by `factor`. With Llama 3's, those over
    context / low_freq_factor are stretched, those under context / high_freq_factor kept, and those
    between blended.

    Args:
      config: the model.
      windowed: of the layers with a window, which may have a theta of their own, not scaled.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if windowed and config.local_rope_theta is not None:
        theta, scaling = config.local_rope_theta, None
    frequency = theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    if scaling is None:
        return frequency
    if isinstance(scaling, LinearRopeScaling):
        return frequency / scaling.factor
    turns = scaling.original_context * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    unchanged = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return frequency * (unchanged + (1 - unchanged) / scaling.factor)


def rope_tables(positions: jax.Array, config: DecoderConfig, *, windowed: bool = False) -> Rope:
    """cos and sin, [R, T, 1, H / 2], of layers without or with a window."""
    dtype = wide_dtype(config.dtype)
    frequencies = rope_frequencies(config, windowed=windowed)
    frequencies = jnp.asarray(frequencies, dtype)[None, None, None]
    angle = positions[..., None, None].astype(dtype) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotates [R, T, heads, H] in pairs (i, i + H / 2), as Hugging Face's files have it."""
    cos, sin = rope
    first, second = jnp.split(x.astype(cos.dtype), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
