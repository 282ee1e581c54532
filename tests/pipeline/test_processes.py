"""One run on two processes of four devices, against the same run on one process of eight."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from jaxunlearn.config import Objective, reader
from jaxunlearn.core import files
from jaxunlearn.record import tables
from tests.pipeline.tiny import replace

CONFIG = replace(
    new_model={"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2},
    compute={"fsdp": 4, "tensor": 2},
    finetune={"batch_size": 4, "epochs": 1, "retrained": False},
    unlearn={"lr": 1e-3, "epochs": 4, "batch_size": 2},
    objectives={"npo": Objective(hyper={"beta": 0.5}, retain="gd")},
)
STEPS = 6
HEARTBEAT = 10


def start(*words, process=None, port=None, devices=8, heartbeat=HEARTBEAT):
    command = [sys.executable, "-m", "jaxunlearn.cli", *map(str, words)]
    if process is not None:
        several = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": process}
        several["heartbeat"] = heartbeat
        command += [part for key, value in several.items() for part in (f"--{key}", str(value))]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def pair(*words):
    """Two processes of one command; none is left behind."""
    port = free_port()
    running = [start(*words, process=i, port=port, devices=4) for i in (0, 1)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def finish(*running):
    said = [process.communicate(timeout=300)[0] for process in running]
    codes = [process.returncode for process in running]
    assert codes == [0] * len(running), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(reader.dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory, file):
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start("run", file, "--out", out))
    return out


def same_numbers(one, two):
    """Effects to 3e-6 of norm x norm, losses to 1e-6, the parameters learned to 1e-5."""
    a, b = (tables.read(out, "g_effect") for out in (one, two))
    assert a["step"] == b["step"] and a["layer"] == b["layer"] and len(a["value"]) > 0
    totals = {
        (step, risk): norm * other
        for step, risk, layer, norm, other in zip(
            *(a[k] for k in ("step", "risk", "layer", "risk_norm", "objective_norm")), strict=True
        )
        if layer == "total"
    }
    scale = np.array([totals[key] for key in zip(a["step"], a["risk"], strict=True)])
    assert np.max(np.abs(np.array(a["value"]) - b["value"]) / scale) < 3e-6
    a, b = (tables.read(out, "pg_effect") for out in (one, two))
    size = np.max(np.abs(a["value"]))
    np.testing.assert_allclose(a["value"], b["value"], rtol=0, atol=1e-5 * size)
    a, b = (files.records(out / "metrics.jsonl") for out in (one, two))
    assert [r["step"] for r in a] == [r["step"] for r in b]
    of = lambda records: np.array([r["loss"] for r in records if "loss" in r])
    assert len(of(a)) == STEPS
    np.testing.assert_allclose(of(a), of(b), rtol=1e-5)
    a, b = (load_file(out / "base" / "model.safetensors") for out in (one, two))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_compute_what_one_does_also_when_one_dies(alone, file, tmp_path):
    """JAX ends the survivor with a signal, within the heartbeat; the next start goes on."""
    out = tmp_path / "run"
    with pair("run", file, "--out", out) as running:
        checkpoint = out / "objectives" / "npo" / "checkpoints" / "2"
        deadline = time.monotonic() + 400
        while not checkpoint.is_dir():
            assert time.monotonic() < deadline and running[0].poll() is None
            time.sleep(0.05)
        running[1].kill()
        died = time.monotonic()
        said = running[0].communicate(timeout=200)[0]
        assert running[0].returncode != 0, said
        assert time.monotonic() - died < 6 * HEARTBEAT
    assert not (out / "results.json").exists()
    with pair("run", file, "--out", out) as running:
        said = finish(*running)
    assert "forget ES" in said[0] and "forget ES" not in said[1]
    same_numbers(alone, out)
    kept = lambda out: {str(p.relative_to(out)) for p in out.glob("*")}
    assert kept(out) == kept(alone)


@pytest.mark.nightly
def test_models_are_measured_as_by_one_process(alone, file, tmp_path):
    """The commands on two checkpoints, and on a model with the one before unlearning beside it."""
    before, after = alone / "base", tmp_path / "npo"
    finish(start("export", alone, "npo", after))
    commands = {
        "effects": ("effects", before, after, "--by", "sample", "layer"),
        "models": ("evaluate", after, "--base", before, "--generate", "2"),
    }
    for name, command in commands.items():
        words = (*command, "--config", file, "--out")
        finish(start(*words, tmp_path / "one" / name))
        with pair(*words, tmp_path / "two" / name) as running:
            said = finish(*running)
        assert " are in" in said[0] and " are in" not in said[1]
    ones, twos = tmp_path / "one", tmp_path / "two"
    for table in ("g_effect", "pg_effect"):
        one, two = (pq.read_table(out / "effects" / f"{table}.parquet") for out in (ones, twos))
        assert one.num_rows > 0
        same(one.to_pylist(), two.to_pylist())
    same(*(files.read_json(out / "models" / "evaluation.json")["models"] for out in (ones, twos)))


def same(one, two):
    """Nested values alike, numbers to 1e-4 of themselves or 1e-5."""
    if isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    elif isinstance(one, dict | list):
        assert len(one) == len(two)
        keys = one if isinstance(one, dict) else range(len(one))
        for key in keys:
            same(one[key], two[key])
    else:
        assert one == two


@pytest.mark.slow
def test_what_is_missing_is_named(file, tmp_path):
    command = [sys.executable, "-m", "jaxunlearn.cli", "run", str(file), "--out", str(tmp_path)]
    found = subprocess.run(
        [*command, "--coordinator", "127.0.0.1:1"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "--processes, --process: give all of" in found.stderr
