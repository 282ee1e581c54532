"""Refusals: texts such as "I don't know", which preference objectives put in place of answers."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.core.paths import read_text, user_path
from jaxunlearn.data import planning
from jaxunlearn.data.fictional import REFUSALS
from jaxunlearn.data.order import Stream, generator
from jaxunlearn.data.rows import DataRows

REFUSAL_FILE = "idontknow.jsonl"


def load_refusals(source: str | Path | None = None) -> list[str]:
    """Reads refusals: plain text, one a line.

    Args:
      source: a file, or a folder that holds ``idontknow.jsonl`` (TOFU's own name and format, 100
        lines); None gives the packaged ones.

    Returns:
      The lines, without the blank ones.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no lines in it, not UTF-8, or a line of JSON, which would be the answer as it is.
    """
    if source is None:
        return list(REFUSALS)
    path = user_path(source)
    path = path / REFUSAL_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no refusals; expected plain text, one answer a line")
    lines = []
    # `splitlines` would also cut at separators that may stand in a sentence.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if _is_json(line):
            raise ValueError(f"{path}:{number}: JSON; expected plain text, one answer a line")
        if line.strip():
            lines.append(line.strip())
    if not lines:
        raise ValueError(f"{path}: empty; expected plain text, one answer a line")
    return lines


def _is_json(line: str) -> bool:
    """Whether a line is an object or a list of JSON."""
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def refusal_index(seed: int, sample: int, epoch: int | None, n: int) -> int:
    """Draws the refusal for a sample uniformly; the draw depends on the arguments alone.

    Args:
      seed: of the run.
      sample: id of the sample.
      epoch: from 0 in training; None in measurements, which all use the same refusal of a sample.
      n: number of refusals.

    Returns:
      An index in 0..n-1.

    Raises:
      ValueError: ``n`` is not positive, or a negative argument.

    >>> refusal_index(0, 3, None, 100) == refusal_index(0, 3, None, 100)
    True
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    turn = 0 if epoch is None else epoch + 1  # 0 is the draw for measurements
    return int(generator(seed, Stream.REFUSAL, sample, turn).integers(n))


class Refusals:
    """The refusals of a run: which text stands in for a sample's answer, encoded with its question.

    A refusal is a text; objectives such as `po` and `dpo` call the encoded pair of question and
    refusal the `substitute` of a sample.

    Args:
      rows: the rows of the samples, whose answers are not read.
      lines: the refusals to draw from.
      encode: (a row with a refusal in the place of its answer) -> the encoded pair.
      seed: of the draws.
    """

    def __init__(
        self,
        rows: DataRows,
        lines: Sequence[str],
        encode: Callable[[Mapping[str, Any]], planning.Sample],
        seed: int,
    ):
        # A pair is drawn in many epochs, and encoded when it is drawn first.
        @functools.cache
        def encoded(sample: int, line: int) -> planning.Sample:
            return encode({**rows[sample], "answer": lines[line]})

        self._seed, self._count, self._encoded = seed, len(lines), encoded

    def draw(self, sample: int, epoch: int | None) -> planning.Sample:
        """Returns the substitute of a sample in an epoch, or with None the one for measurements."""
        return self._encoded(sample, refusal_index(self._seed, sample, epoch, self._count))
