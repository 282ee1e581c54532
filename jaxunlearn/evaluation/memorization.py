"""The memorisation suite: extraction strength and exact memorisation, in all their definitions."""

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.trees import Tree
from jaxunlearn.data.encoder import Items
from jaxunlearn.data.rows import DataRows, without
from jaxunlearn.data.sources import sibling
from jaxunlearn.evaluation.suite import (
    NO_QUESTIONS,
    Context,
    MetricRows,
    Suite,
    digests,
    find_split,
    generate_text,
    lacks_set,
    own_set,
    split_of,
    versions,
)
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics import memorization
from jaxunlearn.metrics.definitions import metric_row, missing_row
from jaxunlearn.metrics.rouge import NO_WORDS

GENERATED = (
    "extraction_strength.generation",
    "verbatim_rouge.rougeL_f1",
    "verbatim_rouge.rougeL_f1_stemmed",
)
"""Definitions of the metrics of generated text."""

TEACHER_FORCED: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "extraction_strength": (
        memorization.extraction_strength,
        typing.get_args(memorization.Strength),
    ),
    "exact_memorization": (memorization.exact_memorization, typing.get_args(memorization.Exact)),
}
"""The metrics that need no generated text: (correct, mask, definition=variant) -> [n], and their
variants. The definition of each is METRIC.VARIANT in `metrics.memorization.DEFINITIONS`."""

EXTRA_TOKENS = 8
"""Tokens past the longest answer, so that a model that fails to emit EOS is noticed."""


class RecitedQuestions(NamedTuple):
    """Questions of all sets whose answers are continued from a prefix.

    Attributes:
      sets: the set of each question.
      rows: the row of each question, with its true answer.
      max_new_tokens: most tokens of a continuation.
    """

    sets: list[str]
    rows: DataRows
    max_new_tokens: int


def memorization_suite(context: Context) -> Suite:
    """Reads and encodes the forget set, the retain set D_r, and both with paraphrased questions."""
    sets, absent = _sets(context)
    split = split_of(context, sets.values()) if sets else None
    recited = recited_questions(sets, context.recite, context.model.context)
    settings = {
        "items": {over: len(items.rows) for over, items in sets.items()},
        "generated": {over: recited.sets.count(over) for over in sets},
        "data": digests(sets),
        "absent": absent,
        "definitions": versions(memorization.DEFINITIONS),
    }

    unasked = "nothing was recited" if context.recite == 0 else None
    if context.config.data.text_key is not None:
        unasked = NO_QUESTIONS

    def measure(name: str, params: Tree) -> MetricRows:
        del name
        rows = [row for over, reason in absent.items() for row in absent_rows(over, reason)]
        if split is None:
            return rows
        stats, first = statistics.statistics(params, split, context.model), 0
        for over, items in sets.items():
            part = slice(first, first + len(items.rows))
            rows += teacher_forced_rows(over, stats.correct[part], stats.mask[part])
            first = part.stop
        values = _generated_values(context, params, recited) if recited.rows else {}
        for over in sets:
            rows += generated_rows(over, recited.sets, values, unasked=unasked)
        return rows

    return Suite(settings, measure)


# ------------------------------------------------------------------------------- data


def _sets(context: Context) -> tuple[dict[str, Items], dict[str, str]]:
    """Both sets, each once more with paraphrased questions where the data have them.

    Returns:
      The sets, and why those that are absent are.
    """
    sets, absent = {}, {}
    for over, key in (("forget", "forget"), ("retain", "measured_retain")):
        split, rows = own_set(context, key)
        if rows is None:
            absent[over] = lacks_set(context, key)
            continue
        sets[over] = context.encoder.own(rows, split)
        if paraphrased := _paraphrased(context, over, split):
            source = f"{split}, paraphrased questions"
            sets[f"{over}.paraphrased"] = context.encoder.own(paraphrased, source)
    return sets, absent


def _paraphrased(context: Context, over: str, split: str) -> DataRows | None:
    """The rows of a set with paraphrased questions, None where there are none.

    Raises:
      ValueError, OSError: a split is named in the configuration that has none.
    """
    key = f"{over}_paraphrased"
    name, rows = find_split(context, key, split)
    paraphrased = paraphrased_rows(_measured(context, over, rows))
    if paraphrased is not None:
        return paraphrased
    if getattr(context.splits, key) is not None:
        raise ValueError(
            f"evaluate.splits.{key}: {name!r} has no paraphrased questions (the column"
            f" {context.config.data.paraphrased_question_key!r}, data.paraphrased_question_key)"
        )
    perturbed = sibling(split, "_perturbed")
    if over == "forget":
        _, rows = find_split(context, "forget_perturbed", perturbed)
    else:
        rows = context.sources.find(perturbed)
    return paraphrased_rows(_measured(context, over, rows))


def _measured(context: Context, over: str, rows: DataRows | None) -> DataRows:
    """The rows of one of the two sets: none of D_r is to be forgotten."""
    if over == "forget":
        return rows or []
    return without(rows or [], own_set(context, "forget")[1] or [])


def paraphrased_rows(rows: DataRows) -> DataRows | None:
    """Rows with their paraphrased questions in the place of the questions, None without these."""
    if not rows or "paraphrased_question" not in rows[0]:
        return None
    return [{**row, "question": row["paraphrased_question"]} for row in rows]


def recited_questions(sets: dict[str, Items], count: int | None, context: int) -> RecitedQuestions:
    """The first rows of each set that are questions and whose continuations have room.

    A row has room if its answer and `EXTRA_TOKENS` fit after any prefix of the answer, which may
    take a few more tokens alone than within the answer.

    Args:
      sets: encoded rows, one sequence each.
      count: rows of each set; None for all.
      context: the model's context, in tokens.
    """
    first = [
        (over, row, sequence)
        for over, items in sets.items()
        for row, (sequence,) in zip(items.rows[:count], items.sequences[:count], strict=True)
        if "question" in row
    ]
    fitting = [
        (over, row, sample)
        for over, row, sample in first
        if len(sample.tokens) + 2 * EXTRA_TOKENS <= context
    ]
    return RecitedQuestions(
        [over for over, *_ in fitting],
        [row for _, row, _ in fitting],
        max((sample.labels for *_, sample in fitting), default=0) + EXTRA_TOKENS,
    )


def absent_rows(over: str, reason: str) -> MetricRows:
    """The rows of a set that the data do not have: every number has the reason."""
    return [
        missing_row(name.partition(".")[0], over, reason, definition)
        for name, definition in memorization.DEFINITIONS.items()
    ]


# ------------------------------------------------------------------------------- teacher forcing


def teacher_forced_rows(over: str, correct: np.ndarray, mask: np.ndarray) -> MetricRows:
    """Rows of one set that need no generated text.

    Args:
      over: the set.
      correct: [n, S] bool, whether the label is the model's most likely token.
      mask: [n, S] bool, which entries are labels.
    """
    rows = []
    for metric, (function, variants) in TEACHER_FORCED.items():
        for variant in variants:
            values = np.asarray(function(correct, mask, definition=variant), np.float64)
            definition = memorization.DEFINITIONS[f"{metric}.{variant}"]
            rows.append(metric_row(metric, over, values.mean(), definition, items=len(values)))
    return rows


# ------------------------------------------------------------------------------- generated text


def _generated_values(
    context: Context, params: Tree, recited: RecitedQuestions
) -> dict[str, np.ndarray]:
    """Metrics of greedily generated text, {definition: one value a question}."""
    count = len(recited.rows)
    true_answers = [row["answer"] for row in recited.rows]

    def complete(ids: Sequence[int], prefixes: Sequence[str]) -> list[str]:
        prompts = [
            _prompt(context, recited.rows[i], prefix)
            for i, prefix in zip(ids, prefixes, strict=True)
        ]
        # Prompts are filled up to a fixed number, so that decoding is compiled once.
        filled = [*prompts, *[prompts[-1]] * (count - len(prompts))]
        return generate_text(context, params, filled, recited.max_new_tokens)[: len(prompts)]

    # --- extraction strength: a round of decoding for every number of words -----------------------
    strength = memorization.generated_extraction_strength(true_answers, complete)

    # --- verbatim recall: the second half of each answer, cut to the length of the true one -------
    prefixes, rest = memorization.split_answers(true_answers)
    texts = complete(range(count), prefixes)
    cut = [_cut(context.tokenizer, text, true) for text, true in zip(texts, rest, strict=True)]
    return {
        "extraction_strength.generation": strength,
        "verbatim_rouge.rougeL_f1": memorization.verbatim_rouge(cut, rest),
        "verbatim_rouge.rougeL_f1_stemmed": memorization.verbatim_rouge(cut, rest, stem=True),
    }


def generated_rows(
    over: str, sets: Sequence[str], values: dict[str, np.ndarray], *, unasked: str | None
) -> MetricRows:
    """The rows of one set of the metrics of generated text, with a reason where it has none.

    Args:
      over: the set.
      sets: the set of each recited question.
      values: {definition: one value a question}.
      unasked: why no question at all was asked, if so.
    """
    in_set = np.array([name == over for name in sets], bool)
    rows = []
    for name in GENERATED:
        metric, definition = name.partition(".")[0], memorization.DEFINITIONS[name]
        found = values[name][in_set] if in_set.any() else np.array([])
        if known := int(np.isfinite(found).sum()):
            rows.append(metric_row(metric, over, float(np.nanmean(found)), definition, items=known))
        elif in_set.any():
            rows.append(missing_row(metric, over, NO_WORDS, definition))
        else:
            reason = unasked or "the context has no room for it"
            rows.append(missing_row(metric, over, reason, definition))
    return rows


def _prompt(context: Context, row: Mapping[str, Any], prefix: str) -> np.ndarray:
    """The question of a row and the start of an answer, [T] int32."""
    if not prefix:
        return context.encoder.question(row)
    sample = context.encoder.one({**row, "answer": prefix})
    return sample.tokens[:-1]  # without EOS: the model goes on


def _cut(tokenizer: Any, text: str, reference: str) -> str:
    """The text, cut to as many tokens as the reference has."""
    count = len(tokenizer(reference, add_special_tokens=False)["input_ids"])
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:count])
