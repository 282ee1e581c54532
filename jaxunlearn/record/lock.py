"""One process at a time works on a run's folder: two would write each line and table twice."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

import filelock

from jaxunlearn.core import files, hosts
from jaxunlearn.record.folder import RunFolder


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keeps other processes away from a run's folder; of the processes of a run the first does so.

    The system releases the lock when its process ends, however that comes about.

    Args:
      folder: of the run; it must exist.

    Raises:
      ValueError: somebody else has it; says who.
    """
    lock = filelock.FileLock(folder.lock, timeout=0)
    taken = False
    if hosts.is_first():
        try:
            lock.acquire()
        except filelock.Timeout:
            taken = True
        else:
            files.write_json(folder.owner, _me())
    # Where the first process refuses, the others must not wait for it at the next barrier.
    if hosts.agreed(taken):
        raise ValueError(
            f"{folder.path}: another process works on this run{_who(folder)}; wait for it, or stop"
            " it and try again"
        )
    try:
        yield
    finally:
        if lock.is_locked:
            folder.owner.unlink(missing_ok=True)
            lock.release()


def _me() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _who(folder: RunFolder) -> str:
    """Who has the lock, as far as it has been written down."""
    try:
        owner = files.read_json(folder.owner)
        return f" (pid {owner['pid']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
