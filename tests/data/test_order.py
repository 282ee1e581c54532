"""The order of the data is a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data.order import (
    Stream,
    batch_ids,
    generator,
    num_steps,
    retain_ids,
    subset_ids,
)


def test_the_papers_run_has_62_steps():
    assert num_steps(200, 16, 5) == 62


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 30), st.integers(1, 40), st.integers(1, 4))
def test_every_sample_is_seen_once_an_epoch(seed, n, batch_size, epochs):
    steps = -(-n * epochs // batch_size)
    stream = np.concatenate([batch_ids(seed, step, n, batch_size) for step in range(steps)])
    assert stream.size == steps * batch_size
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_step_needs_no_earlier_step_and_no_batch_size_changes_the_stream():
    small = np.concatenate([batch_ids(3, step, 50, 4) for step in reversed(range(30))][::-1])
    large = np.concatenate([batch_ids(3, step, 50, 60) for step in range(2)])
    np.testing.assert_array_equal(small, large)


def test_epochs_and_seeds_are_shuffled_differently():
    first, second, other = batch_ids(0, 0, 64, 64), batch_ids(0, 1, 64, 64), batch_ids(1, 0, 64, 64)
    assert (first != second).any() and (first != other).any()


def test_retain_draws_differ_over_shards_steps_and_seeds_and_from_the_batch_order():
    draws = np.stack([retain_ids(seed, step, 3800, 16) for seed in (0, 1) for step in range(20)])
    assert draws.min() >= 0 and draws.max() < 3800
    assert len(np.unique(draws)) > 0.9 * draws.size
    shards = retain_ids(0, 5, 3800, 16).reshape(8, 2)
    assert len(np.unique(shards, axis=0)) == 8
    np.testing.assert_array_equal(shards.ravel(), retain_ids(0, 5, 3800, 16))


def test_retain_draws_are_uniform():
    counts = np.bincount(np.concatenate([retain_ids(0, step, 10, 100) for step in range(40)]))
    assert counts.shape == (10,)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)


def test_a_subset_is_one_of_a_run():
    ids = subset_ids(0, 3400, 400)
    assert len(set(ids)) == 400 and ids[0] >= 0 and ids[-1] < 3400 and (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(ids, subset_ids(0, 3400, 400))
    assert (ids != subset_ids(1, 3400, 400)).any()
    counts = np.bincount(np.concatenate([subset_ids(seed, 10, 3) for seed in range(1000)]))
    assert np.abs(counts - 300).max() < 5 * np.sqrt(300 * 0.7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch_ids(0, 0, 0, 4), "n=0 must be at least 1"),
        (lambda: batch_ids(0, -1, 4, 4), "step=-1 must not be negative"),
        (lambda: retain_ids(-2, 0, 4, 4), "seed=-2 must not be negative"),
        (lambda: subset_ids(0, 4, 0), "size=0 must be at least 1"),
        (lambda: num_steps(4, 0, 1), "batch_size=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def draws(seed):
    """The first numbers of every stream, for some draws of each."""
    keys = [(stream, a, b) for stream in Stream for a in range(4) for b in range(4)]
    return {key: tuple(generator(seed, *key).integers(2**63, size=2)) for key in keys}


def test_no_two_streams_coincide():
    """Seeds (0, 2) and (0, 2, 0) are one to numpy: tags at the end of a key kept nothing apart."""
    every = [*draws(0).values(), *draws(1).values(), *draws(2**40).values()]
    every.append(tuple(np.random.default_rng(0).integers(2**63, size=2)))  # the embedded data
    assert len(set(every)) == len(every)


def test_orders_of_different_trainings_differ():
    ids = {tuple(batch_ids(0, 0, 64, 64, stream=stream).tolist()) for stream in Stream}
    assert len(ids) == len(Stream)
