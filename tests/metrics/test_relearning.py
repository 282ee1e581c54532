"""Relearning: the steps that undo forgetting, which samples are shown, and weights in int8."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxunlearn.data.order import attack_ids
from jaxunlearn.metrics import relearning
from jaxunlearn.metrics.relearning import (
    ALL,
    BENIGN,
    INT8,
    attack_kind,
    attack_order,
    counts,
    evaluated_steps,
    int8_rounded,
    steps_to_recover,
)

strengths = st.floats(0, 1)
curves = st.dictionaries(st.integers(0, 40), strengths, min_size=1)


def test_examples():
    assert doctest.testmod(relearning).failed == 0


@pytest.mark.parametrize(
    ("es", "before", "expected"),
    [
        ([0.25, 0.4, 0.5, 0.7], 0.75, ("recovered", 2, 3, 0.5)),  # to the letter: >= 0.5
        ([0.25, 0.6, 0.1, 0.7], 0.75, ("recovered", 1, 3, 0.5)),  # the first, though it falls again
        ([0.25, 0.3, 0.49], 0.75, ("not recovered", None, 2, 0.5)),
        ([1.0, 1.0], 1.0, ("nothing forgotten", None, 1, None)),
        ([0.9, 0.2], 0.4, ("nothing forgotten", None, 1, None)),  # it even knows more
        ([0.4, 0.4], 0.409, ("nothing forgotten", None, 1, None)),
    ],
)
def test_closed_forms(es, before, expected):
    assert steps_to_recover(dict(enumerate(es)), before, es[0]) == expected


def test_exact_shares_are_reached_whatever_they_round_to():
    for n in (10, 20, 40, 100):
        for low in range(n):
            for high in range(low + 2, n + 1, 2):
                if (high - low) / n < relearning.LEAST:
                    continue
                middle = (high + low) // 2 / n
                ends = {"before": high / n, "unlearned": low / n}
                assert relearning.steps_to_recover({5: middle}, **ends).step == 5
                whole = relearning.steps_to_recover({5: high / n}, **ends, share=1.0)
                assert whole.step == 5


def test_another_share():
    es = {0: 0.0, 4: 0.5, 8: 0.75, 12: 1.0}
    result = [steps_to_recover(es, 1.0, 0.0, share=share).step for share in (0.25, 0.6, 1.0)]
    assert result == [4, 8, 12]
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            steps_to_recover(es, 1.0, 0.0, share=share)


@pytest.mark.parametrize(
    ("es", "unlearned", "expected"),
    [
        ({0: 0.1, 1: 0.2, 2: None}, 0.1, ("diverged", None, 1)),
        ({0: 0.1, 1: 0.6, 2: None}, 0.1, ("recovered", 1, 1)),
        ({0: None, 1: None}, None, ("diverged", None, 0)),
    ],
)
def test_a_model_that_breaks_has_not_resisted(es, unlearned, expected):
    assert steps_to_recover(es, 0.9, unlearned)[:3] == expected


def test_nothing_evaluated():
    with pytest.raises(ValueError, match="at least one evaluated step"):
        steps_to_recover({}, 1.0, 0.0)


@given(curves, strengths, strengths)
def test_every_curve_has_one_of_three_ends(es, before, unlearned):
    result = steps_to_recover(es, before, unlearned)
    assert result.tried == max(es)
    if result.status == "nothing forgotten":
        assert before - unlearned < relearning.LEAST and result.step is result.target is None
        return
    assert unlearned < result.target <= before
    reached = {step for step, value in es.items() if value >= result.target}
    assert result.step == min(reached, default=None)
    assert (result.status == "recovered") == bool(reached)


@given(curves, strengths, strengths, st.floats(0, 0.5))
def test_more_comes_back_no_later(es, before, unlearned, more):
    slow = steps_to_recover(es, before, unlearned)
    fast = steps_to_recover({s: v + more for s, v in es.items()}, before, unlearned)
    assert slow.step is None or fast.step <= slow.step


@given(st.integers(0, 2**31), st.integers(1, 60), st.data())
def test_choices_are_nested_and_repeatable(seed, n, data):
    small, large = sorted(data.draw(st.lists(st.integers(1, n), min_size=2, max_size=2)))
    ids = attack_ids(seed, n, large)
    np.testing.assert_array_equal(attack_ids(seed, n, small), ids[:small])
    assert len(set(ids.tolist())) == large and set(ids.tolist()) <= set(range(n))


def test_choices_depend_on_the_seed():
    assert len({tuple(attack_ids(seed, 50, 5).tolist()) for seed in range(20)}) == 20
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"k={k} .* 1\.\.3"):
            attack_ids(0, 3, k)


@given(st.integers(1, 500), st.integers(1, 30))
def test_evaluations_are_few_and_hold_both_ends(steps, most):
    result = evaluated_steps(steps, most)
    assert result[0] == 0 and result[-1] == steps and len(result) <= most + 1
    assert list(result) == sorted(set(result))
    if steps <= most:
        assert result == tuple(range(steps + 1))


matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)  # fmt: skip


@settings(deadline=None, max_examples=15)  # each shape is compiled
@given(matrices, st.sampled_from(["kernel", "embedding"]))
def test_rounding_errs_by_half_a_step_of_its_channel(weights, name):
    axis = {"kernel": -2, "embedding": -1}[name]
    rounded = np.asarray(int8_rounded({"layer": {name: jnp.asarray(weights)}})["layer"][name])
    scale = np.abs(weights.astype(np.float64)).max(axis, keepdims=True) / 127
    error = np.abs(rounded - weights.astype(np.float64))
    # XLA takes a step under the smallest normal number for 0, and rounds its channel to 0.
    flushed = 127 * np.finfo(np.float32).tiny
    assert (error <= scale * (0.5 + 1e-4) + flushed).all()
    codes = rounded / np.where(scale > 0, scale, 1)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert np.abs(codes).max() <= 127 + 1e-3
    np.testing.assert_array_equal(rounded == 0, np.round(codes) == 0)


def test_a_channel_is_rounded_by_its_own_weights():
    """A second column a thousand times smaller keeps its own resolution."""
    kernel = jnp.array([[127.0, 0.127], [1.4, 0.0014]])
    np.testing.assert_allclose(
        int8_rounded({"kernel": kernel})["kernel"], [[127, 0.127], [1, 0.001]], rtol=1e-6
    )
    embedding = int8_rounded({"embedding": kernel.T})["embedding"]
    np.testing.assert_allclose(embedding, [[127, 1], [0.127, 0.001]], rtol=1e-6)


def test_rounding_keeps_what_is_no_matrix_and_is_idempotent():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "blocks": {
            "norm": {"scale": jax.random.normal(keys[0], (3, 8))},  # stacked vectors, no matrix
            "q": {"kernel": jax.random.normal(keys[1], (3, 8, 4)).astype(jnp.bfloat16)},
        },
        "embed": {"embedding": jax.random.normal(keys[2], (10, 8))},
    }
    once = int8_rounded(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), once) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    np.testing.assert_array_equal(
        once["blocks"]["norm"]["scale"], params["blocks"]["norm"]["scale"]
    )
    assert (once["embed"]["embedding"] != params["embed"]["embedding"]).any()
    embedding = int8_rounded(once)["embed"]["embedding"]
    np.testing.assert_allclose(embedding, once["embed"]["embedding"], rtol=1e-6)
    # Of stacked layers each is rounded alone.
    alone = int8_rounded({"kernel": params["blocks"]["q"]["kernel"][1]})["kernel"]
    np.testing.assert_array_equal(once["blocks"]["q"]["kernel"][1], alone)


def test_attacks_are_ordered_by_what_they_show():
    for names in ([INT8, "20", ALL, "5", BENIGN, "100"], ["100", BENIGN, ALL, INT8, "20", "5"]):
        assert sorted(names, key=attack_order) == ["5", "20", "100", ALL, BENIGN, INT8]


def test_what_is_known_of_an_attack_by_its_name():
    kinds = {name: attack_kind(name) for name in ("5", ALL, BENIGN, INT8)}
    assert [name for name, kind in kinds.items() if kind.trains_on is None] == [INT8]
    assert attack_kind("1").trains_on == "1 forget sample"
    # Only where some samples are shown do others remain that the attack does not show.
    assert [name for name, kind in kinds.items() if kind.shows_some] == ["5"]


def test_numbers_of_samples_to_show():
    assert counts(None, 3) == [1, 3]
    assert counts(None, 40) == [1, 5, 20, 40]
    assert counts(["all", 40, "2", 2], 40) == [2, 40]
    for bad in (0, 41, -1, "half", "1.5"):
        with pytest.raises(ValueError, match=rf"relearn.samples .*{bad!r} is neither 'all' nor"):
            counts([bad], 40)


def test_matrices_are_found_in_the_state_of_an_nnx_module():
    linear = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    kernel = linear["kernel"].get_value()
    rounded = int8_rounded(linear)["kernel"].get_value()
    np.testing.assert_array_equal(rounded, int8_rounded({"kernel": kernel})["kernel"])
    assert np.abs(rounded - kernel).max() > 0
    with pytest.raises(ValueError, match="no leaf is called kernel or embedding"):
        int8_rounded({"w": kernel})
