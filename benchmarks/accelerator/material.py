"""The pack on the machine that runs the benchmark: finds, joins and checks what is there.

Parts of a pack may come in several calls: what is missing is named, and what is there is used.
"""

import functools
import shutil
from pathlib import Path

from jaxunlearn.core import files

MANIFEST = "manifest.json"
MODEL, PARTS = "model", "parts"


class Corrupt(ValueError):
    """A file of the pack that is not what was packed."""


class Material:
    """The files of a pack.

    The manifest is {"files": {path in the pack: sha256}, "joined": {path in the pack: {"sha256",
    "parts": [paths in the pack]}}}, where "joined" are files that were too large for one part.
    """

    def __init__(self, pack: Path, work: Path):
        """Reads the manifest.

        Args:
          pack: the folder; it may be absent, or hold a part of what was packed.
          work: where files are joined.

        Raises:
          ValueError: the manifest is no JSON.
        """
        self._pack, self._work = pack, work
        path = pack / MANIFEST
        empty = {"files": {}, "joined": {}}
        self._manifest = files.read_json(path) if path.is_file() else empty

    def find(self, name: str) -> Path | None:
        """A file or folder of the pack, with all its files, checked; None where any is missing.

        Raises:
          Corrupt: a file with another content than the packed one.
        """
        listed = [n for n in self._manifest["files"] if n == name or n.startswith(f"{name}/")]
        if not listed or not all((self._pack / n).is_file() for n in listed):
            return None
        for n in listed:
            _check(self._pack / n, self._manifest["files"][n])
        return self._pack / name

    @property
    def missing_model(self) -> str:
        """Says what of the model is not there."""
        if not self._model_files:
            return f"no model in the pack {self._pack}"
        return f"missing in the pack {self._pack}: {', '.join(self._absent)}"

    @functools.cached_property
    def model(self) -> Path | None:
        """The model's folder, its large files joined; None where parts are missing.

        Raises:
          Corrupt: a part or a joined file with another content than the packed one.
        """
        if self._absent or not self._model_files:
            return None
        for name in self._model_files:
            target = self._work / name
            if name in self._manifest["joined"]:
                self._join(name, target)
            else:
                _check(self._pack / name, self._manifest["files"][name])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._pack / name, target)
        return self._work / MODEL

    @property
    def _model_files(self) -> list[str]:
        """The files of the model's folder, as it is joined."""
        whole = [name for name in self._manifest["files"] if name.startswith(f"{MODEL}/")]
        return [*whole, *self._manifest["joined"]]

    @property
    def _absent(self) -> list[str]:
        """The files of the model that are not in the pack."""
        parts = [part for joined in self._manifest["joined"].values() for part in joined["parts"]]
        whole = [name for name in self._manifest["files"] if name.startswith(f"{MODEL}/")]
        return [name for name in [*whole, *parts] if not (self._pack / name).is_file()]

    def _join(self, name: str, target: Path) -> None:
        """Joins the parts of a file, unless an earlier call did."""
        joined = self._manifest["joined"][name]
        if target.is_file() and files.sha256(target) == joined["sha256"]:
            return

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for part in joined["parts"]:
                    _check(self._pack / part, self._manifest["files"][part])
                    file.write((self._pack / part).read_bytes())
            _check(temporary, joined["sha256"])

        files.replace_whole(target, write)


def _check(path: Path, expected: str) -> None:
    if files.sha256(path) != expected:
        raise Corrupt(f"{path}: not the file that was packed (another sha256); pack it again")
