"""Markdown of the study's page."""

import statistics
from collections.abc import Sequence

from jaxunlearn.reporting.terminal import TextTable, markdown


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a cell's vertical bars are escaped."""
    return markdown(TextTable(tuple(titles), [tuple(row) for row in rows])).rstrip()


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the least and largest value in brackets where they differ from it."""
    middle, low, high = statistics.median(values), min(values), max(values)
    texts = [form.format(v) for v in (middle, low, high)]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"
