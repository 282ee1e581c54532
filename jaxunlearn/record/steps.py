"""The log of training steps."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core.files import append
from jaxunlearn.record.trackers import Trackers


class StepLog:
    """Writes the metrics of one objective, each step's when the next step is added.

    The metrics are arrays on the devices. Reading them blocks until the step that computes them is
    done, so they are read one step late: the devices always have the next step to work on.

    Attributes:
      last: the newest record that was written, as plain numbers.
      broken: the first step whose loss is not finite, None so far.
    """

    def __init__(self, path: Path, objective: str, trackers: Trackers):
        """Opens the log.

        Args:
          path: the JSON-lines file to append to.
          objective: the name written in every record.
          trackers: get every record too.
        """
        self._path, self._objective, self._trackers = path, objective, trackers
        self._pending: dict[str, Any] | None = None
        self.last: dict[str, Any] = {}
        self.broken: int | None = None

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
        if self.broken is None and not self.finite:
            self.broken = self.last["step"]
        append(self._path, self.last)
        numbers = {key: value for key, value in self.last.items() if key != "step"}
        self._trackers.log(self._objective, self.last["step"], numbers)

    @property
    def finite(self) -> bool:
        """Whether the loss of the newest written record is finite; true before the first one."""
        return math.isfinite(self.last.get("loss", 0.0))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
