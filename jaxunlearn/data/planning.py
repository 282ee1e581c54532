"""Chooses the shape of the batches of a pass: rows and width that leave few tokens as padding."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import chex
import numpy as np

TARGET_SHARE = 0.95
"""Fewest tokens over those of the chosen width, at least: attention costs more in wider rows."""

LABEL_STEP = 8
"""Labels of a row of a training batch are a multiple of this. Other draws from the same samples, as
another seed makes them, differ by a few labels: rounded up their shapes come out equal, and one
compiled program serves all."""


class Sample(NamedTuple):
    """One encoded sample: BOS, prompt, answer, EOS; or BOS and a chunk of a document.

    Attributes:
      tokens: [T] int32.
      first_label: index of the first label; tokens[first_label:] are the labels, which are the
        answer and EOS, or all of the chunk.
    """

    tokens: np.ndarray
    first_label: int

    @property
    def labels(self) -> int:
        """Number of label tokens."""
        return len(self.tokens) - self.first_label


class Plan(NamedTuple):
    """The shape of every batch of a pass; as it is one shape, a pass is compiled once.

    Attributes:
      rows: R, rows of a batch.
      width: W, tokens of a row.
      slots: M, the most sequences of a row.
      labels: N, the most labels of a row.
      answer: S, the most labels of a sequence.
    """

    rows: int
    width: int
    slots: int
    labels: int
    answer: int


def plan_dataset(
    sequences: Sequence[Sample],
    *,
    rows: int | None = None,
    width: int | None = None,
    max_width: int,
    row_multiple: int = 1,
    target_tokens: int = 16384,
    width_step: int = 8,
) -> Plan:
    """Chooses the static shape of a pass over every sequence once.

    The width is the smallest that computes at most 1 / 0.95 times the tokens of the best one, as
    attention costs more in wider rows.

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
    # Each with fewer tokens than all narrower ones: (tokens of the pass, width, rows of a batch,
    # sequences of each row).
    total, plans = sum(lengths), []
    for candidate in [width] if width is not None else _widths(max(lengths), max_width, width_step):
        size = partial(
            _pass_size,
            rows=rows,
            width=candidate,
            row_multiple=row_multiple,
            target_tokens=target_tokens,
        )
        # Even rows without any padding would not beat the best width: packing is not worth trying.
        if plans and size(-(-total // candidate))[1] >= plans[-1][0]:
            continue
        layout = best_fit(lengths, candidate)
        batch_rows, computed = size(len(layout))
        if not plans or computed < plans[-1][0]:
            plans.append((computed, candidate, batch_rows, layout))
        # No wider row can make this one too expensive.
        if total >= TARGET_SHARE * plans[-1][0]:
            break
    _, best_width, batch_rows, layout = _narrowest(plans)
    return plan_layout(sequences, layout, rows=batch_rows, width=best_width)


def plan_steps(
    sequences: Sequence[Sample],
    id_lists: Iterable[Iterable[int]],
    *,
    max_width: int,
    row_multiple: int = 1,
    width_step: int = 8,
) -> Plan:
    """Chooses a static shape in which every listed training batch fits.

    The width is the smallest that computes at most 1 / 0.95 times the tokens of the best one, as
    attention costs more in wider rows.

    Args:
      sequences: the encoded samples.
      id_lists: indices into ``sequences``, one list per step; known ahead, as the order of the
        data is a pure function of (seed, step).
      max_width: the model's context, the widest row allowed, in tokens.
      row_multiple: rows are a multiple of this.
      width_step: the width is a multiple of this, or ``max_width``.

    Returns:
      The plan for `pack_step`. The labels of a row are a multiple of 8, or as many as its tokens.

    Raises:
      ValueError: no steps, an empty step, or a sequence over ``max_width``.
    """
    steps = [[sequences[i] for i in ids] for ids in id_lists]
    if not steps:
        raise ValueError("no steps to plan: id_lists is empty")
    lengths = [checked_lengths(step, max_width) for step in steps]
    # Each with fewer tokens than all narrower ones: (tokens of a batch, rows, width).
    shapes: list[tuple[int, int, int]] = []
    for width in _widths(max(map(max, lengths)), max_width, width_step):
        # The fewest rows that could hold the steps: a width that loses even so is not packed.
        fewest = max(-(-sum(step) // width) for step in lengths)
        if shapes and _round_up(fewest, row_multiple) * width >= shapes[-1][0]:
            continue
        rows = _round_up(max(len(best_fit(step, width)) for step in lengths), row_multiple)
        if not shapes or rows * width < shapes[-1][0]:
            shapes.append((rows * width, rows, width))
    _, rows, width = _narrowest(shapes)
    plans = [
        plan_layout(step, best_fit(size, width), rows=rows, width=width)
        for step, size in zip(steps, lengths, strict=True)
    ]
    plan = Plan(*map(max, zip(*plans, strict=True)))
    return plan._replace(labels=min(_round_up(plan.labels, LABEL_STEP), width))


def plan_any(
    sequences: Sequence[Sample],
    count: int,
    *,
    max_width: int,
    row_multiple: int = 1,
    width_step: int = 8,
) -> Plan:
    """Chooses a static shape in which any few of the sequences fit, whichever they are.

    A row has room for the longest sequence and there is a row for each, which leaves more padding
    than `plan_steps`; but the program that was compiled for one draw serves every other.

    Args:
      sequences: the encoded samples to draw from.
      count: distinct samples of a batch.
      max_width: the model's context, the widest row allowed, in tokens.
      row_multiple: rows are a multiple of this.
      width_step: the width is a multiple of this, or ``max_width``.

    Returns:
      The plan for `pack_step` and `dataset_batches`.

    Raises:
      ValueError: nothing to draw from, or a sequence over ``max_width``.
    """
    lengths = sorted(checked_lengths(sequences, max_width))
    labels = sorted((sample.labels for sample in sequences), reverse=True)
    width = next(_widths(lengths[-1], max_width, width_step))
    # As many as the shortest sequences that a row holds together may share it.
    together = sum(total <= width for total in accumulate(lengths[:count]))
    # Each sequence has a token before its labels.
    most_labels = min(sum(labels[:together]), width - 1)
    return Plan(
        rows=_round_up(count, row_multiple),
        width=width,
        slots=together,
        labels=max(1, most_labels),
        answer=max(1, labels[0]),
    )


def checked_lengths(sequences: Sequence[Sample], width: int | None) -> list[int]:
    """Returns the number of tokens of every sequence, after checking all of them.

    Raises:
      ValueError: no sequences, one whose first label is not in 1 .. its length, or one
        over `width`.
    """
    if len(sequences) == 0:
        raise ValueError("no sequences to pack")
    for i, (tokens, first_label) in enumerate(sequences):
        chex.assert_rank(tokens, 1)
        if not 1 <= first_label <= len(tokens):
            raise ValueError(
                f"sequence {i}: first_label={first_label} must be in 1..{len(tokens)}, as a label "
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
    """Yields the multiples of a step from the longest sequence to the context, then the context."""
    yield from range(_round_up(longest, step), max_width + 1, step)
    if max_width % step:
        yield max_width


def _narrowest(plans: Sequence[tuple]) -> tuple:
    """The first of plans (tokens, ..), from narrow to wide rows, that has few enough tokens."""
    fewest = min(plan[0] for plan in plans)
    return next(plan for plan in plans if fewest >= TARGET_SHARE * plan[0])


def _pass_size(
    row_count: int, *, rows: int | None, width: int, row_multiple: int, target_tokens: int
) -> tuple[int, int]:
    """Returns the rows of a batch, balanced over the fewest batches, and the tokens computed."""
    if rows is None:
        most = max(target_tokens // width // row_multiple, 1) * row_multiple
        rows = _round_up(-(-row_count // -(-row_count // most)), row_multiple)
    return rows, _round_up(row_count, rows) * width


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Packs sequences into rows by best-fit decreasing; ties go to the lower index.

    Args:
      lengths: tokens of each sequence.
      width: tokens of a row.

    Returns:
      The indices of the sequences of each row; the same for the same lengths.
    """
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
    sequences: Sequence[Sample], layout: list[list[int]], *, rows: int, width: int
) -> Plan:
    """Returns the plan in which every row of a layout (indices per row) fits."""
    labels = [sample.labels for sample in sequences]
    return Plan(
        rows=rows,
        width=width,
        slots=max(map(len, layout)),
        labels=max(1, max(sum(labels[i] for i in row) for row in layout)),
        answer=max(1, max(labels)),
    )
