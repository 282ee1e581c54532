"""What a run reads before it starts: all that it needs, and nothing that it does not."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.config import Objective
from jaxunlearn.models import decoder, hf
from jaxunlearn.pipeline import recipe
from jaxunlearn.pipeline.checks import check
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


def test_rows_to_forget_are_in_no_set_to_retain():
    run = prepared(objectives={"ga": Objective(retain="gd")}, data={"retain": "full"})
    forget = {sample.tokens.tobytes() for sample in run.sets.forget}
    assert not forget & {sample.tokens.tobytes() for sample in run.sets.retain}
    count = len(forget)
    assert f"data.retain (full): {count} rows of the forget set left out" in run.notes
    measured = prepared(data={"measured_retain": "full"})
    assert not forget & {sample.tokens.tobytes() for sample in measured.retain_eval}
    assert f"data.measured_retain (full): {count} rows of the forget set left out" in measured.notes
    with pytest.raises(ValueError, match="measured_retain: every row of 'forget' is also in data"):
        prepared(data={"measured_retain": "forget"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    run = prepared()
    params = run.initial()
    params["blocks"]["up"]["kernel"] = params["blocks"]["up"]["kernel"].at[1, 0, 0].set(value)
    hf.save_params(tmp_path / "model", params, run.model, tokenizer=run.tokenizer)
    broken = prepared(model=str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"weights of blocks\.up\.kernel are not all finite"):
        broken.initial()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    run = prepared()
    small = dataclasses.replace(run.model, vocab_size=300)
    params = decoder.init_params(jax.random.key(0), small)
    hf.save_params(tmp_path / "model", params, small, tokenizer=run.tokenizer)
    with pytest.raises(ValueError, match=r"data.forget .*: token \d+ .* is beyond the model's voc"):
        prepared(model=str(tmp_path / "model"))


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


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_a_starting_point_that_is_not_finite_ends_the_run(split):
    numbers = {"forget_nll": 1.0, "retain_nll": 1.0}
    recipe.check_start(numbers)
    with pytest.raises(FloatingPointError, match=f"NLL on the {split} set is nan"):
        recipe.check_start(numbers | {f"{split}_nll": float("nan")})


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"unlearn": {"epochs": 1, "batch_size": 3}}, "unlearn"),
        ({"finetune": {"epochs": 1, "batch_size": 12}}, "finetune"),
    ],
)
def test_a_schedule_that_never_moves_is_refused(changed, key):
    run = prepared(**changed)
    with pytest.raises(ValueError, match=rf"{key}\.warmup_epochs: 1.0 leaves .* 0 in all 1 steps"):
        check(run)
    still = {name: values | {"warmup_epochs": 0.0} for name, values in changed.items()}
    check(prepared(**still))


def test_more_steps_than_can_be_planned_are_refused():
    many = prepared(unlearn={"epochs": 10**9})
    with pytest.raises(ValueError, match=r"unlearn\.epochs: 1000000000 make .* steps of 2 samples"):
        check(many)


def test_a_warm_up_longer_than_the_run_is_no_error():
    check(prepared(unlearn={"epochs": 2, "warmup_epochs": 10.0}))
