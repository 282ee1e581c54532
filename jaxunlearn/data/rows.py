"""Rows of question-answer data, and when two of them are the same."""

from collections.abc import Mapping
from typing import Any

DataRows = list[dict[str, Any]]


def row_key(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what identifies a row: rows of equal keys have the same question and answer."""
    return row["question"], row["answer"]
