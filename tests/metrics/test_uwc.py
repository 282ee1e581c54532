"""Bisection on the mixing weight against closed forms, and mixtures against their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.metrics.uwc import DEFINITIONS, SHARE, _mix, calibrate, mix
from jaxunlearn.models import sharding

UNIT = st.floats(0, 1)


@pytest.mark.parametrize("steps", [0, 1, 3, 6, 20])
@pytest.mark.parametrize(
    ("function", "inverse"),
    [
        (lambda a: 1 - a, lambda r: 1 - r),
        (lambda a: (1 - a) ** 2, lambda r: 1 - np.sqrt(r)),
        (lambda a: float(np.exp(-3 * a)), lambda r: -np.log(r) / 3),
    ],
)
def test_alpha_is_just_below_the_closed_form(function, inverse, steps):
    for target in (0.95, 0.7, 0.2):
        result = calibrate(function, target, steps=steps)
        assert 0 <= inverse(target) - result.alpha <= 2.0**-steps
        assert result.retention == function(result.alpha) >= target
        assert len(result.trace) <= steps + 2


@settings(max_examples=100, deadline=None)
@given(st.lists(UNIT, min_size=1, max_size=6), UNIT, st.integers(0, 8), st.floats(0, 0.3))
def test_any_falling_function_is_crossed(drops, target, steps, tolerance):
    """A staircase, as extraction strength is: it falls by a share at each of its steps."""
    places = np.sort(drops)
    levels = np.linspace(1, 0, len(places) + 1)
    alphas = []

    def retention(alpha):
        alphas.append(alpha)
        return levels[np.searchsorted(places, alpha, side="left")]

    result = calibrate(retention, target, steps=steps, tolerance=tolerance)
    assert result.retention == retention(result.alpha) >= target
    assert [alpha for alpha, _ in result.trace] == alphas[:-1] and len(
        set(alphas[:-1])
    ) <= steps + 2
    if result.alpha < 1 and result.retention > target + tolerance:
        assert retention(result.alpha + 2.0**-steps) < target


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10), st.floats(0.05, 0.9))
def test_what_is_not_monotone_still_keeps_the_target_next_to_a_crossing(seed, target):
    values = np.random.default_rng(seed).uniform(0, 1, 65)
    values[[0, 64]] = 1, 0
    retention = lambda alpha: values[round(alpha * 64)]
    result = calibrate(retention, target, steps=6)
    assert retention(result.alpha) >= target > retention(result.alpha + 1 / 64)


def test_who_keeps_the_target_is_not_mixed():
    result = calibrate(lambda alpha: 1 + alpha, 1.5)
    assert result == (1, 2, ((1, 2),))


def test_without_a_tolerance_a_plateau_at_the_target_is_followed_to_its_end():
    found = calibrate(lambda alpha: 1.0 if alpha < 0.4 else 0.95 if alpha < 0.97 else 0.5, 0.95)
    assert 0.97 - 2.0**-6 <= found.alpha < 0.97


def test_a_tolerance_stops_early():
    result = calibrate(lambda alpha: 1 - alpha, 0.45, steps=20, tolerance=0.1)
    assert result.alpha == 0.5 and len(result.trace) == 3
    exact = calibrate(lambda alpha: 1 - alpha, 0.5, steps=20)
    assert exact.alpha == 0.5 and len(exact.trace) == 22  # more might keep it too


def test_no_crossing_and_bad_options():
    with pytest.raises(ValueError, match=r"before unlearning has a retention of 0\.3, below 0\.9"):
        calibrate(lambda alpha: 0.3, 0.9)
    for bad in ({"steps": -1}, {"tolerance": -0.1}):
        with pytest.raises(ValueError, match="must be 0 or more"):
            calibrate(lambda alpha: 1 - alpha, 0.5, **bad)


def test_nan_never_keeps_a_target():
    result = calibrate(lambda alpha: 1.0 if alpha < 0.3 else np.nan, 0.5)
    assert 0.3 - 1 / 64 <= result.alpha < 0.3 and result.retention == 1


@settings(max_examples=20, deadline=None)
@given(UNIT)
def test_a_mixture_is_its_formula(alpha):
    rng = np.random.default_rng(0)
    before, after = ({"w": rng.normal(size=(3, 2)).astype(np.float32)} for _ in range(2))
    result = np.asarray(mix(before, after, alpha)["w"])
    a = np.float64(np.float32(alpha))
    expected = (1 - a) * before["w"].astype(np.float64) + a * after["w"].astype(np.float64)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_both_ends_are_exact_and_sharded_as_they_are():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    place = jax.NamedSharding(mesh, jax.P("fsdp"))
    rng = np.random.default_rng(0)
    before, after = (
        {"w": jax.device_put(rng.normal(size=(8, 3)).astype(np.float32), place)} for _ in range(2)
    )
    for alpha, end in ((0.0, before), (1.0, after)):
        result = mix(before, after, alpha)["w"]
        np.testing.assert_array_equal(result, end["w"])
        assert result.sharding.is_equivalent_to(place, 2) and result.dtype == jnp.float32


@pytest.mark.cost
def test_a_broken_end_does_not_reach_the_other():
    broken, whole = {"w": jnp.array([jnp.inf, jnp.nan])}, {"w": jnp.ones(2)}
    assert mix(whole, broken, 0.0)["w"].tolist() == [1, 1]
    assert mix(broken, whole, 1.0)["w"].tolist() == [1, 1]


def test_a_mixture_is_one_more_copy():

    tree = {"w": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    memory = _mix.lower(tree, tree, scalar).compile().memory_analysis()
    assert memory.output_size_in_bytes <= 256 * 64 * 4 + 64
    assert memory.temp_size_in_bytes < 1024


def test_the_share_is_in_the_definition():
    assert f"{SHARE:g}" in DEFINITIONS["uwc.alpha"].meaning
