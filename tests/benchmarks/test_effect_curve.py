"""The FLOPs of an exact G-effect curve, by the units of one forward pass and against the recipe."""

import dataclasses

import pytest

from benchmarks import effect_curve, train_lengths
from benchmarks.pg_jobs import MODELS
from jaxunlearn.effects import count_flops
from jaxunlearn.models import decoder
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import TokenLogProbs

pytestmark = pytest.mark.cost

TINY = decoder.DecoderConfig(64, 32, 48, 2, 4, 2, 8, context=256, head_chunk=256)
COUNTS = train_lengths.Lengths(
    "test", {"forget05": [(30, 12), (20, 9), (41, 30)], "retain_perturbed": [(25, 7), (38, 20)]}
)


@pytest.fixture(scope="module")
def curve():
    return effect_curve.make_curve(TINY, COUNTS)


def forward(curve, sequences):
    rows = [Rows(packed) for packed in curve.batches(sequences)]
    return sum(count_flops(TokenLogProbs(TINY), curve.params, r) for r in rows)


def test_a_point_costs_five_forwards_of_forget_and_three_of_retain(curve):
    """R(D_u) and L_u share a forward; where L_u is - R, they share the backward too."""
    forget, retain = forward(curve, curve.forget), forward(curve, curve.retain)
    assert effect_curve.exact_point(curve, "tnpo") == 5 * forget + 3 * retain
    assert effect_curve.exact_point(curve, "npo") == 5 * forget + 3 * retain
    assert effect_curve.exact_point(curve, "ga") == 3 * forget + 3 * retain


def test_gates_cost_no_more_than_a_gradient(curve):
    """Three forwards of a set each, a little less where attention has no parameters to gate."""
    forget, retain = forward(curve, curve.forget), forward(curve, curve.retain)
    point = effect_curve.gates_point(curve, "npo")
    assert 5.8 * forget + 2.8 * retain < point <= 6 * forget + 3 * retain


def test_the_recipe_is_its_passes(curve):
    """576 forwards of 4 x 500 tokens, and 48 of the reference."""
    wide = dataclasses.replace(TINY, context=512)
    passes, reference = effect_curve.official_point(wide, curve.params)
    assert passes / 576 == reference / 48


def test_real_shares_leave_out_widths_that_do_not_fit(curve):
    shares = effect_curve.real_shares(curve)["forget"]
    assert list(shares) == ["chosen", "128", "256", "padded"]
    assert shares["padded"] == 91 / 1500


@pytest.mark.slow
@pytest.mark.stories
def test_the_curve_of_a_7b_on_tofu(shared_data):
    """An eighth of the recipe's FLOPs; ga, where one backward pass serves both gradients, less."""
    folders = shared_data / "tofu", shared_data / "tokenizers/llama2"
    curve = effect_curve.make_curve(MODELS["7b"], train_lengths.measured(*folders))
    curve = dataclasses.replace(curve, model=dataclasses.replace(curve.model, remat="none"))
    rows = {row["way"]: row for row in effect_curve.costs(curve)}
    assert rows["ga"]["of_recipe"] <= 0.11
    for name in ("npo", "tnpo"):
        assert rows[name]["of_recipe_and_reference"] <= 0.13
    assert rows["wga"]["of_recipe"] <= 0.133  # 0.130 without any padding
    shares = effect_curve.real_shares(curve)
    assert all(shares[name][width] > 0.95 for name in shares for width in ("chosen", "512"))
