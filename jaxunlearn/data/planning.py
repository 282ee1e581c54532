"""The static shape of a pass: how many rows, how wide, so that few computed tokens are padding."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from functools import partial
from typing import NamedTuple

import chex
import numpy as np

TARGET_SHARE = 0.95


class Sequence(NamedTuple):
    """One encoded sample: BOS, prompt, answer, EOS."""

    tokens: np.ndarray  # [T] int32
    first_label: int  # tokens[first_label:] are the labels: the answer and EOS


class Plan(NamedTuple):
    """The one static shape of a pass, hence one compilation."""

    rows: int  # R
    width: int  # W
    slots: int  # M
    labels: int  # N
    answer: int  # S


def plan_dataset(
    sequences: Seq[Sequence],
    *,
    rows: int | None = None,
    width: int | None = None,
    max_width: int,
    row_multiple: int = 1,
    target_tokens: int = 16384,
    width_step: int = 8,
) -> Plan:
    """Choose the static shape of a pass over every sequence once.

    The width is the smallest that makes at least 95 % of the computed tokens real, as attention
    costs more in wider rows; where none does, the one with the largest share.

    Args:
      sequences: the encoded samples.
      rows: rows of a batch; None balances batches of about ``target_tokens``.
      width: tokens of a row; None chooses.
      max_width: the model's context, the widest row allowed, in tokens.
      row_multiple: rows are a multiple of this (the devices that share a batch).
      target_tokens: most tokens of a batch, unless ``row_multiple`` rows need more.
      width_step: the width is a multiple of this, or ``max_width``.

    Returns:
      The plan for `dataset_batches`.

    Raises:
      ValueError: nothing to pack, a sequence over the width, or ``rows`` no ``row_multiple``.
    """
    lengths = checked_lengths(sequences, max_width if width is None else width)
    if rows is not None and (rows < 1 or rows % row_multiple):
        raise ValueError(f"rows={rows} must be a positive multiple of row_multiple={row_multiple}")
    total, best = sum(lengths), None
    for candidate in [width] if width is not None else _widths(max(lengths), max_width, width_step):
        size = partial(
            _pass_size,
            rows=rows,
            width=candidate,
            row_multiple=row_multiple,
            target_tokens=target_tokens,
        )
        if best is not None and total / size(-(-total // candidate))[1] <= best[0]:
            continue
        layout = best_fit(lengths, candidate)
        batch_rows, computed = size(len(layout))
        if best is None or total / computed > best[0]:
            best = (total / computed, candidate, batch_rows, layout)
        if best[0] >= TARGET_SHARE:
            break
    assert best is not None
    _, chosen, batch_rows, layout = best
    return plan_layout(sequences, layout, rows=batch_rows, width=chosen)


def plan_steps(
    sequences: Seq[Sequence],
    id_lists: Iterable[Iterable[int]],
    *,
    max_width: int,
    row_multiple: int = 1,
    width_step: int = 8,
) -> Plan:
    """Choose the smallest static shape in which every listed training batch fits.

    Args:
      sequences: the encoded samples.
      id_lists: indices into ``sequences``, one list per step; known ahead, as the order of the
        data is a pure function of (seed, step).
      max_width: the model's context, the widest row allowed, in tokens.
      row_multiple: rows are a multiple of this.
      width_step: the width is a multiple of this, or ``max_width``.

    Returns:
      The plan for `pack_step`.

    Raises:
      ValueError: no steps, an empty step, or a sequence over ``max_width``.
    """
    steps = [[sequences[i] for i in ids] for ids in id_lists]
    if not steps:
        raise ValueError("no steps to plan: id_lists is empty")
    lengths = [checked_lengths(step, max_width) for step in steps]
    best: tuple[int, int, int] | None = None
    for width in _widths(max(map(max, lengths)), max_width, width_step):
        fewest = max(-(-sum(step) // width) for step in lengths)
        if best is not None and _round_up(fewest, row_multiple) * width >= best[0]:
            continue
        rows = _round_up(max(len(best_fit(step, width)) for step in lengths), row_multiple)
        if best is None or rows * width < best[0]:
            best = (rows * width, rows, width)
    assert best is not None
    _, rows, width = best
    plans = [
        plan_layout(step, best_fit(size, width), rows=rows, width=width)
        for step, size in zip(steps, lengths, strict=True)
    ]
    return Plan(*map(max, zip(*plans, strict=True)))


def checked_lengths(sequences: Seq[Sequence], width: int | None) -> list[int]:
    """Token counts, after checking every sequence."""
    if len(sequences) == 0:
        raise ValueError("no sequences to pack")
    for i, (tokens, first_label) in enumerate(sequences):
        chex.assert_rank(tokens, 1)
        if not 1 <= first_label <= len(tokens):
            raise ValueError(
                f"sequence {i}: first_label={first_label} must lie in 1..{len(tokens)}, as a label "
                "needs a token before it"
            )
    lengths = [len(s.tokens) for s in sequences]
    over = [(i, n) for i, n in enumerate(lengths) if width is not None and n > width]
    if over:
        raise ValueError(
            f"{len(over)} sequence(s) over the width of {width} tokens; first (index, length): "
            f"{over[:5]}"
        )
    return lengths


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _widths(longest: int, max_width: int, step: int) -> Iterator[int]:
    """Multiples of a step from the longest sequence up to the context, then the context itself."""
    yield from range(_round_up(longest, step), max_width + 1, step)
    if max_width % step:
        yield max_width


def _pass_size(
    row_count: int, *, rows: int | None, width: int, row_multiple: int, target_tokens: int
) -> tuple[int, int]:
    """Rows of a batch, balanced over the fewest batches, and computed tokens of the pass."""
    if rows is None:
        most = max(target_tokens // width // row_multiple, 1) * row_multiple
        rows = _round_up(-(-row_count // -(-row_count // most)), row_multiple)
    return rows, _round_up(row_count, rows) * width


def best_fit(lengths: Seq[int], width: int) -> list[list[int]]:
    """Best-fit decreasing: indices per row; ties go to the lower index, so it is repeatable."""
    layout: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), sorted
    shortest = min(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(open_rows, (lengths[i], -1))
        if at == len(open_rows):
            free, row = width, len(layout)
            layout.append([])
        else:
            free, row = open_rows.pop(at)
        layout[row].append(i)
        if free - lengths[i] >= shortest:
            insort(open_rows, (free - lengths[i], row))
    return layout


def plan_layout(
    sequences: Seq[Sequence], layout: list[list[int]], *, rows: int, width: int
) -> Plan:
    labels = [len(s.tokens) - s.first_label for s in sequences]
    return Plan(
        rows=rows,
        width=width,
        slots=max(map(len, layout)),
        labels=max(1, max(sum(labels[i] for i in row) for row in layout)),
        answer=max(1, max(labels)),
    )
