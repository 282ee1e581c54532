"""TOFU-shaped data from local JSON lines or the hub (Maini et al. 2024, arXiv 2401.06121)."""

import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxunlearn.data.fictional import REFUSALS

if TYPE_CHECKING:
    from datasets import Dataset

REFUSAL_FILE = "idontknow.jsonl"
# Keeps these draws apart from the data order of the same seed.
_REFUSAL_STREAM = 2
_SUFFIXES = (".jsonl", ".json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_split(source: str | Path, split: str | None = None) -> "Dataset":
    """Load one split of question-answer rows.

    Args:
      source: a folder that holds ``{split}.jsonl`` or ``{split}.json`` (JSON lines), one such
        file, or a hub name such as ``locuslab/TOFU``, whose configurations are the splits (not
        covered by the tests, which run offline).
      split: such as ``forget05``; for a single file None or the file's own stem.

    Returns:
      The rows in file order, with at least ``question`` and ``answer``.

    Raises:
      FileNotFoundError: no such source or split; lists the splits that are there.
      ValueError: a bad line, named as file:line, or an empty file.
    """
    from datasets import Dataset

    path = Path(source)
    if not path.exists() and _HUB_NAME.fullmatch(str(source)):
        return _load_hub(str(source), split)
    if not path.exists():
        raise FileNotFoundError(
            f"{source}: no such folder or file; expected a folder of JSON lines files, one JSON "
            "lines file, or a hub name such as locuslab/TOFU"
        )
    return Dataset.from_list(_read_rows(_split_file(path, split)))


def load_refusals(source: str | Path | None = None) -> list[str]:
    """Load the answers that preference optimisation substitutes: plain text, one a line.

    Args:
      source: a file, or a folder that holds ``idontknow.jsonl`` (TOFU's own name and format, 100
        lines); None gives the packaged ones.

    Returns:
      The lines, without the blank ones.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no lines in it.
    """
    if source is None:
        return list(REFUSALS)
    path = Path(source)
    path = path / REFUSAL_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no refusals; expected plain text, one answer a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path}: empty; expected plain text, one answer a line")
    return lines


def refusal_index(seed: int, sample: int, epoch: int | None, n: int) -> int:
    """Which refusal stands in for a sample's answer: uniform, a function of its arguments alone.

    Args:
      seed: of the run.
      sample: id of the sample.
      epoch: from 0 in training; None when measuring, so that every measurement of a sample uses
        the same refusal.
      n: number of refusals.

    Returns:
      An index in 0..n-1.

    Raises:
      ValueError: ``n`` is not positive, or a negative argument.

    >>> refusal_index(0, 3, None, 100) == refusal_index(0, 3, None, 100)
    True
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    turn = 0 if epoch is None else epoch + 1  # 0 is the measurement's own draw
    return int(np.random.default_rng((seed, sample, turn, _REFUSAL_STREAM)).integers(n))


def _split_file(path: Path, split: str | None) -> Path:
    if path.is_file():
        if split not in (None, path.stem):
            raise FileNotFoundError(
                f"{path} is one split, {path.stem!r}, but {split!r} was asked for; give its folder"
            )
        return path
    files = {f.stem: f for s in reversed(_SUFFIXES) for f in path.glob(f"*{s}")}
    files.pop(Path(REFUSAL_FILE).stem, None)
    if split in files:
        return files[split]
    raise FileNotFoundError(
        f"{path}: no split {split!r}{_nearest(split or '', files)}; there are: "
        f"{', '.join(sorted(files)) or 'none (expected *.jsonl)'}"
    )


def _read_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        row = _read_row(line, f"{file}:{number}")
        if rows and row.keys() != rows[0].keys():
            raise ValueError(
                f"{file}:{number}: keys {sorted(row)} differ from the first row's {sorted(rows[0])}"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{file}: empty; expected one JSON object a line")
    return rows


def _read_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: invalid JSON: {error}; expected one object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in ("question", "answer"):
        if key not in row:
            raise ValueError(f"{where}: no key {key!r}{_nearest(key, row)}; has {sorted(row)}")
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: {key!r} must be a string, got {row[key]!r}")
    return row


def _load_hub(name: str, split: str | None) -> "Dataset":
    from datasets import load_dataset

    try:
        return load_dataset(name, split)["train"]  # pyright: ignore[reportReturnType]
    except Exception as error:
        raise FileNotFoundError(
            f"{name}: neither a local folder or file, nor could the hub's configuration {split!r} "
            f"be loaded: {error}"
        ) from error


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (perhaps you meant {close[0]!r})" if close else ""
