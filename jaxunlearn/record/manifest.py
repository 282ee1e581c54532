"""Digests of the finished files of a run, so that damage to them is found before they are used.

`manifest.jsonl` has a line each time the files of a stage are finished, with the SHA-256 of each;
the last line of a stage holds. A stage whose files are about to change is opened first, so that a
crash in between accuses nobody. Checkpoints carry checksums of their own.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core import files, hosts
from jaxunlearn.record import shapes
from jaxunlearn.record.folder import RunFolder

CONFIGURATION = "the newest start"
TEXTS, REFERENCES = "the first start", "the reference pass"
EVALUATION, RELEARNING = "the evaluation", "the table of attacks"
RESULTS = "the end of a run"
"""Stages that are no models; names of models hold no spaces."""

ALL_STEPS = 2**62
"""More steps than any training has."""


def attack_on(model: str, attack: str) -> str:
    """The stage of one attack."""
    return f"the attack on {model} {attack}"


def open_stage(folder: RunFolder, stage: str) -> None:
    """Forgets the digests of a stage, before its files change."""
    if hosts.is_first() and _entries(folder).get(stage, {}).get("files"):
        empty = {"stage": stage, "redo": None, "files": {}}
        files.append(folder.manifest, empty, durable=True)


def seal(
    folder: RunFolder,
    stage: str,
    paths: Iterable[Path],
    *,
    redo: Path | None = None,
    before: int | None = None,
) -> None:
    """Notes the files of a stage as they are.

    Args:
      folder: of the run.
      stage: the name of a model, or of what is computed from them.
      paths: its files; folders stand for all files in them.
      redo: what a user removes to have the stage computed again; its digests do not hold then.
      before: also notes the records of the model `stage` in `metrics.jsonl` before this step.
    """
    if not hosts.is_first():
        return
    digests = {
        str(file.relative_to(folder.path)): files.sha256(file)
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file() and file.suffix != files.TEMPORARY
    }
    entry: dict[str, Any] = {
        "stage": stage,
        "redo": None if redo is None else str(redo.relative_to(folder.path)),
        "files": digests,
    }
    if before is not None:
        entry |= {"before": before, "records": _records_digest(folder, stage, before)}
    files.append(folder.manifest, entry, durable=True)


def holds(folder: RunFolder, stage: str, path: Path) -> bool:
    """Whether a file is noted; it is not where a process was killed before it was."""
    return _noted(folder, stage, path) is not None


def holds_text(folder: RunFolder, stage: str, path: Path, text: str) -> bool:
    """Whether a file is noted with this content, whatever it holds now."""
    return _noted(folder, stage, path) == hashlib.sha256(text.encode()).hexdigest()


def _noted(folder: RunFolder, stage: str, path: Path) -> str | None:
    """The digest that a stage noted of a file, if it did."""
    entry = _entries(folder).get(stage, {"files": {}})
    return entry["files"].get(str(path.relative_to(folder.path)))


def listed(folder: RunFolder) -> list[Path]:
    """The files of all stages, as far as they are in the folder."""
    paths = (folder.path / name for entry in _entries(folder).values() for name in entry["files"])
    return [path for path in paths if path.is_relative_to(folder.path) and ".." not in path.parts]


def check_together(folder: RunFolder, *, without: Iterable[str] = ()) -> None:
    """Removes what killed processes left, and does `check`, on the first process for all."""

    def tidy_and_check() -> None:
        files.remove_unfinished(folder.path)
        check(folder, without=without)

    hosts.first_does(
        tidy_and_check, f"{folder.path}: the first process found damage; it says where"
    )


def is_lost(folder: RunFolder) -> bool:
    """Whether a folder holds a run, and no digests of its files; a damaged manifest is not lost."""
    with contextlib.suppress(ValueError):
        return folder.inputs.exists() and not _entries(folder)
    return False


def check(
    folder: RunFolder, *, without: Iterable[str] = (), only: Iterable[str] | None = None
) -> None:
    """Compares files with their digests.

    Args:
      folder: of the run.
      without: stages that are about to be written again, or whose files are not used.
      only: the stages whose files are compared; default: all.

    Raises:
      ValueError: a file is missing or not what its stage wrote; names it, and the remedy.
    """
    entries = _entries(folder)
    skipped = set(without) | (set() if only is None else entries.keys() - set(only))
    for stage, entry in entries.items():
        while stage not in skipped and (problem := _problem(folder, entry)) is not None:
            # A process that works on the run meanwhile may have written the stage again.
            newest = _entries(folder)[stage]
            if newest == entry:
                raise ValueError(f"{problem}; {_remedy(folder, entry)}")
            entry = newest


def _problem(folder: RunFolder, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with the files of a stage, if anything is."""
    stage, redo, before = entry["stage"], entry["redo"], entry.get("before")
    if redo is not None and not (folder.path / redo).exists():
        return None
    for name, digest in entry["files"].items():
        path = folder.path / name
        if not path.is_file():
            return f"{path}: is missing, {stage} wrote it"
        if files.sha256(path) != digest:
            return f"{path}: is damaged or was changed, {stage} wrote something else"
    if before is not None and _records_digest(folder, stage, before) != entry["records"]:
        which = stage if before == ALL_STEPS else f"{stage} before step {before}"
        return f"{folder.metrics}: the records of {which} are damaged"
    return None


def _remedy(folder: RunFolder, entry: Mapping[str, Any]) -> str:
    if (command := {RESULTS: "run", RELEARNING: "relearn"}.get(entry["stage"])) is not None:
        return f"`jaxunlearn {command}` on this folder writes it anew"
    if entry["stage"] == CONFIGURATION:
        return (
            "bring it back, or give `jaxunlearn run` the configuration that it held, and it is"
            " written anew; options change keys, the file itself is not edited"
        )
    if entry["redo"] is None:
        return "bring it back, or begin in a new folder"
    again = f"remove {folder.path / entry['redo']}, and the run computes {entry['stage']} again"
    return f"bring it back, or {again}"


def _entries(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The last line of every stage; none in a run of an earlier version."""
    entries = files.records(folder.manifest, shapes.Sealed)
    for number, entry in enumerate(entries, 1):
        if ("before" in entry) != ("records" in entry):
            raise ValueError(f"{folder.manifest}:{number}: expected both before and records")
    return {entry["stage"]: entry for entry in entries}


def _records_digest(folder: RunFolder, objective: str, before: int) -> str:
    digest = hashlib.sha256()
    for record in files.records(folder.metrics, files.StepRecord):
        if record["objective"] == objective and record["step"] < before:
            digest.update(files.to_json(record).encode() + b"\n")
    return digest.hexdigest()
