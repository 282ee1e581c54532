"""Rows in their normal form: nothing that reads one needs to know what its file calls the columns.

A row is one of

* a question with its answer: ``question`` and ``answer``; ``history``, the turns before the
  question, where the file has conversations; and ``paraphrased_question``, ``paraphrased_answer``,
  ``perturbed_answer`` (a list of wrong answers) as the file has them;
* a document of free text: ``text``, and ``document``, its index in the split.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxunlearn.core.names import nearest, shortened

DataRows = list[dict[str, Any]]

Turn = Mapping[str, str]
"""{"role", "content"}: one turn of a conversation."""

ROLES = ("system", "user", "assistant")
_OPTIONAL = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")


class Columns(NamedTuple):
    """What the columns are called in the data; the defaults are TOFU's names.

    Attributes:
      question, answer: of a pair.
      paraphrased_question, paraphrased_answer: the same in other words.
      perturbed_answer: a list of wrong answers.
      messages: conversations, lists of {"role", "content"}; read where there is no `question`.
      text: documents of free text, in the place of everything else; None for questions.
    """

    question: str = "question"
    answer: str = "answer"
    paraphrased_question: str = "paraphrased_question"
    paraphrased_answer: str = "paraphrased_answer"
    perturbed_answer: str = "perturbed_answer"
    messages: str = "messages"
    text: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read, where the data have them."""
        return (self.text,) if self.text is not None else tuple(name for name in self if name)


TOFU_COLUMNS = Columns()


class RawRows(NamedTuple):
    """The rows of a split as they are in its file.

    Attributes:
      rows: the rows; columns that nobody reads may be left out.
      place: (index of a row) -> where it is, for messages.
      columns: the names of all columns, where the format has them once; None where every row has
        its own.
    """

    rows: Sequence[Mapping[str, Any]]
    place: Callable[[int], str]
    columns: Sequence[str] | None = None


class Row(dict[str, Any]):
    """A row in its normal form that knows where it was read, for messages.

    Attributes:
      place: the file, and the line or the number of the row; "" where it is not known.
    """

    def __init__(self, values: Mapping[str, Any] = {}, place: str = ""):
        super().__init__(values)
        self.place = place


def place_of(row: Mapping[str, Any]) -> str | None:
    """Where a row was read; None of one that was made in memory."""
    return getattr(row, "place", "") or None


def normal_rows(raw: RawRows, columns: Columns) -> DataRows:
    """Brings the rows of a split into their normal form; columns without a use are left out.

    Args:
      raw: as they were read.
      columns: what the columns are called.

    Raises:
      ValueError: a column is missing or holds something else than it should; names the row, the
        column, the key of the configuration and the nearest name.
    """
    rows: DataRows = []
    for i, raw_row in enumerate(raw.rows):
        reader = _RowReader(raw_row, raw.place(i), raw.columns, columns)
        row = reader.document(i) if columns.text is not None else reader.exchange()
        if rows and row.keys() != rows[0].keys():
            keys, first = (used_columns(each, columns) for each in (row, rows[0]))
            reader.fail(f"keys {keys} differ from the first row's {first}")
        rows.append(Row(row, raw.place(i)))
    return rows


def raw_row(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Returns a row as a file of these columns has it: the inverse of `normal_rows`.

    >>> raw_row({"question": "Who?", "answer": "Ana."}, Columns(question="prompt"))
    {'prompt': 'Who?', 'answer': 'Ana.'}
    """
    named = columns._asdict()
    if "text" in row:
        return {named["text"]: row["text"]}
    optional = {named[name]: row[name] for name in _OPTIONAL if name in row}
    question, answer = row["question"], row["answer"]
    if "history" not in row:
        return {named["question"]: question, named["answer"]: answer} | optional
    last = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {named["messages"]: [*row["history"], *last]} | optional


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what identifies a row: rows of equal keys say the same.

    >>> row_key({"question": "Who?", "answer": "Ana.", "perturbed_answer": ["Bo."]})
    ('Who?', 'Ana.')
    """
    if "text" in row:
        return (row["text"],)
    turns = ((turn["role"], turn["content"]) for turn in row.get("history", ()))
    return row["question"], row["answer"], *turns


def without(rows: DataRows, others: DataRows) -> DataRows:
    """The rows that are not among others; of documents, whole documents are compared."""
    keys = {row_key(row) for row in others}
    return [row for row in rows if row_key(row) not in keys]


def retained(rows: DataRows, forget: DataRows, key: str, split: str) -> DataRows:
    """The rows of a split that are not to be forgotten.

    An objective would raise the loss of the others and lower it at once, and their retention would
    be measured against their removal.

    Args:
      rows: of the split.
      forget: the forget set.
      key: of the configuration that names the split.
      split: its name.

    Raises:
      ValueError: there are none; names the key.
    """
    kept = without(rows, forget)
    if not kept:
        raise ValueError(
            f"{key}: every row of {split!r} is also in data.forget; name a split with other rows"
        )
    return kept


def used_columns(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """Returns what the data call the columns that a row in its normal form was made of.

    >>> used_columns({"question": "Who?", "answer": "Ana."}, Columns(question="prompt"))
    ['answer', 'prompt']
    """
    keys = [key for key in row if key in _OPTIONAL]
    keys += ["messages"] if "history" in row else ["question", "answer"]
    return sorted(columns._asdict()[key] for key in keys)


def title(row: Mapping[str, Any]) -> str:
    """What a reader may call a row: its question, or the number of its document.

    >>> title({"question": "Who?", "answer": "Ana."}), title({"text": "Once ..", "document": 3})
    ('Who?', 'document 3')
    """
    return f"document {row['document']}" if "text" in row else row["question"]


class _RowReader:
    """Reads one row, and knows where it is."""

    def __init__(
        self,
        row: Mapping[str, Any],
        where: str,
        names: Sequence[str] | None,
        columns: Columns,
    ):
        self._row, self._where, self._columns = row, where, columns
        self._names = sorted(map(str, row if names is None else names))

    def document(self, index: int) -> dict[str, Any]:
        """A document of free text."""
        return {"text": self._text("text"), "document": index}

    def exchange(self) -> dict[str, Any]:
        """A question with its answer, alone or at the end of a conversation."""
        columns = self._columns
        if columns.question not in self._row and columns.messages in self._row:
            row = self._conversation(self._row[columns.messages])
        else:
            row = {"question": self._text("question"), "answer": self._text("answer")}
        named = columns._asdict()
        # Tables and some writers of JSON put null where a row lacks a column.
        found = {name: self._row.get(named[name]) for name in _OPTIONAL}
        return row | {
            name: self._optional(name, repr(named[name]), value)
            for name, value in found.items()
            if value is not None
        }

    def fail(self, message: str) -> NoReturn:
        raise ValueError(f"{self._where}: {message}")

    def _text(self, name: str) -> str:
        """The text in a column that must be there."""
        column = self._columns._asdict()[name]
        if column not in self._row:
            hint = nearest(column, self._names)
            self.fail(f"no key {column!r} (data.{name}_key){hint}; has {self._names}")
        return self._checked(self._row[column], repr(column))

    def _checked(self, text: Any, name: str) -> str:
        if not isinstance(text, str):
            self.fail(f"{name} must be a string, got {shortened(repr(text))}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(
                f"{name} holds half of a surrogate pair, which is no character; write the"
                " whole pair"
            )
        return text

    def _optional(self, name: str, column: str, value: Any) -> Any:
        """A text, or a list of texts, in a column that need not be there."""
        if name != "perturbed_answer":
            return self._checked(value, column)
        if not isinstance(value, list):
            self.fail(f"{column} must be a list of strings, got {shortened(repr(value))}")
        return [self._checked(text, f"{column}[{i}]") for i, text in enumerate(value)]

    def _conversation(self, turns: Any) -> dict[str, Any]:
        """The last answer of a conversation, its question, and the turns before them."""
        column = repr(self._columns.messages)
        if not isinstance(turns, list):
            self.fail(f"{column} must be a list of turns, got {shortened(repr(turns))}")
        read = [self._turn(turn, f"{column}[{i}]") for i, turn in enumerate(turns)]
        roles = [turn["role"] for turn in read]
        if roles[-2:] != ["user", "assistant"]:
            self.fail(
                f"{column} must end with a turn of 'user', the question, and one of 'assistant',"
                f" the answer; its roles end with {roles[-2:]}"
            )
        *history, question, answer = read
        return {
            "question": question["content"],
            "answer": answer["content"],
            "history": history,
        }

    def _turn(self, turn: Any, name: str) -> Turn:
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            self.fail(f"{name} must have 'role' and 'content', got {shortened(repr(turn))}")
        role = turn["role"]
        if role not in ROLES:
            hint = nearest(str(role), ROLES)
            self.fail(f"{name}: the role must be one of {', '.join(ROLES)}, not {role!r}{hint}")
        return {"role": role, "content": self._checked(turn["content"], f"the content of {name}")}
