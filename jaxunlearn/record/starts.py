"""Where and with what a run was started, each time."""

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.record import shapes
from jaxunlearn.record.folder import RunFolder

PACKAGES = ("jaxunlearn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


def note(folder: RunFolder, devices: Sequence[Any]) -> None:
    """Appends a line on this start.

    Args:
      folder: of the run.
      devices: that it computes on.
    """
    files.append(
        folder.starts,
        {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
            "devices": len(devices),
            "device": devices[0].device_kind,
            "processes": len({device.process_index for device in devices}),
        },
    )


def read(folder: RunFolder) -> list[shapes.Start]:
    """The lines of all starts, in order."""
    return files.records(folder.starts, shapes.Start)


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
