"""The heat maps of PG-effects show the rows of layers and tensors of `pg_effect`."""

import numpy as np
import pytest

from jaxunlearn.reporting.figures import draw, panels, series
from jaxunlearn.reporting.figures.layers import MOST_STEPS, pg_layers
from tests.reporting.synthetic import GROUPS, WARNING, columns, make_tables, texts

ORDER = ["embed", "block_0", "block_1", "block_2", "norm", "lm_head"]
SAMPLES = 5


def pg_row(step, risk, sample, layer, value):
    return {
        "step": step, "objective": "npo", "sample": sample, "layer": layer, "risk": risk,
        "value": value, "weight": 0.5, "reduction": "sequence_sum", "estimator": "exact",
        "precision": "float32 highest",
    }  # fmt: skip


def pg_rows(steps=(0, 5), layers=ORDER):
    """Rows of layers and totals; layers come last first, and values span five decades."""
    rng, rows = np.random.default_rng(0), []
    for step in steps:
        for risk in ("unlearn", "retain"):
            for sample in range(SAMPLES):
                values = rng.normal(size=len(layers)) * 10.0 ** rng.uniform(0, 5, len(layers))
                for layer, value in [*zip(layers, values, strict=True)][::-1]:
                    rows.append(pg_row(step, risk, sample, layer, float(value)))
                rows.append(pg_row(step, risk, sample, "total", float(values.sum())))
    return rows


def tables_of(rows, groups=GROUPS):
    meta = {"title": "forget05", "warning": WARNING, "groups": groups}
    return {"pg_effect": columns(rows), "meta": meta}


def by_key(rows):
    return {(r["step"], r["risk"], r["sample"], r["layer"]): r["value"] for r in rows}


def heat(figure, title):
    """The values of a panel, [samples, layers]."""
    (ax,) = [ax for ax in figure.axes if ax.get_title() == title]
    return ax.images[0].get_array()


class TestPgLayers:
    def test_cells_are_the_rows_of_the_table(self):
        rows = pg_rows()
        figure, values = pg_layers(tables_of(rows), "npo"), by_key(rows)
        for step in (0, 5):
            total = [values[step, "unlearn", s, "total"] for s in range(SAMPLES)]
            ranked = np.argsort(total)
            for risk, name in panels.RISK_NAMES.items():
                expected = [[values[step, risk, s, x] for x in ORDER] for s in ranked]
                np.testing.assert_array_equal(heat(figure, f"step {step}, {name}"), expected)

    def test_both_sets_and_all_steps_share_one_symmetric_scale(self):
        rows = pg_rows()
        figure = pg_layers(tables_of(rows), "npo")
        norms = {id(ax.images[0].norm): ax.images[0].norm for ax in figure.axes if ax.images}
        (norm,) = norms.values()
        largest = max(abs(r["value"]) for r in rows if r["layer"] != "total")
        assert norm.vmax == -norm.vmin == largest
        assert "[nats² per parameter²]" in figure.axes[-1].get_ylabel()

    def test_tensors_are_summed_over_their_layer(self):
        rows = [r for r in pg_rows(steps=(0,)) if r["layer"] != "block_1"]
        for sample in range(SAMPLES):
            for tensor, value in (("q.kernel", 2.0), ("mlp.up.kernel", -0.5)):
                rows.append(pg_row(0, "unlearn", sample, f"block_1.{tensor}", value * sample))
        figure = pg_layers(tables_of(rows), "npo")
        shown = heat(figure, f"step 0, {panels.RISK_NAMES['unlearn']}")[:, ORDER.index("block_1")]
        assert sorted(shown) == [1.5 * sample for sample in range(SAMPLES)]
        assert "Tensors are summed over their layer." in texts(figure)
        # D_r has no row of the block.
        other = heat(figure, f"step 0, {panels.RISK_NAMES['retain']}")
        assert other.mask[:, ORDER.index("block_1")].all() and other.mask.sum() == SAMPLES

    def test_a_layer_with_rows_of_its_own_is_not_counted_twice(self):
        rows = pg_rows(steps=(0,))
        twice = [pg_row(0, "unlearn", s, "block_0.q.kernel", 1e9) for s in range(SAMPLES)]
        title = f"step 0, {panels.RISK_NAMES['unlearn']}"
        plain = heat(pg_layers(tables_of(rows), "npo"), title)
        np.testing.assert_array_equal(heat(pg_layers(tables_of(rows + twice), "npo"), title), plain)

    def test_samples_are_ranked_by_the_sum_where_there_is_no_total(self):
        rows = [r for r in pg_rows(steps=(0,)) if r["layer"] != "total"]
        figure = pg_layers(tables_of(rows), "npo")
        sums = heat(figure, f"step 0, {panels.RISK_NAMES['unlearn']}").sum(axis=1)
        assert (np.diff(sums) > 0).all()

    def test_groups_are_bounded_and_in_the_legend(self):
        figure = pg_layers(tables_of(pg_rows()), "npo")
        borders = [x.get_xdata()[0] for x in figure.axes[0].lines if x.get_color() == "#222222"]
        assert borders == [0.5, 1.5, 2.5, 4.5]
        labels = [label.get_text() for label in figure.legends[0].get_texts()]
        assert labels == [*GROUPS]
        ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert ticks == ["embed", "0", "1", "2", "norm", "lm_head"]

    def test_without_groups_layers_keep_the_order_of_the_table(self):
        figure = pg_layers(tables_of(pg_rows(), groups={}), "npo")
        ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert ticks == [layer.removeprefix("block_") for layer in ORDER[::-1]]
        assert not figure.legends

    def test_a_layer_outside_every_group_is_an_error(self):
        groups = {group: layers for group, layers in GROUPS.items() if group != "lm"}
        with pytest.raises(ValueError, match=r"\['lm_head'\] are in no group"):
            pg_layers(tables_of(pg_rows(), groups), "npo")

    def test_totals_alone_are_no_figure(self):
        assert pg_layers(make_tables(samples=3), "npo") is None
        assert pg_layers(tables_of(pg_rows()), "ga") is None
        assert pg_layers({}, "npo") is None

    def test_of_many_steps_four_are_shown_or_those_asked_for(self):
        tables = tables_of(pg_rows(steps=range(0, 30, 5)))
        titles = {ax.get_title() for ax in pg_layers(tables, "npo").axes if ax.images}
        assert len(titles) == 2 * MOST_STEPS and {"step 0", "step 25"} < {
            title.split(",")[0] for title in titles
        }
        chosen = pg_layers(tables, "npo", steps=[10])
        assert {ax.get_title().split(",")[0] for ax in chosen.axes if ax.images} == {"step 10"}
        assert pg_layers(tables, "npo", steps=[7]) is None

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
    def test_what_is_not_finite_is_grey_and_counted_unless_null(self, bad, tmp_path):
        rows = pg_rows(steps=(0,))
        broken = next(r for r in rows if (r["risk"], r["layer"]) == ("retain", "embed"))
        broken["value"] = bad
        figure = pg_layers(tables_of(rows), "npo")
        masked = heat(figure, f"step 0, {panels.RISK_NAMES['retain']}").mask
        assert masked.sum() == 1 and masked[:, 0].any()
        notes = [text.get_text() for ax in figure.axes for text in ax.texts]
        assert notes == ([] if bad is None else ["1 non-finite not drawn"])
        labels = [label.get_text() for label in figure.legends[0].get_texts()]
        assert labels[-1] == "not measured or not finite"
        figure.savefig(tmp_path / "broken.png")

    def test_zeros_can_be_drawn(self, tmp_path):
        zeros = [r | {"value": 0.0} for r in pg_rows(steps=(0,))]
        pg_layers(tables_of(zeros), "npo").savefig(tmp_path / "zeros.png")

    def test_title_warning_and_caption(self):
        said = texts(pg_layers(tables_of(pg_rows()), "npo"))
        for words in ("PG-effects by layer: npo", "forget05", WARNING, "reduction sequence_sum"):
            assert words in said
        assert "Tensors" not in said

    @pytest.mark.parametrize("blocks", [2, 80])
    def test_nothing_overlaps_or_leaves_the_figure(self, blocks):
        names = [f"block_{i}" for i in range(blocks)]
        groups = {"embed": ["embed"], "deep": [*names, "norm"], "lm": ["lm_head"]}
        layers = ["embed", *names, "norm", "lm_head"]
        figure = pg_layers(tables_of(pg_rows((0, 5, 10, 15), layers), groups), "npo")
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        words = [text.get_window_extent() for text in figure.texts if text.get_text()]
        words.append(figure.legends[0].get_window_extent())
        for box in boxes + words:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        everything = boxes + words
        assert not [1 for k, a in enumerate(everything) for b in everything[:k] if a.overlaps(b)]
        for ax in figure.axes:
            ticks = [x.get_window_extent() for x in ax.get_xticklabels() if x.get_text()]
            assert not [1 for k, a in enumerate(ticks) for b in ticks[:k] if a.overlaps(b)]


def test_each_objective_has_a_file(tmp_path):
    rows = pg_rows(steps=(0,))
    other = [r | {"objective": "GA, fast", "weight": 1.0} for r in rows]
    names = [path.name for path in draw.draw_all(tables_of(rows + other), tmp_path)]
    assert names == ["pg_layers_npo.png", "pg_layers_ga_fast.png"]


def test_layer_grid_does_not_depend_on_the_order_of_rows():
    table = series.read(tables_of(pg_rows(steps=(0,))), "pg_effect")
    one = series.select(table, risk="retain")
    order = np.random.default_rng(1).permutation(len(one["step"]))
    shuffled = {key: column[order] for key, column in one.items()}
    grids = [series.layer_grid(each, range(SAMPLES), ORDER) for each in (one, shuffled)]
    np.testing.assert_array_equal(grids[0].values, grids[1].values)
    assert grids[0].dropped == 0 and grids[0].values.shape == (SAMPLES, len(ORDER))
