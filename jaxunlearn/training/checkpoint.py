"""Writes and reads checkpoints of a train state; the only module that uses orbax.

Half of the bit flips in a checkpoint's files would go unnoticed by what reads them. So each
checkpoint carries a checksum of every array, taken on the devices, and what is read is compared.
"""

import gc
import io
import logging
import math
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import hosts, trees
from jaxunlearn.core.names import shortened
from jaxunlearn.core.trees import Tree

Leaf = tuple[tuple[int, ...], str]
"""The shape and the dtype of one array of a checkpoint."""


CHECKSUMS = "bit_sums"
"""The key of a checkpoint's own metadata that holds {leaf: checksum}."""


AGREED_STEPS = 16
"""Several processes agree on whether to save by the clock at multiples of this."""

SETTLE_SECONDS = 0.1
"""Within this time what is still being read of a damaged checkpoint has most often ended."""


class CheckpointError(ValueError):
    """A checkpoint that does not fit the run, or is damaged; names the folder and the leaf."""


class Checkpoints:
    """The checkpoints of one training, newest last; only the latest are kept."""

    def __init__(self, checkpointer: Any, directory: Path, minutes: float):
        self._checkpointer = checkpointer
        self._directory = directory
        self._seconds, self._saved_at = 60 * minutes, time.monotonic()
        self._started: int | None = None
        self._writing: Any = None  # the last save, until its result is taken
        self._failed = False

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        with _reading(self._directory):
            newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Tree) -> None:
        """Copies a state and writes it in the background, one after the other.

        A checkpoint appears whole or not at all; a step's is written once.

        Raises:
          OSError: the save before this one failed, as `finish` says.
        """
        if step not in (self._started, self.latest):
            self.finish()
            sums = {CHECKSUMS: checksums(state)}
            self._writing = self._checkpointer.save_async(
                step, state, force=True, custom_metadata=sums
            )
            self._started, self._saved_at = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the last save is so long ago that a state should be saved by the clock.

        Several processes must agree on it, which takes time: they ask at few steps.
        """
        if jax.process_count() > 1 and step % AGREED_STEPS:
            return False
        return hosts.agreed(time.monotonic() - self._saved_at >= self._seconds)

    def finish(self) -> None:
        """Blocks until the save under way is on the disk.

        Orbax keeps the thread and the open files of a save until its result is taken.

        Raises:
          OSError: the save failed, most often on a full disk; names the folder and the reason.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except Exception as error:  # each layer of the format has its own errors
            self._failed = True
            raise OSError(
                f"{self._directory / str(self._started)}: could not be saved"
                f" ({_last_words(error)}); checkpoints before it are whole, and the same command"
                " goes on from the newest"
            ) from error

    def close(self) -> None:
        """Ends the threads of the checkpointer, which raises a failed save's error once more."""
        try:
            self._checkpointer.close()
        except Exception:
            if not self._failed:
                raise

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of all steps after one."""
        self.finish()
        for checkpoint in list(self._checkpointer.checkpoints):
            if checkpoint.step > step:
                self._checkpointer.delete(checkpoint.step)
        self._started = None

    def newest_or(self, state: Tree) -> Tree:
        """The state of the newest checkpoint, or the given fresh state where there is none."""
        return state if self.latest is None else self.restore(state)

    def restore(self, like: Tree) -> Tree:
        """Reads the newest checkpoint into the shapes, dtypes and shardings of `like`.

        If a checkpoint is being written, this call blocks until it is complete.

        Raises:
          CheckpointError: the checkpoint holds other leaves, shapes or dtypes, or is damaged;
            names the first.
        """
        self._checkpointer.wait()
        folder = self._directory / str(self.latest)
        saved, sums = _saved(folder)
        _check(folder, saved, _leaves(like))
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        with _reading(folder):
            state = self._checkpointer.load(self.latest, abstract)
        _check_sums(folder, sums, state)
        return state


@contextmanager
def open_checkpoints(
    directory: Path, *, keep: int = 1, minutes: float = math.inf
) -> Iterator[Checkpoints]:
    """Opens (or makes) a folder of checkpoints; on exit, blocks until the last one is written.

    Args:
      directory: the folder of one training's checkpoints.
      keep: how many of the newest checkpoints stay.
      minutes: after a save until the next one is due, see `Checkpoints.due`.
    """
    from orbax.checkpoint import v1 as ocp

    # Orbax warns of every save that waits for the one before, of which a run's timings say how
    # long, and logs a page for each thread of a save that failed, which `finish` says in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    options: Any = {"preservation_policy": ocp.training.preservation_policies.LatestN(keep)}
    with _reading(directory):
        opened = ocp.training.Checkpointer(str(directory), cleanup_tmp_directories=True, **options)
    checkpoints = Checkpoints(opened, directory, minutes)
    try:
        yield checkpoints
    finally:
        try:
            checkpoints.finish()
        finally:
            checkpoints.close()


def newest(directory: Path) -> Path | None:
    """The folder of the newest complete checkpoint, or None; changes nothing."""
    from orbax.checkpoint import v1 as ocp

    if not directory.is_dir():
        return None
    with _reading(directory):
        steps = ocp.path.step.standard_name_format().find_all(directory.absolute())
        last = max(steps, key=lambda step: step.step, default=None)
    return None if last is None else Path(last.path)


def read_params(folder: Path, like: Tree) -> Tree:
    """Reads the parameters of a checkpoint alone: the optimiser's moments are never in memory.

    Args:
      folder: from `newest`.
      like: `jax.ShapeDtypeStruct` with shardings; what is read is converted to its dtypes.

    Raises:
      CheckpointError: the checkpoint holds other parameters or shapes, or is damaged; names the
        first.
    """
    from orbax.checkpoint import v1 as ocp

    found, sums = _saved(folder)
    saved = {name: x for name, x in found.items() if name.startswith("params.")}
    # Shapes must be equal; dtypes may differ, they are converted.
    expected = _leaves({"params": like})
    _check(folder, saved, {n: (x[0], saved.get(n, x)[1]) for n, x in expected.items()})
    context = ocp.Context()
    context.pytree.loading.partial_load = True

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """One leaf, which is checked as it was saved, and converted then."""
        name = _dotted(path)
        tree: Tree = jax.ShapeDtypeStruct(leaf.shape, saved[name][1], sharding=leaf.sharding)
        for key in reversed(path):
            tree = {key.key: tree}
        with context, _reading(folder):
            found = ocp.load(str(folder), tree)
        _check_sums(folder, {name: sums[name]} if name in sums else {}, found)
        (values,) = jax.tree.leaves(found)
        return values.astype(leaf.dtype)

    # One at a time: a leaf that is converted is in memory twice.
    return jax.tree_util.tree_map_with_path(read, {"params": like})["params"]


def checksums(tree: Tree) -> dict[str, int]:
    """A checksum of the bits of every array of a tree, by its dotted path.

    Any change of one element changes it, and so does any other but for one in 2^32. It does not
    depend on how the array is sharded: sums of integers have no order.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = _checksums([x for _, x in leaves])
    return {_dotted(path): int(trees.on_host(x)) for (path, _), x in zip(leaves, sums, strict=True)}


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(x) for x in arrays]


def _checksum(x: jax.Array) -> jax.Array:
    """sum_i mix(bits_i + mix(i)) mod 2^32, over the flat array."""
    x = jnp.asarray(x)
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    width = min(x.dtype.itemsize, 4)  # an element of 8 bytes is two of 4
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index, stride = index + along * np.uint32(stride % 2**32), stride * bits.shape[axis]
    return jnp.sum(_mix(bits + _mix(index)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A permutation of 32-bit integers of which every bit depends on all (that of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _check_sums(folder: Path, saved: Mapping[str, int], tree: Tree) -> None:
    """Raises CheckpointError for the first leaf that is not what was saved."""
    if not saved:
        return  # of an earlier version
    found = checksums(tree)
    for name, value in saved.items():
        if found.get(name) != value:
            raise _damaged(folder, f"{name} is not what was saved")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns whatever the libraries below say of files that they cannot read into one line."""
    with _muted():
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # each layer of the format has its own errors
            words = " ".join(str(error).split())
            of_machine = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if of_machine or "RESOURCE_EXHAUSTED" in words:
                raise
            # The reads of the other arrays complain too, as soon as they end and nothing holds
            # their results any more. That is made to happen here; a few are held for longer.
            traceback.clear_frames(error.__traceback__)
            logging.getLogger("asyncio").addFilter(lambda r: str(folder) not in r.getMessage())
            for _ in range(2):
                time.sleep(SETTLE_SECONDS)
                gc.collect()
            raise _damaged(folder, shortened(words)) from error


@contextmanager
def _muted() -> Iterator[None]:
    """Keeps libraries from printing pages about each array of a damaged file.

    They log, they leave errors that nobody can catch, and they print. What was printed is shown
    where no error is on its way, which says it in one line.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    hook = sys.unraisablehook

    def ignore_errors(found: Any) -> None:
        if not isinstance(found.exc_value, Exception):  # it asks the run to stop
            hook(found)

    sys.unraisablehook = ignore_errors
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _last_words(error: Exception) -> str:
    """The end of what tensorstore says, where the reason follows a path of many letters."""
    return " ".join(str(error).split())[-160:].partition(" ")[2]


def _damaged(folder: Path, why: str) -> CheckpointError:
    # Of all checkpoints of a training, those that are whole are worth keeping.
    which = "it" if folder.name.isdecimal() else "the one that is damaged"
    return CheckpointError(
        f"{folder}: the checkpoint is damaged ({why}); remove {which}, and the run goes on from an"
        " earlier one or begins this training anew"
    )


def _saved(folder: Path) -> tuple[dict[str, Leaf], dict[str, int]]:
    """The leaves of a checkpoint and their checksums, read from its metadata alone."""
    from orbax.checkpoint import v1 as ocp

    with _reading(folder):
        found: Any = ocp.metadata(str(folder))
        if found.metadata is None:
            raise _damaged(folder, "its metadata cannot be read")
        sums = dict((found.custom_metadata or {}).get(CHECKSUMS, {}))
        return _leaves(found.metadata), sums


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
