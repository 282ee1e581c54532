"""Reads evaluation logs of any format, and writes them in that of the TOFU authors' scripts.

A log of theirs, `eval_log_aggregated.json`, is {file name of a set: {key: {index of an item:
value}}}:

| key | value |
|---|---|
| avg_gt_loss, num_token_gt, gt_loss | mean NLL of the answer, its tokens, their product |
| avg_paraphrased_loss, num_token_paraphrased, paraphrased_loss | the same of the paraphrase |
| average_perturb_loss, num_token_perturb, perturb_loss | the same of each wrong answer, lists |
| truth_ratio | exp(avg_paraphrased_loss - mean average_perturb_loss) |
| normalized_gt_loss | -log of the normalised probability; real authors and world facts alone |
| rouge1_recall, rougeL_recall | of the generated text |
| generated_text | [prompt, generated text, answer] |

Losses are in nats per token, EOS included. Older logs hold lists instead of {index: value}. Items
whose text was not generated are left out of the keys of generated text; the authors' scripts then
take the mean over the others.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core import files
from jaxunlearn.core.names import nearest, shortened
from jaxunlearn.core.paths import user_path
from jaxunlearn.metrics import open_unlearning_log
from jaxunlearn.metrics.set_log import SetLog, is_number

AGGREGATED = "eval_log_aggregated.json"
FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
NORMALISED = ("real_authors", "world_facts")
"""Sets on which the probability of the answer is its share among all answers."""
KEYS = {
    "answer_loss": "avg_gt_loss",
    "paraphrase_loss": "avg_paraphrased_loss",
    "perturbed_loss": "average_perturb_loss",
    "rougeL": "rougeL_recall",
    "rouge1": "rouge1_recall",
    "answer_tokens": "num_token_gt",
    "paraphrase_tokens": "num_token_paraphrased",
    "perturbed_tokens": "num_token_perturb",
    "texts": "generated_text",
}
REQUIRED = ("answer_loss", "paraphrase_loss", "perturbed_loss")
GENERATED = ("rougeL", "rouge1", "texts")
"""Columns of generated text, which may have no value for some items."""
_EXPECTED = (
    f"expected the sets of TOFU's scripts ({', '.join(FILES.values())}) or the metrics of"
    f" OpenUnlearning ({open_unlearning_log.ANSWER.format('forget')}, ..)"
)
_LISTS = ("perturbed_loss", "perturbed_tokens")
_SUMS = {
    "gt_loss": ("answer_loss", "answer_tokens"),
    "paraphrased_loss": ("paraphrase_loss", "paraphrase_tokens"),
    "perturb_loss": ("perturbed_loss", "perturbed_tokens"),
}


def find_log(path: str | Path) -> Path:
    """The file of a log.

    Args:
      path: the file, or a folder that holds `eval_log_aggregated.json` or `TOFU_EVAL.json`.

    Raises:
      FileNotFoundError: there is none.
    """
    path = user_path(path)
    names = (AGGREGATED, open_unlearning_log.FILE)
    files_there = [path / name for name in names] if path.is_dir() else [path]
    for file in files_there:
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{path}: no evaluation log; expected JSON such as {' or '.join(names)}"
    )


def read_log(path: str | Path) -> dict[str, SetLog]:
    """Reads a log of the TOFU authors' scripts, of `write_log`, or of OpenUnlearning.

    Which of the formats a file has is seen from its keys.

    Args:
      path: as in `find_log`.

    Returns:
      {"forget", "retain", "real_authors", "world_facts": SetLog}, the sets that it has, items in
      the order of their indices.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such log; names the file, the set and the key.
    """
    file = find_log(path)
    document = files.read_json(file)
    if not isinstance(document, dict) or not document:
        raise ValueError(f"{file}: {_EXPECTED}")
    if open_unlearning_log.is_log(document):
        return open_unlearning_log.read(document, str(file))
    sets = {name: key for key, name in FILES.items()}
    for name in document:
        if name not in sets:
            raise ValueError(f"{file}: unknown set {name!r}{_nearest_of(name, sets)}; {_EXPECTED}")
    return {
        key: _read_set(document[name], f"{file}: {name}")
        for key, name in FILES.items()
        if name in document
    }


def write_log(log: Mapping[str, SetLog], path: str | Path) -> Path:
    """Writes a log that the TOFU authors' scripts can read.

    Args:
      log: {set: SetLog}, see `read_log`.
      path: the file, or an existing folder, where it is named `eval_log_aggregated.json`.

    Returns:
      The file.

    Raises:
      ValueError: an unknown set, or arrays of a set that do not fit together.
    """
    for name in log:
        if name not in FILES:
            raise ValueError(f"unknown set {name!r}{_nearest_of(name, FILES)}")
    document = {FILES[name]: _columns(name, set_log) for name, set_log in log.items()}
    file = Path(path) / AGGREGATED if Path(path).is_dir() else Path(path)
    file.write_text(json.dumps(document, indent=4), encoding="utf-8")
    return file


def _columns(name: str, log: SetLog) -> dict[str, dict[str, Any]]:
    """{key: {index: value}} of one set, as the log file holds it."""
    values: dict[str, Any] = {
        KEYS[f.name]: getattr(log, f.name) for f in fields(log) if getattr(log, f.name) is not None
    }
    for key, (loss, tokens) in _SUMS.items():
        if getattr(log, tokens) is not None:
            values[key] = np.asarray(getattr(log, loss)) * np.asarray(getattr(log, tokens))
    true, wrong = np.asarray(log.paraphrase_loss), np.asarray(log.perturbed_loss)
    # The ratio of infinite losses is NaN; readers compute it from the losses anyway.
    with np.errstate(over="ignore", invalid="ignore"):
        values["truth_ratio"] = np.exp(true - wrong.mean(axis=1))
        if name in NORMALISED:
            logp = -np.concatenate([np.asarray(log.answer_loss)[:, None], wrong], axis=1)
            values["normalized_gt_loss"] = np.logaddexp.reduce(logp, axis=1) - logp[:, 0]
    sizes = {key: len(column) for key, column in values.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"set {name!r}: arrays of different lengths: {sizes}")
    lists = {k: v.tolist() if isinstance(v, np.ndarray) else list(v) for k, v in values.items()}
    columns = {k: {str(i): v for i, v in enumerate(column)} for k, column in lists.items()}
    for key in map(KEYS.__getitem__, GENERATED):
        recorded = {i: v for i, v in columns.pop(key, {}).items() if v is not None and v == v}
        columns |= {key: recorded} if recorded else {}
    return columns


def _read_set(columns: Any, where: str) -> SetLog:
    """One set of a log file; `where` begins the error messages."""
    if not isinstance(columns, dict):
        raise ValueError(f"{where}: expected an object of keys, got {type(columns).__name__}")
    for field in REQUIRED:
        if KEYS[field] not in columns:
            key = KEYS[field]
            raise ValueError(f"{where}: no key {key!r}{_nearest_of(key, columns)}")
    by_index = {
        field: _by_index(columns[key], f"{where}: {key}")
        for field, key in KEYS.items()
        if key in columns
    }
    indices = sorted(by_index["answer_loss"])
    for field, values in by_index.items():
        odd = by_index["answer_loss"].keys() ^ values.keys()
        if field in GENERATED:  # which some items may lack
            odd &= values.keys()
        if odd:
            raise ValueError(
                f"{where}: {KEYS['answer_loss']} and {KEYS[field]} have different items: index "
                f"{min(odd)} is in one of them alone"
            )
    arrays: dict[str, Any] = {
        field: _values(field, values, indices, f"{where}: {KEYS[field]}")
        for field, values in by_index.items()
    }
    return SetLog(**arrays)


def _by_index(column: Any, where: str) -> dict[int, Any]:
    """The values of a key by the index of their item, whichever way the log holds them."""
    if isinstance(column, list):
        column = dict(enumerate(column))
    if not isinstance(column, dict) or not column:
        raise ValueError(f"{where}: expected values by index, {{'0': .., '1': ..}}")
    try:
        return {int(index): value for index, value in column.items()}
    except ValueError as error:
        raise ValueError(f"{where}: an index is no whole number: {error}") from error


def _values(field: str, by_index: dict[int, Any], indices: list[int], where: str) -> Any:
    """The values of a field in the order of the items, each checked."""
    recorded = [i for i in indices if i in by_index]
    values = [by_index[i] for i in recorded]
    if field == "texts":
        is_good = partial(_is_list, length=3, is_good=_is_text)
        expected = "[prompt, generated text, answer]"
    elif field in _LISTS:
        width = len(values[0]) if isinstance(values[0], list) else 0
        is_good = partial(_is_list, length=width, is_good=is_number)
        expected = f"a list of {width or 'some'} numbers"
    else:
        is_good, expected = is_number, "a number"
    for index, value in zip(recorded, values, strict=True):
        if not is_good(value):
            raise ValueError(f"{where}: index {index}: expected {expected}, got {value!r}")
    if field == "texts":
        return [tuple(by_index[i]) if i in by_index else None for i in indices]
    filled = [by_index.get(i, np.nan) for i in indices]  # NaN: no generated text
    numbers = np.array(filled, np.float64)
    if not field.endswith("_tokens"):
        return numbers
    if not (np.abs(numbers) < 2**53).all():
        raise ValueError(f"{where}: expected numbers of tokens, got {shortened(str(filled))}")
    return numbers.astype(np.int64)


def _is_list(value: Any, *, length: int, is_good: Callable[[Any], bool]) -> bool:
    """Whether a value is a list of this length, at least 1, of good values."""
    return isinstance(value, list) and len(value) == length > 0 and all(map(is_good, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _nearest_of(name: str, candidates: Iterable[str]) -> str:
    """The nearest known name, and all of them, for an error message."""
    names = list(candidates)
    return f"{nearest(name, names)}; there are: {', '.join(names)}"
