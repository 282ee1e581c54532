"""Synthetic tables shaped like those of a run, and what tests read off a figure."""

import math

import numpy as np
from matplotlib.colors import to_rgba

from jaxunlearn.reporting.figures import series

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
        "reduction": "sequence_sum", "estimator": "full", "precision": "float32 highest",
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
            "reduction": "sequence_sum", "estimator": "jvp", "precision": "float32 highest",
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
    expected = [line for line in ax.lines if to_rgba(line.get_color()) == to_rgba(color)]
    return [np.asarray(line.get_xydata()) for line in expected]


def panel(figure, title: str):
    return next(ax for ax in figure.axes if ax.get_title() == title)


def texts(figure) -> str:
    result = [text.get_text() for text in figure.texts]
    return " ".join(" ".join(result).split())


def panel_notes(figure) -> list[str]:
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    return [word for word in words if "finite" in word]
