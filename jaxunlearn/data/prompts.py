"""How a question with its answer becomes tokens: in TOFU's way, or by a chat template."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxunlearn.core.names import nearest
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.rows import Turn

Style = Literal["tofu", "chat"]
STYLES = typing.get_args(Style)


class Prompt(NamedTuple):
    """How a question is written; all but the style is for chat templates alone.

    Attributes:
      style: ``tofu`` or ``chat``, see `encoding.encode`.
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


def check_prompt(prompt: Prompt) -> None:
    """Checks that a style is one, and that it can write what the prompt says."""
    if prompt.style not in STYLES:
        raise ValueError(
            f"prompt: {prompt.style!r} is not a style; expected 'tofu' or 'chat'"
            + nearest(str(prompt.style), STYLES)
        )
    if prompt.style == "tofu" and (prompt.system is not None or prompt.examples):
        raise ValueError("prompt: the style 'tofu' has no system prompt and no examples")


def prompt_texts(prompt: Prompt) -> list[str]:
    """The texts that a prompt adds to every question."""
    examples = [text for row in prompt.examples for text in (row["question"], row["answer"])]
    return examples if prompt.system is None else [prompt.system, *examples]


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


def encode_tofu(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
    """Encodes pairs in the style ``tofu``, see `encoding.encode`."""
    bos, eos = bos_ids(tokenizer), tokenizer.eos_token_id
    prompts = [tofu_text(question) for question, _ in pairs]
    texts = [prompt + answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
    sequences = []
    for text, prompt_ids, ids in zip(
        texts, plain(tokenizer, prompts), plain(tokenizer, texts), strict=True
    ):
        shared = len(prompt_ids) - 1
        if ids[:shared] != prompt_ids[:shared]:
            raise ValueError(
                f"the answer changes the tokens of its own prompt: {text!r}; begin the answer"
                " with a letter or a space"
            )
        sequences.append(Sample(np.array([*bos, *ids, eos], np.int32), len(bos) + len(prompt_ids)))
    return sequences


def tofu_text(question: str) -> str:
    """A question as the authors of TOFU write it."""
    return f"[INST] {question} [/INST]"


def bos_ids(tokenizer: Any) -> list[int]:
    """The token that begins every sequence, [] where the tokenizer has none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokenises texts without special tokens."""
    # Callers add BOS and EOS, so that each is there once, whatever the tokenizer would add.
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def encode_chat(tokenizer: Any, rows: Sequence[Mapping[str, Any]], prompt: Prompt) -> list[Sample]:
    """Encodes rows in the chat template, and checks that it suits a prompt with labels."""
    asked = [turns_of(row, prompt) for row in rows]
    answered = [
        [*turns, {"role": "assistant", "content": row["answer"]}]
        for turns, row in zip(asked, rows, strict=True)
    ]
    prompts = apply_template(tokenizer, asked, prompt, generation=True)
    wholes = apply_template(tokenizer, answered, prompt, generation=False)
    sequences = []
    answers = plain(tokenizer, [row["answer"] for row in rows])
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


def turns_of(row: Mapping[str, Any], prompt: Prompt) -> list[Turn]:
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


def apply_template(
    tokenizer: Any, conversations: list[list[Turn]], prompt: Prompt, *, generation: bool
) -> list[list[int]]:
    """Tokenises conversations in the chat template, with `generation` up to the answer."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set `prompt: tofu`")
    try:
        return tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=generation,
            tokenize=True,
            return_dict=True,
            date_string=prompt.date,
        )["input_ids"]
    except Exception as error:  # a template is a program, and fails in any way
        roles = list(dict.fromkeys(turn["role"] for turns in conversations for turn in turns))
        raise ValueError(
            f"the chat template refuses conversations with the roles {', '.join(roles)}: {error}"
        ) from error
