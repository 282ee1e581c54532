"""The record of a section: its rows, written as each of them ends, so that a later call goes on.

A row has a state. "done", "does not fit" and "not here" are final: a later call leaves them as they
are. "no material", "failed" and "cut short" are tried again, after the rows that were never tried.
"""

import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.pg_way import DoesNotFit
from jaxunlearn.core import files

Values = dict[str, Any]
FINAL = ("done", "does not fit", "not here")


class NotHere(Exception):
    """A row that this kind of device cannot run; the message says what it needs."""


class NoMaterial(Exception):
    """A row whose model or data are not in the pack; the message says what is missing."""


class OtherDevice(Exception):
    """A folder of another device, or of a rehearsal."""


class Row(NamedTuple):
    """One measurement.

    Attributes:
      name: unique in its section.
      measure: returns its values, plain numbers and texts.
    """

    name: str
    measure: Callable[[], Values]


class Ledger:
    """The JSON file of a section."""

    def __init__(self, path: Path, about: Values):
        """Reads the file where there is one.

        Args:
          path: the file.
          about: the circumstances of this process; "device" and "rehearsal" must be the file's.

        Raises:
          OtherDevice: the file's rows are of another device, or of a rehearsal.
          ValueError: it is no JSON.
        """
        self._path = path
        self._record: Values = {"device": about["device"], "rehearsal": about["rehearsal"]}
        self._record |= {"planned": [], "left": [], "rows": {}, "processes": [], "traceback": None}
        self._record["columns"] = {}
        if path.exists():
            old = files.read_json(path)
            for key in ("device", "rehearsal"):
                if old[key] != about[key]:
                    raise OtherDevice(
                        f"{path} has {key} {old[key]!r}, this call {about[key]!r}: give another"
                        " --out"
                    )
            self._record = old | {"traceback": None}
        self._record["processes"].append(about)
        for row in self._record["rows"].values():
            if row["state"] == "running":
                row["state"] = "cut short"

    @property
    def rows(self) -> dict[str, Values]:
        """The rows so far, by name."""
        return self._record["rows"]

    def measure(
        self,
        rows: Sequence[Row],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        columns: Mapping[str, tuple[str, str]],
    ) -> None:
        """Measures rows until the time is used up, and writes the file after each.

        Args:
          rows: of the section, the most important first.
          seconds: after so many no new row is started.
          clock: seconds.
          columns: {key of a value: (title, format)}, for the table.
        """
        start = clock()
        self._record["columns"] = dict(columns)
        self._record["planned"] = [row.name for row in rows]
        for row in self._order(rows):
            self._record["left"] = self._unfinished()
            if clock() - start >= seconds:
                break
            self._put(row.name, {"state": "running"})
            began = clock()
            state, values = attempt(row)
            self._put(row.name, {"state": state, "took": round(clock() - began, 2)} | values)
            print(f"  {row.name}: {state}, {clock() - began:.1f} s", flush=True)
        self._record["left"] = self._unfinished()
        self._write()

    def fail(self) -> None:
        """Records the exception that is being handled as the section's."""
        self._record["traceback"] = traceback.format_exc()
        self._write()

    def _order(self, rows: Sequence[Row]) -> list[Row]:
        """Rows without a final state; those that were tried before come last."""
        open_rows = [row for row in rows if self._state(row.name) not in FINAL]
        return sorted(open_rows, key=lambda row: self._state(row.name) is not None)

    def _unfinished(self) -> list[str]:
        return [name for name in self._record["planned"] if self._state(name) not in FINAL]

    def _state(self, name: str) -> str | None:
        return self.rows.get(name, {}).get("state")

    def _put(self, name: str, values: Values) -> None:
        self.rows[name] = values
        self._write()

    def _write(self) -> None:
        files.write_json(self._path, self._record)


def attempt(row: Row) -> tuple[str, Values]:
    """The state of a row, with its values or the reason why it has none."""
    try:
        return "done", row.measure()
    except NotHere as error:
        return "not here", {"reason": str(error)}
    except NoMaterial as error:
        return "no material", {"reason": str(error)}
    except Exception as error:
        if out_of_memory(error):
            return "does not fit", {"reason": str(error).strip().split("\n")[0][:300]}
        return "failed", {"reason": repr(error)[:300], "traceback": traceback.format_exc()}
    finally:
        gc.collect()  # the arrays of a failed row hang on the frames of its exception


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of JAX, PyTorch or a benchmark says that memory does not suffice."""
    if isinstance(error, MemoryError | DoesNotFit):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("resource_exhausted", "out of memory"))
