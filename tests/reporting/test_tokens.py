"""The figure of PG-effects by token."""

import pytest

from jaxunlearn.reporting.figures.tokens import MOST_TOKENS, pg_tokens
from tests.reporting.synthetic import columns

TITLES = ("sample 4", "sample 2", "sample 0")


def token_tables(samples=5, tokens=3, weight=0.5):
    """Sample s has the effects -s - 1 on D_u and 10 on D_r at each of its tokens."""
    rows = [
        {
            "step": step, "objective": "npo", "sample": sample, "position": 7 + place,
            "risk": risk, "value": value, "weight": weight, "reduction": "sequence_sum",
        }
        for step in (5, 10, 15)
        for sample in range(samples)
        for place in range(tokens)
        for risk, value in (("unlearn", -1.0 - sample), ("retain", 10.0))
    ]  # fmt: skip
    texts = {"sample": [0, 2, 4], "tokens": [["a", "$b", ""]] * 3}
    return {"token_effect": columns(rows), "texts": texts}


def images(ax):
    return [image.get_array() for image in ax.images]


def test_rows_are_sets_and_weights_of_three_samples():
    figure = pg_tokens(token_tables(), "npo")
    assert tuple(ax.get_title(loc="left") for ax in figure.axes) == TITLES
    unlearn, retain, weight = images(figure.axes[0])
    assert unlearn.tolist() == [[-5.0] * 3]
    assert retain.tolist() == [[10.0] * 3] and weight.tolist() == [[0.5] * 3]
    assert "step 10" in figure.texts[-1].get_text()  # the middle one


def test_tokens_stand_below_as_text():
    figure = pg_tokens(token_tables(), "npo", step=15)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a", r"\$b", "·"]


def test_a_long_sample_is_cut():
    figure = pg_tokens(token_tables(tokens=MOST_TOKENS + 9), "npo")
    assert images(figure.axes[0])[0].shape == (1, MOST_TOKENS)
    assert f"first {MOST_TOKENS} tokens of a sample" in figure.texts[-1].get_text()


def test_what_is_not_finite_or_missing_is_masked():
    tables = token_tables(samples=1, weight=None)
    tables["token_effect"]["value"][-1] = float("inf")  # on D_r, the last token of step 15
    figure = pg_tokens(tables, "npo", step=15)
    unlearn, retain, weight = images(figure.axes[0])
    assert not unlearn.mask.any() and weight.mask.all()
    assert retain.mask.tolist() == [[False, False, True]]


@pytest.mark.parametrize("tables", [{}, {"token_effect": {}}])
def test_nothing_measured_is_no_figure(tables):
    assert pg_tokens(tables, "npo") is None
    assert pg_tokens(token_tables(), "another") is None
