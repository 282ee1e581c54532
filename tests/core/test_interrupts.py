"""Signals: the first one is noted, the second ends the process, and nothing is left behind."""

import os
import signal
import subprocess
import sys

import pytest

from jaxunlearn.core.interrupts import SIGNALS, Interrupts, Stopped

CATCH = """
import os, signal, sys
from jaxunlearn.core.interrupts import Interrupts
stop = Interrupts()
with stop.catching():
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked(0)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never", flush=True)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_its_handler_restored(number, capsys):
    before = [signal.getsignal(n) for n in SIGNALS]
    stop = Interrupts()
    with stop.catching():
        assert not stop.asked(0)
        stop.check("before anything")
        os.kill(os.getpid(), number)
        assert stop.asked(1)
        with pytest.raises(Stopped, match="before ga"):
            stop.check("before ga")
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert f"{signal.Signals(number).name}: stops after this step" in capsys.readouterr().err


def test_a_second_one_ends_the_process():
    done = subprocess.run([sys.executable, "-c", CATCH], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "still here\n"


def test_nothing_is_caught_unless_it_is_asked_for():
    stop = Interrupts()
    # A shell starts what it runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not stop.asked(0)
