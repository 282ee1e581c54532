"""The calibration suite: closed cases of the mixture's two ends."""

import numpy as np
import pytest

from jaxunlearn.evaluation import uwc as suite_uwc
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics import uwc


class Strengths:
    """Statistics whose extraction strength is a function of the parameters."""

    def __init__(self, value):
        self.extraction_strength = value


@pytest.fixture
def measured(monkeypatch, context_of):
    """(strength of (params, set) by function) -> rows of the suite; parameters are numbers."""

    def measure(strength, params):
        suite = suite_uwc.uwc_suite(context_of(load=lambda name: 0.0))
        sizes = suite.settings["items"]
        assert sizes["forget"] != sizes["retain"]  # the fake tells the sets apart by their size
        names = {size: name for name, size in sizes.items()}

        def fake(params, split, model):
            return Strengths(np.array([strength(params, names[split.samples])]))

        monkeypatch.setattr(statistics, "statistics", fake)
        monkeypatch.setattr(uwc, "mix", lambda base, tree, alpha: (1 - alpha) * base + alpha * tree)
        return suite.measure("ga", params)

    return measure


def test_the_forget_strength_is_that_of_the_mixture_that_keeps_enough(measured):
    """Both strengths fall with the distance from the base: alpha is the last that keeps 95 %."""
    rows = measured(lambda x, over: 1 - x * (0.1 if over == "retain" else 0.8), 1.0)
    alpha, retention, strength = rows
    assert alpha["value"] == 0.5 and retention["value"] == 0.95
    assert strength["value"] == pytest.approx(1 - 0.8 * 0.5)
    assert [row["set"] for row in rows] == ["retain", "retain", "forget"]
    assert alpha["trace"][0] == (1.0, 0.9) and "trace" not in retention


def test_nothing_known_is_nothing_to_keep(measured):
    rows = measured(lambda x, over: 0.0, 1.0)
    assert [row["metric"] for row in rows] == [
        "uwc_alpha", "uwc_retention", "uwc_extraction_strength",
    ]  # fmt: skip
    assert {row["reason"] for row in rows} == {
        "the model before unlearning has a retain ES of 0: there is nothing to keep"
    }


def test_exactly_the_share_is_enough(monkeypatch, context_of):
    """19 of 20 samples at ES 1, whose float32 mean is below 0.95."""

    def strength(params, split, model):
        kept = np.ones(20, np.float32)
        kept[: 1 if params == 1.0 else (0 if params == 0.0 else 10)] = 0
        return Strengths(kept)

    monkeypatch.setattr(statistics, "statistics", strength)
    monkeypatch.setattr(uwc, "mix", lambda base, tree, alpha: (1 - alpha) * base + alpha * tree)
    suite = suite_uwc.uwc_suite(context_of(load=lambda name: 0.0))
    alpha, retention, _ = suite.measure("ga", 1.0)
    assert alpha["value"] == 1.0 and retention["value"] == pytest.approx(0.95)
