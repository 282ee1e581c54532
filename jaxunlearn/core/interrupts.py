"""Signals that ask a run to stop: it stops, and the same command goes on later.

Schedulers of preemptible machines send SIGTERM some seconds before they take a machine away, and
people press Ctrl-C, which is SIGINT. JAX is imported where it is needed, since the command line
starts without it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_STATUS = 75
"""Of a process that stopped and may be started again (EX_TEMPFAIL of sysexits.h)."""

INTERRUPTED = 130
"""Of a command that Ctrl-C ended and that has nothing to go on with, as shells have it."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A run stopped because it was asked to; the message says where it was.

    It is no `Exception`, as KeyboardInterrupt is none: it may be raised at any place, and nobody's
    handler of errors may take it for one.
    """


class Interrupts:
    """Whether a run was asked to stop.

    Most work of a run is computed again as a whole where a process ends in the middle of it, so a
    signal stops it at once. Training saves its state instead: in a block of `between_steps` a
    signal is only noted, and `asked` tells of it.

    Without `catching`, nothing is caught and the answer is no, as in a notebook, where Ctrl-C is
    the notebook's own.
    """

    def __init__(self) -> None:
        self._asked = False
        self._trains = False
        self._where = "before it began"

    def check(self, where: str) -> None:
        """Notes where a run in one process is, and stops there where it was asked to.

        Args:
          where: what the run goes on with when it is started again, for the message.

        Raises:
          Stopped: it was asked to.
        """
        self.reached(where)
        if self._asked and _alone():
            raise Stopped(where)

    def reached(self, where: str) -> None:
        """Notes where a run is; what is asked for meanwhile waits for the next `check`."""
        self._where = where

    def asked(self, step: int) -> bool:
        """Whether the run was asked to stop.

        Args:
          step: of a training. Where there are several processes JAX catches SIGTERM itself, and
            finds a step at which all stop: they must ask at the same ones.
        """
        if _alone():
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """In the block a signal is noted for `asked`, so that a step is finished and saved."""
        self._trains = True
        try:
            yield
        finally:
            self._trains = False

    @contextlib.contextmanager
    def catching(self) -> Iterator["Interrupts"]:
        """Catches the signals; a second one ends the process as if nobody caught it.

        Raises:
          Stopped: a signal came outside of a training; raised in the middle of the block.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        hook, again = sys.unraisablehook, []

        def on_unraisable(found: Any) -> None:
            """Stops a moment later where Python dropped what was raised, as in a callback of its
            garbage collector."""
            if not isinstance(found.exc_value, Stopped):
                hook(found)
                return
            self._asked = False
            again.append(threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)))
            again[-1].start()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._asked:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self._asked = True
            # Of several processes none may leave the others waiting: they stop between steps.
            if not self._trains and _alone():
                raise Stopped(self._where)
            name = signal.Signals(number).name
            print(f"\njaxunlearn: {name}: stops after this step; again: at once", file=sys.stderr)

        for number in SIGNALS:
            signal.signal(number, on_signal)
        sys.unraisablehook = on_unraisable
        try:
            yield self
        finally:
            sys.unraisablehook = hook
            for timer in again:
                timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)


def _alone() -> bool:
    import jax

    return jax.process_count() == 1
