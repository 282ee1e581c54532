"""Removes the files of a run from its folder, and nothing else that is there."""

import contextlib
import re
from collections.abc import Iterator, Set
from pathlib import Path

from jaxunlearn.core import files
from jaxunlearn.record import manifest, tables
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")
# A checkpoint is a folder named by its step, with a suffix while orbax writes it.
_CHECKPOINT = re.compile(r"\d+(\..*)?")


def erase(folder: RunFolder, *, keep: Set[Path] = frozenset()) -> None:
    """Removes a run; the caller has locked its folder.

    The files are those that the manifest lists and those that the layout of a folder knows by their
    names. All others stay, and so do the folders that hold one, and those of the trackers wandb and
    trackio, whose runs may not have been sent yet. The manifest, by which a folder is known as that
    of a run, goes last: where a process is killed on the way, the next one can go on.

    Args:
      folder: of a run.
      keep: resolved paths of the run's files and folders that stay.

    Raises:
      ValueError: a foreign file is where a new run must make a model; nothing was removed.
    """
    own = [path for path in dict.fromkeys(_own(folder)) if path.resolve() not in keep]
    _check_models(folder, set(own))
    files.remove_unfinished(folder.path)
    for path in own:
        if path.is_dir() and not path.is_symlink():
            files.remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    _remove_empty(folder)
    for file in (folder.config, folder.inputs, folder.manifest):
        file.unlink(missing_ok=True)


def has_results(folder: RunFolder) -> bool:
    """Whether a run has computed anything yet: whether there is more than what every start writes.

    Every start writes its inputs, the texts of the samples, and how long its parts took; rows and
    models from memory are there before it.
    """
    of_starts = {folder.starts, folder.texts, folder.timings}
    computed = (path for path in _own(folder) if path.parent != folder.memory)
    return any(path.exists() for path in computed if path not in of_starts)


def _own(folder: RunFolder) -> Iterator[Path]:
    """The files, and the folders that hold files of the run alone."""
    # What a damaged manifest lists is not known; the layout's own names are.
    with contextlib.suppress(ValueError):
        yield from (path for path in manifest.listed(folder) if path != folder.config)
    yield from (folder.metrics, folder.timings, folder.starts, folder.texts, folder.html)
    yield from (folder.results, folder.evaluation, folder.summary)
    yield from (folder.relearn, folder.relearn_records, folder.relearn_layers)
    yield from (folder.table(name) for name in tables.SCHEMAS)
    yield from folder.references.glob("*.npz")
    for name in (BASE, RETRAINED):
        for pattern in _MODEL_FILES:
            yield from folder.model(name).glob(pattern)
        yield from _checkpoints(folder.finetune_checkpoints(name))
    models = {BASE, RETRAINED}
    for objective in sorted(folder.objectives.glob("*")):
        name = objective.name
        models.add(name)
        yield folder.result(name)
        yield from folder.guide(name).glob("[0-9]*.npy")
        yield from _checkpoints(folder.checkpoints(name))
        yield from (folder.tensorboard / name).glob("events.out.tfevents.*")
    # Names of models hold no dash, so what stands before the first one is a model.
    for named in (folder.tofu_logs.glob("*.json"), folder.attacks.glob("*.json")):
        yield from (file for file in named if file.stem.partition("-")[0] in models)
    for part in folder.all_parts.glob("*/*.parquet"):
        if part.parent.name in tables.SCHEMAS and part.stem.partition("-")[0] in models:
            yield part
    # A figure of the run is there twice, for screens and for papers.
    for figure in folder.figures.glob("*.png"):
        if figure.with_suffix(".pdf").is_file():
            yield from (figure, figure.with_suffix(".pdf"))
    yield folder.profile / "plugins"
    yield from folder.memory.glob("rows-*")
    yield from folder.memory.glob("model-*")


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The checkpoints in a folder."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name))


def _check_models(folder: RunFolder, own: set[Path]) -> None:
    """Refuses foreign files in the folders of models, which a new run makes as a whole."""
    for name in (BASE, RETRAINED):
        for path in folder.model(name).glob("*"):
            if path not in own and path.suffix != files.TEMPORARY:
                raise ValueError(
                    f"{path}: is no file of the run; move it to another place, as the new run makes"
                    f" the folder {name} anew"
                )


def _remove_empty(folder: RunFolder) -> None:
    """Removes the folders of the layout that hold nothing any more, the deepest first."""
    roots = [
        *(folder.references, folder.all_parts, folder.objectives, folder.figures),
        *(folder.tofu_logs, folder.attacks, folder.profile, folder.memory, folder.tensorboard),
        *(folder.model(name) for name in (BASE, RETRAINED)),
        folder.finetune_checkpoints(BASE).parent,
    ]
    for root in roots:
        below = sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True)
        for path in [*below, root]:
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
