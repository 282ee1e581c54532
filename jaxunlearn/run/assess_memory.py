"""The memorisation suite of a run: extraction strength and exact memorisation, all variants."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import prompts
from jaxunlearn.evaluate import memorization
from jaxunlearn.evaluate.definitions import absent, row
from jaxunlearn.run import measure
from jaxunlearn.run.assess_sets import (
    Items,
    Job,
    Rows,
    Suite,
    encode_items,
    need_rows,
    read_rows,
    split_of,
    versions,
    write_on,
)
from jaxunlearn.run.prepare import Prepared

Tree = Any

WRITTEN = (
    "extraction_strength.generation",
    "verbatim_rouge.rougeL_f1",
    "verbatim_rouge.rougeL_f1_stemmed",
)
SPARE = 8  # tokens beyond the longest answer: whoever does not stop there is seen not to


class Recited(NamedTuple):
    """Questions of all sets, whose answers are continued from a prefix."""

    sets: list[str]  # of each question
    questions: list[str]
    answers: list[str]
    most: int  # tokens of a continuation


def memorization_suite(job: Job) -> Suite:
    """Reads and encodes the forget and the measured retain set, and their paraphrased questions."""
    sets = _sets(job)
    split = split_of(job.prepared, sets.values())
    recited = _recited(job, sets)
    settings = {
        "items": {name: len(items.rows) for name, items in sets.items()},
        "generated": {name: recited.sets.count(name) for name in sets},
        "definitions": versions(memorization.DEFINITIONS),
    }

    def rows(name: str, params: Tree) -> list[dict[str, Any]]:
        del name
        stats, found, first = measure.statistics(params, split, job.prepared.model), [], 0
        for over, items in sets.items():
            part = slice(first, first + len(items.rows))
            found += _forced_rows(over, stats.correct[part], stats.mask[part])
            first = part.stop
        values = _written(job.prepared, params, recited) if recited.questions else {}
        return found + [r for over in sets for r in _written_rows(job, over, recited, values)]

    return Suite("memorization", settings, rows)


def _sets(job: Job) -> dict[str, Items]:
    data, found = job.config.data, {}
    for name, split in (("forget", data.forget), ("retain", data.measured_retain)):
        own = lambda row: [(row["question"], row["answer"])]
        found[name] = encode_items(job.prepared, need_rows(job.config, split), own, split)
        if rows := _paraphrased(job, split):
            source = f"{split}, paraphrased_question"
            found[f"{name}.paraphrased"] = encode_items(job.prepared, rows, own, source)
    return found


def _paraphrased(job: Job, split: str) -> Rows | None:
    """The rows of a split that have paraphrased questions: its own, or its perturbed twin's."""
    for name in (split, f"{split}_perturbed"):
        rows = read_rows(job.config, name)
        if rows and "paraphrased_question" in rows[0]:
            return [{**r, "question": r["paraphrased_question"]} for r in rows]
    return None


def _forced_rows(over: str, correct: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    """What teacher forcing says."""
    found = []
    for metric, function, variants in (
        ("extraction_strength", memorization.extraction_strength, memorization.Strength.__args__),
        ("exact_memorization", memorization.exact_memorization, memorization.Exact.__args__),
    ):
        for variant in variants:
            values = np.asarray(function(correct, mask, definition=variant), np.float64)
            definition = memorization.DEFINITIONS[f"{metric}.{variant}"]
            found.append(row(metric, over, values.mean(), definition, items=len(values)))
    return found


def _recited(job: Job, sets: dict[str, Items]) -> Recited:
    """The first rows of each set whose context has room for a whole continuation."""
    asked = [
        (name, row, sequence)
        for name, items in sets.items()
        for row, (sequence,) in zip(
            items.rows[: job.recite], items.sequences[: job.recite], strict=True
        )
    ]
    most = max((len(s.tokens) - s.first_label for *_, s in asked), default=0) + SPARE
    room = job.prepared.model.context - most - SPARE
    kept = [(name, row) for name, row, s in asked if len(s.tokens) <= room]
    return Recited(
        [name for name, _ in kept],
        [row["question"] for _, row in kept],
        [row["answer"] for _, row in kept],
        most,
    )


def _written(prepared: Prepared, params: Tree, recited: Recited) -> dict[str, np.ndarray]:
    """What greedy text says of every question, by definition."""
    count = len(recited.questions)

    def complete(ids: Sequence[int], prefixes: Sequence[str]) -> list[str]:
        given = [
            _prompt(prepared, recited.questions[i], prefix)
            for i, prefix in zip(ids, prefixes, strict=True)
        ]
        # One shape, hence one compilation, however many are left.
        filled = [*given, *[given[-1]] * (count - len(given))]
        return write_on(prepared, params, filled, recited.most)[: len(given)]

    strength = memorization.generated_extraction_strength(recited.answers, complete)
    prefixes, rest = memorization.split_answers(recited.answers)
    written = complete(range(count), prefixes)
    cut = [_as_long(prepared.tokenizer, t, r) for t, r in zip(written, rest, strict=True)]
    return {
        "extraction_strength.generation": strength,
        "verbatim_rouge.rougeL_f1": memorization.verbatim_rouge(cut, rest),
        "verbatim_rouge.rougeL_f1_stemmed": memorization.verbatim_rouge(cut, rest, stem=True),
    }


def _written_rows(
    job: Job, over: str, recited: Recited, values: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """What greedy text says of one set."""
    mine = np.array([name == over for name in recited.sets], bool)
    found = []
    for name in WRITTEN:
        metric, definition = name.partition(".")[0], memorization.DEFINITIONS[name]
        if mine.any():
            value = values[name][mine].mean()
            found.append(row(metric, over, value, definition, items=int(mine.sum())))
        else:
            room = job.recite != 0
            lacks = "the context has no room for it" if room else "nothing was recited"
            found.append(absent(metric, over, lacks, definition))
    return found


def _prompt(prepared: Prepared, question: str, prefix: str) -> np.ndarray:
    """The question and the start of an answer."""
    style = prepared.config.data.prompt
    if not prefix:
        return prompts.encode_prompt(prepared.tokenizer, question, style=style)
    return prompts.encode(prepared.tokenizer, question, prefix, style=style).tokens[:-1]  # no EOS


def _as_long(tokenizer: Any, text: str, reference: str) -> str:
    """The text, cut to as many tokens as the reference has."""
    count = len(tokenizer(reference, add_special_tokens=False)["input_ids"])
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:count])
