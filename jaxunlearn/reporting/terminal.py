"""Text tables: one type, printed in the terminal or written as Markdown, and how numbers look."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxunlearn.record.folder import BASE


class TextTable(NamedTuple):
    """A table whose cells are text.

    Attributes:
      columns: the heads.
      rows: as many cells each as there are columns.
      captions: notes below the table.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    captions: tuple[str, ...] = ()


def shown_name(model: str) -> str:
    """The name of a model in the tables that people read: `base` is the model before unlearning.

    >>> shown_name("base"), shown_name("npo")
    ('before', 'npo')
    """
    return "before" if model == BASE else model


def rich_table(
    table: TextTable,
    title: str,
    *,
    left_aligned: Sequence[str] = (),
    two_line_heads: bool = True,
) -> Table:
    """A table for the terminal.

    All text is escaped: names of models and titles may hold brackets, which are markup to rich.

    Args:
      table: its cells, and the notes below it.
      title: the line above it.
      left_aligned: columns that are aligned to the left; the first one always is.
      two_line_heads: whether the last word of a head goes to a second line, which makes the table
        narrow enough for 80 columns.
    """
    rich = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in table.columns:
        head = "\n".join(name.rsplit(" ", 1)) if two_line_heads else name
        justify = "left" if name in (table.columns[0], *left_aligned) else "right"
        rich.add_column(escape(head), justify=justify, no_wrap=True)
    for row in table.rows:
        rich.add_row(*map(escape, row))
    if table.captions:
        rich.caption = "\n".join(map(escape, table.captions))
        rich.caption_justify = "left"
    return rich


def markdown(table: TextTable) -> str:
    r"""A table in Markdown, with its notes below.

    >>> print(markdown(TextTable(("model", "ES"), [("a|b", "0.1")])), end="")
    | model | ES |
    | --- | --- |
    | a\|b | 0.1 |
    """
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    text = "".join("| " + " | ".join(line) + " |\n" for line in cells)
    return text + "".join(f"\n{note}\n" for note in table.captions)


def print_wide(table: Table, console: Console) -> None:
    """Prints a table, wider than the terminal where its cells would be cut otherwise."""
    needed = Console(width=1000).measure(table).maximum
    wide = Console(file=console.file, quiet=console.quiet, width=max(needed, console.width))
    wide.print(table)


def three_decimals(value: float | None) -> str:
    """Three decimals, or a dash where there is no number.

    >>> three_decimals(0.0004), three_decimals(None)
    ('0.000', '-')
    """
    return "-" if value is None else f"{value:.3f}"


def probability(value: float) -> str:
    """Three decimals, or the power of ten of what would round to little or nothing.

    >>> probability(0.25), probability(0.0004)
    ('0.250', '4e-04')
    """
    return f"{value:.3f}" if value == 0 or value >= 0.001 else f"{value:.0e}"


def two_digits(value: float) -> str:
    """Two significant digits of a number of any size.

    >>> [two_digits(value) for value in (-5432.0, -83.0, 0.2149, 99.6, float("inf"))]
    ['-5.4e3', '-83', '0.21', '100', 'inf']
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
