"""Batches that a run prepares ahead change no number, and leave no thread behind."""

import threading

import jax
import pytest

from jaxunlearn.config import Guide, Objective
from jaxunlearn.evaluation import attacks
from jaxunlearn.pipeline import finetune, plan, unlearn
from jaxunlearn.training import step
from jaxunlearn.training.prefetch import Prefetch, T
from tests.pipeline.test_recipe import digests
from tests.pipeline.tiny import replace, run

# The weights of the guided objective change before steps 0, 2 and 4.
CONFIG = replace(
    data={"measured_retain": "holdout"},
    objectives={
        "npo": Objective(retain="gd"),
        "po": Objective(),
        "guided": Objective(guide=Guide(every=2)),
    },
    measure={"pg_steps": (), "token_steps": ()},
    relearn={"samples": (1,), "steps": 3},
)


class MadeInTime(Prefetch[T]):
    """Makes every input when it is taken."""

    def plan(self, steps, make):
        self._inputs = make

    def take(self, step):
        return self._inputs(step)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.nightly
def test_a_run_is_the_same_bit_for_bit_as_without_batches_ahead(tmp_path, monkeypatch):
    run(CONFIG, tmp_path / "ahead")
    assert not threads()
    for module in (finetune, unlearn, attacks):
        monkeypatch.setattr(module, "Prefetch", MadeInTime)
    run(CONFIG, tmp_path / "in_time")
    assert digests(tmp_path / "ahead") == digests(tmp_path / "in_time")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_thread_ends_when_a_step_fails(tmp_path, monkeypatch, error):
    def failing(*args, **kwargs):
        assert threads()  # the batch was made on it
        raise error

    monkeypatch.setattr(step, "train_step", failing)
    with pytest.raises(error):
        run(CONFIG, tmp_path / "run", jax.devices()[:1])
    assert not threads()


def test_the_thread_ends_when_the_loss_is_not_finite(tmp_path):
    config = replace(
        finetune={"epochs": 0},
        objectives={"ga": Objective(lr=1e30)},
        unlearn={"warmup_epochs": 0.0},
        measure={"every": 0, "pg_steps": (), "token_steps": ()},
    )
    run(config, tmp_path / "run")
    assert not threads()


def test_the_error_of_a_batch_ends_the_run(tmp_path, monkeypatch):
    config = replace(
        finetune={"epochs": 0},
        objectives={"ga": Objective()},
        measure={"every": 0, "pg_steps": (), "token_steps": ()},
    )
    real = plan.StepBatches.step

    def failing(self, at, guide=None):
        if at == 3:
            raise OSError("the batch of step 3 cannot be made")
        return real(self, at, guide)

    monkeypatch.setattr(plan.StepBatches, "step", failing)
    updates, update = [], step.Trainer.update
    monkeypatch.setattr(
        step.Trainer, "update", lambda self, batch, lr: updates.append(1) or update(self, batch, lr)
    )
    with pytest.raises(OSError, match="the batch of step 3"):
        run(config, tmp_path / "run")
    assert len(updates) == 3 and not threads()
