"""The figures of the G-effect show the rows of its table."""

import numpy as np
import pytest

from jaxunlearn.reporting import palette
from jaxunlearn.reporting.figures import effect_series, series
from jaxunlearn.reporting.figures.effect import g_effect, harm_ratio
from tests.reporting.synthetic import (
    GROUPS,
    columns,
    g_effect_row,
    lines,
    only,
    panel,
    texts,
)


class TestGEffect:
    def test_total_panel_shows_both_risks(self, tables, drawn):
        ax = panel(drawn["g_effect"], "ga")
        for risk, color in palette.RISKS.items():
            rows = only(tables, "g_effect", objective="ga", risk=risk, layer="total")
            (line,) = lines(ax, color)
            np.testing.assert_array_equal(line, np.column_stack([rows["step"], rows["value"]]))

    def test_group_lines_are_shares_of_all_magnitudes(self, tables, drawn):
        for ax, risk in zip(drawn["g_effect"].axes[2:4], ("unlearn", "retain"), strict=True):
            groups = {g: lines(ax, palette.GROUPS[g])[0] for g in GROUPS}
            summed = sum(np.abs(line[:, 1]) for line in groups.values())
            np.testing.assert_allclose(summed, 1, rtol=1e-12)
            rows = only(tables, "g_effect", objective="ga", risk=risk, layer="block_0")
            assert all(np.sign(groups["shallow"][:, 1]) == np.sign(rows["value"]))

    def test_a_step_without_any_effect_has_no_shares(self):
        rows = [g_effect_row("ga", "unlearn", 5, layer, 0.5) for layer in ("embed", "block_0")]
        for row in rows[:2]:
            rows.append(row | {"step": 10, "value": 0.0})
        groups = {"embed": ["embed"], "shallow": ["block_0"]}
        table = series.read({"g_effect": columns(rows)}, "g_effect")
        for line in effect_series.group_shares(table, groups).values():
            assert line.steps.tolist() == [5] and line.values.tolist() == [-0.5]

    def test_one_column_of_four_panels_per_objective(self, drawn):
        assert len(drawn["g_effect"].axes) == 4 * 4
        titles = [ax.get_title() for ax in drawn["g_effect"].axes[::4]]
        assert titles == ["ga", "npo", "po", "rmu"]

    def test_the_warm_up_is_shaded(self, tables):
        figure = g_effect({**tables, "meta": tables["meta"] | {"warm_up": 10}})
        for ax in figure.axes[:4]:
            (shade,) = ax.patches
            assert (shade.get_x(), shade.get_x() + shade.get_width()) == (0, 10)
        assert "warm-up" in texts(figure)
        assert not g_effect(tables).axes[0].patches

    def test_wide_totals_are_symlog_and_narrow_ones_linear(self, drawn):
        assert drawn["g_effect"].axes[0].get_yscale() == "symlog"
        narrow = {"meta": {}, "g_effect": columns([
            g_effect_row("npo", risk, step, "total", 1.0)
            for step in (5, 10, 15) for risk in ("unlearn", "retain")
        ])}  # fmt: skip
        assert g_effect(narrow).axes[0].get_yscale() == "linear"

    def test_tied_model_has_no_lm(self, tables):
        groups = {group: layers for group, layers in GROUPS.items() if group != "lm"}
        rows = series.read(tables, "g_effect")
        untied = {k: c[rows["layer"] != "lm_head"].tolist() for k, c in rows.items()}
        figure = g_effect({"g_effect": untied, "meta": {"groups": groups}})
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels[-4:] == ["embed", "shallow", "middle", "deep"]

    def test_totals_alone_and_no_cosine_make_one_row(self, tables):
        total = only(tables, "g_effect", layer="total")
        total["cosine"] = [None] * len(total["step"])
        figure = g_effect({"g_effect": total, "meta": {"groups": GROUPS}})
        assert len(figure.axes) == 4

    def test_layer_outside_every_group_is_an_error(self, tables):
        groups = {group: layers for group, layers in GROUPS.items() if group != "lm"}
        with pytest.raises(ValueError, match=r"\['lm_head'\] are in no group"):
            g_effect({**tables, "meta": {"groups": groups}})

    def test_caption_names_reduction_estimator_and_units(self, drawn):
        said = texts(drawn["g_effect"])
        assert "reduction sequence_sum; estimator full" in said
        assert "per squared parameter" in said and "nats" in said


class TestPlane:
    def test_path_is_e_u_against_e_r(self, tables, drawn):
        ax = panel(drawn["plane"], "rmu")
        e_u = only(tables, "g_effect", objective="rmu", risk="unlearn", layer="total")["value"]
        e_r = only(tables, "g_effect", objective="rmu", risk="retain", layer="total")["value"]
        (path,) = lines(ax, "#444444")
        np.testing.assert_array_equal(path, np.column_stack([e_u, e_r]))

    def test_both_regions_are_shaded_and_named(self, drawn):
        ax = panel(drawn["plane"], "ga")
        removal, retention = ax.patches
        reach = ax.get_xlim()[1]
        assert (removal.get_x(), removal.get_x() + removal.get_width()) == (-reach, 0.0)
        assert (retention.get_y(), retention.get_y() + retention.get_height()) == (0.0, reach)
        labels = [text.get_text() for text in drawn["plane"].legends[0].get_texts()]
        assert labels[:2] == ["removal region, $e_u<0$", r"retention region, $e_r\geq 0$"]

    def test_axes_are_symlog_square_and_hold_every_point(self, drawn):
        for ax in drawn["plane"].axes[:4]:
            assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "symlog")
            assert ax.get_xlim() == ax.get_ylim()
            assert ax.get_xlim()[0] < -3.53e5

    def test_steps_are_marked_where_the_path_turns(self, drawn):
        words = {text.get_text() for text in panel(drawn["plane"], "ga").texts}
        assert any("30" in word.split(", ") for word in words)

    def test_steps_missing_for_one_risk_are_left_out(self):
        rows = [g_effect_row("npo", "unlearn", step, "total", 1.0) for step in (0, 5, 10)]
        rows += [g_effect_row("npo", "retain", step, "total", 1.0) for step in (5, 10)]
        path = effect_series.effect_path(series.read({"g_effect": columns(rows)}, "g_effect"))
        assert path.steps.tolist() == [5, 10] and path.dropped == 0


class TestHarmRatio:
    def test_lines_are_the_sizes_of_both_effects(self, tables, drawn):
        (ax,) = drawn["harm_ratio"].axes
        (line,) = lines(ax, palette.objective(0))
        at = {
            risk: np.abs(
                only(tables, "g_effect", objective="ga", risk=risk, layer="total")["value"]
            )
            for risk in ("unlearn", "retain")
        }
        np.testing.assert_allclose(line[:, 1], at["retain"] / at["unlearn"])
        assert [text.get_text() for text in ax.texts] == ["npo", "rmu", "po", "ga"]  # upwards

    def test_every_line_has_a_label_of_its_own(self):
        names = [f"npo_beta_0.1_retain_weight_{i}" for i in (1, 2)]
        rows = [
            g_effect_row(name, risk, 5, "total", -1.0)
            for name in names
            for risk in ("unlearn", "retain")
        ]
        (ax,) = harm_ratio({"g_effect": columns(rows)}).axes
        assert {text.get_text()[-9:] for text in ax.texts} == {"_weight_1", "_weight_2"}

    def test_a_ratio_with_zero_is_counted_and_not_drawn(self):
        values = {("unlearn", 5): -2.0, ("retain", 5): 1.0, ("unlearn", 10): 0.0}
        values |= {("retain", 10): 1.0, ("unlearn", 15): -2.0, ("retain", 15): 0.0}
        rows = [
            g_effect_row("ga", risk, step, "total", 1.0) | {"value": value}
            for (risk, step), value in values.items()
        ]
        (ax,) = harm_ratio({"g_effect": columns(rows)}).axes
        assert lines(ax, palette.objective(0))[0].tolist() == [[5.0, 0.5]]
        assert "2 non-finite not drawn" in [text.get_text() for text in ax.texts]

    def test_without_both_effects_there_is_no_figure(self):
        rows = [g_effect_row("ga", "unlearn", step, "total", 1.0) for step in (5, 10)]
        assert harm_ratio({"g_effect": columns(rows)}) is None
