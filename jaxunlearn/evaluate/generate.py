"""Answers in text: questions in, what the model says out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import prompts
from jaxunlearn.models import decode
from jaxunlearn.models.architecture import LlamaConfig
from jaxunlearn.models.sharding import row_shards

WIDTH_STEP = 32  # prompts are padded to a multiple: few shapes, so few compilations


def answers(
    params: Any,
    config: LlamaConfig,
    tokenizer: Any,
    questions: Sequence[str],
    *,
    style: prompts.Style = "tofu",
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
) -> list[str]:
    """Let the model answer every question; greedy, or drawn where the temperature is above 0.

    Batches hold prompts of similar length. Neither they nor the mesh have a part in an answer,
    but for rounding where two tokens are all but equally probable.

    Args:
      params: see `llama.abstract_params`; on the current mesh, if there is one.
      config: the model.
      tokenizer: a transformers tokenizer.
      questions: the users' turns.
      style: how a question becomes a prompt, see `prompts.encode_prompt`.
      max_new_tokens: most tokens of an answer, its EOS included.
      batch_size: most prompts decoded at once, rounded up to a multiple of the mesh's row shards.
      temperature: see `sampling.drawer`.
      top_k: see `sampling.kept_logits`.
      top_p: see `sampling.kept_logits`.
      key: one PRNG key, for a temperature above 0; each question folds its index into it.

    Returns:
      The answers, in the order of the questions: the text up to EOS, special tokens left out.

    Raises:
      ValueError: a prompt that leaves no room for its answer in the context, a tokenizer without
        EOS, or a bad option.
    """
    encoded = [prompts.encode_prompt(tokenizer, question, style=style) for question in questions]
    _check_room(encoded, lambda i: questions[i], max_new_tokens, config)
    return continuations(
        params,
        config,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=key,
    )


def continuations(
    params: Any,
    config: LlamaConfig,
    tokenizer: Any,
    encoded: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
) -> list[str]:
    """What the model writes after each prompt; `answers` of prompts that are tokens already.

    Args:
      encoded: [T] int32 each, BOS first where the tokenizer has one.

    Returns:
      The texts up to EOS, in the order of the prompts, special tokens left out.

    Raises:
      ValueError: as `answers`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, which every answer ends with")
    _check_room(encoded, lambda i: tokenizer.decode(encoded[i]), max_new_tokens, config)
    texts = [""] * len(encoded)
    for ids in _batches(encoded, batch_size):
        tokens, lengths = decode.generate(
            params,
            *_padded([encoded[i] for i in ids], most=config.context - max_new_tokens),
            config,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            key=None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, ids),
        )
        for i, row, length in zip(ids, np.asarray(tokens), np.asarray(lengths), strict=True):
            texts[i] = tokenizer.decode(row[:length], skip_special_tokens=True)
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
    """Prompts [B, P], padded on the left, and their lengths [B]."""
    lengths = np.array([len(prompt) for prompt in batch], np.int32)
    width = min(-(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP, most)
    rows = [np.pad(prompt, (width - len(prompt), 0)) for prompt in batch]
    return jnp.asarray(np.stack(rows)), jnp.asarray(lengths)


def _check_room(
    encoded: Sequence[np.ndarray],
    text: Callable[[int], str],
    max_new_tokens: int,
    config: LlamaConfig,
) -> None:
    over = [i for i, prompt in enumerate(encoded) if len(prompt) + max_new_tokens > config.context]
    if over:
        first = over[0]
        raise ValueError(
            f"questions: {len(over)} prompt(s) leave no room for max_new_tokens={max_new_tokens} "
            f"in the model's context of {config.context} tokens; first: question {first} of "
            f"{len(encoded[first])} tokens, {text(first)!r}"
        )
