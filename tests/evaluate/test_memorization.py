"""Extraction strength and exact memorisation against a slow loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.evaluate import memorization


def slow_strength(right: list[bool]) -> float:
    """Try every prefix length k: the first after which all the rest is right."""
    for k in range(len(right) + 1):
        if all(right[k:]):
            return 1 - k / len(right)
    raise AssertionError


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=5))
def test_equal_a_slow_loop(answers):
    correct, mask = np.ones((5, 9), bool), np.zeros((5, 9), bool)
    for row, answer in enumerate(answers):
        correct[row, : len(answer)], mask[row, : len(answer)] = answer, True
    strength = memorization.extraction_strength(correct, mask)
    exact = memorization.exact_memorization(correct, mask)
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(strength[row], slow_strength(answer) if answer else 0, rtol=1e-6)
        np.testing.assert_allclose(exact[row], np.mean(answer) if answer else 0, rtol=1e-6)
    assert not strength[len(answers) :].any()


def test_the_extremes():
    mask = np.ones((2, 4), bool)
    correct = np.array([[True] * 4, [True, True, True, False]])
    assert memorization.extraction_strength(correct, mask).tolist() == [1.0, 0.0]
