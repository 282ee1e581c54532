"""Attacks on one model, without a run: what they show, what they record, what they leave alone."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.data import order
from jaxunlearn.data.encoder import Encoder
from jaxunlearn.evaluation import attacks
from jaxunlearn.evaluation.attacks import ROUNDING, AttackContext, on_forget, on_retain
from jaxunlearn.measurement import statistics
from jaxunlearn.measurement.statistics import Statistics
from jaxunlearn.metrics.relearning import Settings, int8_rounded
from jaxunlearn.record.stages import Stage
from jaxunlearn.training.offload import Offload

SETTINGS = Settings(steps=2, lr=1e-2, batch_size=2)


@pytest.fixture(scope="module")
def context(small):
    """3 samples to forget and 9 to retain."""
    encoder = Encoder(small.tokenizer, context=96, too_long="error")
    samples = {
        name: encoder.encode(small.sources.require(name, "data"), name)[0]
        for name in ("forget", "retain")
    }
    return AttackContext(
        model=small.model,
        layout=small.layout,
        seed=0,
        settings=SETTINGS,
        offload=Offload(False),
        forget_samples=samples["forget"],
        retain_samples=samples["retain"],
        forget=small.layout.split(samples["forget"]),
        base_strength=np.array([0.5, 1.0, 0.0]),
    )


def ids_of(samples, pool):
    return [next(i for i, other in enumerate(pool) if other is sample) for sample in samples]


def test_some_samples_are_shown_and_the_others_are_unseen(context):
    two, one = on_forget(context, 2), on_forget(context, 1)
    assert (two.name, one.name) == ("2", "1")
    assert two.ids[:1] == one.ids  # more samples are shown in addition
    assert np.flatnonzero(~two.unseen).tolist() == sorted(two.ids)
    assert ids_of(two.plan.samples, context.forget_samples) == list(two.ids)
    assert two.samples.samples == 2


def test_a_few_samples_have_one_shape_whichever_they_are(context):
    """Runs of several seeds in one process compile the attack once."""
    seeds = [dataclasses.replace(context, seed=seed) for seed in range(6)]
    found = [on_forget(each, 2) for each in seeds]
    assert len({attack.ids for attack in found}) > 1
    assert len({attack.plan.shape for attack in found}) == 1
    shapes = {b.packed.tokens.shape for attack in found for b in attack.samples.batches}
    assert len(shapes) == 1


def test_all_samples_leave_none_unseen_and_use_the_batches_that_are_there(context):
    attack = on_forget(context, 3)
    assert attack.name == "all" and sorted(attack.ids) == [0, 1, 2]
    assert not attack.unseen.any() and attack.samples is context.forget


def test_benign_data_leave_all_samples_unseen(context):
    attack = on_retain(context)
    assert attack.name == "benign" and len(attack.ids) == 3 and attack.unseen.all()
    assert ids_of(attack.plan.samples, context.retain_samples) == list(attack.ids)


def test_batches_follow_the_order_of_the_run(context):
    """The samples of a step are those of the run's order, whatever the shape of the rows."""
    attack = on_forget(context, 3)
    for step in range(SETTINGS.steps):
        expected = order.batch_ids(context.seed, step, 3, 2, stream=order.Stream.ATTACK)
        packed = attack.plan.batch(step)
        named = packed.sample_ids[packed.sample_ids >= 0]
        assert sorted(named.tolist()) == sorted(expected.tolist())
    assert on_forget(context, 1).plan.batch_size == 1  # never more than there are


def test_a_record_is_of_all_samples_and_of_the_unseen():
    correct = np.array([[True, True], [False, True], [False, False]])
    mask = np.array([[True, True], [True, True], [True, False]])
    stats = Statistics(np.where(mask, -1.0, 0.0).astype(np.float32), correct, mask)
    row = attacks.record("npo", "1", 1, 4, stats, np.array([True, False, True]))
    assert list(row) == ["model", "attack", "samples", "step", "forget_nll", "forget_es",
                         "unseen_nll", "unseen_es"]  # fmt: skip
    assert row["forget_es"] == pytest.approx(0.5) and row["unseen_es"] == pytest.approx(0.5)
    assert row["forget_nll"] == row["unseen_nll"] == 1
    row = attacks.record("npo", "all", 3, 4, stats, np.zeros(3, bool))
    assert row["unseen_es"] is None is row["unseen_nll"]


def test_strengths_before_are_of_the_same_samples():
    strength = np.array([0.5, 1.0, 0.0])
    found = attacks.strengths_before(strength, np.array([True, False, True]))
    assert found == {"forget_es": 0.5, "unseen_es": 0.25}
    assert attacks.strengths_before(strength, np.zeros(3, bool))["unseen_es"] is None


def run(attack, context, params):
    told = []
    with jax.set_mesh(context.layout.mesh):
        tell = lambda step, /, **values: told.append(step)
        result = attack.run(context, "npo", params, tell, Stage())
    return result, told


@pytest.mark.slow
def test_fine_tuning_leaves_the_parked_model_alone(context, params_of):
    params, copy = params_of(3), params_of(3)
    result, told = run(on_forget(context, 3), context, params)
    jax.tree.map(np.testing.assert_array_equal, params, copy)
    assert told == [row["step"] for row in result.records] == [0, 1, 2]
    assert result.records[-1]["forget_nll"] < result.records[0]["forget_nll"]
    # All samples are shown: the loss is the risk, and the effect its squared gradient.
    for row in result.records:
        np.testing.assert_allclose(row["loss"], row["forget_nll"], rtol=1e-5)
        np.testing.assert_allclose(row["cosine"], 1, rtol=1e-5)
        layers = [entry for entry in result.layers if entry["step"] == row["step"]]
        total = sum(entry["value"] for entry in layers)
        np.testing.assert_allclose(total, row["effect"], rtol=1e-4)
    assert result.before == {"forget_es": 0.5, "unseen_es": None}


def test_rounding_evaluates_the_model_and_its_rounded_weights(context, params_of):
    params = params_of(4)
    result, told = run(ROUNDING, context, params)
    assert told == [0, 1] and result.layers == []
    for row, tree in zip(result.records, (params, int8_rounded(params)), strict=True):
        with jax.set_mesh(context.layout.mesh):
            stats = statistics.statistics(tree, context.forget, context.model)
        np.testing.assert_allclose(row["forget_nll"], stats.nll, rtol=1e-5)
        assert row["attack"] == "int8" and row["samples"] == 0
        assert row["unseen_nll"] == row["forget_nll"]  # nothing is shown
