"""Stages of a run: what their parts record, what is printed, and that clocks do not overlap."""

import io
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxunlearn.core import devices, files
from jaxunlearn.core.devices import OutOfMemory
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import COMPILATION, Stage, Stages


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def records_of(folder):
    return {(r["stage"], r["part"]): r for r in files.records(folder.timings)}


def test_a_stage_is_recorded_with_its_parts(folder):
    with Stages(folder, peak=1e9).stage("npo") as stage, stage.part("train") as train:
        time.sleep(0.02)
        train.add(1000, 4_000_000)
        train.waiting = 0.001
        with stage.part("measure") as measure:
            time.sleep(0.02)
            measure.add(50)
    records = records_of(folder)
    assert list(records) == [("npo", "train"), ("npo", "measure"), ("npo", None)]
    train, measure, whole = records.values()
    assert train["seconds"] + measure["seconds"] <= whole["seconds"] + 0.002
    assert train["seconds"] > 0.01 and measure["seconds"] > 0.01
    assert (train["tokens"], measure["tokens"], whole["tokens"]) == (1000, 50, 1050)
    assert train["tokens_per_second"] == pytest.approx(1000 / train["seconds"], rel=0.1)
    assert train["mfu"] == pytest.approx(4e6 / train["seconds"] / 1e9, rel=0.1)
    assert measure["flops"] is None is measure["mfu"]
    assert (train["waiting_seconds"], whole["waiting_seconds"]) == (0.001, 0.001)


def test_without_a_peak_there_is_no_mfu(folder):
    with Stages(folder).stage("npo") as stage, stage.part("train") as train:
        train.add(10, 20)
    assert all(record["mfu"] is None for record in records_of(folder).values())
    assert records_of(folder)["npo", "train"]["flops"] == 20


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_is_recorded_too(folder, error):
    stages = Stages(folder)
    with pytest.raises(error), stages.stage("npo") as stage, stage.part("train"):
        raise error
    with stages.stage("npo"):
        pass
    whole = [record for record in files.records(folder.timings) if record["part"] is None]
    assert [record["stage"] for record in whole] == ["npo", "npo"]


def test_a_stage_without_memory_says_where_and_what_to_do(folder):
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n" + "x\n" * 500)
    with (
        pytest.raises(OutOfMemory, match=r"^npo, measure: the device is out of memory.*forecast"),
        Stages(folder).stage("npo") as stage,
        stage.part("train"),
        stage.part("measure"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another"), Stages(folder).stage("npo"):
        raise RuntimeError("another")


def test_compilations_are_counted_where_they_happen(folder):
    with Stages(folder).stage("npo") as stage:
        with stage.part("train"):
            jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(7)).block_until_ready()
        with stage.part("measure"):
            pass
    records = records_of(folder)
    assert 0 < records["npo", "train"]["compile_seconds"] <= records["npo", None]["seconds"] + 0.001
    assert records["npo", "measure"]["compile_seconds"] == 0


def test_a_program_that_is_traced_inside_another_one_counts_once():
    stage = Stage()
    time.sleep(0.03)
    stage.on_event(COMPILATION[0], 0.01)
    stage.on_event(COMPILATION[0], 0.02)  # it began before the first one, and so contains it
    assert stage.whole.compiling == pytest.approx(0.02, abs=1e-6)
    stage.on_event("/jax/something/else", 5.0)
    assert stage.whole.compiling == pytest.approx(0.02, abs=1e-6)


def test_one_line_a_stage(folder):
    text = io.StringIO()
    stages = Stages(folder, Console(file=text, width=200), peak=1e9)
    with stages.stage("npo") as stage, stage.part("train") as train:
        time.sleep(0.01)
        train.add(500, 100)
        train.waiting = 0.001
    (line,) = text.getvalue().splitlines()
    for words in ("npo: 0.", "train 0.", "tokens/s", "MFU", "waiting"):
        assert words in line


def test_published_peaks():
    card, other = (SimpleNamespace(device_kind=kind) for kind in ("NVIDIA H200", "cpu"))
    assert devices.peak_flops([card] * 8, "bfloat16") == 8 * 989.5e12
    assert devices.peak_flops([card], "float32") is None
    assert devices.peak_flops([card, other], "bfloat16") is None
    assert devices.peak_flops([other] * 2, "float32", 0.5) == 1e12


def test_the_most_bytes_of_any_device():
    device = lambda stats: SimpleNamespace(memory_stats=lambda: stats)
    assert devices.peak_bytes([device(None), device({"peak_bytes_in_use": 3}), device({})]) == 3
    assert devices.peak_bytes([device(None)]) is None
