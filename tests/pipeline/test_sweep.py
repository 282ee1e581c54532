"""A sweep with seeds by one command: every run is the one alone, and all are compared."""

import collections
import dataclasses
import signal

import jax
import pytest

from jaxunlearn import cli
from jaxunlearn.config import dump, load
from jaxunlearn.config.schema import (
    Config,
    Data,
    Evaluate,
    Fictional,
    FineTune,
    Measure,
    NewModel,
    Objective,
    Unlearn,
)
from jaxunlearn.core import files
from jaxunlearn.record import tables
from jaxunlearn.training import losses

pytestmark = pytest.mark.slow

CONFIG = Config(
    name="tiny",
    new_model=NewModel(16, 24, 2, 2, 1, 256, vocab_size=300),
    data=Data(fictional=Fictional(4, 2, 0.5)),
    finetune=FineTune(epochs=1, batch_size=4, lr=1e-2),
    unlearn=Unlearn(epochs=2, batch_size=2, lr=1e-3),
    objectives={"npo": Objective()},
    measure=Measure(every=2, pg_steps=()),
    evaluate=Evaluate(suites=("uwc",)),
    track=("tensorboard",),
)
SWEEP = ["--sweep", "objectives.npo.hyper.beta=0.1,1"]


def counted(function, counts, key):
    def call(*args, **kwargs):
        counts[key] += 1
        return function(*args, **kwargs)

    return call


def stopping(folder, objective, step):
    """`tables.write_part`, which asks this process to stop at one measurement of one run."""

    def write(run, table, name, at, rows, real=tables.write_part):
        # Once: a second signal ends a process at once.
        if (run, table, name, at) == (folder, "g_effect", objective, step):
            signal.raise_signal(signal.SIGTERM)
        return real(run, table, name, at, rows)

    return write


def test_seeds_and_values_are_the_runs_alone(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboardX", reason="needs the extra track")
    monkeypatch.setattr(jax, "devices", lambda *a, real=jax.devices: real(*a)[:1])
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(dump(CONFIG))
    traced = collections.Counter()
    for kind, loss in (("step", losses.UnlearnLoss), ("measurement", losses.RiskAndObjective)):
        monkeypatch.setattr(loss, "__call__", counted(loss.__call__, traced, kind))
    command = ["run", str(file), "--out", str(out), "--seeds", "2", *SWEEP]
    # It is asked to stop within the second objective of the second seed, and goes on there.
    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_part", stopping(out / "seed-1", "npo_beta_1", step=0))
        assert cli.main(command) == 75
    once = dict(traced)
    traced.clear()
    assert (out / "seed-0" / "results.json").exists() and not (out / "comparison.md").exists()
    assert not (out / "seed-1" / "results.json").exists()
    capsys.readouterr()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "\nnpo_beta_0.1:" not in said  # what was finished is not done again
    assert "ranking at equal retention" in said
    for seed in (0, 1):
        assert f"report: {out / f'seed-{seed}' / 'report.html'}\n" in said
        assert (out / f"seed-{seed}" / "report.html").exists()
        assert f'href="seed-{seed}/report.html"' in (out / "comparison.html").read_text()
    assert "peak e_u" not in said  # the tables of one seed alone are left out
    # Values share all that is compiled; seeds share all but the steps, whose batches differ.
    for counts in (once, traced):  # what goes on may trace once more
        assert counts["step"] <= 2 and counts["measurement"] <= 1
    results = {seed: files.read_json(out / f"seed-{seed}" / "results.json") for seed in (0, 1)}
    assert list(results[0]["models"]) == ["base", "npo_beta_0.1", "npo_beta_1"]
    assert results[0]["models"]["base"] != results[1]["models"]["base"]
    assert load(out / "seed-1" / "config.yaml").seed == 1
    events = out / "seed-1" / "tensorboard"
    assert {folder.name for folder in events.iterdir()} == {"npo_beta_0.1", "npo_beta_1"}
    # Steps, measurements and the result.
    written = b"".join(file.read_bytes() for file in (events / "npo_beta_1").iterdir())
    assert all(tag in written for tag in (b"grad_norm", b"e_u", b"forget_es"))
    assert "seeds" in (out / "comparison.md").read_text()
    # The folder of the seeds stands for them in a report, and is no run.
    assert cli.main(["report", str(out)]) == 0
    assert cli.main(["evaluate", str(out)]) == 2
    assert f"name one of its runs: {out / 'seed-0'}" in capsys.readouterr().err
    # One of them by itself, without a sweep: the same numbers to the last digit.
    alone = tmp_path / "alone"
    objectives = {"npo": Objective(hyper={"beta": 1.0})}
    changed = dataclasses.replace(CONFIG, seed=1, objectives=objectives)
    file.write_text(dump(changed))
    assert cli.main(["run", str(file), "--out", str(alone), "--no-report"]) == 0
    assert not (alone / "report.html").exists() and not (alone / "figures").exists()
    one = files.read_json(alone / "results.json")["models"]["npo"]
    assert one == results[1]["models"]["npo_beta_1"]


@pytest.mark.parametrize("count", ["0", "-2"])
def test_a_bad_number_of_seeds(tmp_path, capsys, count):
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(CONFIG))
    assert cli.main(["run", str(file), "--out", str(tmp_path / "out"), "--seeds", count]) == 2
    assert f"--seeds: {count} must be in 1..1000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
