"""Values that are not finite, null or odd are left out, counted, and break no figure."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxunlearn.reporting import palette
from jaxunlearn.reporting.figures import draw
from jaxunlearn.reporting.figures.effect import g_effect, plane
from jaxunlearn.reporting.figures.risk import predicted_vs_realised, risk_change
from jaxunlearn.reporting.figures.weight import weights
from tests.reporting.synthetic import (
    GROUPS,
    STEPS,
    columns,
    lines,
    make_tables,
    panel,
    panel_notes,
    texts,
    with_values,
)


class TestOddValues:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_non_finite_effects_are_dropped_and_counted(self, tables, bad, tmp_path):
        broken = with_values(
            tables, "g_effect", "value",
            lambda row: bad if (row["step"], row["objective"]) == (30, "ga") else row["value"],
        )  # fmt: skip
        figure = g_effect(broken)
        (line,) = lines(panel(figure, "ga"), palette.RISKS["unlearn"])
        assert 30 not in line[:, 0] and len(line) == len(STEPS) - 1
        # Total on both sets; per set five groups.
        notes = [f"{count} non-finite not drawn" for count in (2, 5, 5)]
        assert panel_notes(figure) == notes
        assert panel_notes(plane(broken)) == ["2 non-finite not drawn"]
        figure.savefig(tmp_path / "broken.png")

    def test_null_is_not_counted_as_non_finite(self, tables):
        sparse = with_values(
            tables, "g_effect", "value", lambda row: None if row["step"] == 30 else row["value"]
        )
        assert panel_notes(g_effect(sparse)) == []

    def test_a_panel_without_finite_values_says_so(self, tables, tmp_path):
        empty = with_values(
            tables, "g_effect", "risk_value",
            lambda row: float("nan") if row["objective"] == "ga" else row["risk_value"],
        )  # fmt: skip
        notes = panel_notes(risk_change(empty))
        assert notes == ["26 non-finite not drawn"]
        nothing = with_values(empty, "g_effect", "interval_predicted", lambda row: None)
        nothing = with_values(nothing, "g_effect", "value", lambda row: float("inf"))
        assert panel_notes(plane(nothing))[0].startswith("no finite value; 26")
        for number, path in enumerate(draw.draw_all(nothing, tmp_path)):
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
            g_effect(tables),
            plane(tables),
            risk_change(tables),
            predicted_vs_realised(tables),
        ):
            if figure is not None:
                figure.canvas.draw()

    def test_infinite_risks_have_no_difference(self, tables):
        # inf - inf: the whole curve is lost, without a warning.
        lost = with_values(tables, "g_effect", "risk_value", lambda row: float("inf"))
        assert panel_notes(risk_change(lost))[0].startswith("26 non-finite")

    @pytest.mark.parametrize(
        "name", ["cost_$5", "$x^{", r"a\$b$", "_hidden", "%s {0}", "two\nlines"]
    )
    def test_objective_names_are_printed_not_parsed(self, name, tmp_path):
        tables = make_tables((name, "npo"), samples=4)
        figure = g_effect(tables)
        title = figure.axes[0].title
        text, math_text = title._preprocess_math(title.get_text())
        assert (" ".join(text.split()), math_text) == (" ".join(name.split()), False)
        figure.savefig(tmp_path / "named.png")

    def test_title_and_warning_may_hold_dollars(self, tmp_path):
        meta = {"title": "costs $5 and $6", "warning": "only $1$ left", "groups": GROUPS}
        figure = weights({**make_tables(("npo",), samples=3), "meta": meta})
        assert r"only \$1\$ left" in texts(figure)
        figure.savefig(tmp_path / "dollars.png")
