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
    with contextlib.ExitStack() as stack:
        hosts.first_does(lambda: stack.enter_context(locked_here(folder)), _taken(folder))
        yield


@contextlib.contextmanager
def locked_here(folder: RunFolder) -> Iterator[None]:
    """The same, of this process alone: the others of a run need not call it.

    Raises:
      ValueError: somebody else has it; says who.
    """
    lock = filelock.FileLock(folder.lock, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(_taken(folder)) from None
    try:
        files.write_json(folder.owner, _me())
        yield
    finally:
        folder.owner.unlink(missing_ok=True)
        lock.release()


def _me() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _taken(folder: RunFolder) -> str:
    """Says that another process has the folder, and which."""
    return (
        f"{folder.path}: another process works on this run{_who(folder)}; wait for it, or stop it"
        " and try again"
    )


def _who(folder: RunFolder) -> str:
    """Who has the lock, as far as it has been written down."""
    try:
        owner = files.read_json(folder.owner)
        return f" (pid {owner['pid']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
