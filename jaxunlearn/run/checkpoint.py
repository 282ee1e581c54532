"""Checkpoints of a train state: the only file that knows orbax."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

Tree = Any


class CheckpointError(ValueError):
    """A checkpoint that does not fit the run; names the folder and the leaf."""


class Checkpoints:
    """The checkpoints of one training, newest last; only the latest are kept."""

    def __init__(self, checkpointer: Any, directory: Path):
        self._checkpointer = checkpointer
        self._directory = directory

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Tree) -> None:
        """Writes a checkpoint; it appears whole or not at all, and a step's is written once."""
        if self.latest != step:
            self._checkpointer.save(step, state, force=True)

    def restore(self, like: Tree) -> Tree:
        """Reads the newest checkpoint into the shapes, dtypes and shardings of `like`.

        Raises:
          CheckpointError: the checkpoint holds other leaves, shapes or dtypes; names the first.
        """
        self._check(like)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self._checkpointer.load(self.latest, abstract)

    def _check(self, like: Tree) -> None:
        from orbax.checkpoint import v1 as ocp

        folder = self._directory / str(self.latest)
        saved = _leaves(ocp.metadata(str(folder)).metadata)
        wanted = _leaves(like)
        for name in sorted(saved.keys() | wanted.keys()):
            have, want = saved.get(name), wanted.get(name)
            if have != want:
                found = "nothing" if have is None else f"{have[1]}{list(have[0])}"
                expected = "nothing" if want is None else f"{want[1]}{list(want[0])}"
                raise CheckpointError(f"{folder}: {name}: expected {expected}, found {found}")


@contextmanager
def open_checkpoints(directory: Path, *, keep: int = 1) -> Iterator[Checkpoints]:
    """Opens (or makes) a folder of checkpoints.

    Args:
      directory: one folder a training.
      keep: how many of the newest checkpoints stay.
    """
    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").setLevel(logging.WARNING)
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    options: Any = {"preservation_policy": ocp.training.preservation_policies.LatestN(keep)}
    with ocp.training.Checkpointer(
        str(directory), cleanup_tmp_directories=True, **options
    ) as checkpointer:
        yield Checkpoints(checkpointer, directory)


def _leaves(tree: Tree) -> dict[str, tuple[tuple[int, ...], str]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda path: ".".join(
        str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path
    )
    return {name(path): (tuple(x.shape), str(x.dtype)) for path, x in found}
