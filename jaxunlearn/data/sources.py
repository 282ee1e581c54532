"""Question-answer rows by split name: embedded, from JSON lines, or from the Hugging Face hub.

Local files and hub datasets have the shape of TOFU (Maini et al. 2024, arXiv 2401.06121).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.core.names import nearest
from jaxunlearn.data.fictional import generate
from jaxunlearn.data.refusals import REFUSAL_FILE, load_refusals
from jaxunlearn.data.rows import DataRows

FICTIONAL = "fictional"  # the source whose rows are generated instead of read
_SUFFIXES = (".jsonl", ".json")
_PART = re.compile(r"(?P<split>.+)\[(?P<start>\d*):(?P<end>\d*)\]")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class SplitNotFoundError(FileNotFoundError):
    """The source can be read, and has no split of this name."""


class SourceError(OSError):
    """The source cannot be read, so that nothing is known about its splits."""


class Sources:
    """The rows of a source by split name; every split is read once and kept.

    A name may end with a range of rows, `retain_perturbed[:80]`, counted from 0 as in Python and in
    the `datasets` library. All callers share the rows, so nobody may change them.

    Args:
      source: "fictional", a folder of JSON-lines files named after the splits, one such file, or a
        hub name.
      fictional: seed and sizes of the fictional data, the arguments of `generate`.
    """

    def __init__(self, source: str, *, fictional: Mapping[str, Any]):
        self._source, self._fictional = source, dict(fictional)
        self._rows: dict[str, DataRows] = {}

    def find(self, split: str) -> DataRows | None:
        """Returns the rows of a split, None where the source has no split of this name.

        Raises:
          SourceError, FileNotFoundError: the source itself cannot be read.
          ValueError: a bad line, named as file:line, or an empty file.
        """
        try:
            return self._read(split)
        except SplitNotFoundError:
            return None

    def require(self, split: str, key: str) -> DataRows:
        """Returns the rows of a split that must exist and hold some.

        Args:
          split: its name.
          key: of the configuration that names the split, for error messages.

        Raises:
          SourceError, FileNotFoundError: no such split, or a source that cannot be read.
          ValueError: no rows, a bad line or an empty file.
          All messages begin with the key.
        """
        try:
            rows = self._read(split)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}: {error}") from error
        except SourceError as error:
            raise SourceError(f"{key}: {error}") from error
        if not rows:
            raise ValueError(f"{key}: split {split!r} of {self._source} is empty")
        return rows

    def refusals(self) -> list[str]:
        """Returns the refusals in the source's folder, or the packaged ones where it has none."""
        has_own = self._source != FICTIONAL and (Path(self._source) / REFUSAL_FILE).is_file()
        return load_refusals(self._source if has_own else None)

    def corpus(self, splits: Mapping[str, str]) -> DataRows:
        """Returns the rows on which a new tokenizer is trained.

        Args:
          splits: {split: the key of the configuration that names it}, the splits to join. Of the
            fictional data all splits are taken, whatever is named here.

        Raises:
          ValueError, OSError: as `require`.
        """
        if self._source == FICTIONAL:
            return [row for rows in self._generated().values() for row in rows]
        return [row for name, key in splits.items() for row in self.require(name, key)]

    def _read(self, split: str) -> DataRows:
        name, rows_of = part_of(split)
        if name != split:
            return self._read(name)[rows_of]
        rows = self._generated() if self._source == FICTIONAL else self._rows
        if self._source == FICTIONAL and split not in rows:
            raise SplitNotFoundError(
                f"the embedded data has no split {split!r}; there are: {', '.join(rows)}"
                + nearest(split, rows)
            )
        if split not in rows:
            rows[split] = load_split(self._source, split)
        return rows[split]

    def _generated(self) -> dict[str, DataRows]:
        if not self._rows:
            self._rows = generate(**self._fictional)
        return self._rows


def part_of(split: str) -> tuple[str, slice]:
    """The name of a whole split and the rows of it that are meant.

    >>> part_of("retain_perturbed[:80]")
    ('retain_perturbed', slice(None, 80, None))
    """
    part = _PART.fullmatch(split)
    if part is None:
        return split, slice(None)
    ends = (int(number) if number else None for number in part.group("start", "end"))
    return part["split"], slice(*ends)


def sibling(split: str, suffix: str) -> str:
    """The name of the split that goes with another one, of the same rows.

    >>> sibling("forget05", "_perturbed"), sibling("forget05[:20]", "_perturbed")
    ('forget05_perturbed', 'forget05_perturbed[:20]')
    """
    name, bracket, rest = split.partition("[")
    return f"{name}{suffix}{bracket}{rest}"


def load_split(source: str | Path, split: str | None = None) -> DataRows:
    """Reads one split of question-answer rows.

    Args:
      source: a folder that holds ``{split}.jsonl`` or ``{split}.json`` (JSON lines), one such
        file, or a hub name such as ``locuslab/TOFU``, whose configurations are the splits.
      split: such as ``forget05``; for a single file None or the file's own stem.

    Returns:
      The rows in file order, with at least ``question`` and ``answer``.

    Raises:
      SplitNotFoundError: the source has no such split; lists the splits it has.
      FileNotFoundError: no such folder or file.
      SourceError: the hub could not be reached, has no such dataset, or cannot be read.
      ValueError: a bad line, named as file:line, or an empty file.
    """
    path = Path(source)
    if not path.exists() and _HUB_NAME.fullmatch(str(source)):
        return _load_hub(str(source), split)
    if not path.exists():
        raise FileNotFoundError(
            f"{source}: no such folder or file; expected a folder of JSON lines files, one JSON "
            "lines file, or a hub name such as locuslab/TOFU"
        )
    return _read_rows(_split_file(path, split))


def _split_file(path: Path, split: str | None) -> Path:
    if path.is_file():
        if split not in (None, path.stem):
            raise SplitNotFoundError(
                f"{path} is one split, {path.stem!r}, but {split!r} was asked for; give its folder"
            )
        return path
    # Where a split has both suffixes, the first one wins.
    files = {f.stem: f for s in reversed(_SUFFIXES) for f in path.glob(f"*{s}")}
    files.pop(Path(REFUSAL_FILE).stem, None)
    if split in files:
        return files[split]
    raise SplitNotFoundError(
        f"{path}: no split {split!r}{nearest(split or '', files)}; there are: "
        f"{', '.join(sorted(files)) or 'none (expected *.jsonl)'}"
    )


def _read_rows(file: Path) -> DataRows:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    rows: DataRows = []
    # JSON may hold other line breaks, such as U+2028, at which `splitlines` would cut.
    for number, line in enumerate(text.split("\n"), start=1):
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
    row = files.parse_json(line, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected one JSON object a line, got {type(row).__name__}")
    for key in ("question", "answer"):
        if key not in row:
            raise ValueError(f"{where}: no key {key!r}{nearest(key, row)}; has {sorted(row)}")
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: {key!r} must be a string, got {row[key]!r}")
    return row


def _load_hub(name: str, split: str | None) -> DataRows:
    """Reads the rows of one configuration of a hub dataset.

    Only the hub's own answer that it has no such configuration means that there is no such split.
    A time-out, a rate limit or a broken cache says nothing about the split: taken for an absent
    one, it would silently leave sets out of an evaluation.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, split)["train"].to_list()
    except Exception as error:  # `datasets` has no common base class for what it raises
        message = " ".join(str(error).split())
        if _is_unknown_configuration(error):
            raise SplitNotFoundError(f"{name}: no split {split!r}: {message}") from error
        raise SourceError(
            f"{name}: neither a local folder or file, nor could the hub's configuration {split!r} "
            f"be read ({type(error).__name__}: {message}); this may pass: try again, or download "
            "the data and give the folder"
        ) from error


def _is_unknown_configuration(error: Exception) -> bool:
    """Returns whether `datasets` says that a dataset it has read lacks the configuration.

    Its message (versions 4 and 5) is "BuilderConfig 'x' not found. Available: [..]". Offline it
    says "Couldn't find cache for ..." instead, which only means that the split was not downloaded.
    """
    return isinstance(error, ValueError) and bool(
        re.match(r"BuilderConfig '.*' not found", str(error))
    )
