"""Digests of the finished files of a run, so that damage to them is found before they are used.

`manifest.jsonl` has a line each time the files of a stage are finished, with the SHA-256 of each;
the last line of a stage holds. A stage whose files are about to change is opened first, so that a
crash in between accuses nobody. Checkpoints carry checksums of their own.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core import files, hosts
from jaxunlearn.record.folder import RunFolder

TEXTS, REFERENCES = "the first start", "the reference pass"
EVALUATION, RELEARNING = "the evaluation", "the table of attacks"
RESULTS = "the end of a run"
"""Stages that are no models; names of models hold no spaces."""

WRITTEN_AGAIN = (RESULTS, RELEARNING)
"""Stages that every start of a run writes again, from the files of the others."""


def open_stage(folder: RunFolder, stage: str) -> None:
    """Forgets the digests of a stage, before its files change."""
    if hosts.is_first() and _entries(folder).get(stage, {}).get("files"):
        files.append(folder.manifest, {"stage": stage, "redo": None, "files": {}})


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
        str(file.relative_to(folder.path)): _digest(file)
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    }
    entry: dict[str, Any] = {
        "stage": stage,
        "redo": None if redo is None else str(redo.relative_to(folder.path)),
        "files": digests,
    }
    if before is not None:
        entry |= {"before": before, "records": _records_digest(folder, stage, before)}
    files.append(folder.manifest, entry)


def check(folder: RunFolder, *, without: Iterable[str] = ()) -> None:
    """Compares all files with their digests.

    Args:
      folder: of the run.
      without: stages that are about to be written again, or whose files are not used.

    Raises:
      ValueError: a file is missing or not what its stage wrote; names it, and the remedy.
    """
    skipped = set(without)
    for stage, entry in _entries(folder).items():
        redo = entry["redo"]
        if stage in skipped or (redo is not None and not (folder.path / redo).exists()):
            continue
        for name, digest in entry["files"].items():
            path = folder.path / name
            if not path.is_file():
                raise ValueError(f"{path}: is missing, {stage} wrote it; {_remedy(folder, entry)}")
            if _digest(path) != digest:
                raise ValueError(
                    f"{path}: is damaged or was changed, {stage} wrote something else;"
                    f" {_remedy(folder, entry)}"
                )
        before = entry.get("before")
        if before is not None and _records_digest(folder, stage, before) != entry["records"]:
            raise ValueError(
                f"{folder.metrics}: the records of {stage} before step {before} are damaged or were"
                f" changed; {_remedy(folder, entry)}"
            )


def _remedy(folder: RunFolder, entry: Mapping[str, Any]) -> str:
    if entry["stage"] in WRITTEN_AGAIN:
        return "run the same command again, which writes it anew"
    if entry["redo"] is None:
        return "bring it back, or begin in a new folder"
    again = f"remove {folder.path / entry['redo']}, and the run computes {entry['stage']} again"
    return f"bring it back, or {again}"


def _entries(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The last line of every stage; none in a run of an earlier version."""
    return {entry["stage"]: entry for entry in files.records(folder.manifest)}


def _records_digest(folder: RunFolder, objective: str, before: int) -> str:
    digest = hashlib.sha256()
    for record in files.records(folder.metrics):
        if record.get("objective") == objective and record["step"] < before:
            digest.update(files.to_json(record).encode() + b"\n")
    return digest.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
