"""The figures show what the tables say: data, units, regions, warnings; nothing odd breaks them."""

import doctest
import math

import matplotlib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgba

from jaxunlearn.report import figures, panels, scales, series, weight_figures

STEPS = tuple(range(0, 65, 5))
GROUPS = {
    "embed": ["embed"],
    "shallow": ["block_0"],
    "middle": ["block_1"],
    "deep": ["block_2", "norm"],
    "lm": ["lm_head"],
}
LAYER_SHARES = {
    "embed": 0.01, "block_0": 0.5, "block_1": 0.2, "block_2": 0.1, "norm": 0.01, "lm_head": 0.18,
}  # fmt: skip
# Step of the peak, e_u and e_r there, as read off the paper's figures.
PEAKS = {"ga": (30, -1.75e5, -3.53e5), "npo": (10, -83.0, -31.0), "rmu": (10, -7940.0, -5610.0)}
WARNING = "little to forget: the starting model's forget ES is 0.12"


def effect(name: str, risk: str, step: int) -> float:
    if name == "po":
        return -9.7 * math.exp(-(((step - 5) / 4) ** 2)) + 16.7 * math.exp(
            -(((step - 20) / 6) ** 2)
        )
    peak, e_u, e_r = PEAKS.get(name, (15, -200.0, -90.0))
    return (e_u if risk == "unlearn" else e_r) * math.exp(-(((step - peak) / 8) ** 2))


def risk_value(name: str, risk: str, step: int) -> float:
    rise = {"ga": 800.0, "po": 3.0}.get(name, 60.0) * (1.0 if risk == "unlearn" else 0.3)
    return 12.0 + rise / (1.0 + math.exp(-(step - 15) / 4))


def columns(rows: list[dict]) -> dict[str, list]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def g_effect_row(name: str, risk: str, step: int, layer: str, share: float) -> dict:
    total = layer == "total"
    change = risk_value(name, risk, step + 1) - risk_value(name, risk, step)
    interval = risk_value(name, risk, step + 5) - risk_value(name, risk, step)
    last = step == STEPS[-1]
    return {
        "step": step, "objective": name, "risk": risk, "layer": layer,
        "value": effect(name, risk, step) * share,
        "cosine": -1.0 + step / 60 if total else None,
        "risk_value": risk_value(name, risk, step) if total else None,
        "update_effect": 0.8 * change if total else None,
        "step_change": change if total else None,
        "interval_steps": 5 if total and not last else None,
        "interval_predicted": 0.7 * interval if total and not last else None,
        "reduction": "sequence_sum", "estimator": "full",
    }  # fmt: skip


def weight(name: str, step: int, sample: int) -> float | None:
    depth = (1 + sample % 7) * step / 40
    return {
        "ga": 1.0, "npo": 2 / (1 + math.exp(depth)), "wga": 0.9 * math.exp(-depth),
    }.get(name)  # fmt: skip


def make_tables(names=("ga", "npo", "po", "rmu"), samples=20) -> dict:
    shares = {"total": 1.0, **LAYER_SHARES}
    rng = np.random.default_rng(0)
    effects = [
        g_effect_row(name, risk, step, layer, share)
        for name in names
        for step in STEPS
        for risk in ("unlearn", "retain")
        for layer, share in shares.items()
    ]
    spread = [
        {"step": step, "objective": name, "sample": i, "weight": weight(name, step, i)}
        for name in names
        for step in STEPS
        for i in range(samples)
    ]
    confidences = [
        {"step": step, "objective": name, "statistic": statistic, "log10_inverse": scale * step}
        for name in names
        for step in STEPS
        for statistic, scale in zip(
            ("mean", "q05", "q25", "q50", "q75", "q95"), (0.3, 0.0, 0.1, 0.2, 0.4, 0.7), strict=True
        )
    ]
    pg = [
        {
            "step": step, "objective": name, "sample": i, "layer": "total", "risk": risk,
            "value": float(value), "weight": weight(name, step, i),
            "reduction": "sequence_sum", "estimator": "jvp",
        }
        for name in names
        for step in (0, 5, 10, 15, 20)
        for i in range(samples)
        for risk, value in (("unlearn", -rng.lognormal(5)), ("retain", 40 * rng.normal()))
    ]  # fmt: skip
    return {
        "g_effect": columns(effects), "samples": columns(spread),
        "confidence": columns(confidences), "pg_effect": columns(pg),
        "meta": {"title": "forget05", "warning": WARNING, "groups": GROUPS},
    }  # fmt: skip


def with_values(tables: dict, table: str, column: str, change) -> dict:
    """A copy of the tables with `change(row) -> value` applied to one column."""
    old = tables[table]
    rows = [dict(zip(old, values, strict=True)) for values in zip(*old.values(), strict=True)]
    return {**tables, table: {**old, column: [change(row) for row in rows]}}


def only(tables: dict, table: str, **equal) -> dict:
    chosen = series.select(series.read(tables, table), **equal)
    return {key: column.tolist() for key, column in chosen.items()}


def lines(ax, color: str) -> list[np.ndarray]:
    """The (x, y) of every line of a colour, in drawing order."""
    wanted = [line for line in ax.lines if to_rgba(line.get_color()) == to_rgba(color)]
    return [np.asarray(line.get_xydata()) for line in wanted]


def panel(figure, title: str):
    return next(ax for ax in figure.axes if ax.get_title() == title)


def texts(figure) -> str:
    found = [text.get_text() for text in figure.texts]
    return " ".join(" ".join(found).split())


def panel_notes(figure) -> list[str]:
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    return [word for word in words if "finite" in word]


@pytest.fixture(scope="module")
def tables() -> dict:
    return make_tables()


@pytest.fixture(scope="module")
def drawn(tables) -> dict:
    names = ("g_effect", "plane", "risk_change", "predicted_vs_realised", "confidence", "weights")
    made = {name: getattr(figures, name)(tables) for name in names}
    return made | {"pg_density": figures.pg_density(tables, "npo")}


class TestGEffect:
    def test_total_panel_shows_both_risks(self, tables, drawn):
        ax = panel(drawn["g_effect"], "ga")
        for risk, color in (("unlearn", panels.VERMILLION), ("retain", panels.BLUE)):
            rows = only(tables, "g_effect", objective="ga", risk=risk, layer="total")
            (line,) = lines(ax, color)
            np.testing.assert_array_equal(line, np.column_stack([rows["step"], rows["value"]]))

    def test_group_lines_sum_to_the_total_line(self, drawn):
        for ax in drawn["g_effect"].axes[2:4]:
            (total,) = [line for line in lines(ax, panels.BLACK) if len(line) == len(STEPS)]
            groups = [lines(ax, panels.GROUPS[group]["color"]) for group in GROUPS]
            summed = sum(found[0][:, 1] for found in groups)
            np.testing.assert_allclose(summed, total[:, 1], rtol=1e-12)

    def test_one_column_of_four_panels_per_objective(self, drawn):
        assert len(drawn["g_effect"].axes) == 4 * 4
        titles = [ax.get_title() for ax in drawn["g_effect"].axes[::4]]
        assert titles == ["ga", "npo", "po", "rmu"]

    def test_unlearn_and_retain_rows_share_their_scale(self, drawn):
        unlearn, retain = drawn["g_effect"].axes[2:4]
        assert unlearn.get_ylim() == retain.get_ylim()
        assert unlearn.get_ylim()[0] < -3.53e5

    def test_wide_totals_are_symlog_and_narrow_ones_linear(self, drawn):
        assert drawn["g_effect"].axes[0].get_yscale() == "symlog"
        narrow = {"meta": {}, "g_effect": columns([
            g_effect_row("npo", risk, step, "total", 1.0)
            for step in (5, 10, 15) for risk in ("unlearn", "retain")
        ])}  # fmt: skip
        assert figures.g_effect(narrow).axes[0].get_yscale() == "linear"

    def test_tied_model_has_no_lm(self, tables):
        groups = {group: layers for group, layers in GROUPS.items() if group != "lm"}
        rows = series.read(tables, "g_effect")
        untied = {k: c[rows["layer"] != "lm_head"].tolist() for k, c in rows.items()}
        figure = figures.g_effect({"g_effect": untied, "meta": {"groups": groups}})
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels[-4:] == ["embed", "shallow", "middle", "deep"]

    def test_totals_alone_and_no_cosine_make_one_row(self, tables):
        total = only(tables, "g_effect", layer="total")
        total["cosine"] = [None] * len(total["step"])
        figure = figures.g_effect({"g_effect": total, "meta": {"groups": GROUPS}})
        assert len(figure.axes) == 4

    def test_layer_outside_every_group_is_an_error(self, tables):
        groups = {group: layers for group, layers in GROUPS.items() if group != "lm"}
        with pytest.raises(ValueError, match=r"\['lm_head'\] are in no group"):
            figures.g_effect({**tables, "meta": {"groups": groups}})

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
        path = series.effect_path(series.read({"g_effect": columns(rows)}, "g_effect"))
        assert path.steps.tolist() == [5, 10] and path.dropped == 0


class TestRiskChange:
    def test_realised_is_measured_from_the_start(self, tables, drawn):
        rows = only(tables, "g_effect", objective="npo", risk="retain", layer="total")
        realised, predicted = lines(panel(drawn["risk_change"], "npo"), panels.BLUE)
        change = np.array(rows["risk_value"]) - rows["risk_value"][0]
        np.testing.assert_array_equal(realised, np.column_stack([rows["step"], change]))
        # Each interval was predicted at 0.7 of what it brought.
        np.testing.assert_allclose(predicted, realised * [1.0, 0.7], rtol=1e-12)

    def test_prediction_ends_at_a_gap(self, tables):
        broken = with_values(
            tables, "g_effect", "interval_predicted",
            lambda row: float("nan") if row["step"] == 20 else row["interval_predicted"],
        )  # fmt: skip
        table = series.read(broken, "g_effect")
        found = series.predicted_change(
            series.select(table, objective="ga", risk="unlearn", layer="total")
        )
        assert found.steps.tolist() == [0, 5, 10, 15, 20] and found.dropped == 1

    def test_nothing_measured_draws_no_prediction(self):
        assert series.predicted_change({}).steps.tolist() == []

    def test_realised_change_reaches_the_end_of_the_run(self):
        """The last interval's change is known although nothing was measured at its end."""
        columns = {"step": [0, 5], "risk_value": [1.0, 4.0]}
        columns |= {"interval_steps": [5, 3], "interval_change": [3.0, -1.0]}
        table = {name: np.array(values, object) for name, values in columns.items()}
        found = series.realised_change(table)
        assert found.steps.tolist() == [0, 5, 8] and found.values.tolist() == [0.0, 3.0, 2.0]

    def test_caption_says_that_late_zero_is_not_recovery(self, drawn):
        assert "A late $e$ near zero is not recovery" in texts(drawn["risk_change"])


class TestPredictedVsRealised:
    def test_points_are_the_two_columns(self, tables, drawn):
        rows = only(tables, "g_effect", objective="po", risk="unlearn", layer="total")
        (points,) = lines(panel(drawn["predicted_vs_realised"], "po"), panels.VERMILLION)
        np.testing.assert_array_equal(
            points, np.column_stack([rows["update_effect"], rows["step_change"]])
        )

    def test_signs_that_agree_are_counted(self, tables):
        flipped = with_values(
            tables, "g_effect", "update_effect",
            lambda row: -1.0 if row["step"] == 5 and row["layer"] == "total"
            else row["update_effect"],
        )  # fmt: skip
        ax = panel(figures.predicted_vs_realised(flipped), "npo")
        assert any(text.get_text().startswith("$D_u$: 12/13 same sign") for text in ax.texts)

    def test_the_median_ratio_is_told(self, tables):
        halved = with_values(
            tables,
            "g_effect",
            "step_change",
            lambda row: 0.5 * row["update_effect"] if row["layer"] == "total" else None,
        )
        ax = panel(figures.predicted_vs_realised(halved), "npo")
        assert any("$D_r$: 13/13 same sign, ratio 0.5" in text.get_text() for text in ax.texts)

    def test_open_marks_are_minus_lr_e(self, tables):
        rated = with_values(tables, "g_effect", "lr", lambda row: 0.25)
        ax = panel(figures.predicted_vs_realised(rated), "npo")
        plain, _ = lines(ax, panels.VERMILLION)
        expected = [-0.25 * effect("npo", "unlearn", step) for step in STEPS]
        np.testing.assert_allclose(plain[:, 0], expected, rtol=1e-12)

    def test_objectives_without_both_values_have_no_panel(self, tables):
        some = with_values(
            tables, "g_effect", "step_change",
            lambda row: None if row["objective"] == "ga" else row["step_change"],
        )  # fmt: skip
        titles = [ax.get_title() for ax in figures.predicted_vs_realised(some).axes]
        assert titles == ["npo", "po", "rmu"]
        none = with_values(tables, "g_effect", "step_change", lambda row: None)
        assert figures.predicted_vs_realised(none) is None


class TestConfidence:
    def test_median_and_mean_are_drawn_on_log10(self, drawn):
        ax = panel(drawn["confidence"], "ga")
        (mean,) = lines(ax, "#222222")
        (median,) = lines(ax, panels.OBJECTIVE_COLORS[0])
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
        figures.confidence(huge).savefig(tmp_path / "huge.png")


class TestWeights:
    def test_mean_and_bands_over_samples(self, tables):
        figure = figures.weights(tables)
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
        assert figures.weights(make_tables(("ga", "po"))) is None

    def test_objective_keeps_its_colour_across_figures(self, drawn):
        color = panels.OBJECTIVE_COLORS[1]
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
        figure = figures.pg_density(tables, "npo", steps=[20])
        assert len(figure.axes[0].collections[-1].get_offsets()) == 20
        assert figures.pg_density(tables, "npo", steps=[7]) is None

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
        found = series.pg_points(series.read({"pg_effect": columns(rows)}, "pg_effect"), [5])
        assert (found.unlearn.tolist(), found.retain.tolist(), found.dropped) == ([-1.0], [0.5], 1)

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
        bins, count = weight_figures._weight_bins(weights)
        assert 5 <= count <= 11 and bins.max() < count
        closed = bins < 10
        assert (weights >= bins * 0.2 - 1e-8).all()
        assert (weights <= (bins + 1) * 0.2 + 1e-8)[closed].all()

    def test_one_point_and_equal_points_are_drawn(self, tables, tmp_path):
        same = with_values(tables, "pg_effect", "value", lambda row: 0.0)
        figures.pg_density(same, "npo").savefig(tmp_path / "same.png")


class TestOddValues:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_non_finite_effects_are_dropped_and_counted(self, tables, bad, tmp_path):
        broken = with_values(
            tables, "g_effect", "value",
            lambda row: bad if (row["step"], row["objective"]) == (30, "ga") else row["value"],
        )  # fmt: skip
        figure = figures.g_effect(broken)
        (line,) = lines(panel(figure, "ga"), panels.VERMILLION)
        assert 30 not in line[:, 0] and len(line) == len(STEPS) - 1
        # Total on both sets; per set the total and five groups.
        notes = [f"{count} non-finite not drawn" for count in (2, 6, 6)]
        assert panel_notes(figure) == notes
        assert panel_notes(figures.plane(broken)) == ["2 non-finite not drawn"]
        figure.savefig(tmp_path / "broken.png")

    def test_null_is_not_counted_as_non_finite(self, tables):
        sparse = with_values(
            tables, "g_effect", "value", lambda row: None if row["step"] == 30 else row["value"]
        )
        assert panel_notes(figures.g_effect(sparse)) == []

    def test_a_panel_without_finite_values_says_so(self, tables, tmp_path):
        empty = with_values(
            tables, "g_effect", "risk_value",
            lambda row: float("nan") if row["objective"] == "ga" else row["risk_value"],
        )  # fmt: skip
        notes = panel_notes(figures.risk_change(empty))
        assert notes == ["26 non-finite not drawn"]
        nothing = with_values(empty, "g_effect", "interval_predicted", lambda row: None)
        nothing = with_values(nothing, "g_effect", "value", lambda row: float("inf"))
        assert panel_notes(figures.plane(nothing))[0].startswith("no finite value; 26")
        for number, path in enumerate(figures.draw_all(nothing, tmp_path)):
            assert path.exists(), number

    # Shrinking draws thousands of figures, and the failing values are few enough to read.
    @settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
    @given(st.data())
    def test_any_mixture_of_values_can_be_drawn(self, data):
        odd = st.one_of(
            st.none(),
            st.sampled_from([0.0, float("nan"), float("inf"), float("-inf"), -1.75e5, 1e-9]),
            st.floats(-1e12, 1e12),
        )  # fmt: skip
        names = ("value", "cosine", "risk_value", "update_effect", "step_change",
                 "interval_predicted", "interval_steps", "interval_change")  # fmt: skip
        rows = [
            {"step": step, "objective": "npo", "risk": risk, "layer": layer,
             **{name: data.draw(odd) for name in names}}
            for step in (0, 5) for risk in ("unlearn", "retain") for layer in ("total", "embed")
        ]  # fmt: skip
        tables = {"g_effect": columns(rows), "meta": {"groups": {"embed": ["embed"]}}}
        for figure in (
            figures.g_effect(tables),
            figures.plane(tables),
            figures.risk_change(tables),
            figures.predicted_vs_realised(tables),
        ):
            if figure is not None:
                figure.canvas.draw()

    def test_infinite_risks_have_no_difference(self, tables):
        # inf - inf: the whole curve is lost, without a warning.
        lost = with_values(tables, "g_effect", "risk_value", lambda row: float("inf"))
        assert panel_notes(figures.risk_change(lost))[0].startswith("26 non-finite")

    @pytest.mark.parametrize(
        "name", ["cost_$5", "$x^{", r"a\$b$", "_hidden", "%s {0}", "two\nlines"]
    )
    def test_objective_names_are_printed_not_parsed(self, name, tmp_path):
        tables = make_tables((name, "npo"), samples=4)
        figure = figures.g_effect(tables)
        title = figure.axes[0].title
        shown, math_text = title._preprocess_math(title.get_text())
        assert (" ".join(shown.split()), math_text) == (" ".join(name.split()), False)
        figure.savefig(tmp_path / "named.png")

    def test_title_and_warning_may_hold_dollars(self, tmp_path):
        meta = {"title": "costs $5 and $6", "warning": "only $1$ left", "groups": GROUPS}
        figure = figures.weights({**make_tables(("npo",), samples=3), "meta": meta})
        assert r"only \$1\$ left" in texts(figure)
        figure.savefig(tmp_path / "dollars.png")


class TestTables:
    @pytest.mark.parametrize("name", ["g_effect", "plane", "risk_change", "predicted_vs_realised",
                                      "confidence", "weights"])  # fmt: skip
    def test_missing_or_empty_is_no_figure(self, name, tables):
        empty = {key: {c: [] for c in table} for key, table in tables.items() if key != "meta"}
        assert getattr(figures, name)({}) is None
        assert getattr(figures, name)(empty) is None
        assert figures.pg_density(empty, "npo") is None

    def test_missing_column_is_named_with_the_nearest(self, tables):
        table = dict(tables["g_effect"])
        table["risks"] = table.pop("risk")
        with pytest.raises(ValueError, match=r"'g_effect' has no column 'risk'.*'risks'\?"):
            figures.plane({"g_effect": table})

    def test_columns_of_different_length(self, tables):
        table = {**tables["samples"], "weight": [1.0]}
        with pytest.raises(ValueError, match="'samples' differ in length"):
            figures.weights({"samples": table})

    def test_numpy_columns_do_as_well_as_lists(self, tables):
        arrays = {key: np.array(column) for key, column in tables["confidence"].items()}
        ax = figures.confidence({"confidence": arrays}).axes[0]
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
        figure = figures.g_effect({**tables, "g_effect": shuffled})
        for ours, theirs in zip(figure.axes, drawn["g_effect"].axes, strict=True):
            for a, b in zip(ours.lines, theirs.lines, strict=True):
                np.testing.assert_allclose(a.get_xydata(), b.get_xydata(), rtol=1e-12)


class TestSheet:
    def test_every_figure_has_title_warning_and_caption(self, drawn):
        for figure in drawn.values():
            said = texts(figure)
            assert "forget05" in said and WARNING in said

    def test_nothing_overlaps_or_leaves_the_figure(self):
        names = ("ga", "npo beta=0.1", "wga", "my_pkg.losses:a_loss_with_quite_a_long_name indeed")
        tables = make_tables((*names, "po", "rmu c=5 layer 11, unit norm"), samples=3)
        makers = (
            figures.g_effect,
            figures.plane,
            figures.risk_change,
            figures.predicted_vs_realised,
        )
        for make in makers:
            figure = make(tables)
            figure.draw_without_rendering()
            width, height = figure.canvas.get_width_height()
            boxes = [ax.get_tightbbox() for ax in figure.axes]
            boxes = [box for box in boxes if box is not None]
            words = [text.get_window_extent() for text in figure.texts if text.get_text()]
            words.append(figure.legends[0].get_window_extent())
            for box in boxes + words:
                assert box.x0 >= -1 and box.y0 >= -1
                assert box.x1 <= width + 1 and box.y1 <= height + 1
            assert not [1 for a in boxes for b in words if a.overlaps(b)]
            for group in (boxes, words):
                assert not [1 for k, a in enumerate(group) for b in group[:k] if a.overlaps(b)]

    @pytest.mark.parametrize("count", [1, 2, 5, 8, 12])
    def test_small_multiples_wrap(self, count):
        names = [f"npo {number}" for number in range(count)]
        figure, axes = panels.small_multiples(names, panel=(2.0, 2.0), xlabel="x", ylabel="y")
        assert list(axes) == names and len(figure.axes) == count
        bottom = min(ax.get_position().y0 for ax in axes.values())
        for ax in axes.values():
            if ax.get_position().y0 == bottom:
                assert ax.get_xlabel() == "x"

    def test_objective_colours_are_distinct_and_then_dashed(self):
        names = [str(number) for number in range(14)]
        styles = [tuple(panels.objective_style(name, names).items()) for name in names]
        assert len(set(styles)) == 14

    def test_drawing_leaves_matplotlib_settings_alone(self, tables):
        before = dict(matplotlib.rcParams)
        figures.confidence(tables)
        assert dict(matplotlib.rcParams) == before


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


class TestDrawAll:
    def test_writes_every_figure_once(self, tmp_path):
        paths = figures.draw_all(make_tables(("npo", "wga"), samples=6), tmp_path / "new" / "figs")
        assert [path.name for path in paths] == [
            "g_effect.png", "plane.png", "risk_change.png", "predicted_vs_realised.png",
            "confidence.png", "weights.png", "pg_density_npo.png", "pg_density_wga.png",
        ]  # fmt: skip
        assert sorted(path.name for path in (tmp_path / "new/figs").iterdir()) == sorted(
            path.name for path in paths
        )
        assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)

    def test_returns_only_what_it_drew(self, tables, tmp_path):
        some = {"confidence": tables["confidence"], "samples": {}, "meta": tables["meta"]}
        assert [p.name for p in figures.draw_all(some, tmp_path)] == ["confidence.png"]
        assert figures.draw_all({}, tmp_path / "none") == []

    def test_same_tables_same_bytes(self, tables, tmp_path):
        some = {"confidence": tables["confidence"]}
        first, second = (figures.draw_all(some, tmp_path / name)[0] for name in "ab")
        assert first.read_bytes() == second.read_bytes()

    def test_a_failed_write_leaves_the_old_file(self, tables, tmp_path, monkeypatch):
        (path,) = figures.draw_all({"confidence": tables["confidence"]}, tmp_path)
        before = path.read_bytes()

        def half(self, part, **kwargs):
            part.write_bytes(b"half")
            raise OSError("no space left")

        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", half)
        with pytest.raises(OSError, match="no space left"):
            figures.draw_all({"confidence": tables["confidence"]}, tmp_path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text("aA/:$.-2", max_size=5), unique=True, max_size=6))
    def test_file_names_are_safe_and_distinct(self, names):
        stems = figures._stems(names)
        assert len({stem.lower() for stem in stems}) == len(names)
        assert all("/" not in stem and ":" not in stem and stem[0] != "." for stem in stems)

    def test_file_names_are_readable_and_short(self):
        assert figures._stems(["NPO beta=0.1", "x" * 99]) == ["npo_beta=0.1", "x" * 60]
