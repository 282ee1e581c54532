"""Signals: the first one is noted, the second ends the process, and nothing is left behind."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxunlearn.core.interrupts import SIGNALS, Interrupts, Stopped

CATCH = """
import os, signal, sys
from jaxunlearn.core.interrupts import Interrupts
stop = Interrupts()
with stop.catching(), stop.between_steps():
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked(0)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never", flush=True)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_training_notes_a_signal_and_its_handler_is_restored(number, capsys):
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupts().catching() as stop:
        assert not stop.asked(0)
        stop.check("before anything")
        with stop.between_steps():
            os.kill(os.getpid(), number)
            assert stop.asked(1)
        with pytest.raises(Stopped, match="before ga"):
            stop.check("before ga")
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert f"{signal.Signals(number).name}: stops after this step" in capsys.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_elsewhere_a_signal_stops_at_once_and_is_no_error(number):
    with pytest.raises(Stopped, match="before the report"), Interrupts().catching() as stop:
        stop.check("before the report")
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), number)
            pytest.fail("it went on")


def test_a_signal_in_a_callback_of_the_garbage_collector_stops_a_moment_later(capsys):
    """Python drops what such a callback raises; JAX has one."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGTERM)

    hook = sys.unraisablehook
    with pytest.raises(Stopped, match="before ga"), Interrupts().catching() as stop:
        stop.check("before ga")
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(5)
        pytest.fail("it went on")
    assert sys.unraisablehook is hook and not capsys.readouterr().err


IMPORT = """
import os, signal, sys
from jaxunlearn.__main__ import main
class Finder:
    def find_spec(name, path, target=None):
        if name == "tyro":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
main()
"""
COMMAND = """
import os, signal, sys
from jaxunlearn import cli
# A shell starts what it runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def pressed(command, arguments):
    os.kill(os.getpid(), signal.SIGINT)
cli._FUNCTIONS = dict.fromkeys(cli._FUNCTIONS, pressed)
sys.exit(cli.main(["report", "x"]))
"""


@pytest.mark.parametrize("code", [IMPORT, COMMAND])
def test_ctrl_c_during_imports_or_a_short_command_is_one_line(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (130, "jaxunlearn: interrupted")


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
