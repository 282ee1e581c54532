"""Decoding with a cache of keys and values: prompts and continuations in one compiled program.

Letters: B rows, P columns of the prompts, N new tokens, S = P + N - 1 columns of the cache,
L layers, G key heads, H head size, D model width, V vocabulary.

Prompts are padded on the left, so that all rows write a step's keys in the same column.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import Tree
from jaxunlearn.models.decoder import modules, transformer
from jaxunlearn.models.decoder.config import DecoderConfig
from jaxunlearn.models.decoder.sampling import GREEDY, Sampling, drawer
from jaxunlearn.models.sharding import ROWS, constrain

CachedAttend = Callable[..., jax.Array]
"""(query, key, value, mask, cached keys and values of the layer) -> the mixed values."""


class Cache(NamedTuple):
    """Rotated keys, and values, of all layers or of one.

    Attributes:
      key: [L, B, S, G, H].
      value: [L, B, S, G, H].
    """

    key: jax.Array
    value: jax.Array


class DecodeState(NamedTuple):
    """The values that the decoding loop carries from step to step.

    Attributes:
      step: [] int32, tokens written so far.
      tokens: [B, N] int32.
      lengths: [B] int32, new tokens of each row, its EOS included.
      done: [B] bool, the row has written its EOS.
      cache: keys and values of all columns written so far.
    """

    step: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    done: jax.Array
    cache: Cache


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "eos_token_id", "sampling"))
def generate(
    params: Tree,
    prompts: jax.Array,
    lengths: jax.Array,
    config: DecoderConfig,
    *,
    max_new_tokens: int,
    eos_token_id: int | None,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continues every prompt until its EOS or `max_new_tokens`; stops when all have ended.

    Args:
      params: see `abstract_params`.
      prompts: [B, P] int32, padded on the left with any token of the vocabulary.
      lengths: [B] int32, tokens of each prompt, 1..P.
      config: the model.
      max_new_tokens: most tokens of a continuation, its EOS included.
      eos_token_id: ends a row; None lets all rows run to the end.
      sampling: how a token is chosen; the most probable one by default.
      key: for sampling, [B] PRNG keys, one a row, or one to be folded with each row's index.

    Returns:
      tokens [B, N] int32, EOS (0 without one) after the end of a row, and lengths [B] int32 of the
      continuations, EOS included; on a mesh, whole on every device.

    Raises:
      ValueError: prompts and continuations over the model's context, or keys that do not fit.
    """
    _check_size(prompts.shape[1], max_new_tokens, config)
    rows, width = prompts.shape
    draw = drawer(rows, sampling, key)
    prompts, lengths = constrain(prompts, ROWS, None), constrain(lengths, ROWS)

    logits, cache = _read_prompts(params, prompts, lengths, config, max_new_tokens - 1)
    fill = 0 if eos_token_id is None else eos_token_id
    state = DecodeState(
        step=jnp.int32(0),
        tokens=jnp.full((rows, max_new_tokens), fill, jnp.int32),
        lengths=jnp.zeros((rows,), jnp.int32),
        done=jnp.zeros((rows,), bool),
        cache=cache,
    )
    state = _write(state, draw(logits, 0), eos_token_id)

    def unfinished(state):
        return (state.step < max_new_tokens) & ~jnp.all(state.done)

    def advance(state):
        logits, cache = _read_last(params, state, lengths, width, config)
        return _write(state._replace(cache=cache), draw(logits, state.step), eos_token_id)

    state = jax.lax.while_loop(unfinished, advance, state)
    return constrain(state.tokens, None, None), constrain(state.lengths, None)


def _write(state: DecodeState, token: jax.Array, eos_token_id: int | None) -> DecodeState:
    """The state with one more token a row; the columns of ended rows keep their filling."""
    running = ~state.done
    if eos_token_id is not None:
        token = jnp.where(running, token, eos_token_id)
    return state._replace(
        step=state.step + 1,
        tokens=jax.lax.dynamic_update_slice_in_dim(
            state.tokens, token[:, None], state.step, axis=1
        ),
        lengths=state.lengths + running,
        done=state.done if eos_token_id is None else state.done | (token == eos_token_id),
    )


def _read_prompts(
    params: Tree, prompts: jax.Array, lengths: jax.Array, config: DecoderConfig, room: int
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after the prompts, and their cache with `room` columns more."""
    positions = jnp.arange(prompts.shape[1])[None] - (prompts.shape[1] - lengths[:, None])
    segments = jnp.where(positions < 0, -1, 0)
    mask = partial(modules.attention_mask, segments)
    attend = lambda query, key, value, mask, _: modules.causal_attention(config, mask)(
        query, key, value
    )
    logits, fresh = _run(params, prompts, positions, mask, attend, config)
    widths = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
    return logits, _pinned(jax.tree.map(lambda x: jnp.pad(x, widths), fresh))


def _read_last(
    params: Tree, state: DecodeState, lengths: jax.Array, width: int, config: DecoderConfig
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after the last token of every row, and the cache with that token in it.

    Layers read the cache and return their new column alone. The columns of all layers are written
    by one update, which the loop does in place: it never copies the cache.
    """
    last = state.step - 1
    column = width + last
    columns = jnp.arange(state.cache.key.shape[2])[None]

    def mask(window):
        mask = (columns >= width - lengths[:, None]) & (columns <= column)
        if window is not None:
            mask &= columns > column - window
        return mask[:, None, None]

    def attend(query, key, value, mask, past):
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=column, axis=1)
        key, value = write(past.key, key), write(past.value, value)
        return modules.attend(query, key, value, mask, config)

    token = jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, axis=1)
    positions = (lengths + last)[:, None]
    logits, fresh = _run(params, token, positions, mask, attend, config, state.cache)
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, column, axis=2)
    return logits, _pinned(jax.tree.map(write, state.cache, fresh))


def _run(
    params: Tree,
    tokens: jax.Array,
    positions: jax.Array,
    mask: Callable[[int | None], jax.Array],
    attend: CachedAttend,
    config: DecoderConfig,
    past: Cache | None = None,
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after the last of the tokens [B, T], and the tokens' keys and values.

    Args:
      params: see `abstract_params`.
      tokens: [B, T].
      positions: [B, T], of the tokens in their sequences.
      mask: the window of a layer -> which keys its queries see.
      attend: how a layer mixes the values that it sees.
      config: the model.
      past: keys and values of earlier tokens.
    """
    seen = modules.by_kind(positions, mask, config)

    def block(x, layer):
        params, past, kind = layer
        rope, mask = seen(kind)
        own = lambda query, key, value: attend(query, key, value, mask, past)
        x, sown = _apply(modules.Block(config), params, x, rope, own, mutable="cache")
        (key,), (value,) = sown["cache"]["key"], sown["cache"]["value"]
        return constrain(x, ROWS, None, None), Cache(key, value)

    x = _apply(modules.Embed(config), params["embed"], tokens)
    layers = (params["blocks"], past, modules.full_layers(config))
    x, fresh = jax.lax.scan(block, constrain(x, ROWS, None, None), layers)
    x = _apply(modules.RMSNorm(config), params["norm"], x[:, -1:])
    return transformer.head_logits(params, x, config)[:, 0], fresh


def _apply(module: nn.Module, params: Tree, *args: Any, mutable: Any = False) -> Any:
    return module.apply({"params": params}, *args, mutable=mutable)


def _pinned(cache: Cache) -> Cache:
    return jax.tree.map(lambda x: constrain(x, None, ROWS, None, "tensor", None), cache)


def _check_size(width: int, max_new_tokens: int, config: DecoderConfig) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if width + max_new_tokens > config.context:
        raise ValueError(
            f"prompts of {width} tokens and max_new_tokens={max_new_tokens} are over the model's "
            f"context of {config.context} tokens"
        )
