"""Packed batches: rows of one fixed width that hold several sequences each.

Letters in shapes: R rows, W tokens of a row, M slots (sequences) of a row, N labels of a row, S
labels of the longest answer. Flat slot ``b = r * M + m`` is one sample, so unpacked arrays are
``[B, S]`` with B = R * M. A sample's row and slot never change its values.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.planning import Plan, Sample, best_fit, checked_lengths, plan_layout

__all__ = [
    "Packed",
    "dataset_batches",
    "pack_step",
    "padded",
    "real_token_share",
    "unpack",
]


class Packed(NamedTuple):
    """A batch of packed rows; a pytree whose leaves all lead with the row axis.

    Attributes:
      tokens: [R, W] int32, 0 on padding.
      positions: [R, W] int32, the position of a token inside its sequence, 0 on padding.
      segments: [R, W] int32, the slot of a token inside its row, -1 on padding.
      label_at: [R, N] int32, the column that predicts a label.
      label_tokens: [R, N] int32, the labels.
      label_start: [R, M] int32, the first entry of a slot among the labels of its row.
      mask: [R, M, S] bool, True where a slot has a label.
      sample_ids: [R, M] int32, the caller's id of a sample, -1 where the slot is empty.
    """

    tokens: np.ndarray | jax.Array
    positions: np.ndarray | jax.Array
    segments: np.ndarray | jax.Array
    label_at: np.ndarray | jax.Array
    label_tokens: np.ndarray | jax.Array
    label_start: np.ndarray | jax.Array
    mask: np.ndarray | jax.Array
    sample_ids: np.ndarray | jax.Array


def unpack(values: np.ndarray | jax.Array, batch: Packed) -> jax.Array:
    """Lays per-label values of packed rows out as one row a sample.

    Args:
      values: ``[R, N]``, one value per entry of ``batch.label_tokens``.
      batch: the packed rows the values belong to.

    Returns:
      ``[R * M, S]``, zero where ``batch.mask`` is False.

    >>> batch = padded([Sample(np.array([1, 5, 6, 2], np.int32), 2)])
    >>> unpack(batch.label_tokens, batch).tolist()
    [[6, 2]]
    """
    rows, slots, answer = batch.mask.shape
    chex.assert_shape(values, batch.label_tokens.shape)
    entry = jnp.asarray(batch.label_start)[:, :, None] + jnp.arange(answer)[None, None]
    picked = jnp.take_along_axis(
        jnp.asarray(values), entry.reshape(rows, slots * answer), axis=1, mode="clip"
    )
    mask = jnp.asarray(batch.mask)
    return jnp.where(mask, picked.reshape(mask.shape), 0).reshape(rows * slots, answer)


def dataset_batches(
    sequences: Sequence[Sample], plan: Plan, *, ids: Iterable[int] | None = None
) -> list[Packed]:
    """Packs every sequence exactly once; the last batch may have empty rows.

    Args:
      sequences: the encoded samples the plan was made for.
      plan: from `plan_dataset`.
      ids: the caller's id of each sequence; None numbers them from 0.

    Returns:
      The batches, all of the plan's shape and the same for the same input.

    Raises:
      ValueError: a sequence does not fit the plan, or the ids do not match the sequences.
    """
    layout = best_fit(checked_lengths(sequences, plan.width), plan.width)
    names = _names(ids, len(sequences))
    return [
        _fill(sequences, names, layout[first : first + plan.rows], plan)
        for first in range(0, len(layout), plan.rows)
    ]


def pack_step(
    sequences: Sequence[Sample],
    ids: Iterable[int],
    plan: Plan,
    *,
    sample_ids: Iterable[int] | None = None,
) -> Packed:
    """Packs one training batch; an id may occur more than once.

    Args:
      sequences: the encoded samples.
      ids: indices into ``sequences``.
      plan: from `plan_steps`.
      sample_ids: what to write as ``Packed.sample_ids``, one per id; None writes the ids.

    Returns:
      The batch, of the plan's shape.

    Raises:
      ValueError: no ids, one outside ``sequences``, or the batch does not fit the plan.
    """
    picked_ids = [int(i) for i in ids]
    outside = [i for i in picked_ids if not 0 <= i < len(sequences)]
    if outside:
        raise ValueError(f"ids {outside[:5]} are not in 0..{len(sequences) - 1}")
    picked = [sequences[i] for i in picked_ids]
    layout = best_fit(checked_lengths(picked, plan.width), plan.width)
    names = _names(picked_ids if sample_ids is None else sample_ids, len(picked))
    return _fill(picked, names, layout, plan)


def padded(
    sequences: Sequence[Sample], *, ids: Iterable[int] | None = None, width: int | None = None
) -> Packed:
    """Packs one sequence a row in the given order (M = 1), as ``vmap`` and tests need it.

    Args:
      sequences: the encoded samples.
      ids: the caller's id of each sequence; None numbers them from 0.
      width: tokens of a row; None takes the longest sequence.

    Returns:
      The batch, R = number of sequences.

    Raises:
      ValueError: no sequences, or one over ``width``.
    """
    lengths = checked_lengths(sequences, width)
    layout = [[i] for i in range(len(sequences))]
    plan = plan_layout(sequences, layout, rows=len(layout), width=width or max(lengths))
    return _fill(sequences, _names(ids, len(sequences)), layout, plan)


def real_token_share(batches: Iterable[Packed]) -> float:
    """Returns the share of the computed tokens that belong to a sequence: real / (rows * width).

    Args:
      batches: packed batches.

    Returns:
      A number in (0, 1].

    >>> real_token_share([padded([Sample(np.arange(3, dtype=np.int32), 1)], width=4)])
    0.75
    """
    counts = [(int((np.asarray(b.segments) >= 0).sum()), b.segments.size) for b in batches]
    return sum(real for real, _ in counts) / sum(size for _, size in counts)


def _names(ids: Iterable[int] | None, count: int) -> np.ndarray:
    names = np.arange(count) if ids is None else np.asarray(list(ids))
    if names.shape != (count,):
        raise ValueError(f"{count} sequences but ids of shape {names.shape}")
    if (names < 0).any():
        raise ValueError("ids must not be negative: -1 marks an empty slot")
    return names.astype(np.int32)


def _fill(
    sequences: Sequence[Sample], names: np.ndarray, layout: list[list[int]], plan: Plan
) -> Packed:
    """Builds one batch; rows and slots beyond the layout stay empty."""
    batch = _empty(plan)
    needed = plan_layout(sequences, layout, rows=len(layout), width=plan.width)
    if any(have < need for have, need in zip(plan, needed, strict=True)):
        raise ValueError(f"the batch needs {needed}, over the given {plan}; plan it again")
    for row, members in enumerate(layout):
        column = entry = 0
        for slot, i in enumerate(members):
            (tokens, first_label), count = sequences[i], sequences[i].labels
            span, labels = slice(column, column + len(tokens)), slice(entry, entry + count)
            batch.tokens[row, span] = tokens
            batch.positions[row, span] = np.arange(len(tokens))
            batch.segments[row, span] = slot
            batch.label_at[row, labels] = column + np.arange(first_label - 1, len(tokens) - 1)
            batch.label_tokens[row, labels] = tokens[first_label:]
            batch.label_start[row, slot] = entry
            batch.mask[row, slot, :count] = True
            batch.sample_ids[row, slot] = names[i]
            column, entry = span.stop, labels.stop
    return batch


def _empty(plan: Plan) -> Packed:
    zeros = lambda *shape: np.zeros(shape, np.int32)
    return Packed(
        tokens=zeros(plan.rows, plan.width),
        positions=zeros(plan.rows, plan.width),
        segments=np.full((plan.rows, plan.width), -1, np.int32),
        label_at=zeros(plan.rows, plan.labels),
        label_tokens=zeros(plan.rows, plan.labels),
        label_start=zeros(plan.rows, plan.slots),
        mask=np.zeros((plan.rows, plan.slots, plan.answer), bool),
        sample_ids=np.full((plan.rows, plan.slots), -1, np.int32),
    )
