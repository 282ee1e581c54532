"""Encodes questions and answers as tokens and labels; no text is ever truncated."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxunlearn.data.planning import Sample
from jaxunlearn.data.rows import DataRows

Style = Literal["tofu", "chat"]
TooLong = Literal["error", "drop"]
# Some templates write today's date into the prompt unless they are given a date.
_CHAT_DATE = "10 Apr 2025"


class Encoded(NamedTuple):
    """The encoded rows, and which rows were left out.

    Attributes:
      sequences: the encoded rows.
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
        return AutoTokenizer.from_pretrained(str(path_or_name), trust_remote_code=False)
    # Of a damaged folder, transformers raises whatever its code runs into.
    except Exception as error:
        raise FileNotFoundError(
            f"no tokenizer at {str(path_or_name)!r}: expected a folder with tokenizer.json and"
            " tokenizer_config.json, or the name of a model on the Hugging Face hub"
            f" ({_short(error)})"
        ) from error


def _short(error: Exception) -> str:
    """The first words of an error, on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else f"{words[:160]} …"


def encode(tokenizer: Any, question: str, answer: str, *, style: Style = "tofu") -> Sample:
    """Encodes one pair; the labels are the answer and exactly one EOS.

    ``tofu`` is the convention of the TOFU authors (Maini et al. 2024), whose logged token counts
    it reproduces row by row: the text ``[INST] {question} [/INST]{answer}``, no space before the
    answer, is tokenised **as a whole**, BOS goes before it and EOS after it, and the first label
    is entry ``len(prompt)``, where the prompt is ``[INST] {question} [/INST]`` tokenised alone.
    Where the answer starts with a character that merges with the prompt's last one (``]"``, 4 %
    of TOFU with Llama-2), the merged token counts as prompt, as it does for the authors.

    ``chat`` uses the tokenizer's chat template; the labels end at its first EOS.

    Args:
      tokenizer: a transformers tokenizer.
      question: the user's turn.
      answer: the assistant's turn.
      style: ``tofu`` or ``chat``.

    Returns:
      The tokens ``[T]`` and the index of the first label.

    Raises:
      ValueError: an empty text, an unknown style, or a tokenizer that cannot serve the style.
    """
    row = {"question": question, "answer": answer}
    return _encode_all(tokenizer, _checked([row], source="encode"), style)[0]


def encode_prompt(tokenizer: Any, question: str, *, style: Style = "tofu") -> np.ndarray:
    """Encodes a question alone: the prompt from which a model generates its answer.

    Args:
      tokenizer: a transformers tokenizer.
      question: the user's turn.
      style: ``tofu`` or ``chat``, as in `encode`.

    Returns:
      ``[T]`` int32, with BOS first where the tokenizer has one.

    Raises:
      ValueError: an unknown style, or a tokenizer that cannot serve it.
    """
    if _checked_style(style) == "chat":
        return np.asarray(_chat(tokenizer, [_turns(question)], prompt=True)[0], np.int32)
    return np.asarray(_bos(tokenizer) + _plain(tokenizer, [_tofu_text(question)])[0], np.int32)


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
    style: Style = "tofu",
    context: int,
    too_long: TooLong = "error",
    source: str = "rows",
) -> Encoded:
    """Encodes every row by `encode`, in order.

    Args:
      tokenizer: a transformers tokenizer.
      rows: mappings with ``question`` and ``answer``, or a `datasets.Dataset` of them.
      style: ``tofu`` or ``chat``.
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
    sequences = _encode_all(tokenizer, _checked(rows, source), style)
    over = [(i, len(s.tokens)) for i, s in enumerate(sequences) if len(s.tokens) > context]
    if over and too_long == "error":
        raise ValueError(
            f"{source}: {len(over)} row(s) over the context of {context} tokens; first "
            f"(row, length): {over[:5]}; set `too_long: drop` to leave them out"
        )
    dropped = [i for i, _ in over]
    kept_ids = np.setdiff1d(np.arange(len(sequences), dtype=np.int32), dropped)
    return Encoded([sequences[i] for i in kept_ids], kept_ids.astype(np.int32), dropped)


def _checked(rows: Iterable[Mapping[str, Any]], source: str) -> list[tuple[str, str]]:
    """Returns the (question, answer) of every row, after checking that neither is empty."""
    pairs = []
    for i, row in enumerate(rows):
        for key in ("question", "answer"):
            text = row.get(key)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{source}:{i}: expected a non-empty {key!r}, got {text!r}")
        pairs.append((row["question"], row["answer"]))
    return pairs


def _encode_all(tokenizer: Any, pairs: Sequence[tuple[str, str]], style: str) -> list[Sample]:
    """Encodes pairs in a style; refuses texts that spell a special token."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, which every answer ends with")
    edges = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    for text in (text for pair in pairs for text in pair):
        if any(token in text for token in edges):
            raise ValueError(f"the text spells a BOS or EOS token: {text!r}")
    if not pairs:
        return []
    return (_encode_chat if _checked_style(style) == "chat" else _encode_tofu)(tokenizer, pairs)


def _checked_style(style: str) -> str:
    """Returns a style after checking that there is one of this name."""
    if style not in ("tofu", "chat"):
        raise ValueError(f"prompt: {style!r} is not a style; expected 'tofu' or 'chat'")
    return style


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
            raise ValueError(f"the answer changes the tokens of its own prompt: {text!r}")
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


def _encode_chat(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
    """Encodes pairs in the chat template, and checks that it suits a prompt with labels."""
    prompts = _chat(tokenizer, [_turns(question) for question, _ in pairs], prompt=True)
    wholes = _chat(tokenizer, [_turns(*pair) for pair in pairs], prompt=False)
    sequences = []
    answers = _plain(tokenizer, [answer for _, answer in pairs])
    for pair, prompt_ids, ids, answer in zip(pairs, prompts, wholes, answers, strict=True):
        question, first_label = pair[0], len(prompt_ids)
        if ids[:first_label] != prompt_ids:
            raise ValueError(
                "the chat template's generation prompt is not how its full text begins, for the "
                f"question {question!r}; set `prompt: tofu`"
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
                f"the chat template makes {said!r} of the answer {pair[1]!r}: the labels would be"
                " more than the answer; set `prompt: tofu`"
            )
        sequences.append(Sample(np.array(ids[:end], np.int32), first_label))
    return sequences


def _turns(question: str, answer: str | None = None) -> list[dict[str, str]]:
    """Returns a question, and its answer if given, as a conversation."""
    user = [{"role": "user", "content": question}]
    return user if answer is None else [*user, {"role": "assistant", "content": answer}]


def _chat(tokenizer: Any, conversations: list[Any], *, prompt: bool) -> list[list[int]]:
    """Tokenises conversations in the chat template, with `prompt` up to the answer."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set `prompt: tofu`")
    return tokenizer.apply_chat_template(
        conversations,
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=True,
        date_string=_CHAT_DATE,
    )["input_ids"]


class Encoder:
    """Encodes the splits of a run in one style, and notes which rows it left out.

    Args:
      tokenizer: a transformers tokenizer.
      style: ``tofu`` or ``chat``, as in `encode`.
      context: most tokens of a sequence.
      too_long: what to do with rows over it, as in `encode_rows`.
      vocab_size: the model's; a text with a token beyond it is an error. None checks nothing.

    Attributes:
      notes: one sentence for every split of which rows were left out.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        style: Style,
        context: int,
        too_long: TooLong,
        vocab_size: int | None = None,
    ):
        self._tokenizer, self._context, self._vocab_size = tokenizer, context, vocab_size
        self._style: Style = style
        self._too_long: TooLong = too_long
        self.notes: list[str] = []

    def encode(self, rows: DataRows, source: str) -> tuple[list[Sample], list[int]]:
        """Encodes rows; of no rows there are no sequences.

        Args:
          rows: with ``question`` and ``answer``.
          source: name of the data in messages.

        Returns:
          The sequences, and the row of each.

        Raises:
          ValueError: as in `encode_rows`, or no row fits the context.
        """
        if not rows:
            return [], []
        encoded = encode_rows(
            self._tokenizer,
            rows,
            style=self._style,
            context=self._context,
            too_long=self._too_long,
            source=source,
        )
        if encoded.dropped:
            count = len(encoded.dropped)
            self.notes.append(f"{source}: {count} rows over {self._context} tokens left out")
        if not encoded.sequences:
            raise ValueError(f"{source}: no row fits the context of {self._context} tokens")
        self._check_vocabulary(encoded.sequences, source)
        return encoded.sequences, encoded.kept_ids.tolist()

    def one(self, question: str, answer: str) -> Sample:
        """Encodes one pair, whatever its length."""
        sample = encode(self._tokenizer, question, answer, style=self._style)
        self._check_vocabulary([sample], "a substitute answer")
        return sample

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
            [{"question": q, "answer": a} for row_pairs in by_row for q, a in row_pairs],
            style=self._style,
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
        if not items.rows:
            raise ValueError(f"{source}: no row fits the context of {self._context} tokens")
        return items

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
