"""The record of a run: a folder of tables from which everything shown is recomputed.

Long tables are written as one file per (table, objective, step), each renamed into place when
whole, and merged at the end. Wall clock lives in `timings.jsonl` alone, so that all else is
repeatable. Of several processes the first writes; the functions do nothing on the others.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxunlearn.run import hosts

_COMMON = [("step", pa.int32()), ("objective", pa.string())]
SCHEMAS = {
    "g_effect": pa.schema(
        [
            *_COMMON,
            ("risk", pa.string()),  # of the data to "unlearn" or to "retain"
            ("layer", pa.string()),  # a layer's name, or "total"
            ("value", pa.float64()),  # e = grad R . grad L_u
            ("cosine", pa.float64()),
            ("risk_norm", pa.float64()),
            ("objective_norm", pa.float64()),
            ("risk_value", pa.float64()),  # R(theta_t)
            ("update_effect", pa.float64()),  # grad R . (theta_{t+1} - theta_t)
            ("step_change", pa.float64()),  # R(theta_{t+1}) - R(theta_t)
            ("interval_steps", pa.int32()),  # steps to the next measurement
            ("interval_predicted", pa.float64()),  # grad R(theta_t) . (theta_next - theta_t)
            ("interval_change", pa.float64()),  # R(theta_next) - R(theta_t)
            ("lr", pa.float64()),
            ("reduction", pa.string()),
            ("estimator", pa.string()),
        ]
    ),
    "pg_effect": pa.schema(
        [
            *_COMMON,
            ("sample", pa.int32()),
            ("layer", pa.string()),
            ("risk", pa.string()),
            ("value", pa.float64()),  # grad R . grad log p(s)
            ("weight", pa.float64()),
            ("reduction", pa.string()),
            ("estimator", pa.string()),
        ]
    ),
    "token_effect": pa.schema(
        [
            *_COMMON,
            ("sample", pa.int32()),
            ("position", pa.int32()),  # in the answer
            ("token", pa.int32()),
            ("risk", pa.string()),
            ("value", pa.float64()),  # grad R . grad log p_i
            ("weight", pa.float64()),
            ("reduction", pa.string()),
            ("estimator", pa.string()),
        ]
    ),
    "samples": pa.schema(
        [
            *_COMMON,
            ("split", pa.string()),  # "forget" or "retain"
            ("sample", pa.int32()),
            ("log_prob", pa.float64()),
            ("tokens", pa.int32()),
            ("extraction_strength", pa.float64()),
            ("weight", pa.float64()),
        ]
    ),
    "confidence": pa.schema(
        [*_COMMON, ("statistic", pa.string()), ("log10_inverse", pa.float64())]
    ),
    "evaluation_steps": pa.schema(
        [
            *_COMMON,
            ("suite", pa.string()),
            ("metric", pa.string()),
            ("set", pa.string()),
            ("value", pa.float64()),  # null where it cannot be measured
            ("definition", pa.string()),
            ("version", pa.int32()),
            ("items", pa.int32()),  # that it is a mean over, where it is one
            ("reason", pa.string()),  # of a null
        ]
    ),
}


def write_part(
    directory: Path, table: str, objective: str, step: int, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the rows of one (objective, step) of a table.

    Args:
      directory: the run's folder.
      table: a key of `SCHEMAS`.
      rows: the columns other than step and objective; absent ones are null.
    """
    folder = directory / "parts" / table
    full = [{"step": step, "objective": objective, **row} for row in rows]
    _write_parquet(pa.Table.from_pylist(full, SCHEMAS[table]), folder / _part(objective, step))


def drop_parts(directory: Path, objective: str, from_step: int) -> None:
    """Removes an objective's parts from a step on, before they are computed again."""
    if not hosts.is_first():
        return
    for folder in (directory / "parts").glob("*"):
        for part in _parts(folder, objective):
            if int(part.stem.rpartition("-")[2]) >= from_step:
                part.unlink()


def merge(directory: Path, objectives: Sequence[str]) -> None:
    """Merges the parts into one file per table, in the order of the objectives, then of steps."""
    if not hosts.is_first():
        return
    for folder in sorted((directory / "parts").glob("*")):
        names = [name for objective in objectives for name in _parts(folder, objective)]
        if names:
            merged = pa.concat_tables([pq.read_table(name) for name in names])
            _write_parquet(merged, directory / f"{folder.name}.parquet")


def read(directory: Path, table: str) -> dict[str, list[Any]]:
    """A merged table as columns; empty columns where the run has none.

    Raises:
      ValueError: the file does not hold the columns of `SCHEMAS`.
    """
    path = directory / f"{table}.parquet"
    schema = SCHEMAS[table]
    if not path.exists():
        return {name: [] for name in schema.names}
    found = pq.read_table(path)
    if found.schema.names != schema.names:
        raise ValueError(f"{path}: expected columns {schema.names}, found {found.schema.names}")
    return found.to_pydict()


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one flat object to a JSON-lines file."""
    if not hosts.is_first():
        return
    _cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(_json(record) + "\n")


class StepLog:
    """Records of steps, each written when the next one comes.

    Its numbers are arrays on the devices: read a step late, they make no step wait for another.
    """

    def __init__(self, path: Path, objective: str):
        self._path, self._objective = path, objective
        self._waiting: dict[str, Any] | None = None
        self.last: dict[str, Any] = {}  # the newest record written

    def add(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes the record before, and holds this one: numbers, or scalars on the devices."""
        self.flush()
        self._waiting = {"step": step, "objective": self._objective, **record}

    def flush(self) -> None:
        """Writes the record that is held."""
        if self._waiting is None:
            return
        plain = lambda x: x.item() if hasattr(x, "item") else x
        self.last = {key: plain(value) for key, value in self._waiting.items()}
        self._waiting = None
        append(self._path, self.last)

    @property
    def finite(self) -> bool:
        """Whether the loss of the newest record written is finite."""
        return math.isfinite(self.last.get("loss", 0.0))


def records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # the text after the last newline is empty, or a torn line
    return [json.loads(line) for line in whole]


def cut_back(path: Path, objective: str, from_step: int) -> None:
    """Removes an objective's records from a step on: a resumed run writes them again."""
    kept = [
        record
        for record in records(path)
        if record["objective"] != objective or record["step"] < from_step
    ]
    if path.exists():
        write_text(path, "".join(_json(record) + "\n" for record in kept))


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Records as columns; a key that a record lacks is None."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, _json(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    if not hosts.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file, whole or not at all."""
    if not hosts.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)


@contextmanager
def timed(out: Path, stage: str) -> Iterator[None]:
    """Adds the wall-clock seconds of a stage to `timings.jsonl`, also when it is interrupted."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = round(time.perf_counter() - start, 3)
        append(out / "timings.jsonl", {"stage": stage, "seconds": seconds})


def _json(value: Any, indent: int | None = None) -> str:
    """JSON knows no NaN and no infinity: they are written as null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_torn_line(path: Path) -> None:
    """Removes a last line that a crash cut short; reads one byte of a whole file."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _parts(folder: Path, objective: str) -> list[Path]:
    """An objective's parts, by step; names hold no dash, so none is another's prefix."""
    return sorted(folder.glob(f"{objective}-*.parquet"))


def _part(objective: str, step: int) -> str:
    return f"{objective}-{step:06d}.parquet"


def _write_parquet(table: pa.Table, path: Path) -> None:
    if not hosts.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
