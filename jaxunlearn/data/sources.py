"""Rows by split name: embedded, from local files, or from the Hugging Face hub.

All of them are brought into their normal form (`rows`) here, and nowhere else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core.names import nearest
from jaxunlearn.core.paths import user_path
from jaxunlearn.data import formats
from jaxunlearn.data.fictional import generate
from jaxunlearn.data.formats import FORMATS
from jaxunlearn.data.refusals import REFUSAL_FILE, load_refusals
from jaxunlearn.data.rows import TOFU_COLUMNS, Columns, DataRows, RawRows, normal_rows

FICTIONAL = "fictional"  # the source whose rows are generated instead of read
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
      source: "fictional", or a folder, a file or a hub name as in `load_split`.
      fictional: seed and sizes of the fictional data, the arguments of `generate`.
      columns: what the columns of the data are called.
    """

    def __init__(
        self, source: str, *, fictional: Mapping[str, Any], columns: Columns = TOFU_COLUMNS
    ):
        self._source, self._fictional, self._columns = source, dict(fictional), columns
        self._rows: dict[str, DataRows] = {}

    def find(self, split: str) -> DataRows | None:
        """Returns the rows of a split, None where the source has no split of this name.

        Raises:
          SourceError, FileNotFoundError: the source itself cannot be read.
          ValueError: a bad row, which is named, or an empty file.
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
          ValueError: no rows, a bad row or an empty file.
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
            raise ValueError(
                f"{key}: split {split!r} of {self._source} is empty; expected at least one row"
            )
        return rows

    def refusals(self) -> list[str]:
        """Returns the refusals in the source's folder, or the packaged ones where it has none."""
        if self._source == FICTIONAL:
            return load_refusals()
        file = user_path(self._source) / REFUSAL_FILE
        return load_refusals(file if file.is_file() else None)

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
            rows[split] = load_split(self._source, split, self._columns)
        return rows[split]

    def _generated(self) -> dict[str, DataRows]:
        if not self._rows:
            self._rows = {
                split: normal_rows(
                    RawRows(rows, lambda i, split=split: f"embedded {split}: row {i}"),
                    self._columns,
                )
                for split, rows in generate(**self._fictional).items()
            }
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


def load_split(
    source: str | Path, split: str | None = None, columns: Columns = TOFU_COLUMNS
) -> DataRows:
    """Reads one split.

    Args:
      source: a folder that holds the split as a file with a suffix of `FORMATS` or as a folder
        written by `Dataset.save_to_disk` (`DatasetDict.save_to_disk` writes one for every split);
        one such file or folder; or a hub name such as ``locuslab/TOFU``.
      split: such as ``forget05``, the stem of a file; for a single file None or its own stem. On
        the hub, a configuration with its split ``train``, or ``CONFIGURATION/SPLIT``.
      columns: what the columns are called.

    Returns:
      The rows in file order, in their normal form.

    Raises:
      SplitNotFoundError: the source has no such split; lists the splits it has.
      FileNotFoundError: no such folder or file.
      SourceError: the hub could not be reached, has no such dataset, or cannot be read.
      ValueError: a bad row, which is named, or an empty file.
    """
    path = user_path(source)
    if path.exists():
        return normal_rows(formats.read(_split_path(path, split), columns.names), columns)
    if _HUB_NAME.fullmatch(str(source)):
        return normal_rows(_load_hub(str(source), split or "", columns), columns)
    raise FileNotFoundError(
        f"{source}: no such folder or file; expected a folder with a file"
        f" ({', '.join(FORMATS)}) or a saved dataset for every split, one such file or dataset, or"
        " a hub name such as locuslab/TOFU"
    )


def _split_path(path: Path, split: str | None) -> Path:
    """The file or folder of a split."""
    if path.is_file() or formats.is_saved_dataset(path):
        name = formats.split_name(path)
        if split not in (None, name):
            raise SplitNotFoundError(
                f"{path} is one split, {name!r}, but {split!r} was asked for; give its folder"
            )
        return path
    found: dict[str, list[Path]] = {}
    for entry in sorted(path.iterdir()):
        is_table = entry.suffix in FORMATS and entry.is_file() and entry.name != REFUSAL_FILE
        if is_table or formats.is_saved_dataset(entry):
            found.setdefault(formats.split_name(entry), []).append(entry)
    if split is None or split not in found:
        there = ", ".join(sorted(found)) or f"none (expected files *{', *'.join(FORMATS)})"
        raise SplitNotFoundError(
            f"{path}: no split {split!r}{nearest(split or '', found)}; there are: {there}"
        )
    if len(found[split]) > 1:
        names = ", ".join(entry.name for entry in found[split])
        raise ValueError(f"{path}: the split {split!r} is there several times ({names}); keep one")
    return found[split][0]


def _load_hub(name: str, split: str, columns: Columns) -> RawRows:
    """Reads the rows of a configuration of a hub dataset, those of `train` or of another split.

    Only the hub's own answer that it has no such configuration means that there is no such split.
    A time-out, a rate limit or a broken cache says nothing about the split: taken for an absent
    one, it would silently leave sets out of an evaluation.
    """
    from datasets import load_dataset

    configuration, _, part = split.partition("/")
    try:
        parts = load_dataset(name, configuration or None)
    except Exception as error:  # `datasets` has no common base class for what it raises
        message = " ".join(str(error).split())
        if _is_unknown_configuration(error):
            raise SplitNotFoundError(
                f"{name}: no configuration {configuration!r} (a split of one is called"
                f" CONFIGURATION/SPLIT): {message}"
            ) from error
        raise SourceError(
            f"{name}: neither a local folder or file, nor could the hub's configuration"
            f" {configuration!r} be read ({type(error).__name__}: {message}); this may pass: try"
            " again, or download the data and give the folder"
        ) from error
    part = part or "train"
    if part not in parts:
        known = [f"{configuration}/{other}" for other in parts]
        raise SplitNotFoundError(
            f"{name}: the configuration {configuration!r} has no split {part!r}; there are:"
            f" {', '.join(known)}{nearest(f'{configuration}/{part}', known)}"
        )
    return formats.of_dataset(parts[part], columns.names, f"{name} {split}")


def _is_unknown_configuration(error: Exception) -> bool:
    """Returns whether `datasets` says that a dataset it has read lacks the configuration.

    Its message (versions 4 and 5) is "BuilderConfig 'x' not found. Available: [..]". Offline it
    says "Couldn't find cache for ..." instead, which only means that the split was not downloaded.
    """
    return isinstance(error, ValueError) and bool(
        re.match(r"BuilderConfig '.*' not found", str(error))
    )
