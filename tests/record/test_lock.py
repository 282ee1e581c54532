"""A run's folder belongs to one process at a time, and to nobody when that process is gone."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.lock import locked

HOLD = """
import pathlib, sys, time
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.lock import locked
with locked(RunFolder(pathlib.Path(sys.argv[1]))):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_one_is_refused_and_told_who_has_it(tmp_path):
    folder = RunFolder(tmp_path)
    with locked(folder):
        with pytest.raises(ValueError, match=rf"another process .*\(pid {os.getpid()} on .*since"):
            locked(folder).__enter__()
        folder.owner.write_text("{torn")
        with pytest.raises(ValueError, match=r"works on this run; wait for it"):
            locked(folder).__enter__()
    assert not folder.owner.exists()
    with locked(folder):
        assert json.loads(folder.owner.read_text())["pid"] == os.getpid()


def test_a_process_that_was_killed_has_no_lock(tmp_path):
    folder = RunFolder(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(ValueError, match=rf"pid {other.pid} on"):
                locked(folder).__enter__()
        finally:
            other.send_signal(signal.SIGKILL)
    with locked(folder):
        pass


def test_an_error_releases_it(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(RuntimeError), locked(folder):
        raise RuntimeError
    with locked(folder):
        pass
