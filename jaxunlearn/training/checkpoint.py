"""Writes and reads checkpoints of a train state; the only module that uses orbax."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import Tree

Leaf = tuple[tuple[int, ...], str]
"""The shape and the dtype of one array of a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that does not fit the run; names the folder and the leaf."""


class Checkpoints:
    """The checkpoints of one training, newest last; only the latest are kept."""

    def __init__(self, checkpointer: Any, directory: Path):
        self._checkpointer = checkpointer
        self._directory = directory
        self._started: int | None = None
        self._writing: Any = None  # the save under way, or the last one

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Tree) -> None:
        """Copies a state and writes it in the background, one after the other.

        A checkpoint appears whole or not at all; a step's is written once.

        Raises:
          Exception: what ended the save before this one, if it failed.
        """
        if step not in (self._started, self.latest):
            # Without this, orbax keeps the threads and open files of every save until the end.
            if self._writing is not None:
                self._writing.result()
            self._writing = self._checkpointer.save_async(step, state, force=True)
            self._started = step

    def newest_or(self, state: Tree) -> Tree:
        """The state of the newest checkpoint, or the given fresh state where there is none."""
        return state if self.latest is None else self.restore(state)

    def restore(self, like: Tree) -> Tree:
        """Reads the newest checkpoint into the shapes, dtypes and shardings of `like`.

        If a checkpoint is being written, this call blocks until it is complete.

        Raises:
          CheckpointError: the checkpoint holds other leaves, shapes or dtypes; names the first.
        """
        self._checkpointer.wait()
        folder = self._directory / str(self.latest)
        _check(folder, _saved(folder), _leaves(like))
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self._checkpointer.load(self.latest, abstract)


@contextmanager
def open_checkpoints(directory: Path, *, keep: int = 1) -> Iterator[Checkpoints]:
    """Opens (or makes) a folder of checkpoints; on exit, blocks until the last one is written.

    Args:
      directory: the folder of one training's checkpoints.
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


def newest(directory: Path) -> Path | None:
    """The folder of the newest complete checkpoint, or None; changes nothing."""
    from orbax.checkpoint import v1 as ocp

    if not directory.is_dir():
        return None
    steps = ocp.path.step.standard_name_format().find_all(directory.absolute())
    last = max(steps, key=lambda step: step.step, default=None)
    return None if last is None else Path(last.path)


def read_params(folder: Path, like: Tree) -> Tree:
    """Reads the parameters of a checkpoint alone: the optimiser's moments are never in memory.

    Args:
      folder: from `newest`.
      like: `jax.ShapeDtypeStruct` with shardings; what is read is converted to its dtypes.

    Raises:
      CheckpointError: the checkpoint holds other parameters or shapes; names the first.
    """
    from orbax.checkpoint import v1 as ocp

    saved = {name: x for name, x in _saved(folder).items() if name.startswith("params.")}
    # Shapes must be equal; dtypes may differ, they are converted.
    expected = _leaves({"params": like})
    _check(folder, saved, {n: (x[0], saved.get(n, x)[1]) for n, x in expected.items()})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    # A leaf is read whole before it is converted: no more than two of them at a time.
    context.memory.read_concurrent_bytes = 2 * max(
        math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype in saved.values()
    )
    with context:
        return ocp.load(str(folder), {"params": like})["params"]


def _saved(folder: Path) -> dict[str, Leaf]:
    """The leaves of a checkpoint, read from its metadata alone."""
    from orbax.checkpoint import v1 as ocp

    return _leaves(ocp.metadata(str(folder)).metadata)


def _check(folder: Path, saved: dict[str, Leaf], expected: dict[str, Leaf]) -> None:
    """Raises CheckpointError for the first leaf whose shape or dtype differs."""

    def describe(leaf: Leaf | None) -> str:
        return "nothing" if leaf is None else f"{leaf[1]}{list(leaf[0])}"

    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise CheckpointError(
                f"{folder}: {name}: expected {describe(expected.get(name))}, found"
                f" {describe(saved.get(name))}"
            )


def _leaves(tree: Tree) -> dict[str, Leaf]:
    """{dotted path: (shape, dtype)} of a tree of arrays or of their metadata."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_dotted(path): (tuple(x.shape), str(x.dtype)) for path, x in leaves}


def _dotted(path: tuple[Any, ...]) -> str:
    """The path of a leaf: names of fields, keys of dicts and indices of lists, joined by dots."""
    keys = (getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return ".".join(map(str, keys))
