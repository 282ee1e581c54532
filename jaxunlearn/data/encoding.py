"""Encodes rows as tokens and labels: questions with answers whole, documents in chunks.

No text is ever truncated.
"""

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxunlearn.core.names import nearest, shortened
from jaxunlearn.core.paths import user_path
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.rows import DataRows, Turn

Style = Literal["tofu", "chat"]
TooLong = Literal["error", "drop"]
STYLES = typing.get_args(Style)


class Prompt(NamedTuple):
    """How a question is written; all but the style is for chat templates alone.

    Attributes:
      style: ``tofu`` or ``chat``, see `encode`.
      system: the system prompt of rows that have none of their own.
      date: what templates that print a date print, as those of Llama 3 do. Without one they would
        print today's, and tomorrow a run would not be the same.
      examples: answered questions before every question, with ``question`` and ``answer`` each.
    """

    style: Style = "tofu"
    system: str | None = None
    date: str = "10 Apr 2025"
    examples: Sequence[Mapping[str, str]] = ()


TOFU_PROMPT = Prompt()


class Encoded(NamedTuple):
    """The encoded rows, and which rows were left out.

    Attributes:
      sequences: the encoded rows; of documents, the chunks.
      kept_ids: [len(sequences)] int32, the row of each sequence.
      dropped: the rows that are over the context.
    """

    sequences: list[Sample]
    kept_ids: np.ndarray
    dropped: list[int]


class Items(NamedTuple):
    """Rows with several encoded pairs of question and answer each.

    Attributes:
      rows: the rows, without those left out.
      sequences: the encoded pairs of each row.
    """

    rows: DataRows
    sequences: list[list[Sample]]


def load_tokenizer(path_or_name: str) -> Any:
    """Loads a tokenizer from a folder, or by its name on the Hugging Face hub.

    Args:
      path_or_name: a folder with ``tokenizer.json``, or a name such as ``meta-llama/Llama-2-7b``.

    Returns:
      A transformers tokenizer; code that comes with it is never run.

    Raises:
      FileNotFoundError: no tokenizer there, or one that needs code of its own.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(user_path(path_or_name)), trust_remote_code=False)
    # Of a damaged folder, transformers raises whatever its code runs into.
    except Exception as error:
        raise FileNotFoundError(
            f"no tokenizer at {str(path_or_name)!r}: expected a folder with tokenizer.json and"
            " tokenizer_config.json, or the name of a model on the Hugging Face hub"
            f" ({shortened(str(error)) or type(error).__name__})"
        ) from error


def encode(
    tokenizer: Any,
    question: str,
    answer: str,
    *,
    prompt: Prompt = TOFU_PROMPT,
    history: Sequence[Turn] = (),
) -> Sample:
    """Encodes one pair; the labels are the answer and exactly one EOS.

    ``tofu`` is the convention of the TOFU authors (Maini et al. 2024), whose logged token counts
    it reproduces row by row: the text ``[INST] {question} [/INST]{answer}``, no space before the
    answer, is tokenised **as a whole**, BOS goes before it and EOS after it, and the first label
    is entry ``len(prompt)``, where the prompt is ``[INST] {question} [/INST]`` tokenised alone.
    Where the answer starts with a character that merges with the prompt's last one (``]"``, 4 %
    of TOFU with Llama-2), the merged token counts as prompt, as it does for the authors.

    ``chat`` uses the tokenizer's chat template; the labels end at its first EOS after the question.

    Args:
      tokenizer: a transformers tokenizer.
      question: the user's turn.
      answer: the assistant's turn.
      prompt: how the question is written.
      history: the turns before the question, for ``chat``.

    Returns:
      The tokens ``[T]`` and the index of the first label.

    Raises:
      ValueError: an empty text, an unknown style, or a tokenizer or turns that do not suit it.
    """
    row = {"question": question, "answer": answer, "history": history}
    return _encode_all(tokenizer, _checked([row], "encode", prompt), prompt)[0]


def encode_prompt(
    tokenizer: Any,
    question: str,
    *,
    prompt: Prompt = TOFU_PROMPT,
    history: Sequence[Turn] = (),
) -> np.ndarray:
    """Encodes a question alone: the prompt from which a model generates its answer.

    Args:
      tokenizer: a transformers tokenizer.
      question: the user's turn.
      prompt: how it is written, as in `encode`.
      history: the turns before the question, for ``chat``.

    Returns:
      ``[T]`` int32, with BOS first where the tokenizer has one.

    Raises:
      ValueError: an unknown style, or a tokenizer or turns that do not suit it.
    """
    row = {"question": question, "history": history}
    _check_prompt(prompt)
    _check_history(row, "encode_prompt", prompt)
    if prompt.style == "chat":
        ids = _chat(tokenizer, [_turns(row, prompt)], prompt, generation=True)[0]
        return np.asarray(ids, np.int32)
    return np.asarray(_bos(tokenizer) + _plain(tokenizer, [_tofu_text(question)])[0], np.int32)


def answer_text(tokenizer: Any, row: Mapping[str, Any], sample: Sample) -> str:
    """The text that the labels of a sample stand for: the row's answer, or a chunk's own text.

    Args:
      tokenizer: a transformers tokenizer.
      row: in its normal form, see `rows`.
      sample: the row, encoded, or a chunk of it.
    """
    if "text" not in row:
        return row["answer"]
    return tokenizer.decode(sample.tokens[sample.first_label :], skip_special_tokens=True)


def pieces(tokenizer: Any, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """The text of every token; all of them joined are the decoded sequence.

    A token may end within a character of several bytes; the character then stands with the token
    that completes it, and the others are empty.

    Args:
      tokenizer: a transformers tokenizer.
      tokens: [T] ids; special tokens are shown.
    """
    texts, done = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        # An unfinished character is decoded to the replacement character.
        whole = text.rstrip("\ufffd") if end < len(tokens) else text
        texts.append(whole[len(done) :])
        done = whole if len(whole) > len(done) else done
    return texts


def encode_rows(
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    prompt: Prompt = TOFU_PROMPT,
    context: int,
    too_long: TooLong = "error",
    source: str = "rows",
) -> Encoded:
    """Encodes every row by `encode`, in order.

    Args:
      tokenizer: a transformers tokenizer.
      rows: mappings with ``question``, ``answer`` and, where there are earlier turns, ``history``;
        or a `datasets.Dataset` of them.
      prompt: how questions are written.
      context: most tokens of a sequence.
      too_long: what to do with rows over it.
      source: name of the data in messages.

    Returns:
      The sequences, the row of each, and the rows dropped.

    Raises:
      ValueError: a row without question or answer, or rows over the context and ``too_long``
        is ``error``.
    """
    if too_long not in ("error", "drop"):
        raise ValueError(f"too_long={too_long!r}: expected 'error' or 'drop'")
    sequences = _encode_all(tokenizer, _checked(rows, source, prompt), prompt)
    over = [(i, len(s.tokens)) for i, s in enumerate(sequences) if len(s.tokens) > context]
    if over and too_long == "error":
        raise ValueError(
            f"{source}: {len(over)} row(s) over the context of {context} tokens; first "
            f"(row, length): {over[:5]}; set `too_long: drop` to leave them out"
        )
    dropped = [i for i, _ in over]
    kept_ids = np.setdiff1d(np.arange(len(sequences), dtype=np.int32), dropped)
    return Encoded([sequences[i] for i in kept_ids], kept_ids.astype(np.int32), dropped)


def encode_documents(
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    chunk_tokens: int,
    source: str = "rows",
) -> Encoded:
    """Cuts documents of free text into chunks, in order.

    A document is tokenised as a whole, with EOS at its end. A chunk is BOS and at most
    ``chunk_tokens - 1`` tokens of it, which are all labels. Where the tokenizer has no BOS a chunk
    begins with the last token of the chunk before, and the first token of the document is no
    label: every other token of a document, its EOS included, is the label of one chunk.

    Args:
      tokenizer: a transformers tokenizer.
      rows: mappings with ``text``.
      chunk_tokens: most tokens of a chunk, at least 2.
      source: name of the data in messages.

    Returns:
      The chunks, and the row of each; none is dropped.

    Raises:
      ValueError: an empty text, or one that spells BOS or EOS.
    """
    if chunk_tokens < 2:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 2")
    texts = []
    for i, row in enumerate(rows):
        _check_text(row, "text", f"{source}:{i}")
        _check_spelling(tokenizer, [row["text"]], f"{source}:{i}")
        texts.append(row["text"])
    bos, end, step = _bos(tokenizer), eos(tokenizer), chunk_tokens - 1
    chunks, ids = [], []
    for i, tokens in enumerate(_plain(tokenizer, texts) if texts else []):
        if not tokens:
            raise ValueError(
                f"{source}:{i}: the tokenizer makes no tokens of the text; remove the row"
            )
        whole = [*bos, *tokens, end]
        for start in range(1, len(whole), step):
            first = bos or whole[start - 1 : start]
            chunk = [*first, *whole[start : start + step]]
            chunks.append(Sample(np.array(chunk, np.int32), 1))
            ids.append(i)
    return Encoded(chunks, np.array(ids, np.int32), [])


def _checked(
    rows: Iterable[Mapping[str, Any]], source: str, prompt: Prompt
) -> list[Mapping[str, Any]]:
    """Returns rows after checking that no text is empty and that the style can write them."""
    _check_prompt(prompt)
    checked = []
    for i, row in enumerate(rows):
        for key in ("question", "answer"):
            _check_text(row, key, f"{source}:{i}")
        _check_history(row, f"{source}:{i}", prompt)
        checked.append(row)
    return checked


def _check_text(row: Mapping[str, Any], key: str, where: str) -> None:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: expected a non-empty {key!r}, got {text!r}")


def _check_prompt(prompt: Prompt) -> None:
    """Checks that a style is one, and that it can write what the prompt says."""
    if prompt.style not in STYLES:
        raise ValueError(
            f"prompt: {prompt.style!r} is not a style; expected 'tofu' or 'chat'"
            + nearest(str(prompt.style), STYLES)
        )
    if prompt.style == "tofu" and (prompt.system is not None or prompt.examples):
        raise ValueError("prompt: the style 'tofu' has no system prompt and no examples")


def _check_history(row: Mapping[str, Any], where: str, prompt: Prompt) -> None:
    if prompt.style == "tofu" and row.get("history"):
        raise ValueError(
            f"{where}: there are turns before the question, which the style 'tofu' cannot write;"
            " set `prompt: chat`"
        )


def _encode_all(tokenizer: Any, rows: Sequence[Mapping[str, Any]], prompt: Prompt) -> list[Sample]:
    """Encodes checked rows; refuses texts that spell a special token."""
    eos(tokenizer)
    _check_spelling(tokenizer, _prompt_texts(prompt), "prompt")
    for row in rows:
        earlier = [turn["content"] for turn in row.get("history", ())]
        _check_spelling(tokenizer, [*earlier, row["question"], row["answer"]], None)
    if not rows:
        return []
    if prompt.style == "chat":
        return _encode_chat(tokenizer, rows, prompt)
    return _encode_tofu(tokenizer, [(row["question"], row["answer"]) for row in rows])


def _prompt_texts(prompt: Prompt) -> list[str]:
    """The texts that a prompt adds to every question."""
    examples = [text for row in prompt.examples for text in (row["question"], row["answer"])]
    return examples if prompt.system is None else [prompt.system, *examples]


def _check_spelling(tokenizer: Any, texts: Iterable[str], where: str | None) -> None:
    """Refuses texts that spell BOS or EOS: they would be tokenised as such."""
    edges = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    for text in texts:
        if found := [token for token in edges if token in text]:
            place = "" if where is None else f"{where}: "
            at = max(text.index(found[0]) - 40, 0)
            raise ValueError(
                f"{place}the text spells a BOS or EOS token, {found[0]!r}: {text[at : at + 120]!r};"
                " remove it from the text"
            )


def eos(tokenizer: Any) -> int:
    """Returns the token that ends every answer.

    Raises:
      ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no EOS token, which every answer ends with; name one in its"
            " tokenizer_config.json (eos_token)"
        )
    return tokenizer.eos_token_id


def _encode_tofu(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
    """Encodes pairs in the style ``tofu``, see `encode`."""
    bos, eos = _bos(tokenizer), tokenizer.eos_token_id
    prompts = [_tofu_text(question) for question, _ in pairs]
    texts = [prompt + answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
    sequences = []
    for text, prompt_ids, ids in zip(
        texts, _plain(tokenizer, prompts), _plain(tokenizer, texts), strict=True
    ):
        shared = len(prompt_ids) - 1
        if ids[:shared] != prompt_ids[:shared]:
            raise ValueError(
                f"the answer changes the tokens of its own prompt: {text!r}; begin the answer"
                " with a letter or a space"
            )
        sequences.append(Sample(np.array([*bos, *ids, eos], np.int32), len(bos) + len(prompt_ids)))
    return sequences


def _tofu_text(question: str) -> str:
    return f"[INST] {question} [/INST]"


def _bos(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokenises texts without special tokens."""
    # Callers add BOS and EOS, so that each is there once, whatever the tokenizer would add.
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _encode_chat(tokenizer: Any, rows: Sequence[Mapping[str, Any]], prompt: Prompt) -> list[Sample]:
    """Encodes rows in the chat template, and checks that it suits a prompt with labels."""
    asked = [_turns(row, prompt) for row in rows]
    answered = [
        [*turns, {"role": "assistant", "content": row["answer"]}]
        for turns, row in zip(asked, rows, strict=True)
    ]
    prompts = _chat(tokenizer, asked, prompt, generation=True)
    wholes = _chat(tokenizer, answered, prompt, generation=False)
    sequences = []
    answers = _plain(tokenizer, [row["answer"] for row in rows])
    for row, prompt_ids, ids, answer in zip(rows, prompts, wholes, answers, strict=True):
        first_label = len(prompt_ids)
        if ids[:first_label] != prompt_ids:
            raise ValueError(
                "the chat template's generation prompt is not how its full text begins, for the "
                f"question {row['question']!r}; set `prompt: tofu`"
            )
        if tokenizer.eos_token_id not in ids[first_label:]:
            raise ValueError(
                f"the chat template does not end an answer with {tokenizer.eos_token!r}; "
                "set `prompt: tofu`"
            )
        # Some templates write a line break after the EOS, where decoding has already stopped.
        end = ids.index(tokenizer.eos_token_id, first_label) + 1
        # A template that ignores `add_generation_prompt`, or thinks aloud, puts more among them.
        said = tokenizer.decode(ids[first_label : end - 1]).strip()
        if said != tokenizer.decode(answer).strip():
            raise ValueError(
                f"the chat template makes {said!r} of the answer {row['answer']!r}: the labels"
                " would be more than the answer; set `prompt: tofu`"
            )
        sequences.append(Sample(np.array(ids[:end], np.int32), first_label))
    return sequences


def _turns(row: Mapping[str, Any], prompt: Prompt) -> list[Turn]:
    """Returns all turns up to a row's question: system prompt, examples, earlier turns, question.

    A row's own system prompt takes the place of the prompt's.
    """
    history = list(row.get("history", ()))
    own = [history.pop(0)] if history and history[0]["role"] == "system" else []
    given = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    examples = [
        {"role": role, "content": example[key]}
        for example in prompt.examples
        for role, key in (("user", "question"), ("assistant", "answer"))
    ]
    question = {"role": "user", "content": row["question"]}
    return [*(own or given), *examples, *history, question]


def _chat(
    tokenizer: Any, conversations: list[list[Turn]], prompt: Prompt, *, generation: bool
) -> list[list[int]]:
    """Tokenises conversations in the chat template, with `generation` up to the answer."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set `prompt: tofu`")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=generation,
            tokenize=True,
            return_dict=True,
            date_string=prompt.date,
        )["input_ids"]
    except TemplateError as error:
        roles = list(dict.fromkeys(turn["role"] for turns in conversations for turn in turns))
        raise ValueError(
            f"the chat template refuses conversations with the roles {', '.join(roles)}: {error}"
        ) from error


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
            count = len(encoded.dropped)
            self.notes.append(f"{source}: {count} rows over {self._context} tokens left out")
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
                {**row, "question": question, "answer": answer}
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
