"""Opens the folder of a run: a new one, or that of an earlier start of the same run."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from jaxunlearn.config import Config, check_distinct, differences, dump, load
from jaxunlearn.core import files, hosts
from jaxunlearn.core.paths import check_folder, user_path
from jaxunlearn.core.progress import say
from jaxunlearn.pipeline import damage, inputs
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record import manifest, shapes
from jaxunlearn.record.erase import erase, has_results
from jaxunlearn.record.folder import RunFolder, seeds
from jaxunlearn.record.lock import locked, locked_here
from jaxunlearn.record.shapes import PLACES

# Keys that may change between starts: they do not change the models of the run, but for those of
# `compute` that say how exactly it computes.
FREE_KEYS = ("compute", "evaluate", "relearn", "track")
PRECISION = ("dtype", "precision", "reduce")


def open_folder(
    folder: RunFolder, config: Config, digests: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Makes the folder of a run, or checks that it belongs to an earlier start of this run.

    The mesh, the suites, the attacks and the objectives may change between starts, and data and
    models may move to another place: the folder's configuration is updated, and keeps the
    objectives that it has. An earlier start that computed nothing, as with a broken model, binds to
    nothing: the folder begins anew.

    Args:
      folder: absent, empty, or with an earlier part of the run.
      config: what to run.
      digests: of what the run reads, see `inputs.digests`; only the first process needs them.
      overwrite: whether another run in the folder is removed, see `erase`; an earlier part of this
        run stays, and the run goes on from there.

    Raises:
      ValueError: the folder holds something else, was begun with other data or another model, which
        names everything that differs; its configuration is damaged; or somebody works on it.
    """

    def open_here() -> None:
        _check_is_free_or_run(folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked_here(folder):
            if _is_noted(folder) and not has_results(folder):
                _remove(folder, config)
            join()

    def join() -> None:
        try:
            _restore(folder, config)
            differing = list(_differing(folder, config, digests))
        except ValueError:
            # A configuration or a manifest that is damaged keeps nobody from removing the run.
            if not overwrite:
                raise
            differing = ["damage"]
        if differing:
            if not overwrite:
                raise ValueError(
                    f"{folder.config}: the folder holds another run: {'; '.join(differing)}; choose"
                    " another --out, give the same configuration to resume, or remove that run and"
                    " begin anew (--overwrite)"
                )
            _remove(folder, config)
        earlier = load(folder.config).objectives if folder.config.exists() else {}
        objectives = {**earlier, **config.objectives}
        check_distinct(objectives)
        joined = dump(dataclasses.replace(config, objectives=objectives))
        # The configuration comes after the inputs: a folder with nothing but one is somebody's.
        files.write_json(folder.inputs, {**_known_inputs(folder), **digests})
        if not manifest.holds_text(folder, manifest.CONFIGURATION, folder.config, joined):
            manifest.open_stage(folder, manifest.CONFIGURATION)
            files.write_text(folder.config, joined)
            manifest.seal(folder, manifest.CONFIGURATION, [folder.config])

    hosts.first_does(
        open_here, f"{folder.path}: the first process cannot open the folder; it says why"
    )
    hosts.wait("the folder is open")


@contextlib.contextmanager
def open_results(folder: RunFolder, digests: Mapping[str, str], config: Config) -> Iterator[None]:
    """Opens and locks the folder of measurements of models that no run made.

    Args:
      folder: absent, empty, or with earlier measurements of the same models.
      digests: of the models, see `inputs.of_models`.
      config: of the measurements, which is written into the folder.

    Raises:
      ValueError: the folder holds something else, or results of models with other weights, of
        other data or of another precision.
    """
    otherwise = f"{folder.path}: the first process cannot open the folder; it says why"
    hosts.first_does(lambda: _make_results(folder), otherwise)
    with locked(folder):

        def join() -> None:
            known: dict[str, str] = {}
            # An attempt that measured nothing, perhaps of a broken model, binds to no weights.
            if any(file.exists() for file in (folder.evaluation, folder.table("g_effect"))):
                _check_same_inputs(folder, digests)
                known = _known_inputs(folder)
                if folder.measured_as.exists():
                    _check_same_data(folder, config)
            files.write_json(folder.inputs, {**known, **digests})
            files.write_text(folder.measured_as, dump(config))

        hosts.first_does(join, otherwise)
        manifest.check_together(folder)
        yield


def _check_same_data(folder: RunFolder, config: Config) -> None:
    """Refuses results on other data, or in another precision, than those of a folder.

    Tables of suites would show both side by side, and those of a step would be lost.
    """
    earlier, now = (_measured_on(each) for each in (load(folder.measured_as), config))
    for key, old, new in differences(earlier, now):
        raise ValueError(
            f"{folder.path}: holds results with {key}: {old!r}, now it is {new!r}; choose another"
            " --out"
        )


def _measured_on(config: Config) -> dict[str, Any]:
    """The keys that all results of a folder must share."""
    keys = dataclasses.asdict(config)
    source = user_path(config.data.source)
    data = {**keys["data"], "source": str(source.resolve() if source.exists() else source)}
    return {"data": data, "compute": {k: keys["compute"][k] for k in ("dtype", "precision")}}


def _make_results(folder: RunFolder) -> None:
    """Makes the folder of measurements, if it is not there."""
    check_folder(folder.path)
    if folder.config.exists():
        raise ValueError(f"{folder.path}: holds a run; choose another --out")
    new = not folder.path.exists() or _only_begun(folder)
    if not new and not folder.measured_as.exists():
        raise ValueError(
            f"{folder.path}: not empty and no results of ours (there is no"
            f" {folder.measured_as.name}); choose another --out"
        )
    folder.path.mkdir(parents=True, exist_ok=True)


def _known_inputs(folder: RunFolder) -> dict[str, str]:
    """The digests that the folder has; none in one that is new or of an earlier version."""
    return files.read_json(folder.inputs, shapes.Digests) if folder.inputs.exists() else {}


def _check_same_inputs(folder: RunFolder, digests: Mapping[str, str]) -> None:
    """Checks that a run was begun with the inputs that are read now.

    Raises:
      ValueError: names those that differ.
    """
    if different := inputs.changed(_known_inputs(folder), digests):
        raise ValueError(
            f"{folder.path}: begun with other contents of {', '.join(different)};"
            " choose another --out, or bring the files back"
        )


def check_weights(folder: RunFolder, config: Config) -> None:
    """Checks that the model and the adapter that a run began with are still the same.

    Raises:
      ValueError: names those that differ.
    """
    _check_same_inputs(folder, inputs.of_weights(config))


def check_configuration(folder: RunFolder, config: Config) -> None:
    """Checks that the configuration of the model that a run began with is still the same.

    Raises:
      ValueError: it is not.
    """
    _check_same_inputs(folder, inputs.of_configuration(config))


def check_finished(
    folder: RunFolder, prepared: Prepared, console: Console, *, without: Sequence[str] = ()
) -> None:
    """Checks that the files of a run are whole, and that its data and model are still the same.

    Args:
      folder: of the run, locked.
      prepared: the run as it is read now.
      console: gets what `damage` notes.
      without: stages that are about to be written again.

    Raises:
      ValueError: names what is damaged or differs, and what to do.
    """
    hosts.first_does(
        lambda: _check_same_inputs(folder, inputs.digests(prepared)),
        f"{folder.path}: the first process found other inputs; it says which",
    )
    say(console, *damage.notes(folder))
    damage.check(folder, console, without=without)


def _check_is_free_or_run(folder: RunFolder) -> None:
    """Checks that a folder is absent, empty or that of a run.

    Raises:
      ValueError: it is a file, or holds something else.
    """
    path = folder.path
    check_folder(path)
    if _is_noted(folder) or not path.exists():
        return
    if folder.config.exists():
        if folder.inputs.exists():
            return
        raise ValueError(
            f"{path}: has a {folder.config.name} and is no run of ours (there is no"
            f" {folder.inputs.name}); choose another --out"
        )
    if of_seeds := seeds(path):
        raise ValueError(
            f"{path}: holds runs with several seeds, such as {of_seeds[0].name}; give --seeds, or"
            " choose another --out"
        )
    if not _only_begun(folder):
        raise ValueError(
            f"{path}: not empty and no run of ours (there is no config.yaml); choose another --out"
        )


def _only_begun(folder: RunFolder) -> bool:
    """Whether a folder holds no more than what a process leaves that was killed as it began."""
    begun = {folder.memory, folder.lock, folder.owner, folder.inputs}
    entries = folder.path.iterdir()
    return all(entry in begun or entry.suffix == files.TEMPORARY for entry in entries)


def _is_noted(folder: RunFolder) -> bool:
    """Whether a manifest knows a folder's configuration, be it there or lost: it is a run's."""
    try:
        return manifest.holds(folder, manifest.CONFIGURATION, folder.config)
    except ValueError:
        # Damaged, or somebody else's file of that name.
        return folder.inputs.exists()


def _restore(folder: RunFolder, config: Config) -> None:
    """Writes a damaged or lost configuration anew, if it is the one that is given now.

    Raises:
      ValueError: it is damaged, and another one is given.
    """
    if not folder.inputs.exists():
        return  # a new run
    text = dump(config)
    if manifest.holds_text(folder, manifest.CONFIGURATION, folder.config, text):
        files.write_text(folder.config, text)
    else:
        manifest.check(folder, only=[manifest.CONFIGURATION])


def _differing(folder: RunFolder, config: Config, digests: Mapping[str, str]) -> Iterator[str]:
    """Everything in which an earlier run in the folder differs from this one, as "KEY: OLD -> NEW".

    Objectives that only one of them has make no other run.
    """
    if not folder.config.exists():
        return
    earlier, known = load(folder.config), _known_inputs(folder)
    found = list(differences(_fixed(earlier), _fixed(config)))
    for name in earlier.objectives:
        if name in config.objectives:
            old, new = (dataclasses.asdict(each.objectives[name]) for each in (earlier, config))
            found += differences(old, new, f"objectives.{name}")
    for key, old, new in found:
        # What was read from another place and is the same has only moved.
        digest = known.get(PLACES.get(key, ""))
        if digest is None or digest != digests.get(PLACES[key]):
            yield f"{key}: {old!r} -> {new!r}"
    for key in inputs.changed(known, digests):
        yield f"other contents of {key}"


def _remove(folder: RunFolder, config: Config) -> None:
    """Removes the run in a folder, which is locked, so that another one can begin there.

    What the new run reads of the folder `memory` stays: rows and a model that a Python program gave
    are written there before the old run is removed.

    Raises:
      ValueError: the new run reads files of it.
    """
    read = {
        "model": config.model,
        "data.source": config.data.source,
        "train.lora.start": config.train.lora.start,
        "evaluate.retain_log": config.evaluate.retain_log,
    }
    paths = {key: user_path(name).resolve() for key, name in read.items() if name}
    from_memory = {x for x in paths.values() if x.parent == folder.memory.resolve()}
    for key, path in paths.items():
        if path not in from_memory and path.is_relative_to(folder.path.resolve()):
            raise ValueError(
                f"{key}: {read[key]} is in {folder.path}, the folder of the run that --overwrite"
                " removes; choose another --out"
            )
    erase(folder, keep=from_memory)


def _fixed(config: Config) -> dict[str, Any]:
    """The keys that must not change between starts; objectives are compared one by one."""
    keys = dataclasses.asdict(config)
    fixed = {key: keys[key] for key in keys if key not in (*FREE_KEYS, "objectives")}
    return fixed | {"compute": {key: keys["compute"][key] for key in PRECISION}}
