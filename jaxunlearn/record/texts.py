"""The texts of a run's samples, so that a report shows what a number is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder


class SampleText(NamedTuple):
    """One sample in words.

    Attributes:
      split: "forget" (D_u) or "retain" (D_r).
      sample: its index in the split.
      question, answer: as in the data; of a document, its number and the text of one chunk.
      tokens: the text of every label token, the end of the sequence included.
    """

    split: str
    sample: int
    question: str
    answer: str
    tokens: list[str]


_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("sample", pa.int32()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("tokens", pa.list_(pa.string())),
    ]
)


def write(run: Path, texts: Sequence[SampleText]) -> None:
    """Writes the texts of a run, whole or not at all."""
    table = pa.Table.from_pylist([text._asdict() for text in texts], _SCHEMA)
    tables.write_parquet(table, RunFolder(run).texts)


def read(run: Path) -> list[SampleText]:
    """The texts of a run; none where it has no file of them."""
    file = RunFolder(run).texts
    rows = tables.read_parquet(file).to_pylist() if file.exists() else []
    return [SampleText(**row) for row in rows]
