"""The log of steps is one step late and loses nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import files
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.steps import StepLog
from jaxunlearn.record.trackers import Trackers


@pytest.fixture
def path(tmp_path):
    return RunFolder(tmp_path).metrics


class TestStepLog:
    def test_a_record_is_written_when_the_next_one_comes(self, path):
        log = StepLog(path, "npo", Trackers())
        log.add(0, {"loss": 1.5})
        assert files.records(path) == [] and log.last == {}
        log.add(1, {"loss": 2.5})
        assert files.records(path) == [{"step": 0, "objective": "npo", "loss": 1.5}]
        assert log.last == files.records(path)[-1]

    def test_flush_writes_the_last_record_once(self, path):
        log = StepLog(path, "npo", Trackers())
        log.flush()
        assert not path.exists()
        log.add(0, {"loss": 1.5})
        log.flush()
        log.flush()
        assert [record["step"] for record in files.records(path)] == [0]

    def test_arrays_become_plain_numbers_when_they_are_written(self, path):
        log = StepLog(path, "npo", Trackers())
        log.add(3, {"loss": jnp.float32(0.5), "tokens": np.int64(7), "lr": 1e-4})
        log.flush()
        expected = {"step": 3, "objective": "npo", "loss": 0.5, "tokens": 7, "lr": 1e-4}
        assert log.last == expected and type(log.last["tokens"]) is int

    @pytest.mark.parametrize("loss", [float("nan"), float("inf"), jnp.float32(np.nan)])
    def test_finite_is_about_the_newest_written_loss(self, path, loss):
        log = StepLog(path, "npo", Trackers())
        assert log.finite
        log.add(0, {"loss": loss})
        assert log.finite  # not written yet
        log.add(1, {"loss": 1.0})
        assert not log.finite
        assert files.records(path)[0]["loss"] is None  # JSON knows no NaN
        log.flush()
        assert log.finite

    def test_a_log_that_is_opened_again_goes_on_after_a_torn_line(self, path):
        first = StepLog(path, "npo", Trackers())
        first.add(0, {"loss": 1.0})
        first.flush()
        with path.open("a") as file:
            file.write('{"step": 1, "obj')
        second = StepLog(path, "npo", Trackers())
        second.add(1, {"loss": 2.0})
        second.flush()
        assert [record["loss"] for record in files.records(path)] == [1.0, 2.0]
