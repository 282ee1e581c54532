"""The program `jaxunlearn`: its imports take seconds, in which Ctrl-C ends it in one line."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from jaxunlearn.core.interrupts import INTERRUPTED


def main() -> int:
    """Runs the command of the process's arguments; returns its exit status, see `cli.main`."""
    before = signal.signal(signal.SIGINT, _leave)
    from jaxunlearn import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process in the middle of an import, where an exception might be taken for another.

    Nothing is open yet that would have to be closed.
    """
    os.write(sys.stderr.fileno(), b"\njaxunlearn: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
