"""Trackers: the numbers of a run, sent to a service or a viewer as they come.

A tracker is opened by name, and its library is imported only then. The run's own files never depend
on one: whatever a tracker is sent is in `metrics.jsonl` or in a table too.
"""

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxunlearn.core import hosts
from jaxunlearn.core.names import nearest
from jaxunlearn.record.folder import RunFolder

PROJECT = "jaxunlearn"
Values = Mapping[str, float]


class Tracker(Protocol):
    """Takes numbers of objectives, step by step."""

    def log(self, objective: str, step: int, values: Values) -> None:
        """Takes the numbers of one objective at one step, by name; all are finite."""
        ...

    def close(self) -> None:
        """Writes or sends what is left."""
        ...


class Trackers:
    """All trackers of a run; without any, nothing happens.

    Args:
      open_ones: the trackers.
    """

    def __init__(self, open_ones: Sequence[Tracker] = ()):
        self._open = tuple(open_ones)

    def log(self, objective: str, step: int, values: Mapping[str, Any]) -> None:
        """Sends the numbers among some values; what is no finite number is left out."""
        if not self._open:
            return
        numbers = {k: float(v) for k, v in values.items() if _is_finite(v)}
        for tracker in self._open:
            tracker.log(objective, step, numbers)

    def close(self) -> None:
        """Closes all."""
        for tracker in self._open:
            tracker.close()


class TensorBoard:
    """Event files for TensorBoard, a folder for each objective so that their curves overlay."""

    library = "tensorboardX"

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self._make = _library(self.library).SummaryWriter
        self._folder = RunFolder(folder).tensorboard
        self._writers: dict[str, Any] = {}

    def log(self, objective: str, step: int, values: Values) -> None:
        if objective not in self._writers:
            self._writers[objective] = self._make(str(self._folder / objective))
        for key, value in values.items():
            self._writers[objective].add_scalar(key, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its own environment variables say whether it is online."""

    library = "wandb"

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self._run = _library(self.library).init(
            project=PROJECT, name=name, dir=str(folder), config=dict(config)
        )
        self._known: set[str] = set()

    def log(self, objective: str, step: int, values: Values) -> None:
        if objective not in self._known:
            # Every objective starts from step 0, and the service's own counter only rises.
            self._run.define_metric(f"{objective}/step")
            self._run.define_metric(f"{objective}/*", step_metric=f"{objective}/step")
            self._known.add(objective)
        named = {f"{objective}/{key}": value for key, value in values.items()}
        self._run.log({f"{objective}/step": step, **named})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A project of trackio, which is kept on this machine; a run of it for each objective."""

    library = "trackio"

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self._trackio = _library(self.library)
        self._name, self._config = name, dict(config)
        self._objective: str | None = None

    def log(self, objective: str, step: int, values: Values) -> None:
        if objective != self._objective:
            self.close()
            name = f"{self._name}-{objective}"
            self._trackio.init(project=PROJECT, name=name, config=self._config)
            self._objective = objective
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        if self._objective is not None:
            self._trackio.finish()
            self._objective = None


KINDS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""The trackers by name: (the run's folder, its name, its configuration) -> `Tracker`."""


@contextlib.contextmanager
def tracking(
    kinds: Sequence[str], folder: Path, name: str, config: Mapping[str, Any]
) -> Iterator[Trackers]:
    """Opens trackers, and closes them in any case; of several processes the first one tracks.

    Args:
      kinds: keys of `KINDS`.
      folder: of the run.
      name: of the run.
      config: its configuration as plain values.

    Raises:
      ValueError: an unknown tracker, or one whose library is not installed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"track: no {kind!r}; one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    opened = [KINDS[kind](folder, name, config) for kind in kinds] if hosts.is_first() else []
    trackers = Trackers(opened)
    try:
        yield trackers
    finally:
        trackers.close()


def check_installed(kinds: Sequence[str]) -> None:
    """Imports the libraries of trackers, so that a run does not fail at its first step.

    Raises:
      ValueError: one is not installed; says how to install it.
    """
    for kind in kinds:
        _library(KINDS[kind].library)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"track: {name} is not installed; pip install 'jaxunlearn[track]' or pip install {name}"
        ) from error


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
