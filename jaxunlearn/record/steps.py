"""The log of training steps, and the timings of the stages of a run."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxunlearn.core.files import append
from jaxunlearn.record.folder import RunFolder


class StepLog:
    """Writes the metrics of one objective, each step's when the next step is added.

    The metrics are arrays on the devices. Reading them blocks until the step that computes them is
    done, so they are read one step late: the devices always have the next step to work on.

    Attributes:
      last: the newest record that was written, as plain numbers.
    """

    def __init__(self, path: Path, objective: str):
        """Opens the log.

        Args:
          path: the JSON-lines file to append to.
          objective: the name written in every record.
        """
        self._path, self._objective = path, objective
        self._pending: dict[str, Any] | None = None
        self.last: dict[str, Any] = {}

    def add(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes the record that was added before, and keeps this one until the next call.

        Args:
          step: the step it belongs to.
          record: numbers, or scalars on the devices.
        """
        self.flush()
        self._pending = {"step": step, "objective": self._objective, **record}

    def flush(self) -> None:
        """Writes the record that was added last, if it is not written yet."""
        if self._pending is None:
            return
        self.last = {key: _plain(value) for key, value in self._pending.items()}
        self._pending = None
        append(self._path, self.last)

    @property
    def finite(self) -> bool:
        """Whether the loss of the newest written record is finite; true before the first one."""
        return math.isfinite(self.last.get("loss", 0.0))


@contextmanager
def timed(run: Path, stage: str) -> Iterator[None]:
    """Appends the wall-clock seconds of the block to the run's timings, also when it raises.

    Args:
      run: the run's folder.
      stage: the name of the stage. A stage that is resumed has several records, which add up.
    """
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = round(time.perf_counter() - start, 3)
        append(RunFolder(run).timings, {"stage": stage, "seconds": seconds})


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
