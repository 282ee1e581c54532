"""Axes: when they are symmetric log, and where their ticks are."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.reporting.figures import panels, scales, series


class TestAxes:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=12))
    def test_symlog_ticks_are_few_sorted_and_within_reach(self, values):
        values = np.array(values)
        width = scales.linear_width(values, always=True)
        if width is None:
            assert not values.any()
            return
        ticks = scales.symlog_ticks(values, width, 6)
        assert ticks == sorted(set(ticks)) and 0.0 in ticks and len(ticks) <= 8
        slack = 1 + 1e-9  # log10 rounds
        assert max(ticks) <= max(values.max(), 0.0) * slack
        assert min(ticks) >= min(values.min(), 0.0) * slack

    def test_linear_width_follows_the_data(self):
        assert scales.linear_width(np.array([-9.7, -11.9, 16.7, 11.7])) is None
        assert scales.linear_width(np.array([-1.75e5, -2e4, 5.0, 70.0])) == 10.0
        assert scales.linear_width(np.array([np.nan, 0.0])) is None

    @pytest.mark.parametrize("module", [series, panels, scales])
    def test_doctests(self, module):
        assert doctest.testmod(module).failed == 0
