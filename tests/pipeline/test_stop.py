"""A run that is asked to stop ends between two steps, and goes on to the very same results."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import pytest

from jaxunlearn.config import dump
from jaxunlearn.core.interrupts import EXIT_STATUS, Interrupts, Stopped
from jaxunlearn.measurement import statistics
from jaxunlearn.pipeline import recipe
from jaxunlearn.pipeline.evaluate import evaluate
from jaxunlearn.pipeline.relearn import relearn
from jaxunlearn.reporting import report
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.step import Trainer
from tests.pipeline.test_recipe import digests
from tests.pipeline.tiny import TINY, replace, run

pytestmark = pytest.mark.slow
# Without measurements an objective is saved where it stops; with them it goes back to the last one.
CONFIGS = {"measured": TINY, "plain": replace(measure={"every": 0})}


class StopAt(Interrupts):
    """Asked to stop before the n-th step that asks."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def asked(self, step):
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module", params=CONFIGS)
def whole(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    run(CONFIGS[request.param], out)
    return CONFIGS[request.param], out


@pytest.mark.parametrize(("steps", "where"), [(1, "fine-tuning base"), (9, "ga"), (15, "npo")])
def test_it_goes_on_where_it_stopped(whole, tmp_path, steps, where):
    config, uninterrupted = whole
    started = lambda: recipe.begin(config, tmp_path / "run", jax.devices()[:1])
    with pytest.raises(Stopped, match=rf"at step \d+ of {where}"):
        recipe.execute(started(), interrupts=StopAt(steps))
    recipe.execute(started())
    assert digests(tmp_path / "run") == digests(uninterrupted)


MEASURED = replace(
    measure={"every": 0},
    evaluate={"suites": ("memorization", "uwc")},
    relearn={"samples": (1,), "steps": 2},
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "measured"
    run(MEASURED, out)
    return out


class StopBefore(Interrupts):
    """Asked to stop once, where the run says that it is at a place."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def check(self, where):
        super().check(where)
        if where == self.place:
            raise Stopped(where)


@pytest.mark.parametrize(
    "place",
    [
        "before the reference pass",
        "before evaluate ga",
        "before the suite uwc of ga",
        "before the attack base int8",
        "before the attack npo 1",
        "before the report",
    ],
)
def test_evaluation_and_relearning_go_on_where_they_stopped(measured, tmp_path, place):
    started = lambda: recipe.begin(MEASURED, tmp_path / "run", jax.devices()[:1])
    with pytest.raises(Stopped, match=place):
        options = {"interrupts": StopBefore(place), "write_report": report.write_report}
        recipe.execute(started(), **options)
    recipe.execute(started())
    assert digests(tmp_path / "run") == digests(measured)


@pytest.mark.parametrize("command", ["evaluate", "relearn"])
@pytest.mark.parametrize("call", [1, 4])
def test_a_signal_in_the_middle_of_a_command(measured, tmp_path, monkeypatch, command, call):
    """The command ends at once, and given again it makes what an undisturbed run has."""
    out, device = shutil.copytree(measured, tmp_path / "run"), jax.devices()[:1]
    shutil.rmtree(out / "relearn")
    for file in out.glob("relearn*.*"):
        file.unlink()
    (out / "evaluation.json").unlink()
    monkeypatch.setattr(Layout, "split", after(Layout.split, call))
    monkeypatch.setattr(statistics, "statistics", after(statistics.statistics, call))
    commands = {
        "evaluate": partial(evaluate, out, suites=MEASURED.evaluate.suites, devices=device),
        "relearn": partial(relearn, out, samples=(1,), steps=2, devices=device),
    }
    with pytest.raises(Stopped, match="before"), Interrupts().catching() as interrupts:
        commands[command](interrupts=interrupts)
    monkeypatch.undo()
    for do in commands.values():
        do()
    shutil.rmtree(out / "figures")  # of the attack, which the run did not draw
    assert digests(out) == digests(measured)


def after(function, count):
    """The function, which sends this process a signal when it is called for the n-th time."""
    calls = iter(range(1, 10**6))

    def counted(*args, **options):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **options)

    return counted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_exits_with_a_status_of_its_own(tmp_path, number):
    file, out = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(dump(replace(unlearn={"epochs": 4000})))
    command = [sys.executable, "-m", "jaxunlearn.cli", "run", str(file), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        checkpoints = out / "objectives" / "ga" / "checkpoints"
        while not (checkpoints.is_dir() and any(checkpoints.iterdir())):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == EXIT_STATUS, said
    assert "of ga; the same command goes on from there" in said and "Traceback" not in said


@pytest.mark.parametrize("crash", [5, 9])
def test_a_crash_loses_no_more_than_the_clock_allows(tmp_path, monkeypatch, crash):
    """The 5th update is of fine-tuning, which is evaluated after the 6th; the 9th of unlearning."""
    config = replace(
        compute={"save_minutes": 1e-9},
        finetune={"evaluate_every": 100},
        objectives={"ga": TINY.objectives["ga"]},
        measure={"every": 0},
    )
    run(config, tmp_path / "whole")
    update, updates = Trainer.update, []

    def counted(self, batch, lr):
        updates.append(lr)
        if len(updates) == crash:
            raise RuntimeError("crash")
        return update(self, batch, lr)

    monkeypatch.setattr(Trainer, "update", counted)
    with pytest.raises(RuntimeError, match="crash"):
        run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert len(updates) == crash + (12 - (crash - 1))  # 6 of each; none but the last is done again
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
