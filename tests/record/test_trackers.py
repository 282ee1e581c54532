"""Trackers get what a run records, and a run without any imports none."""

import subprocess
import sys

import pytest

from jaxunlearn.record import trackers
from jaxunlearn.record.steps import StepLog
from jaxunlearn.record.trackers import Trackers, tracking


class Memory:
    """A tracker that keeps what it gets."""

    def __init__(self, *_):
        self.entries, self.closed = [], 0

    def log(self, objective, step, values):
        self.entries.append((objective, step, dict(values)))

    def close(self):
        self.closed += 1


def test_every_step_is_sent_when_it_is_written(tmp_path):
    memory = Memory()
    log = StepLog(tmp_path / "metrics.jsonl", "npo", Trackers([memory]))
    log.add(0, {"loss": 1.5})
    assert memory.entries == []
    log.add(1, {"loss": float("nan"), "lr": 0.1})
    log.flush()
    # What is no finite number is left out: services refuse it, or draw it as 0.
    assert memory.entries == [("npo", 0, {"loss": 1.5}), ("npo", 1, {"lr": 0.1})]


def test_trackers_are_closed_where_a_run_fails(tmp_path, monkeypatch):
    memory = Memory()
    monkeypatch.setitem(trackers.KINDS, "wandb", lambda *_: memory)
    with pytest.raises(RuntimeError), tracking(["wandb"], tmp_path, "mine", {}) as opened:
        opened.log("ga", 3, {"e_u": -1.0, "note": "text", "flag": True})
        raise RuntimeError
    assert memory.entries == [("ga", 3, {"e_u": -1.0})] and memory.closed == 1


def test_an_unknown_tracker_and_one_that_is_not_installed(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no 'wandbb'; one of .*perhaps you meant 'wandb'"):
        tracking(["wandbb"], tmp_path, "mine", {}).__enter__()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"tensorboardX is not installed; pip install .*\[track\]"):
        trackers.check_installed(["tensorboard"])


def test_nothing_is_imported_without_a_tracker():
    code = (
        "import sys, jaxunlearn.pipeline.recipe as r;"
        "assert not {'tensorboardX', 'wandb', 'trackio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorboard_has_a_folder_for_each_objective(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra track")
    with tracking(["tensorboard"], tmp_path, "mine", {}) as opened:
        for step in range(3):
            opened.log("ga", step, {"loss": -1.0 * step})
        opened.log("npo", 0, {"e_u": -5.0})
    found = {
        name: b"".join(f.read_bytes() for f in (tmp_path / "tensorboard" / name).iterdir())
        for name in ("ga", "npo")
    }
    assert found["ga"].count(b"loss") == 3 and b"e_u" in found["npo"]


OFFLINE = {
    "wandb": (
        "import os; os.environ.update(WANDB_MODE='offline', WANDB_SILENT='true')\n",
        "wandb/offline-run-*/run-*.wandb",
    ),
    "trackio": ("import os; os.environ['TRACKIO_DIR'] = os.getcwd()\n", "**/*.db"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OFFLINE)
def test_offline_modes_write_files_and_need_no_network(tmp_path, kind):
    """In a process of their own: the libraries start threads and change global settings."""
    pytest.importorskip(kind, reason="needs the extra track")
    setting, pattern = OFFLINE[kind]
    code = setting + (
        "from pathlib import Path\n"
        "from jaxunlearn.record.trackers import tracking\n"
        f"with tracking(['{kind}'], Path('.'), 'mine', {{'seed': 0}}) as opened:\n"
        "    for objective in ('ga', 'npo'):\n"
        "        for step in range(3):\n"
        "            opened.log(objective, step, {'loss': 1.0 * step})\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "no_proxy": "*"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert list(tmp_path.glob(pattern)), [str(p) for p in tmp_path.rglob("*")][:20]
