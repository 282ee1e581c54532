"""The TOFU suite: the TOFU metrics of a model on each set of the data, and its log."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.config import Data
from jaxunlearn.core import files, hosts
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.encoder import Items
from jaxunlearn.data.rows import DataRows
from jaxunlearn.data.sources import sibling
from jaxunlearn.evaluation.suite import (
    NO_QUESTIONS,
    NO_RETRAINED,
    Context,
    MetricRows,
    Suite,
    digests,
    find_split,
    generate_text,
    split_of,
    versions,
)
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics import tofu, tofu_log
from jaxunlearn.metrics.definitions import missing_row
from jaxunlearn.metrics.rouge import NO_WORDS, rouge
from jaxunlearn.metrics.tofu_log import SetLog
from jaxunlearn.record.folder import RETRAINED

MAX_NEW_TOKENS = 200
PARAPHRASED = ("forget", "retain")
"""Sets whose truth ratio takes the paraphrased answer for the true one."""

SPLIT_KEYS = {
    "forget": "forget_perturbed",
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}
"""The key of `evaluate.splits` that names the split of each set."""
OVER_UTILITY = "+".join(tofu.UTILITY_SETS)
OVER = ", ".join(SPLIT_KEYS)
"""The set in rows of numbers that no set has."""

Text = tuple[str, str, str]
"""(prompt, generated text, answer)"""
Losses = dict[str, tuple[np.ndarray, np.ndarray]]
"""{set: mean NLL and label tokens of every answer, both [n, answers]}"""


class Questions(NamedTuple):
    """The questions that are answered in text: the first ones of every set.

    Attributes:
      prompts: of each set, encoded.
      max_new_tokens: most tokens of an answer; it also ends where the context is full.
    """

    prompts: dict[str, list[np.ndarray]]
    max_new_tokens: int


def tofu_suite(context: Context) -> Suite:
    """Reads and encodes the sets that the data have.

    Raises:
      ValueError, OSError: a split that is named in the configuration is not there or has not all
        answers, bad rows, or a bad retain log.
    """
    sets, absent = _sets(context)
    if not sets:
        return _no_suite("; ".join(dict.fromkeys(absent.values())))
    split = split_of(context, sets.values())
    questions = _questions(context, sets)
    settings = {
        "items": {name: len(items.rows) for name, items in sets.items()},
        "absent": absent,
        "data": digests(sets),
        "generated": {name: len(prompts) for name, prompts in questions.prompts.items()},
        "max_new_tokens": questions.max_new_tokens,
        "compared_with": _compared_with(context),
        "definitions": versions(tofu.DEFINITIONS),
    }

    def measure(name: str, params: Tree) -> MetricRows:
        losses = split_losses(statistics.statistics(params, split, context.model), sets)
        if any(np.isnan(loss).any() for loss, _ in losses.values()):
            return _missing("the model's loss is not a number")
        texts = _texts(context, params, questions, sets)
        log = {over: set_log(over, *losses[over], texts[over]) for over in sets}
        _write(log, context.log_file(name))
        return table_rows(log, _retain_log(context), absent)

    return Suite(settings, measure)


def split_names(forget: str) -> dict[str, str]:
    """The default name of the split of each set, TOFU's, where `forget` is the split to forget."""
    return {**SPLIT_KEYS, "forget": sibling(forget, "_perturbed")}


# ------------------------------------------------------------------------------- data


def _no_suite(reason: str) -> Suite:
    """The suite of data that have none of its sets: every number has the reason."""
    missing = _missing(reason)
    settings = {"absent": reason, "definitions": versions(tofu.DEFINITIONS)}
    return Suite(settings, lambda name, params: missing)


def _missing(reason: str) -> MetricRows:
    """A row of every number, with the reason why there is none."""
    return [
        missing_row(name.partition(".")[0], OVER, reason, definition)
        for name, definition in tofu.DEFINITIONS.items()
    ]


def _sets(context: Context) -> tuple[dict[str, Items], dict[str, str]]:
    """The sets that the data have, all answers of a row encoded, and why others are absent."""
    data = context.config.data
    if data.text_key is not None:
        return {}, {"forget": NO_QUESTIONS}
    sets, absent = {}, {}
    for name, default in split_names(data.forget).items():
        key = SPLIT_KEYS[name]
        split, rows = find_split(context, key, default)
        lacking = f"no split {split!r} in {data.source} (evaluate.splits.{key})"
        if rows is not None:
            lacking = lacking_key(rows, name, split, data)
        if lacking is not None:
            if getattr(context.splits, key) is not None:
                raise ValueError(f"evaluate.splits.{key}: {lacking}")
            absent[name] = lacking
            continue
        assert rows is not None  # otherwise something is lacking
        check_rows(rows, split)
        pairs = lambda row, name=name: [(row["question"], a) for a in _answers(row, name)]
        sets[name] = context.encoder.items(rows, pairs, split)
    return sets, absent


def _answers(row: dict[str, Any], name: str) -> list[str]:
    """The answer, on some sets its paraphrase, and the wrong answers."""
    paraphrase = [row["paraphrased_answer"]] if name in PARAPHRASED else []
    return [row["answer"], *paraphrase, *row["perturbed_answer"]]


def lacking_key(rows: DataRows, name: str, split: str, data: Data) -> str | None:
    """Says which column of answers rows lack that the suite scores; None where all are there.

    Args:
      rows: of one set, at least one.
      name: of the set.
      split: its name in the data.
      data: what the columns are called.
    """
    for key in ("perturbed_answer", *(["paraphrased_answer"] if name in PARAPHRASED else [])):
        if key not in rows[0]:
            column = getattr(data, f"{key}_key")
            return f"{split}: no key {column!r} (data.{key}_key)"
    return None


def check_rows(rows: DataRows, split: str) -> None:
    """Checks that rows have equally many wrong answers.

    Args:
      rows: of one set.
      split: its name in the data, for messages.

    Raises:
      ValueError: names the first row that has not.
    """
    count = len(rows[0]["perturbed_answer"])
    for i, row in enumerate(rows):
        answers = row["perturbed_answer"]
        if len(answers) != count or not count:
            raise ValueError(f"{split}:{i}: expected {count} wrong answers, got {answers!r}")


def _questions(context: Context, sets: dict[str, Items]) -> Questions:
    """Encodes the first questions of every set, without their answers."""
    prompts = {
        name: [context.encoder.question(row) for row in items.rows[: context.generate]]
        for name, items in sets.items()
    }
    shortest = min(
        (len(prompt) for set_prompts in prompts.values() for prompt in set_prompts), default=0
    )
    return Questions(prompts, min(MAX_NEW_TOKENS, context.model.context - shortest))


# ------------------------------------------------------------------------------- one model


def split_losses(stats: statistics.Statistics, sets: dict[str, Items]) -> Losses:
    """Mean NLL and label tokens of every answer, set by set.

    Args:
      stats: of all answers of all sets, in the order of `suite.flat`.
      sets: the sets, with equally many answers in all rows of one.
    """
    nll = -stats.logp.sum(-1, dtype=np.float64) / stats.tokens
    losses, first = {}, 0
    for name, items in sets.items():
        shape = len(items.rows), len(items.sequences[0])
        part = slice(first, first + shape[0] * shape[1])
        losses[name] = nll[part].reshape(shape), stats.tokens[part].reshape(shape)
        first = part.stop
    return losses


def set_log(name: str, losses: np.ndarray, tokens: np.ndarray, texts: list[Text | None]) -> SetLog:
    """The log of one set.

    Args:
      name: of the set.
      losses: [n, answers] mean NLL of each answer, in the order answer, paraphrase (on
        `PARAPHRASED` sets), wrong answers.
      tokens: [n, answers] their label tokens.
      texts: of the first questions, then None for those that were not answered in text.
    """
    true_column, first_wrong = (1, 2) if name in PARAPHRASED else (0, 1)
    log = SetLog(
        answer_loss=losses[:, 0],
        paraphrase_loss=losses[:, true_column],
        perturbed_loss=losses[:, first_wrong:],
        answer_tokens=tokens[:, 0],
        paraphrase_tokens=tokens[:, true_column],
        perturbed_tokens=tokens[:, first_wrong:],
    )
    generated = [text for text in texts if text is not None]
    if not generated:
        return log
    scores = rouge([text[1] for text in generated], [text[2] for text in generated])

    def pad(x: np.ndarray) -> np.ndarray:
        return np.pad(x, (0, len(texts) - len(generated)), constant_values=np.nan)

    return dataclasses.replace(
        log,
        rougeL=pad(scores["rougeL_recall"]),
        rouge1=pad(scores["rouge1_recall"]),
        texts=texts,
    )


def _texts(
    context: Context, params: Tree, questions: Questions, sets: dict[str, Items]
) -> dict[str, list[Text | None]]:
    """Answers of the model for each row of each set; None for questions that are not generated."""
    # All sets in one call: batches hold prompts of similar length, whatever their set.
    prompts = [prompt for set_texts in questions.prompts.values() for prompt in set_texts]
    answers = iter(generate_text(context, params, prompts, questions.max_new_tokens))
    decode = partial(context.tokenizer.decode, skip_special_tokens=True)
    texts: dict[str, list[Text | None]] = {}
    for name, items in sets.items():
        set_texts = [
            (decode(prompt), next(answers), row["answer"])
            for prompt, row in zip(questions.prompts[name], items.rows, strict=False)
        ]
        texts[name] = [*set_texts, *[None] * (len(items.rows) - len(set_texts))]
    return texts


def _write(log: dict[str, SetLog], file: Path) -> None:
    """Writes a log whole or not at all; returns when all processes can read it."""
    files.replace_whole(file, lambda temporary: tofu_log.write_log(log, temporary))
    hosts.wait(f"the log {file.name} is written")


# ------------------------------------------------------------------------------- comparison


def _retain_log(context: Context) -> dict[str, SetLog] | None:
    """The log of the model that forget quality compares with, if there is one.

    The retrained model's own log exists by now: that model is measured before all others, and when
    it is measured itself, its log has just been written.
    """
    if context.retain_log is not None:
        return tofu_log.read_log(context.retain_log)
    if not context.retrained:
        return None
    # Of a model that is not finite, or whose loss is none, no log is written.
    file = context.log_file(RETRAINED)
    return tofu_log.read_log(file) if file.exists() else {}


def _compared_with(context: Context) -> str | None:
    """The name and hash of the log that forget quality compares with, for the settings."""
    if context.retain_log is None:
        return RETRAINED if context.retrained else None
    tofu_log.read_log(context.retain_log)  # a bad log is an error now, not after the measurements
    file = tofu_log.find_log(context.retain_log)
    return f"{file.name} {files.sha256(file)[:16]}"


def table_rows(
    log: dict[str, SetLog],
    retain_log: dict[str, SetLog] | None,
    absent: Mapping[str, str] = MappingProxyType({}),
) -> MetricRows:
    """The metrics of a log, with a reason for each that is missing.

    Args:
      log: of the model.
      retain_log: of a model that never saw the forget set, if there is one.
      absent: {set: why the data lack it}.
    """
    comparable = "forget" in log and (retain_log is None or "forget" in retain_log)
    rows = tofu.table(log, retain_log if comparable else None)
    missing = [
        missing_row("rouge", name, reason, tofu.DEFINITIONS["rouge.rougeL_recall"])
        for name, set_log in log.items()
        if (reason := _no_rouge(set_log)) is not None
    ]
    missing += [row for name, reason in absent.items() for row in tofu.missing_rows(name, reason)]
    if absent.keys() >= set(tofu.UTILITY_SETS):
        reason = "; ".join(dict.fromkeys(absent[name] for name in tofu.UTILITY_SETS))
        definition = tofu.DEFINITIONS["model_utility.geometric"]
        missing.append(missing_row("model_utility", OVER_UTILITY, reason, definition))
    if retain_log is None or not comparable:
        lacking = "one of the two logs lacks the forget set"
        if retain_log == {}:
            lacking = "the retrained model has no log, as its loss is not a number"
        reason = absent.get("forget", lacking)
        if "forget" in log and retain_log is None:
            reason = f"{NO_RETRAINED}, or give its log (evaluate.retain_log, --retain-log)"
        definition = tofu.DEFINITIONS["forget_quality.geometric"]
        missing.append(missing_row("forget_quality", "forget", reason, definition))
    return [*rows, *missing]


def _no_rouge(log: SetLog) -> str | None:
    """Why a set has no ROUGE; None where it has."""
    if log.rougeL is not None and np.isfinite(log.rougeL).any():
        return None
    written = log.texts is not None and any(text is not None for text in log.texts)
    return NO_WORDS if written else "no text was generated"
