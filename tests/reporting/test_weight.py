"""The figures of weights show weights and PG-effects of the tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        points = np.asarray(joint.collections[-1].get_offsets())
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
        assert labels[0].startswith("0.0–0.2 (") and sum(counts) == 60
        rows = series.pg_points(
            series.select(series.read(tables, "pg_effect"), objective="npo"), [5, 10, 15]
        )
        place = next(place for place, count in enumerate(counts) if count)
        inside = rows.unlearn[(rows.weights / 0.2).astype(int) == place]
        dots = dict(line.get_xydata()[0][::-1] for line in top.lines if line.get_marker() == "o")
        assert dots[place] == pytest.approx(np.median(inside))

    def test_good_region_is_far_left_and_around_zero(self, drawn):
        joint = drawn["pg_density"].axes[0]
        points = np.asarray(joint.collections[-1].get_offsets())
        (region,) = joint.patches
        assert region.get_x() == points[:, 0].min()
        assert region.get_x() + region.get_width() == pytest.approx(np.quantile(points[:, 0], 0.25))
        near = np.quantile(np.abs(points[:, 1]), 0.25)
        assert (region.get_y(), region.get_height()) == pytest.approx((-near, 2 * near))

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=20))
    def test_every_weight_is_in_its_bin(self, weights):
        weights = np.array(weights)
        bins, count = _weight_bins(weights)
        assert 5 <= count <= 11 and bins.max() < count
        closed = bins < 10
        assert (weights >= bins * 0.2 - 1e-8).all()
        assert (weights <= (bins + 1) * 0.2 + 1e-8)[closed].all()

    def test_one_point_and_equal_points_are_drawn(self, tables, tmp_path):
        same = with_values(tables, "pg_effect", "value", lambda row: 0.0)
        pg_density(same, "npo").savefig(tmp_path / "same.png")
