"""The table of a step between two checkpoints."""

from jaxunlearn.reporting.step_table import step_table


def rows_of(risk, cosine):
    common = {"risk": risk, "step_cosine": cosine, "reduction": "token_mean"}
    layers = {"block_0": -0.25, "norm": 0.0, "total": -0.25}
    rows = [
        common | {"layer": name, "interval_predicted": value, "step_norm": 0.5}
        for name, value in layers.items()
    ]
    rows[-1]["interval_change"] = -0.20051
    return rows


def test_the_total_stands_above_the_real_change():
    table = step_table(rows_of("unlearn", -0.5) + rows_of("retain", None))
    assert table.columns == (
        "layer", "step norm", "forget predicted", "forget cosine", "retain predicted",
        "retain cosine",
    )  # fmt: skip
    assert [row[0] for row in table.rows] == ["block_0", "norm", "total", "real change"]
    assert table.rows[2] == ("total", "0.5", "-0.25", "-0.500", "-0.25", "-")
    assert table.rows[1][2] == "0"
    assert table.rows[3] == ("real change", "", "-0.201", "", "-0.201", "")
    assert "token_mean" in table.captions[0]
