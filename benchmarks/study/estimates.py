"""The table of the estimators."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.study.texts import table as markdown


def _row(state: Mapping[str, Any]) -> list[str]:
    """A row: exact effects, bfloat16's error, the running mean's bias, spread and conclusions."""
    exact, half = np.array(state["exact"]), np.array(state["bfloat16"])
    half_errors = (f"{value:+.1%}" for value in half / exact - 1)
    head = [f"{state['method']}, {state['place']:.1f}", *(f"{v:.3g}" for v in exact), *half_errors]
    if len(state["estimates"]) < 2:
        return [*head, *"------"]
    found = np.array(state["estimates"])
    bias = found.mean(0) / exact - 1
    spread = found.std(0, ddof=1) / np.abs(exact)
    outweighs = np.abs(found[:, 1]) > np.abs(found[:, 0])
    truth = abs(exact[1]) > abs(exact[0])
    wrong_sign = np.sign(found[:, 1]) != np.sign(exact[1])
    return [
        *head,
        *(f"{value:+.0%}" for value in bias),
        *(f"{value:.0%}" for value in spread),
        f"{np.mean(wrong_sign):.0%}",
        f"{np.mean(outweighs != truth):.0%}",
    ]


def table(compared: Sequence[Mapping[str, Any]]) -> str:
    """One row for each method and place, study after study."""
    titles = [
        "method, place", "e_u", "e_r", "bfloat16: e_u", "e_r", "running mean's bias: e_u", "e_r",
        "its spread: e_u", "e_r", "wrong sign of e_r", "wrong on whether abs(e_r) > abs(e_u)",
    ]  # fmt: skip
    texts = []
    for content in compared:
        rows = [_row(state) for state in content["states"]]
        about = content["about"]
        texts.append(
            f"`{content['study']}`, {content['repeats']} repeats, {about['date'][:10]}:\n\n"
            + markdown(titles, rows)
        )
    return "\n\n".join(texts) or "Not measured yet."
