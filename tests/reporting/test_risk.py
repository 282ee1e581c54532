"""The figures of risk and confidence show the rows of their tables."""

import numpy as np
import pytest

from jaxunlearn.reporting import palette
from jaxunlearn.reporting.figures import series
from jaxunlearn.reporting.figures.risk import confidence, predicted_vs_realised, risk_change
from tests.reporting.synthetic import STEPS, effect, lines, only, panel, texts, with_values


def labels(figure):
    return [ax.get_ylabel() for ax in figure.axes] + [figure.get_supylabel()]


class TestRiskChange:
    def test_realised_is_measured_from_the_start(self, tables, drawn):
        rows = only(tables, "g_effect", objective="npo", risk="retain", layer="total")
        realised, predicted = lines(panel(drawn["risk_change"], "npo"), palette.RISKS["retain"])
        change = np.array(rows["risk_value"]) - rows["risk_value"][0]
        np.testing.assert_array_equal(realised, np.column_stack([rows["step"], change]))
        # Each interval was predicted at 0.7 of what it brought.
        np.testing.assert_allclose(predicted, realised * [1.0, 0.7], rtol=1e-12)

    def test_the_axis_names_the_first_measured_step(self, tables, drawn):
        assert any(r"R(\theta_{0})" in text for text in labels(drawn["risk_change"]))
        table = {k: [x for x, s in zip(v, tables["g_effect"]["step"], strict=True) if s]
                 for k, v in tables["g_effect"].items()}  # fmt: skip
        later = labels(risk_change(tables | {"g_effect": table}))
        assert any(rf"R(\theta_{{{STEPS[1]}}})" in text for text in later)

    def test_prediction_ends_at_a_gap(self, tables):
        broken = with_values(
            tables, "g_effect", "interval_predicted",
            lambda row: float("nan") if row["step"] == 20 else row["interval_predicted"],
        )  # fmt: skip
        table = series.read(broken, "g_effect")
        result = series.predicted_change(
            series.select(table, objective="ga", risk="unlearn", layer="total")
        )
        assert result.steps.tolist() == [0, 5, 10, 15, 20] and result.dropped == 1

    def test_nothing_measured_draws_no_prediction(self):
        assert series.predicted_change({}).steps.tolist() == []

    def test_realised_change_reaches_the_end_of_the_run(self):
        """The last interval's change is known although nothing was measured at its end."""
        columns = {"step": [0, 5], "risk_value": [1.0, 4.0]}
        columns |= {"interval_steps": [5, 3], "interval_change": [3.0, -1.0]}
        table = {name: np.array(values, object) for name, values in columns.items()}
        result = series.realised_change(table)
        assert result.steps.tolist() == [0, 5, 8] and result.values.tolist() == [0.0, 3.0, 2.0]

    def test_caption_says_that_late_zero_is_not_recovery(self, drawn):
        assert "A late $e$ near zero is not recovery" in texts(drawn["risk_change"])


class TestPredictedVsRealised:
    def test_points_are_the_two_columns(self, tables, drawn):
        rows = only(tables, "g_effect", objective="po", risk="unlearn", layer="total")
        (points,) = lines(panel(drawn["predicted_vs_realised"], "po"), palette.RISKS["unlearn"])
        np.testing.assert_array_equal(
            points, np.column_stack([rows["update_effect"], rows["step_change"]])
        )

    def test_signs_that_agree_are_counted(self, tables):
        flipped = with_values(
            tables, "g_effect", "update_effect",
            lambda row: -1.0 if row["step"] == 5 and row["layer"] == "total"
            else row["update_effect"],
        )  # fmt: skip
        ax = panel(predicted_vs_realised(flipped), "npo")
        assert any(text.get_text().startswith("$D_u$: 12/13 same sign") for text in ax.texts)

    def test_the_median_ratio_is_told(self, tables):
        halved = with_values(
            tables,
            "g_effect",
            "step_change",
            lambda row: 0.5 * row["update_effect"] if row["layer"] == "total" else None,
        )
        ax = panel(predicted_vs_realised(halved), "npo")
        assert any("$D_r$: 13/13 same sign, ratio 0.50" in text.get_text() for text in ax.texts)

    def test_open_marks_are_minus_lr_e(self, tables):
        rated = with_values(tables, "g_effect", "lr", lambda row: 0.25)
        ax = panel(predicted_vs_realised(rated), "npo")
        plain, _ = lines(ax, palette.RISKS["unlearn"])
        expected = [-0.25 * effect("npo", "unlearn", step) for step in STEPS]
        np.testing.assert_allclose(plain[:, 0], expected, rtol=1e-12)

    def test_objectives_without_both_values_have_no_panel(self, tables):
        some = with_values(
            tables, "g_effect", "step_change",
            lambda row: None if row["objective"] == "ga" else row["step_change"],
        )  # fmt: skip
        titles = [ax.get_title() for ax in predicted_vs_realised(some).axes]
        assert titles == ["npo", "po", "rmu"]
        none = with_values(tables, "g_effect", "step_change", lambda row: None)
        assert predicted_vs_realised(none) is None


class TestConfidence:
    def test_median_and_mean_are_drawn_on_log10(self, drawn):
        ax = panel(drawn["confidence"], "ga")
        (mean,) = lines(ax, "#222222")
        (median,) = lines(ax, palette.objective(0))
        np.testing.assert_allclose(mean[:, 1], 0.3 * np.array(STEPS))
        np.testing.assert_allclose(median[:, 1], 0.2 * np.array(STEPS))
        assert ax.yaxis.get_major_formatter()(12.0) == "$10^{12}$"

    def test_bands_span_the_quantiles(self, drawn):
        outer, inner = panel(drawn["confidence"], "npo").collections
        for band, low, high in ((outer, 0.0, 0.7), (inner, 0.1, 0.4)):
            at_end = [y for x, y in band.get_paths()[0].vertices if x == STEPS[-1]]
            assert min(at_end) == pytest.approx(low * 60)
            assert max(at_end) == pytest.approx(high * 60)

    def test_values_far_beyond_floats_are_drawn(self, tables, tmp_path):
        huge = with_values(
            tables, "confidence", "log10_inverse", lambda row: 100 * row["log10_inverse"]
        )
        confidence(huge).savefig(tmp_path / "huge.png")
