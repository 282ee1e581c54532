"""Answers in text: decodes batches of prompts with a tokenizer, greedily or by sampling."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.trees import Tree
from jaxunlearn.data import encoding
from jaxunlearn.data.prompts import TOFU_PROMPT, Prompt, eos
from jaxunlearn.models.decoder import GREEDY, DecoderConfig, Sampling, decode
from jaxunlearn.models.sharding import row_shards

WIDTH_STEP = 32
"""Prompts are padded to a multiple of so many tokens: few shapes, so few compilations."""


def answers(
    params: Tree,
    config: DecoderConfig,
    tokenizer: Any,
    questions: Sequence[str],
    *,
    prompt: Prompt = TOFU_PROMPT,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
) -> list[str]:
    """Lets the model answer every question, greedily by default.

    Batches hold prompts of similar length. An answer depends neither on the batches nor on the
    mesh, apart from rounding where two tokens are nearly equally probable.

    Args:
      params: see `decoder.abstract_params`; on the current mesh, if there is one.
      config: the model.
      tokenizer: a transformers tokenizer.
      questions: the users' turns.
      prompt: how a question is written, see `encoding.encode_prompt`.
      max_new_tokens: most tokens of an answer, its EOS included.
      batch_size: most prompts decoded at once, rounded up to a multiple of the mesh's row shards.
      sampling: how a token is chosen; the most probable one by default.
      key: one PRNG key, for a temperature above 0; each question folds its index into it.

    Returns:
      The answers, in the order of the questions: the text up to EOS, special tokens left out.

    Raises:
      ValueError: a prompt that leaves no room for its answer in the context, a tokenizer without
        EOS, or a bad option.
    """
    encoded = [encoding.encode_prompt(tokenizer, question, prompt=prompt) for question in questions]
    _check_room(encoded, lambda i: questions[i], max_new_tokens, config)
    return continuations(
        params,
        config,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        sampling=sampling,
        key=key,
    )


def continuations(
    params: Tree,
    config: DecoderConfig,
    tokenizer: Any,
    encoded: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
) -> list[str]:
    """Lets the model continue prompts that are encoded already, see `answers`.

    A continuation also ends where the model's context is full: how far that of one prompt goes
    does not depend on the length of the others.

    Args:
      params, config, tokenizer: as in `answers`.
      encoded: prompts, [T] int32 each, BOS first where the tokenizer has one.
      max_new_tokens, batch_size, sampling, key: as in `answers`.

    Returns:
      The texts up to EOS, in the order of the prompts, special tokens left out.

    Raises:
      ValueError: a prompt that fills the context, a tokenizer without EOS, or a bad option.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    eos(tokenizer)
    _check_room(encoded, lambda i: tokenizer.decode(encoded[i]), 1, config)
    texts = [""] * len(encoded)
    for ids in _batches(encoded, batch_size):
        prompts, widths = _padded([encoded[i] for i in ids], most=config.context - max_new_tokens)
        # Rows of a batch end at the same column, those of long prompts beyond their context: what
        # is written there is cut off below, and what was written before does not depend on it.
        room = max(config.context, prompts.shape[1] + max_new_tokens)
        tokens, lengths = decode.generate(
            params,
            prompts,
            widths,
            dataclasses.replace(config, context=room),
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            sampling=sampling,
            key=None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, ids),
        )
        for i, row, length in zip(ids, np.asarray(tokens), np.asarray(lengths), strict=True):
            end = min(length, config.context - len(encoded[i]))
            texts[i] = tokenizer.decode(row[:end], skip_special_tokens=True)
    return texts


def _batches(encoded: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Indices [B] of prompts, the longest first; the last batch repeats its last prompt."""
    shards = row_shards()
    size = -(-min(batch_size, max(len(encoded), 1)) // shards) * shards
    order = np.argsort([-len(prompt) for prompt in encoded], kind="stable")
    for first in range(0, len(order), size):
        ids = order[first : first + size]
        yield np.pad(ids, (0, size - len(ids)), mode="edge")


def _padded(batch: list[np.ndarray], most: int) -> tuple[jax.Array, jax.Array]:
    """Prompts [B, P], padded on the left to `most` at most, if it fits, and their lengths [B]."""
    lengths = np.array([len(prompt) for prompt in batch], np.int32)
    longest = int(lengths.max())
    width = min(-(-longest // WIDTH_STEP) * WIDTH_STEP, max(longest, most))
    rows = [np.pad(prompt, (width - len(prompt), 0)) for prompt in batch]
    return jnp.asarray(np.stack(rows)), jnp.asarray(lengths)


def _check_room(
    encoded: Sequence[np.ndarray],
    text: Callable[[int], str],
    max_new_tokens: int,
    config: DecoderConfig,
) -> None:
    over = [i for i, prompt in enumerate(encoded) if len(prompt) + max_new_tokens > config.context]
    if over:
        first = over[0]
        raise ValueError(
            f"questions: {len(over)} prompt(s) leave no room for max_new_tokens={max_new_tokens} "
            f"in the model's context of {config.context} tokens; first: question {first} of "
            f"{len(encoded[first])} tokens, {text(first)!r}"
        )
