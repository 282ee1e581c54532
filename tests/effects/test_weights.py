"""Guided weights: against the formula, and the promises that follow from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import effects

property_test = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 10**6)
SCALES = st.sampled_from([1e-15, 1.0, 1e15])


def draw(seed, shape=(3, 4)):
    rng = np.random.default_rng(seed)
    unlearn, retain = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    return unlearn - np.float32(0.5), retain, rng.random(shape) < 0.8


def literal(unlearn, retain, mask, norms, penalty, power):
    """The formula, one value after the other, in float64."""
    scores = np.zeros(mask.shape)
    for at in zip(*np.nonzero(mask), strict=True):
        harm = max(0.0, -float(retain[at]) / norms[1])
        score = max(0.0, -float(unlearn[at]) / norms[0] - penalty * harm)
        scores[at] = score**power if score > 0 else 0.0
    return scores / scores[mask].mean() if scores.any() else scores


@pytest.mark.parametrize(
    ("unlearn", "norms"), [([np.nan, -2], (1, 1)), ([-np.inf, -2], (1, 1)), ([-1, -2], (np.nan, 1))]
)
def test_what_is_not_finite_is_no_weight_of_zero(unlearn, norms):
    """A loss of weights of zero would hide that the model broke."""
    weights = effects.guide_weights(np.array(unlearn, np.float32), np.zeros(2), norms=norms)
    assert np.isnan(weights).any()


@property_test
@given(SEEDS, st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_formula(seed, penalty, power):
    unlearn, retain, mask = draw(seed)
    expected = literal(unlearn, retain, mask, (2.0, 0.7), penalty, power)
    result = effects.guide_weights(
        unlearn, retain, mask, norms=(2.0, 0.7), penalty=penalty, power=power
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@property_test
@given(SEEDS, SCALES, SCALES)
def test_weights_do_not_depend_on_the_scale_of_either_risk(seed, first, second):
    unlearn, retain, mask = draw(seed)
    options = {"penalty": 1.0, "power": 1.0}
    expected = effects.guide_weights(unlearn, retain, mask, norms=(1.0, 1.0), **options)
    scaled = (np.float32(first) * unlearn, np.float32(second) * retain)
    result = effects.guide_weights(*scaled, mask, norms=(first, second), **options)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@property_test
@given(SEEDS, SCALES)
def test_weights_are_not_negative_and_have_mean_1(seed, scale):
    unlearn, retain, mask = draw(seed)
    hidden = np.where(mask, np.float32(scale) * unlearn, np.nan)
    options = {"penalty": 0.0, "power": 0.5}
    weights = np.asarray(effects.guide_weights(hidden, retain, mask, norms=(1.0, 1.0), **options))
    assert (weights >= 0).all() and not weights[~mask].any()
    assert (weights[mask] > 0).tolist() == (unlearn[mask] < 0).tolist()
    np.testing.assert_allclose(weights[mask].mean(), 1.0 if weights.any() else 0.0, rtol=1e-5)


@property_test
@given(SEEDS)
def test_more_removal_and_less_harm_weigh_more(seed):
    unlearn, retain, _ = draw(seed, (5,))
    weigh = lambda u, r: np.asarray(effects.guide_weights(u, r, norms=(1.0, 1.0), power=1.0))[0]
    step = np.float32([0.5, 0, 0, 0, 0])
    before = weigh(unlearn, retain)
    for after in (weigh(unlearn - step, retain), weigh(unlearn, retain + step)):
        assert after >= before - 1e-6


@property_test
@given(SEEDS, st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.0, 1.0]))
def test_harm_stays_within_what_the_penalty_allows(seed, penalty, power):
    """e_D = mean_i w_i PG_D(i): penalty times the rise of R(D_r) is less than that of R(D_u)."""
    unlearn, retain, mask = draw(seed)
    options = {"penalty": penalty, "power": power}
    weights = np.asarray(effects.guide_weights(unlearn, retain, mask, norms=(1.0, 1.0), **options))
    rise = lambda values: -float((weights * values).sum())
    assert rise(unlearn) >= penalty * rise(retain) - 1e-4


def test_what_lowers_the_retain_risk_is_neither_punished_nor_rewarded():
    unlearn, kept = -np.ones(3, np.float32), np.array([0.0, 5.0, 50.0], np.float32)
    assert effects.guide_weights(unlearn, kept, norms=(1.0, 1.0), power=1.0).tolist() == [
        1.0,
        1.0,
        1.0,
    ]


def test_a_power_of_0_chooses():
    unlearn, retain, mask = draw(0, (5, 20))
    followed, chosen = (
        np.asarray(effects.guide_weights(unlearn, retain, mask, norms=(1.0, 1.0), power=power))
        for power in (1.0, 0.0)
    )
    np.testing.assert_array_equal(chosen > 0, followed > 0)
    assert len(np.unique(chosen)) == 2


@pytest.mark.parametrize("norms", [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_nothing_left_to_remove_without_harm_weighs_nothing(norms):
    unlearn = np.zeros(3, np.float32) if norms[0] == 0 else -np.ones(3, np.float32)
    retain = np.zeros(3, np.float32) if norms[1] == 0 else -2 * np.ones(3, np.float32)
    assert effects.guide_weights(unlearn, retain, norms=norms).tolist() == [0.0, 0.0, 0.0]
    assert effects.guide_weights(unlearn, retain, np.zeros(3, bool), norms=norms).tolist() == [
        0,
        0,
        0,
    ]


def test_shapes_must_agree():
    values = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"unlearn \(2, 3\), retain \(2,\) and mask \(2, 3\)"):
        effects.guide_weights(values, values[:, 0], np.ones((2, 3), bool), norms=(1.0, 1.0))
