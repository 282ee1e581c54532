"""Signals that ask a run to stop: it finishes its step, and the same command goes on later.

Schedulers of preemptible machines send SIGTERM some seconds before they take a machine away, and
people press Ctrl-C, which is SIGINT. JAX is imported where it is needed, since the command line
starts without it.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

EXIT_STATUS = 75
"""Of a process that stopped and may be started again (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run stopped because it was asked to; the message says where it was."""


class Interrupts:
    """Whether a run was asked to stop.

    Without `catching`, nothing is caught and the answer is no, as in a notebook, where Ctrl-C is
    the notebook's own.
    """

    def __init__(self) -> None:
        self._asked = False

    def check(self, where: str) -> None:
        """Stops between two stages of a run in one process where it was asked to.

        Args:
          where: what the run is at, for the message.

        Raises:
          Stopped: it was asked to.
        """
        if self._asked and _alone():
            raise Stopped(where)

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
    def catching(self) -> Iterator[None]:
        """Catches the signals; a second one ends the process as if nobody caught it."""
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._asked:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self._asked = True
            name = signal.Signals(number).name
            print(f"\njaxunlearn: {name}: stops after this step; again: at once", file=sys.stderr)

        for number in SIGNALS:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _alone() -> bool:
    import jax

    return jax.process_count() == 1
