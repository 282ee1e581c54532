"""Reads the rows of one split: from a local file or folder in a format of `FORMATS`, or memory."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.core.paths import read_text
from jaxunlearn.data.rows import RawRows

_STATE = "state.json"  # is in every folder that `datasets.Dataset.save_to_disk` writes


def is_saved_dataset(path: Path) -> bool:
    """Whether a path is a folder that `datasets.Dataset.save_to_disk` wrote.

    What `DatasetDict.save_to_disk` writes is a folder of such folders, named after the splits.
    """
    return (path / _STATE).is_file()


def split_name(path: Path) -> str:
    """The name of the split in a file or in the folder of a saved dataset."""
    return path.name if path.is_dir() else path.stem


def read(path: Path, wanted: Sequence[str]) -> RawRows:
    """Reads all rows of a file, or of the folder of a saved dataset.

    Args:
      path: whose suffix is one of `FORMATS`; files with another suffix are read as JSON lines.
      wanted: the columns to read, where there are such; formats with columns read no others.

    Returns:
      The rows, at least one.

    Raises:
      OSError: it cannot be read.
      ValueError: it is empty, damaged or of another format; names the file, and the line of a text.
    """
    reader = _saved if path.is_dir() else FORMATS.get(path.suffix, _json_lines)
    raw = reader(path, wanted)
    if not raw.rows:
        raise ValueError(f"{path}: empty; expected at least one row")
    return raw


# ------------------------------------------------------------------------------- text


def _json_lines(path: Path, wanted: Sequence[str]) -> RawRows:
    return _lines(read_text(path), path)


def _json(path: Path, wanted: Sequence[str]) -> RawRows:
    """JSON: a list of objects, or JSON lines under this name."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return _lines(text, path)
    rows = files.parse_json(text, str(path))
    place = _numbered(path)
    for i, row in enumerate(rows):
        _check_object(row, place(i), "a list of JSON objects")
    return RawRows(rows, place)


def _lines(text: str, path: Path) -> RawRows:
    rows, numbers = [], []
    # JSON may hold other line breaks, such as U+2028, at which `splitlines` would cut.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = files.parse_json(line, f"{path}:{number}")
        _check_object(row, f"{path}:{number}", "one JSON object a line")
        rows.append(row)
        numbers.append(number)
    return RawRows(rows, lambda i: f"{path}:{numbers[i]}")


def _check_object(row: Any, where: str, expected: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected {expected}, got {type(row).__name__}")


def _csv(path: Path, wanted: Sequence[str]) -> RawRows:
    """Comma-separated values, the names of the columns first; all values are text."""
    import pyarrow as pa
    from pyarrow import csv

    text = read_text(path)
    _check_quotes(text, path)
    content = pa.BufferReader(text.encode("utf-8"))
    # One block, as a value must not reach from one block into the next.
    options = {
        "read_options": csv.ReadOptions(use_threads=False, block_size=content.size() + 1),
        "parse_options": csv.ParseOptions(newlines_in_values=True),
    }
    try:
        names = csv.open_csv(content, **options).schema.names
        content.seek(0)
        found = _found(wanted, names)
        if not found and len(names) == 1 and re.search("[;\t]", names[0]):
            raise ValueError(f"its one column is {names[0]!r}; separate values by commas")
        types = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=found
        )
        table = csv.read_csv(content, convert_options=types, **options)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from error
    return _table(table, names, path)


# A value in quotes, to the end of the text where they are never closed.
_QUOTED = re.compile(r'(?:\A|[,\r\n])"[^"]*(?:""[^"]*)*("?)')


def _check_quotes(text: str, path: Path) -> None:
    """Checks that quotes are closed: all rows up to the end of the file would become one value."""
    for found in _QUOTED.finditer(text):
        if not found[1]:
            line = text.count("\n", 0, found.start() + 1) + 1
            raise ValueError(f"{path}:{line}: a quotation mark is opened here and never closed")


# ------------------------------------------------------------------------------- tables


def _parquet(path: Path, wanted: Sequence[str]) -> RawRows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read(columns=_found(wanted, names))
        table.validate(full=True)
        return _table(table, names, path)
    except (pa.ArrowException, OSError, ValueError) as error:
        found = files.stands_in_place_of(path) or str(error)
        raise ValueError(f"{path}: cannot be read as Parquet: {found}") from error


def _saved(path: Path, wanted: Sequence[str]) -> RawRows:
    """The folder of a saved dataset."""
    import datasets

    try:
        dataset = datasets.Dataset.load_from_disk(str(path))
        return of_dataset(dataset, wanted, str(path))
    # Of a damaged folder, `datasets` raises whatever its code runs into.
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as a saved dataset: {type(error).__name__}: {error}"
        ) from error


def of_dataset(dataset: Any, wanted: Sequence[str], where: str) -> RawRows:
    """The rows of a `datasets.Dataset`.

    Args:
      dataset: of any columns.
      wanted: the columns to read, where there are such; no other is decoded.
      where: name of the data in messages.
    """
    names = dataset.column_names
    found = _found(wanted, names)
    # Without columns a table has no rows either, and then nobody could say what is missing.
    rows = dataset.select_columns(found).to_list() if found else [{}] * min(len(dataset), 1)
    return RawRows(rows, _numbered(where), names)


def of_memory(data: Any, wanted: Sequence[str], where: str) -> RawRows:
    """The rows of data in memory.

    Args:
      data: a `datasets.Dataset`, a `pyarrow.Table`, a `pandas.DataFrame`, or a list of mappings.
      wanted: the columns to read, where there are such.
      where: name of the data in messages.

    Raises:
      ValueError: something else, no rows, or a column that is there twice.
    """
    import pyarrow as pa

    # Known by what they can do, as importing pandas or datasets takes seconds.
    if hasattr(data, "select_columns") and hasattr(data, "to_list"):
        raw = of_dataset(data, wanted, where)
    elif hasattr(data, "iloc") and hasattr(data, "columns"):
        found = _found(wanted, list(data.columns))
        try:
            # Without a column a table has no rows, and the data would be called empty.
            table = pa.Table.from_pandas(data[found or data.columns[:1]], preserve_index=False)
        except pa.ArrowException as error:
            raise ValueError(f"{where}: cannot be read as a table: {error}") from error
        raw = _table(table, list(data.columns), where)
    elif isinstance(data, pa.Table):
        raw = _table(data.select(_found(wanted, data.column_names)), data.column_names, where)
    elif isinstance(data, list | tuple):
        for i, row in enumerate(data):
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"{where}: row {i}: expected a mapping of columns, such as {{'question': ..,"
                    f" 'answer': ..}}, got {type(row).__name__}"
                )
        raw = RawRows(data, _numbered(where))
    else:
        raise ValueError(
            f"{where}: expected a list of rows, or a table of datasets, pyarrow or pandas, got"
            f" {type(data).__name__}"
        )
    if not raw.rows:
        raise ValueError(f"{where}: empty; expected at least one row")
    return raw


def _found(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns to read that are there, each once."""
    doubled = [name for name in wanted if list(names).count(name) > 1]
    if doubled:
        raise ValueError(f"the column {doubled[0]!r} is there twice; keep one")
    return [name for name in wanted if name in names]


def _table(table: Any, names: Sequence[str], where: str | Path) -> RawRows:
    rows = table.to_pylist() if table.column_names else [{}] * min(table.num_rows, 1)
    return RawRows(rows, _numbered(where), names)


def _numbered(where: str | Path) -> Callable[[int], str]:
    return lambda i: f"{where}: row {i}"


FORMATS: dict[str, Callable[[Path, Sequence[str]], RawRows]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""{suffix of a file: what reads it}"""
