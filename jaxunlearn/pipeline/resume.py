"""Opens the folder of a run: a new one, or that of an earlier start of the same run."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxunlearn.config import Config, differences, dump, load
from jaxunlearn.core import files, hosts
from jaxunlearn.pipeline import inputs
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.lock import locked

# Keys that may change between starts: they do not change the models of the run.
FREE_KEYS = ("compute", "evaluate", "relearn", "track")


def open_folder(folder: RunFolder, config: Config, digests: Mapping[str, str]) -> None:
    """Makes the folder of a run, or checks that it belongs to an earlier start of this run.

    The mesh, the suites, the attacks and the objectives may change between starts: the folder's
    configuration is updated, and keeps the objectives that it has.

    Args:
      folder: absent, empty, or with an earlier part of the run.
      config: what to run.
      digests: of what the run reads, see `inputs.digests`; only the first process needs them.

    Raises:
      ValueError: the folder holds something else, or was begun with other data or another model;
        names the first key that differs.
    """

    def join() -> None:
        joined = _joined(folder, config)
        known = _same_inputs(folder, digests)
        files.write_text(folder.config, dump(joined))
        files.write_json(folder.inputs, {**known, **digests})

    hosts.first_does(join, f"{folder.path}: the first process cannot open the folder; it says why")
    hosts.wait("the folder is open")


@contextlib.contextmanager
def open_results(folder: RunFolder, digests: Mapping[str, str], config: Config) -> Iterator[None]:
    """Opens and locks the folder of measurements of models that no run made.

    Args:
      folder: absent, empty, or with earlier measurements of the same models.
      digests: of the models, see `inputs.of_models`.
      config: of the measurements, which is written into the folder.

    Raises:
      ValueError: the folder holds something else, or results of models with other weights.
    """
    otherwise = f"{folder.path}: the first process cannot open the folder; it says why"
    hosts.first_does(lambda: _make_results(folder), otherwise)
    with locked(folder):

        def join() -> None:
            known = _same_inputs(folder, digests)
            files.write_json(folder.inputs, {**known, **digests})
            files.write_text(folder.measured_as, dump(config))

        hosts.first_does(join, otherwise)
        manifest.check_together(folder)
        yield


def _make_results(folder: RunFolder) -> None:
    """Makes the folder of measurements, if it is not there."""
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path}: is a file; --out must name a folder")
    if folder.config.exists():
        raise ValueError(f"{folder.path}: holds a run; choose another --out")
    if folder.path.exists() and any(folder.path.iterdir()) and not folder.measured_as.exists():
        raise ValueError(
            f"{folder.path}: not empty and no results of ours (there is no"
            f" {folder.measured_as.name}); choose another --out"
        )
    folder.path.mkdir(parents=True, exist_ok=True)


def _same_inputs(folder: RunFolder, digests: Mapping[str, str]) -> dict[str, str]:
    """The digests that the folder has; none in one that is new or of an earlier version.

    Raises:
      ValueError: the run was begun with other inputs.
    """
    known = files.read_json(folder.inputs) if folder.inputs.exists() else {}
    if different := inputs.changed(known, digests):
        raise ValueError(
            f"{folder.path}: begun with other contents of {', '.join(different)};"
            " choose another --out, or bring the files back"
        )
    return known


def check_finished(folder: RunFolder, prepared: Prepared, *, without: Sequence[str] = ()) -> None:
    """Checks that the files of a run are whole, and that its data and model are still the same.

    Args:
      folder: of the run, locked.
      prepared: the run as it is read now.
      without: stages that are about to be written again.

    Raises:
      ValueError: names what is damaged or differs, and what to do.
    """
    hosts.first_does(
        lambda: _same_inputs(folder, inputs.digests(prepared)),
        f"{folder.path}: the first process found other inputs; it says which",
    )
    manifest.check_together(folder, without=without)


def _joined(folder: RunFolder, config: Config) -> Config:
    """The configuration, with the objectives of the folder added."""
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path}: is a file; --out must name a folder")
    if not folder.config.exists():
        if folder.path.exists() and any(folder.path.iterdir()):
            raise ValueError(
                f"{folder.path}: not empty and no run of ours (there is no config.yaml); choose"
                " another --out"
            )
        return config
    earlier = load(folder.config)
    for key, old, new in differences(_fixed(earlier), _fixed(config)):
        raise ValueError(
            f"{folder.config}: the folder holds a run with {key} = {old!r}, this one has {new!r};"
            " choose another --out, or give the same configuration to resume"
        )
    for name in config.objectives.keys() & earlier.objectives.keys():
        old_spec, new_spec = (dataclasses.asdict(c.objectives[name]) for c in (earlier, config))
        for key, old, new in differences(old_spec, new_spec, f"objectives.{name}"):
            raise ValueError(
                f"{folder.config}: the folder holds a run with {key} = {old!r}, this one has"
                f" {new!r}; choose another --out, or another name for the objective"
            )
    return dataclasses.replace(config, objectives={**earlier.objectives, **config.objectives})


def _fixed(config: Config) -> dict[str, Any]:
    """The keys that must not change between starts; objectives are compared one by one."""
    keys = dataclasses.asdict(config)
    return {key: keys[key] for key in keys if key not in (*FREE_KEYS, "objectives")}
