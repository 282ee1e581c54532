"""The figures of weights show weights and PG-effects of the tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.contour import ContourSet

from jaxunlearn.reporting import palette
from jaxunlearn.reporting.figures import series
from jaxunlearn.reporting.figures.weight import _weight_bins, pg_density, weights
from tests.reporting.synthetic import columns, lines, make_tables, only, panel, texts, with_values


class TestWeights:
    def test_mean_and_bands_over_samples(self, tables):
        figure = weights(tables)
        (ax,) = figure.axes
        rows = only(tables, "samples", objective="npo", step=20)
        mean, _ = ax.lines
        outer, inner = ax.collections
        assert mean.get_ydata()[4] == pytest.approx(np.mean(rows["weight"]))
        for band, low, high in ((outer, 0.05, 0.95), (inner, 0.25, 0.75)):
            at_20 = [y for x, y in band.get_paths()[0].vertices if x == 20]
            expected = np.quantile(np.array(rows["weight"]), [low, high])
            np.testing.assert_allclose([min(at_20), max(at_20)], expected)

    def test_only_objectives_with_varying_weights_have_a_panel(self, drawn):
        assert [ax.get_title() for ax in drawn["weights"].axes] == ["npo"]

    def test_no_weights_no_figure(self):
        assert weights(make_tables(("ga", "po"))) is None

    def test_objective_keeps_its_colour_across_figures(self, drawn):
        color = palette.objective(1)
        assert lines(panel(drawn["weights"], "npo"), color)
        assert lines(panel(drawn["confidence"], "npo"), color)


class TestPgDensity:
    def test_points_are_the_joined_effects_of_the_first_checkpoints(self, tables, drawn):
        joint = drawn["pg_density"].axes[0]
        points = np.concatenate([np.asarray(c.get_offsets()) for c in joint.collections[-3:]])
        expected = {
            risk: [
                value
                for step in (5, 10, 15)
                for value in only(
                    tables, "pg_effect", objective="npo", risk=risk, step=step
                )["value"]
            ]
            for risk in ("unlearn", "retain")
        }  # fmt: skip
        np.testing.assert_array_equal(points[:, 0], expected["unlearn"])
        np.testing.assert_array_equal(points[:, 1], expected["retain"])
        assert "steps 5, 10, 15" in texts(drawn["pg_density"])

    def test_chosen_steps(self, tables):
        figure = pg_density(tables, "npo", steps=[20])
        assert len(figure.axes[0].collections[-1].get_offsets()) == 20
        assert pg_density(tables, "npo", steps=[7]) is None

    def test_join_does_not_depend_on_row_order(self, tables):
        table = series.select(series.read(tables, "pg_effect"), objective="npo")
        order = np.random.default_rng(1).permutation(len(table["step"]))
        shuffled = {key: column[order] for key, column in table.items()}
        rows = [
            sorted(zip(*series.pg_points(each, [5, 10])[:4], strict=True))
            for each in (table, shuffled)
        ]
        assert rows[0] == rows[1] and len(rows[0]) == 40

    def test_samples_without_a_partner_are_left_out_and_non_finite_ones_counted(self):
        values = [("unlearn", 0, -1.0), ("unlearn", 1, -2.0), ("unlearn", 2, -3.0),
                  ("retain", 0, 0.5), ("retain", 2, float("nan"))]  # fmt: skip
        rows = [
            {"step": 5, "objective": "npo", "sample": sample, "layer": "total", "risk": risk,
             "value": value, "weight": 0.5}
            for risk, sample, value in values
        ]  # fmt: skip
        result = series.pg_points(series.read({"pg_effect": columns(rows)}, "pg_effect"), [5])
        assert (result.unlearn.tolist(), result.retain.tolist(), result.dropped) == (
            [-1.0],
            [0.5],
            1,
        )

    def test_strips_show_each_bin_with_its_count(self, tables, drawn):
        top = drawn["pg_density"].axes[1]
        labels = [label.get_text() for label in top.get_yticklabels()]
        counts = [int(label.split("(")[1].rstrip(")")) for label in labels]
        assert sum(counts) == 60 and min(counts) > 0
        rows = series.pg_points(
            series.select(series.read(tables, "pg_effect"), objective="npo"), [5, 10, 15]
        )
        bins, spans = _weight_bins(rows.weights)
        assert [label.split(" (")[0] for label in labels] == spans
        dots = dict(line.get_xydata()[0][::-1] for line in top.lines if line.get_marker() == "o")
        for place in range(len(spans)):
            assert dots[place] == pytest.approx(np.median(rows.unlearn[bins == place]))

    def test_every_step_has_its_own_marker(self, drawn):
        labels = [text.get_text() for text in drawn["pg_density"].legends[0].get_texts()]
        assert labels[:3] == ["step 5", "step 10", "step 15"]
        joint = drawn["pg_density"].axes[0]
        clouds = [c for c in joint.collections if len(np.asarray(c.get_offsets())) == 20]
        assert len(clouds) == 3

    def test_good_region_is_far_left_and_around_zero(self, drawn):
        joint = drawn["pg_density"].axes[0]
        points = np.concatenate([np.asarray(c.get_offsets()) for c in joint.collections[-3:]])
        (region,) = joint.patches
        assert region.get_x() == points[:, 0].min()
        assert region.get_x() + region.get_width() == pytest.approx(np.quantile(points[:, 0], 0.25))
        near = np.quantile(np.abs(points[:, 1]), 0.25)
        assert (region.get_y(), region.get_height()) == pytest.approx((-near, 2 * near))

    def test_contours_are_of_bins_with_enough_samples(self):
        """A density of a dozen points would show the kernel alone."""
        for samples, contours in ((20, 0), (70, 5)):  # at three checkpoints, in five bins
            figure = pg_density(make_tables(("npo",), samples), "npo")
            drawn = [c for c in figure.axes[0].collections if isinstance(c, ContourSet)]
            assert len(drawn) == contours
            assert ("Contours:" in texts(figure)) == bool(contours)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=40))
    def test_bins_are_in_order_and_none_is_empty(self, weights):
        weights = np.array(weights)
        bins, spans = _weight_bins(weights)
        assert 1 <= len(spans) <= 5 and set(bins) == set(range(len(spans)))
        for place in range(len(spans) - 1):
            assert weights[bins == place].max() < weights[bins == place + 1].min()

    def test_bins_hold_equally_many_samples(self):
        bins, spans = _weight_bins(np.linspace(0.9, 1.0, 50))
        assert np.bincount(bins).tolist() == [10] * 5 and spans[0] == "0.9–0.92"
        assert _weight_bins(np.ones(3))[1] == ["1"]

    @pytest.mark.parametrize(
        ("weights", "counts"),
        [
            ([0] * 10 + [1] * 10, [10, 10]),
            ([0] * 17 + [0.5, 1, 2], [17, 3]),
            ([0] + [1] * 19, [1, 19]),
            ([2] * 19 + [3], [19, 1]),
        ],
    )
    def test_weights_of_two_values_share_no_bin(self, weights, counts):
        """They once all fell into one, where the quantiles were equal."""
        bins, _ = _weight_bins(np.array(weights, float))
        assert np.bincount(bins).tolist() == counts

    def test_weights_that_differ_by_rounding_are_equal(self):
        rounded = np.float32(20 / 15) * (1 + np.array([-1, 0, 1, 2, -2] * 3) * 2.0**-24)
        bins, spans = _weight_bins(np.concatenate([np.zeros(5), rounded]))
        assert np.bincount(bins).tolist() == [5, 15] and len(spans) == 2

    def test_one_point_and_equal_points_are_drawn(self, tables, tmp_path):
        same = with_values(tables, "pg_effect", "value", lambda row: 0.0)
        pg_density(same, "npo").savefig(tmp_path / "same.png")
