"""A run that is killed at any moment, again and again, ends in the very same results."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxunlearn.config import dump
from tests.pipeline.test_recipe import digests
from tests.pipeline.tiny import replace

CONFIG = replace(evaluate={"suites": ("uwc",)}, relearn={"samples": (1,), "steps": 2})


@pytest.mark.parametrize(
    ("kills", "options"),
    [
        # The report takes half of so small a run. It is written from what is there, and nothing
        # reads it.
        pytest.param(20, ["--no-report"], marks=pytest.mark.slow),
        pytest.param(100, [], marks=pytest.mark.nightly),
    ],
    ids=("20", "100"),
)
def test_killed_runs_end_as_the_one_that_was_not(tmp_path, kills, options):
    """Each chain is killed after random times until it ends; a process starts in some seconds."""
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(CONFIG))
    # What is compiled is kept, so that a start soon comes to where the last one was killed. It is
    # compiled quickly: the chains are compared with a run by the same compiler.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }

    def started(out):
        command = [sys.executable, "-m", "jaxunlearn.cli", "run", str(file), "--out", str(out)]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *options], env=environment, **streams)

    for name in ("first", "whole"):  # the second one finds everything compiled
        begin = time.monotonic()
        with started(tmp_path / name) as process:
            assert process.wait() == 0, process.stderr.read()
    seconds, whole = time.monotonic() - begin, digests(tmp_path / "whole")
    assert digests(tmp_path / "first") == whole
    draw, done, chain, statuses = np.random.default_rng(kills), 0, 0, []
    while done < kills:
        out = tmp_path / f"chain-{chain}"
        with started(out) as process:
            try:
                status = process.wait(draw.uniform(0.1, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                continue
            statuses.append(status)
            assert status == 0, process.stderr.read()
        assert digests(out) == whole
        chain += 1
    with started(out) as process:  # the last chain too comes to its end
        assert process.wait() == 0, process.stderr.read()
    assert digests(out) == whole
    print(f"{done} kills of {chain + 1} chains")
