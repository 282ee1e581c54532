"""docs/tables.md lists every column of every table, as the code's own docstrings say it.

Write it anew with `python -m tests.test_tables_page`.
"""

import inspect
import re
import typing
from pathlib import Path

from jaxunlearn.record import step_tables, tables

PAGE = Path(__file__).parents[1] / "docs" / "tables.md"
HEAD = """# The tables of a run

Every table is a Parquet file in the run's folder, one row a measurement, so that it can be filtered
and plotted by any tool:

```python
import pyarrow.parquet as pq

table = pq.read_table("runs/demo/seed-0/g_effect.parquet").to_pandas()
totals = table[(table.layer == "total") & (table.risk == "retain")]
totals.pivot(index="step", columns="objective", values="value").plot()
```

R is a risk, the negative log-likelihood of the answers in nats, reduced as the objective is; L_u is
the unlearning objective alone, without a retain term; theta_t are the parameters before the update
of step t. Where something was not measured a value is null.
"""


STEP = """# The tables of a step between two checkpoints

`jaxunlearn effects BEFORE AFTER` writes these three into a folder of its own. theta_before and
theta_after are the two checkpoints; columns that mean what they mean in a run's table have the same
name.
"""


def page() -> str:
    return "\n".join([HEAD, *sections(tables._ROWS), STEP, *sections(step_tables.ROWS)])


def sections(rows) -> list[str]:
    parts = []
    for name, row in rows.items():
        text = inspect.cleandoc(row.__doc__)
        intro, _, attributes = text.partition("Attributes:")
        intro = re.sub(r"^A row of `\w+`: ", "", intro.strip())
        parts.append(f"## `{name}.parquet`\n\n{intro[0].upper()}{intro[1:]}\n")
        parts.append("| column | type | is |\n| --- | --- | --- |")
        kinds = typing.get_type_hints(row)
        for column, meaning in columns(attributes).items():
            kind = tables.without_none(kinds[column]).__name__
            cell = meaning.replace("|", "\\|")
            parts.append(f"| `{column}` | {kind} | {cell} |")
        parts.append("")
    return parts


def columns(attributes: str) -> dict[str, str]:
    """{column: meaning}; several columns may share one."""
    found: dict[str, str] = {}
    pattern = r"^  ([\w, ]+): (.*?)(?=^  [\w, ]+: |\Z)"
    for names, meaning in re.findall(pattern, attributes, re.M | re.S):
        for name in names.split(", "):
            found[name] = " ".join(meaning.split())
    return found


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.test_tables_page"


def test_every_column_has_a_meaning():
    of_runs = [(row, tables.SCHEMAS[name]) for name, row in tables._ROWS.items()]
    of_steps = [(row, step_tables.SCHEMAS[name]) for name, row in step_tables.ROWS.items()]
    for row, schema in of_runs + of_steps:
        described = columns(inspect.cleandoc(row.__doc__).partition("Attributes:")[2])
        assert list(described) == list(schema.names)
        assert all(described.values())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
