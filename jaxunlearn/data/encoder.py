"""Encodes all splits of a run in one way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data.encoding import (
    Encoded,
    TooLong,
    encode,
    encode_documents,
    encode_prompt,
    encode_rows,
)
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.prompts import TOFU_PROMPT, Prompt
from jaxunlearn.data.rows import DataRows, Row, place_of


class Items(NamedTuple):
    """Rows with several encoded pairs of question and answer each.

    Attributes:
      rows: the rows, without those left out.
      sequences: the encoded pairs of each row.
    """

    rows: DataRows
    sequences: list[list[Sample]]


class Encoder:
    """Encodes the splits of a run in one way, and notes which rows it left out.

    Args:
      tokenizer: a transformers tokenizer.
      prompt: how questions are written.
      context: most tokens of a sequence.
      too_long: what to do with rows over it, as in `encode_rows`.
      chunk_tokens: most tokens of a chunk of a document, see `encode_documents`; default: the
        context.
      vocab_size: the model's; a text with a token beyond it is an error. None checks nothing.

    Attributes:
      notes: one sentence for every split of which rows were left out.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: Prompt = TOFU_PROMPT,
        context: int,
        too_long: TooLong,
        chunk_tokens: int | None = None,
        vocab_size: int | None = None,
    ):
        if chunk_tokens is not None and chunk_tokens > context:
            raise ValueError(
                f"data.chunk_tokens: {chunk_tokens} is over the model's context of {context} tokens"
            )
        self._tokenizer, self._context, self._vocab_size = tokenizer, context, vocab_size
        self._prompt, self._chunk_tokens = prompt, chunk_tokens or context
        self._too_long: TooLong = too_long
        self.notes: list[str] = []

    def encode(self, rows: DataRows, source: str) -> tuple[list[Sample], list[int]]:
        """Encodes rows, documents in chunks; of no rows there are no sequences.

        Args:
          rows: in their normal form, see `rows`.
          source: name of the data in messages.

        Returns:
          The sequences, and the row of each.

        Raises:
          ValueError: as in `encode_rows` and `encode_documents`, or no row fits the context.
        """
        if not rows:
            return [], []
        encoded = self._encoded(rows, source)
        if encoded.dropped:
            self._note(len(encoded.dropped), source)
        self._check_fits(encoded.sequences, source)
        self._check_vocabulary(encoded.sequences, source)
        return encoded.sequences, encoded.kept_ids.tolist()

    def one(self, row: Mapping[str, Any]) -> Sample:
        """Encodes one question with its answer, whatever its length."""
        history = row.get("history", ())
        sample = encode(
            self._tokenizer, row["question"], row["answer"], prompt=self._prompt, history=history
        )
        self._check_vocabulary([sample], "a substitute answer")
        return sample

    def question(self, row: Mapping[str, Any]) -> np.ndarray:
        """Encodes the question of a row with all that comes before its answer, [T] int32."""
        history = row.get("history", ())
        return encode_prompt(self._tokenizer, row["question"], prompt=self._prompt, history=history)

    def own(self, rows: DataRows, source: str) -> Items:
        """Encodes rows as `encode`, one sequence an item; every chunk of a document is an item."""
        samples, ids = self.encode(rows, source)
        return Items([rows[i] for i in ids], [[sample] for sample in samples])

    def items(
        self,
        rows: DataRows,
        pairs: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]],
        source: str,
    ) -> Items:
        """Encodes several pairs of every row.

        A row of which any pair is over the context is an error or left out, as `too_long` says.

        Args:
          rows: the rows.
          pairs: (row) -> its pairs of question and answer.
          source: name of the data in messages.

        Raises:
          ValueError: as in `encode_rows`, or no row fits the context.
        """
        by_row = [list(pairs(row)) for row in rows]
        encoded = encode_rows(
            self._tokenizer,
            [
                Row({**row, "question": question, "answer": answer}, place_of(row) or "")
                for row, row_pairs in zip(rows, by_row, strict=True)
                for question, answer in row_pairs
            ],
            prompt=self._prompt,
            context=self._context,
            too_long=self._too_long,
            source=f"{source}, all answers in a row",
        )
        self._check_vocabulary(encoded.sequences, source)
        by_id = dict(zip(encoded.kept_ids.tolist(), encoded.sequences, strict=True))
        ends = np.cumsum([len(row_pairs) for row_pairs in by_row])
        items = Items([], [])
        for row, end, row_pairs in zip(rows, ends, by_row, strict=True):
            ids = range(end - len(row_pairs), end)
            if all(i in by_id for i in ids):
                items.rows.append(row)
                items.sequences.append([by_id[i] for i in ids])
        if left_out := len(rows) - len(items.rows):
            self._note(left_out, source)
        self._check_fits(items.rows, source)
        return items

    def _encoded(self, rows: DataRows, source: str) -> Encoded:
        if "text" in rows[0]:
            return encode_documents(
                self._tokenizer, rows, chunk_tokens=self._chunk_tokens, source=source
            )
        return encode_rows(
            self._tokenizer,
            rows,
            prompt=self._prompt,
            context=self._context,
            too_long=self._too_long,
            source=source,
        )

    def _note(self, count: int, source: str) -> None:
        self.notes.append(f"{source}: {count} rows over {self._context} tokens left out")

    def _check_fits(self, fitting: Sequence[Any], source: str) -> None:
        """Refuses data of which no row fits the context."""
        if not fitting:
            raise ValueError(
                f"{source}: no row fits the context of {self._context} tokens; shorten the rows, or"
                " take a model with a longer context"
            )

    def _check_vocabulary(self, samples: Sequence[Sample], source: str) -> None:
        """Refuses tokens that the model has no embedding for: it would compute with NaN."""
        size = self._vocab_size
        for sample in samples:
            if size is not None and (beyond := sample.tokens[sample.tokens >= size]).size:
                token = int(beyond[0])
                raise ValueError(
                    f"{source}: token {token} ({self._tokenizer.decode([token])!r}) is beyond the"
                    f" model's vocabulary of {size}; the tokenizer is not this model's"
                )
