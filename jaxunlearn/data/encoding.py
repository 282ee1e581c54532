"""Encodes rows as tokens and labels: questions with answers whole, documents in chunks.

No text is ever truncated.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxunlearn.core import files
from jaxunlearn.core.names import shortened
from jaxunlearn.core.paths import user_path
from jaxunlearn.data.library import load_transformers
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.prompts import (
    TOFU_PROMPT,
    Prompt,
    apply_template,
    bos_ids,
    check_prompt,
    encode_chat,
    encode_tofu,
    eos,
    plain,
    prompt_texts,
    tofu_text,
    turns_of,
)
from jaxunlearn.data.rows import Turn, place_of

TooLong = Literal["error", "drop"]


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


def load_tokenizer(path_or_name: str) -> Any:
    """Loads a tokenizer from a folder, or by its name on the Hugging Face hub.

    Args:
      path_or_name: a folder with ``tokenizer.json``, or a name such as ``meta-llama/Llama-2-7b``.

    Returns:
      A transformers tokenizer; code that comes with it is never run.

    Raises:
      FileNotFoundError: no tokenizer there, or one that needs code of its own.
      ValueError: one of its files is a Git LFS pointer, a page in HTML, or no JSON object.
    """
    # transformers reads config.json too, and says of none of them what it is instead.
    for file in sorted(user_path(path_or_name).glob("*.json")):
        if stand_in := files.stands_in_place_of(file):
            raise ValueError(f"{file}: expected JSON, found {stand_in}")
        if file.name in ("config.json", "tokenizer_config.json"):
            files.read_json(file, dict[str, Any])
    auto_tokenizer = load_transformers().AutoTokenizer
    try:
        return auto_tokenizer.from_pretrained(str(user_path(path_or_name)), trust_remote_code=False)
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
    check_prompt(prompt)
    _check_history(row, "encode_prompt", prompt)
    if prompt.style == "chat":
        ids = apply_template(tokenizer, [turns_of(row, prompt)], prompt, generation=True)[0]
        return np.asarray(ids, np.int32)
    return np.asarray(bos_ids(tokenizer) + plain(tokenizer, [tofu_text(question)])[0], np.int32)


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
    checked = _checked(rows, source, prompt)
    sequences = _encode_all(tokenizer, checked, prompt)
    dropped = [i for i, sample in enumerate(sequences) if len(sample.tokens) > context]
    if dropped and too_long == "error":
        first, *others = dropped
        more = f", as have {len(others)} more rows of {source}" if others else ""
        where = place_of(checked[first]) or f"{source}:{first}"
        raise ValueError(
            f"{where}: the row has {len(sequences[first].tokens)} tokens, more than the context of"
            f" {context}{more}; set `too_long: drop` to leave them out"
        )
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
        where = place_of(row) or f"{source}:{i}"
        _check_text(row, "text", where)
        _check_spelling(tokenizer, [row["text"]], where)
        texts.append(row["text"])
    bos, end, step = bos_ids(tokenizer), eos(tokenizer), chunk_tokens - 1
    chunks, ids = [], []
    for i, tokens in enumerate(plain(tokenizer, texts) if texts else []):
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
    check_prompt(prompt)
    checked = []
    for i, row in enumerate(rows):
        where = place_of(row) or f"{source}:{i}"
        for key in ("question", "answer"):
            _check_text(row, key, where)
        _check_history(row, where, prompt)
        checked.append(row)
    return checked


def _check_text(row: Mapping[str, Any], key: str, where: str) -> None:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: expected a non-empty {key!r}, got {text!r}")


def _check_history(row: Mapping[str, Any], where: str, prompt: Prompt) -> None:
    if prompt.style == "tofu" and row.get("history"):
        raise ValueError(
            f"{where}: there are turns before the question, which the style 'tofu' cannot write;"
            " set `prompt: chat`"
        )


def _encode_all(tokenizer: Any, rows: Sequence[Mapping[str, Any]], prompt: Prompt) -> list[Sample]:
    """Encodes checked rows; refuses texts that spell a special token."""
    eos(tokenizer)
    _check_spelling(tokenizer, prompt_texts(prompt), "prompt")
    for row in rows:
        earlier = [turn["content"] for turn in row.get("history", ())]
        _check_spelling(tokenizer, [*earlier, row["question"], row["answer"]], place_of(row))
    if not rows:
        return []
    if prompt.style == "chat":
        return encode_chat(tokenizer, rows, prompt)
    return encode_tofu(tokenizer, [(row["question"], row["answer"]) for row in rows])


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
