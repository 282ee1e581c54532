"""Tables that are empty, lack columns or come in any order."""

import numpy as np
import pytest

from jaxunlearn.reporting.figures import draw, series
from jaxunlearn.reporting.figures.effect import g_effect, plane
from jaxunlearn.reporting.figures.risk import confidence
from jaxunlearn.reporting.figures.weight import pg_density, weights
from tests.reporting.synthetic import STEPS, lines


class TestTables:
    @pytest.mark.parametrize("name", sorted(draw.FIGURES))
    def test_missing_or_empty_is_no_figure(self, name, tables):
        empty = {key: {c: [] for c in table} for key, table in tables.items() if key != "meta"}
        assert getattr(draw, name)({}) is None
        assert getattr(draw, name)(empty) is None
        assert pg_density(empty, "npo") is None

    def test_missing_column_is_named_with_the_nearest(self, tables):
        table = dict(tables["g_effect"])
        table["risks"] = table.pop("risk")
        with pytest.raises(ValueError, match=r"'g_effect' has no column 'risk'.*'risks'\?"):
            plane({"g_effect": table})

    def test_columns_of_different_length(self, tables):
        table = {**tables["samples"], "weight": [1.0]}
        with pytest.raises(ValueError, match="'samples' differ in length"):
            weights({"samples": table})

    def test_numpy_columns_do_as_well_as_lists(self, tables):
        arrays = {key: np.array(column) for key, column in tables["confidence"].items()}
        ax = confidence({"confidence": arrays}).axes[0]
        (mean,) = lines(ax, "#222222")
        np.testing.assert_allclose(mean[:, 1], 0.3 * np.array(STEPS))

    def test_rows_in_any_order_give_the_same_lines(self, tables, drawn):
        table = series.read(tables, "g_effect")
        size = len(table["step"])
        order = np.random.default_rng(0).permutation(size)
        # The first rows stay, so that objectives keep their order.
        firsts = [np.flatnonzero(table["objective"] == name)[0] for name in ("ga", "npo", "po")]
        order = np.array(firsts + [at for at in order if at not in firsts])
        shuffled = {key: column[order].tolist() for key, column in table.items()}
        figure = g_effect({**tables, "g_effect": shuffled})
        for ours, theirs in zip(figure.axes, drawn["g_effect"].axes, strict=True):
            for a, b in zip(ours.lines, theirs.lines, strict=True):
                np.testing.assert_allclose(a.get_xydata(), b.get_xydata(), rtol=1e-12)
