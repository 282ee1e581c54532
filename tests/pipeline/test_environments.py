"""A run gives the same results in every environment that people start it in."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxunlearn.config import dump
from jaxunlearn.record import tables
from tests.pipeline.test_recipe import digests
from tests.pipeline.tiny import replace

CONFIG = replace(
    evaluate={"suites": ("all",), "generate": 2}, relearn={"samples": (1,), "steps": 2}
)
ENVIRONMENTS = {
    "float64": {"JAX_ENABLE_X64": "1"},
    "nan-checks": {"JAX_DEBUG_NANS": "1"},
    "no-rank-promotion": {"JAX_NUMPY_RANK_PROMOTION": "raise"},
    "no-transfers": {"JAX_TRANSFER_GUARD": "disallow"},
    "hash-seed": {"PYTHONHASHSEED": "7"},
    "C-locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "read-only-home": {"HOME": "/proc", "XDG_CACHE_HOME": "/proc"},
    "no-network": {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
    "notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "warnings": {"PYTHONWARNINGS": "error"},
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Runs the tiny configuration in a process of its own; returns its folder."""
    folder = tmp_path_factory.mktemp("environments")
    file = folder / "tiny.yaml"
    file.write_text(dump(CONFIG))
    plain = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }

    def start(name, changes):
        command = [sys.executable, "-m", "jaxunlearn.cli", "run", str(file)]
        done = subprocess.run(
            [*command, "--out", str(folder / name)],
            env=plain | changes,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return folder / name

    return start


@pytest.fixture(scope="module")
def plain(started):
    return started("plain", {})


@pytest.mark.nightly
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_changes_nothing(name, started, plain):
    run = started(name, ENVIRONMENTS[name])
    if name != "float64":
        assert digests(run) == digests(plain)
        return
    # Other programs are compiled, whose numbers agree to rounding only.
    for table in ("g_effect", "pg_effect"):
        ours, theirs = (tables.read(folder, table)["value"] for folder in (run, plain))
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-3)
