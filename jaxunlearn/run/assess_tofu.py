"""The TOFU suite of a run: how each model fares on the sets that are there, and its log."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import prompts
from jaxunlearn.evaluate import tofu, tofu_log
from jaxunlearn.evaluate.definitions import absent
from jaxunlearn.evaluate.rouge import rouge
from jaxunlearn.evaluate.tofu_log import SetLog
from jaxunlearn.run import hosts, measure
from jaxunlearn.run.assess_sets import (
    TWIN,
    Items,
    Job,
    Rows,
    Suite,
    encode_items,
    read_rows,
    split_of,
    versions,
    write_on,
)
from jaxunlearn.run.prepare import Prepared

Tree = Any

LOGS = "tofu_logs"
MOST_NEW_TOKENS = 200
PARAPHRASED = ("forget", "retain")  # sets whose truth ratio takes the paraphrased answer
NO_TWIN = (
    "there is no model without the forget set to compare with: set finetune.retrained, or give a"
    " log (evaluate.retain_log, --retain-log)"
)


class Asked(NamedTuple):
    """The questions that are answered in text: the first of every set."""

    prompts: dict[str, list[np.ndarray]]
    most: int  # tokens of an answer


def tofu_suite(job: Job) -> Suite:
    """Reads and encodes the sets that the data have.

    Raises:
      ValueError: none of them is there, or a row lacks a key.
    """
    sets = _sets(job)
    split = split_of(job.prepared, sets.values())
    asked = _asked(job, sets)
    settings = {
        "items": {name: len(items.rows) for name, items in sets.items()},
        "generated": {name: len(of_set) for name, of_set in asked.prompts.items()},
        "max_new_tokens": asked.most,
        "yardstick": _yardstick(job),
        "definitions": versions(tofu.DEFINITIONS),
    }

    def rows(name: str, params: Tree) -> list[dict[str, Any]]:
        losses = _losses(measure.statistics(params, split, job.prepared.model), sets)
        texts = _texts(job.prepared, params, asked, sets)
        log = {s: _set_log(s, *losses[s], texts[s]) for s in sets}
        file = _write(log, log_file(job.run, name))
        return _rows(log, _retain_log(job, file if name == TWIN else log_file(job.run, TWIN)))

    return Suite("tofu", settings, rows)


def log_file(run: Path, model: str) -> Path:
    """Where the log of a model is."""
    return run / LOGS / f"{model}.json"


def split_names(forget: str) -> dict[str, str]:
    """TOFU's name of the split of each set."""
    return {
        "forget": f"{forget}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }


def _sets(job: Job) -> dict[str, Items]:
    names = split_names(job.config.data.forget)
    found = {}
    for name, split in names.items():
        rows = read_rows(job.config, split)
        if rows is not None:
            _check_rows(rows, name, split)
            pairs = lambda row, name=name: [(row["question"], a) for a in _answers(row, name)]
            found[name] = encode_items(job.prepared, rows, pairs, split)
    if not found:
        raise ValueError(
            f"{job.config.data.source}: none of the splits {', '.join(names.values())} is there"
        )
    return found


def _answers(row: dict[str, Any], name: str) -> list[str]:
    """The answer, on some sets its paraphrase, and the wrong answers."""
    paraphrase = [row["paraphrased_answer"]] if name in PARAPHRASED else []
    return [row["answer"], *paraphrase, *row["perturbed_answer"]]


def _check_rows(rows: Rows, name: str, split: str) -> None:
    keys = ["perturbed_answer", *(["paraphrased_answer"] if name in PARAPHRASED else [])]
    for key in keys:
        if key not in rows[0]:
            raise ValueError(f"{split}: no key {key!r}; has {sorted(rows[0])}")
    wrong = len(rows[0]["perturbed_answer"])
    for i, row in enumerate(rows):
        found = row["perturbed_answer"]
        if not isinstance(found, list) or len(found) != wrong or not wrong:
            raise ValueError(f"{split}:{i}: expected {wrong} wrong answers, got {found!r}")


def _losses(
    stats: measure.Statistics, sets: dict[str, Items]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean NLL and label tokens of every answer, {set: ([n, answers], [n, answers])}."""
    nll = -stats.logp.sum(-1, dtype=np.float64) / stats.tokens
    found, first = {}, 0
    for name, items in sets.items():
        shape = len(items.rows), len(items.sequences[0])
        part = slice(first, first + shape[0] * shape[1])
        found[name] = nll[part].reshape(shape), stats.tokens[part].reshape(shape)
        first = part.stop
    return found


def _set_log(
    name: str, losses: np.ndarray, tokens: np.ndarray, texts: list[tuple[str, str, str] | None]
) -> SetLog:
    true, wrong = (1, 2) if name in PARAPHRASED else (0, 1)
    log = SetLog(
        answer_loss=losses[:, 0],
        paraphrase_loss=losses[:, true],
        perturbed_loss=losses[:, wrong:],
        answer_tokens=tokens[:, 0],
        paraphrase_tokens=tokens[:, true],
        perturbed_tokens=tokens[:, wrong:],
    )
    asked = [text for text in texts if text is not None]
    if not asked:
        return log
    scores = rouge([text[1] for text in asked], [text[2] for text in asked])
    pad = lambda x: np.pad(x, (0, len(texts) - len(asked)), constant_values=np.nan)
    return dataclasses.replace(
        log,
        rougeL=pad(scores["rougeL_recall"]),
        rouge1=pad(scores["rouge1_recall"]),
        texts=texts,
    )


def _asked(job: Job, sets: dict[str, Items]) -> Asked:
    style = job.config.data.prompt
    encode = lambda row: prompts.encode_prompt(job.prepared.tokenizer, row["question"], style=style)
    found = {name: [encode(r) for r in items.rows[: job.generate]] for name, items in sets.items()}
    longest = max((len(prompt) for of_set in found.values() for prompt in of_set), default=0)
    return Asked(found, min(MOST_NEW_TOKENS, job.prepared.model.context - longest))


def _texts(
    prepared: Prepared, params: Tree, asked: Asked, sets: dict[str, Items]
) -> dict[str, list[tuple[str, str, str] | None]]:
    """{set: (prompt, generated text, answer) of each row that is asked, None of the others}."""
    everything = [prompt for of_set in asked.prompts.values() for prompt in of_set]
    written = iter(write_on(prepared, params, everything, asked.most))
    read = lambda prompt: prepared.tokenizer.decode(prompt, skip_special_tokens=True)
    found: dict[str, list[tuple[str, str, str] | None]] = {}
    for name, items in sets.items():
        of_set = asked.prompts[name]
        texts = [
            (read(prompt), next(written), row["answer"])
            for prompt, row in zip(of_set, items.rows, strict=False)
        ]
        found[name] = [*texts, *[None] * (len(items.rows) - len(texts))]
    return found


def _write(log: dict[str, SetLog], file: Path) -> Path:
    """Writes a log whole or not at all; all processes find it."""
    if hosts.is_first():
        file.parent.mkdir(exist_ok=True)
        os.replace(tofu_log.write_log(log, file.with_name(file.name + ".tmp")), file)
    hosts.wait(f"the log {file.name} is written")
    return file


def _retain_log(job: Job, twin: Path) -> dict[str, SetLog] | None:
    if job.retain_log is not None:
        return tofu_log.read_log(job.retain_log)
    return tofu_log.read_log(twin) if job.twin else None


def _yardstick(job: Job) -> str | None:
    if job.retain_log is None:
        return TWIN if job.twin else None
    tofu_log.read_log(job.retain_log)  # whatever is wrong with it, say so now
    file = job.retain_log
    file = file / tofu_log.AGGREGATED if file.is_dir() else file
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _rows(log: dict[str, SetLog], retain_log: dict[str, SetLog] | None) -> list[dict[str, Any]]:
    """The table, and a reason for what it lacks."""
    comparable = "forget" in log and (retain_log is None or "forget" in retain_log)
    rows = tofu.table(log, retain_log if comparable else None)
    missing = [
        absent("rouge", name, "no text was generated", tofu.DEFINITIONS["rouge.rougeL_recall"])
        for name, found in log.items()
        if found.rougeL is None
    ]
    if retain_log is None or not comparable:
        reason = NO_TWIN if retain_log is None else "one of the two logs lacks the forget set"
        definition = tofu.DEFINITIONS["forget_quality.geometric"]
        missing.append(absent("forget_quality", "forget", reason, definition))
    return [*rows, *missing]
