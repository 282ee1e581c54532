"""Merges what the objectives of a run left into its tables and results."""

from collections.abc import Mapping
from typing import Any

from jaxunlearn.config import load
from jaxunlearn.core import files
from jaxunlearn.measurement.statistics import DEFINITIONS
from jaxunlearn.record import manifest, shapes, tables
from jaxunlearn.record.folder import RunFolder


def merge(folder: RunFolder, starting: Mapping[str, Any]) -> None:
    """Merges the parts and results of all objectives of the folder, earlier ones included.

    Args:
      folder: of the run.
      starting: {model: its results}, of those that are no objectives.
    """
    results = dict(starting)
    # One that another start stopped in, or whose folder was removed, is in no table either.
    finished = [name for name in load(folder.config).objectives if folder.result(name).exists()]
    manifest.open_stage(folder, manifest.RESULTS)
    tables.merge(folder.path, finished)
    for name in finished:
        results[name] = files.read_json(folder.result(name), shapes.ObjectiveResult)
    files.write_json(folder.results, DEFINITIONS | {"models": results})
    merged = [folder.table(name) for name in tables.SCHEMAS]
    manifest.seal(folder, manifest.RESULTS, [folder.results, *merged])
