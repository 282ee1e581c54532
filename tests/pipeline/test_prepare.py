"""What a run reads before it starts: all that it needs, and nothing that it does not."""

import jax
import pytest

from jaxunlearn.config import Objective
from jaxunlearn.pipeline.finetune import has_learned
from jaxunlearn.pipeline.prepare import prepare
from tests.pipeline.tiny import replace


def prepared(**sections):
    return prepare(replace(**sections), jax.devices()[:1])


def test_a_run_that_does_not_fine_tune_needs_no_fine_tuning_split():
    run = prepared(finetune={"epochs": 0, "splits": ("no_such_split",)})
    assert run.finetune == [] and run.retrain == []
    with pytest.raises(FileNotFoundError, match="no_such_split"):
        prepared(finetune={"epochs": 1, "splits": ("no_such_split",)})


def test_the_retrained_models_data_are_encoded_only_if_there_is_one():
    assert prepared(finetune={"epochs": 1}).retrain == []
    run = prepared(finetune={"epochs": 1, "retrained": True})
    forget = {sample.tokens.tobytes() for sample in run.sets.forget}
    retrain = {sample.tokens.tobytes() for sample in run.retrain}
    assert retrain and not retrain & forget
    assert len(run.retrain) == len(run.finetune) - len(run.sets.forget)


def test_the_pool_holds_no_row_that_retention_is_measured_on():
    run = prepared(objectives={"ga": Objective(retain="gd")}, data={"measured_retain": "holdout"})
    measured = {sample.tokens.tobytes() for sample in run.retain_eval}
    assert run.sets.retain
    assert not measured & {sample.tokens.tobytes() for sample in run.sets.retain}


def test_every_split_is_read_once(monkeypatch):
    run = prepared()
    assert run.sources.require("full", "finetune.splits") is not None
    first = run.sources.find("forget")
    assert run.sources.find("forget") == first


@pytest.mark.parametrize(
    ("strengths", "patience", "stops"),
    [
        ([0.1, 0.2], None, False),
        ([0.1], 1, False),
        ([0.1, 0.2], 1, False),
        ([0.2, 0.2], 1, True),
        ([0.1, 0.3, 0.3, 0.305], 2, True),
        ([0.1, 0.3, 0.3, 0.32], 2, False),
    ],
)
def test_patience_waits_for_a_rise_of_the_forget_es(strengths, patience, stops):
    log = [{"forget_es": es, "forget_nll": 1.0, "retain_nll": 1.0} for es in strengths]
    assert has_learned(log, replace(finetune={"patience": patience}).finetune) is stops


def test_fine_tuning_stops_at_its_target_on_both_sets():
    spec = replace(finetune={"target_nll": 0.5}).finetune
    record = {"forget_es": 0.1, "forget_nll": 0.4, "retain_nll": 0.6}
    assert not has_learned([record], spec)
    assert has_learned([record | {"retain_nll": 0.4}], spec)
