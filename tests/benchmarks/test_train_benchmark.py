"""The benchmark of the train step: both frameworks do the same, and what it counts is right."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from benchmarks import train_lengths, train_ours, train_step
from jaxunlearn.data import packing, planning
from jaxunlearn.effects import count_flops
from jaxunlearn.models import decoder, sharding
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import SampleLogProbs

MODEL = decoder.DecoderConfig(64, 32, 48, 2, 4, 2, 8, context=128)
COUNTS = [(20, 11), (9, 4), (31, 17), (14, 2), (25, 12), (12, 7)]


def make_job(model=MODEL, **settings):
    draw = np.random.default_rng(0)
    texts = [
        planning.Sample(draw.integers(model.vocab_size, size=t, dtype=np.int32), t - n)
        for t, n in COUNTS
    ]
    work = train_ours.job(model, texts, steps=2, batch_size=4, **settings)
    params = decoder.init_params(jax.random.key(0), model)
    return work, params


@pytest.fixture
def one_device():
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        yield


@pytest.mark.slow
def test_both_frameworks_take_the_same_step(one_device):
    pytest.importorskip("torch")
    for shape in ({}, {"tied": True, "num_kv_heads": 4}):
        work, params = make_job(dataclasses.replace(MODEL, **shape))
        result = train_step.check(work, params, train_ours.references(work, params))
        assert result["loss"] < 1e-5 and result["update"] < 1e-3
        assert result["gradient"] < 1e-5


def test_another_gradient_is_found_out(one_device, monkeypatch):
    """Larger by a thousandth: Adam's first update would hardly show it."""
    train_torch = pytest.importorskip("torch") and train_step.train_torch
    work, params = make_job()
    plain = train_torch._params
    larger = lambda work, model: jax.tree.map(lambda x: 1.001 * x, plain(work, model))
    monkeypatch.setattr(train_torch, "_params", larger)
    with pytest.raises(train_step.Disagrees, match="gradient"):
        train_step.check(work, params, train_ours.references(work, params))


def test_another_loss_is_found_out(one_device, monkeypatch):
    train_torch = pytest.importorskip("torch") and train_step.train_torch
    work, params = make_job()
    reference = train_ours.references(work, params)
    monkeypatch.setattr(train_torch, "BETA", 0.2)
    with pytest.raises(train_step.Disagrees, match="loss"):
        train_step.check(work, params, reference)


def test_another_optimiser_is_found_out(one_device, monkeypatch):
    """A learning rate 1 % larger: the loss before the update is the same, the update is not."""
    train_torch = pytest.importorskip("torch") and train_step.train_torch
    work, params = make_job()
    reference = train_ours.references(work, params)
    plain = train_torch.stepper
    other = lambda work, *rest: plain(dataclasses.replace(work, lr=1.01 * work.lr), *rest)
    monkeypatch.setattr(train_torch, "stepper", other)
    with pytest.raises(train_step.Disagrees, match="update"):
        train_step.check(work, params, reference)


def test_the_reference_is_another_model(one_device):
    """Else the first loss would be 2 ln 2 / beta whatever the parameters."""
    work, params = make_job()
    loss = train_ours.stepper(work, params, train_ours.references(work, params)).step(0)
    assert abs(loss - 2 * np.log(2) / train_ours.BETA) > 1e-3


def test_rows_split_into_speed_and_packing(one_device):
    """With a clock that ticks once a reading, a step takes a second; PyTorch may be absent."""
    work, params = make_job()
    clock = itertools.count().__next__
    result = train_step.measure(work, params, 1, clock, {"jaxunlearn": train_ours})
    (row,) = result["frameworks"]
    assert result["agreement"] is None and row["seconds_per_step"] == 1
    real = np.mean([work.real_tokens(i) for i in range(2)])
    assert row["real_tokens_per_s"] == real
    assert row["computed_tokens_per_s"] * row["real_share"] == pytest.approx(real)
    assert 0.5 < row["real_share"] <= 1


def test_rows_are_planned_for_the_whole_run():
    """The shape of two steps alone would flatter the packing."""
    work, _ = make_job()
    assert len(work.steps) == 2 and len(work.planned) == 7
    with pytest.raises(ValueError, match=r"steps=8 must be in 1\.\.7"):
        train_ours.job(MODEL, work.sequences, steps=8, batch_size=4)


def test_padding_is_to_the_longest_of_the_batch(one_device):
    pytest.importorskip("torch")
    work, params = make_job()
    reference = train_ours.references(work, params)
    stepper = train_step.train_torch.stepper(work, params, reference)
    longest = [max(COUNTS[i][0] for i in ids) for ids in work.steps]
    assert [stepper.computed_tokens(i) for i in range(2)] == [4 * n for n in longest]


@pytest.mark.cost
def test_needed_flops_are_the_closed_form():
    """Those of the program less its masked scores: 6 T (T - 1) x width of the queries x layers."""
    work, params = make_job()
    for ids in ([2], [0]):
        one = dataclasses.replace(work, steps=[np.array(ids)])
        rows = Rows(packing.padded([work.sequences[i] for i in ids]))
        total = lambda p, rows=rows: SampleLogProbs(MODEL)(p, rows).sum()
        tokens = COUNTS[ids[0]][0]
        future = 6 * tokens * (tokens - 1) * MODEL.num_heads * MODEL.head_dim * MODEL.num_layers
        assert count_flops(jax.grad(total), params) == one.needed_flops(0) + future


def test_lengths_of_another_form_are_refused(tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps({"llama2": {"forget05": {"mean": 70}}}))
    with pytest.raises(ValueError, match=r"lengths\.json: expected counts of every sample"):
        train_lengths.load(file)


def test_synthetic_lengths_are_those_of_tofu():
    lengths = train_lengths.load(None)
    assert lengths == train_lengths.load(None) and lengths.source.startswith("synthetic")
    assert {k: len(v) for k, v in lengths.splits.items()} == {
        "forget05": 200,
        "retain_perturbed": 400,
    }
    tokens, labels = np.array(lengths.splits["retain_perturbed"]).T
    assert 64 < tokens.mean() < 74 and 38 < labels.mean() < 46 and (labels < tokens).all()


@pytest.mark.stories
def test_lengths_of_tofu(shared_data):
    """The token counts that the material was published with, and EOS."""
    result = train_lengths.measured(shared_data / "tofu", shared_data / "tokenizers/llama2")
    published = json.loads((shared_data / "tofu/token_lengths.json").read_text())["llama2"]
    counts = published["forget05"]['bos + "[INST] q [/INST]a" (TOFU exact), no eos']
    tokens, labels = np.array(result.splits["forget05"]).T
    assert tokens.sum() == counts["total"] + counts["n"]
    answers = published["forget05"]["answer labels incl. eos (TOFU exact)"]
    assert labels.sum() == answers["total"]
