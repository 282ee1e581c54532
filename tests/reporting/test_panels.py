"""Titles, captions, legends and panels of every figure."""

import matplotlib
import pytest
from matplotlib.figure import Figure

from jaxunlearn.reporting.figures import panels
from jaxunlearn.reporting.figures.effect import g_effect, harm_ratio, plane
from jaxunlearn.reporting.figures.risk import confidence, predicted_vs_realised, risk_change
from tests.reporting.synthetic import WARNING, make_tables, texts


class TestSheet:
    def test_every_figure_has_title_warning_and_caption(self, drawn):
        for figure in drawn.values():
            said = texts(figure)
            assert "forget05" in said and WARNING in said

    def test_nothing_overlaps_or_leaves_the_figure(self):
        names = ("ga", "npo beta=0.1", "wga", "my_pkg.losses:a_loss_with_quite_a_long_name indeed")
        tables = make_tables((*names, "po", "rmu c=5 layer 11, unit norm"), samples=3)
        makers = (g_effect, plane, harm_ratio, risk_change, predicted_vs_realised)
        for make in makers:
            figure = make(tables)
            figure.draw_without_rendering()
            width, height = figure.canvas.get_width_height()
            boxes = [ax.get_tightbbox() for ax in figure.axes]
            boxes = [box for box in boxes if box is not None]
            words = [text.get_window_extent() for text in figure.texts if text.get_text()]
            words += [legend.get_window_extent() for legend in figure.legends]
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
        confidence(tables)
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("lengths", [(5, 5, 5, 18, 18, 28), (3, 30), (8,) * 7, (40, 4, 4, 4)])
def test_a_legend_is_no_wider_than_its_figure(lengths):
    handles = [panels.swatch("x" * length, color="#000000") for length in lengths]
    figure = Figure(figsize=(6.8, 4))
    figure.subplots()
    panels.finish(figure, {}, "Title", "Caption.", handles)
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x1 <= figure.bbox.x1
