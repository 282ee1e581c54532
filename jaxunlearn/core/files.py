"""Files that are written whole or not at all, and JSON-lines logs that survive a crash.

What is written is on the disk before it gets its name, so that a power cut loses no file either. On
several processes only the first one writes; the others return at once.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxunlearn.core import hosts, typed

TEMPORARY = ".tmp"
"""The ending of the names of files and folders that are not complete yet; they begin with a dot."""


class StepRecord(TypedDict):
    """What every record of a step of a training has, next to its numbers."""

    step: int
    objective: str


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that a crash leaves either the old file or the new one, never a part.

    Args:
      path: the file; its folder is made where it is missing.
      write: writes the content to the path that it is given, a temporary neighbour of `path`,
        which is then renamed.
    """
    if not hosts.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    # Made here and nowhere else: another's file or link of that name is an error, not followed.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        write(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
        _names_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    replace_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all; see `to_json`."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file, whole or not at all."""

    def write(temporary: Path) -> None:
        # Given a name, `np.save` would add the suffix .npy to it; an open file it takes as it is.
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    replace_whole(path, write)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    replace_whole(path, write)


def read_json(path: Path, kind: Any = Any) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      kind: the type that it must have, see `typed.check`; default: any.

    Raises:
      OSError: no such file.
      ValueError: it is no JSON, or of another type; names the file and the line or the key.
    """
    value = parse_json(path.read_bytes(), str(path))
    typed.check(value, kind, str(path))
    return value


def parse_json(content: bytes | str, where: str) -> Any:
    """Reads JSON.

    Raises:
      ValueError: it is none; begins with `where`.
    """
    try:
        return json.loads(content, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"{where}: not JSON: it is nested too deeply") from None
    except _TwiceError as error:
        raise ValueError(f"{where}: key {error.args[0]!r} is given twice; keep one") from None
    except ValueError as error:  # also of the encoding, and of endless numbers
        stand_in = stands_in(content)
        problem = f"expected JSON, found {stand_in}" if stand_in else f"not JSON: {error}"
        raise ValueError(f"{where}: {problem}") from error


class _TwiceError(Exception):
    """A key that an object of JSON has twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python would silently take the last of two equal keys."""
    value = dict(pairs)
    if len(value) < len(pairs):
        for key, _ in pairs:
            if key not in value:
                raise _TwiceError(key)
            del value[key]
    return value


def stands_in(content: bytes | str) -> str:
    """Names what is often found in the place of a file that was not really downloaded.

    Args:
      content: the file, or its beginning.

    Returns:
      What it is and what to do, "" for anything else.

    >>> stands_in(b"<!DOCTYPE html><html>404</html>")
    'a page in HTML; download the file itself'
    >>> stands_in("{}")
    ''
    """
    start = content[:200] if isinstance(content, bytes) else content[:200].encode(errors="ignore")
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer; run `git lfs pull` where it was cloned"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a page in HTML; download the file itself"
    return ""


def stands_in_place_of(path: Path) -> str:
    """The same of a file; "" for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return stands_in(file.read(200))
    except OSError:
        return ""


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; the file is never whole in memory."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON text, with NaN and infinities as null because JSON has neither."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def append(path: Path, record: Mapping[str, Any], *, durable: bool = False) -> None:
    """Adds one record to a JSON-lines file, after removing a last line that a crash cut short.

    Args:
      path: the file.
      record: to add.
      durable: whether to wait until it would survive a power cut, which takes milliseconds.
    """
    if not hosts.is_first():
        return
    _cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(record) + "\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())


def records(path: Path, kind: Any = dict[str, Any]) -> list[Any]:
    """Reads the records of a JSON-lines file, [] where there is no file.

    A last line without its line break was cut short by a crash and is left out.

    Args:
      path: the file.
      kind: the type of every record, see `typed.check`; default: any object.

    Raises:
      ValueError: a line is no JSON, or of another type; names the file, the line and the key.
    """
    if not path.exists():
        return []
    # What follows the last line break is nothing, or a torn line.
    *complete, _ = path.read_bytes().split(b"\n")
    return [_record(path, kind, number, line) for number, line in enumerate(complete, 1)]


def cut_back(path: Path, objective: str, from_step: int) -> None:
    """Removes the records of an objective from a step on, before a resumed run writes them again.

    Args:
      path: a JSON-lines file of `StepRecord`.
      objective: whose records are removed; those of others stay.
      from_step: the first step that is removed.
    """
    remaining = [
        record
        for record in records(path, StepRecord)
        if record["objective"] != objective or record["step"] < from_step
    ]
    if path.exists():
        write_text(path, "".join(to_json(record) + "\n" for record in remaining))


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns records as columns, {key: one value a record}; a key that a record lacks is None.

    >>> columns([{"step": 0, "loss": 1.5}, {"step": 1}])
    {'step': [0, 1], 'loss': [1.5, None]}
    """
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _record(path: Path, kind: Any, number: int, line: bytes) -> Any:
    where = f"{path}:{number}"
    record = parse_json(line, where)
    typed.check(record, kind, where)
    return record


def _finite(value: Any) -> Any:
    """Returns a nested value with None in the place of every NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_torn(path: Path) -> bool:
    """Whether the last line of a log has no line break; reads a single byte."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _cut_torn_line(path: Path) -> None:
    """Removes a last line without its line break."""
    if is_torn(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that appears whole or not at all.

    Args:
      path: of the folder; it must not exist, or be empty.

    Yields:
      A temporary folder next to it, to be filled; it is renamed at the end, or removed with all it
      holds when an exception ends the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                to_disk(file)
        os.replace(temporary, path)
        _names_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder with all it holds.

    Raises:
      OSError: names the folder. Before Python 3.12 `shutil.rmtree` names what it could not remove
        by its last part alone.
    """
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed left half written below a folder."""
    for path in list(folder.rglob(f".*{TEMPORARY}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name next to a path that nobody else has."""
    # Names end at 255 bytes.
    name = path.name.encode()[:200].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(8)}{TEMPORARY}")


def to_disk(file: Path) -> None:
    """Waits until a file's content would survive a power cut."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _names_to_disk(folder: Path) -> None:
    """The same of the names in a folder, on file systems that can do so."""
    with contextlib.suppress(OSError):
        to_disk(folder)
