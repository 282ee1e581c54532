"""The table of the step between two checkpoints, for the terminal."""

from collections.abc import Sequence

from jaxunlearn.record.tables import TableRows
from jaxunlearn.reporting.terminal import TextTable, two_digits

SHOWN = {"unlearn": "forget", "retain": "retain"}


def step_table(rows: TableRows) -> TextTable:
    """A row for each layer, one for the total, and one for the real change.

    Args:
      rows: of the table `g_effect` of `record.step_tables`.
    """
    by_risk = {risk: [row for row in rows if row["risk"] == risk] for risk in SHOWN}
    layers = [row["layer"] for row in by_risk["unlearn"]]
    cells = [[two_digits(row["step_norm"]) for row in by_risk["unlearn"]]]
    columns, changes = ["layer", "step norm"], ["real change", ""]
    for risk, shown in SHOWN.items():
        columns += [f"{shown} predicted", f"{shown} cosine"]
        cells.append([_change(row["interval_predicted"]) for row in by_risk[risk]])
        cells.append([_cosine(row["step_cosine"]) for row in by_risk[risk]])
        changes += [_change(by_risk[risk][-1]["interval_change"]), ""]
    table = [tuple(line) for line in zip(layers, *cells, strict=True)]
    return TextTable(tuple(columns), [*table, tuple(changes)], _notes(by_risk["unlearn"]))


def _notes(rows: Sequence[dict]) -> tuple[str, ...]:
    reduction = rows[-1]["reduction"]
    return (
        f"predicted: grad R(before) . (after - before), R the NLL in nats, {reduction}",
        "cosine: of that gradient and the step",
    )


def _change(value: float) -> str:
    """Three digits, so that what was predicted can be told from what happened.

    >>> [_change(value) for value in (0.12904, -0.0000213, 0.0)]
    ['+0.129', '-2.13e-05', '0']
    """
    return f"{value:+.3g}" if value else "0"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
