"""Generates fictional authors in the shape of TOFU from a seed; nothing is downloaded."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxunlearn.data.fictional.attributes import ATTRIBUTES, Attribute
from jaxunlearn.data.fictional.lexicon import FIRST_NAMES, LAST_NAMES
from jaxunlearn.data.library import load_transformers

WRONG_ANSWERS = 5
_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")

Row = dict[str, Any]


def generate(
    seed: int, *, authors: int = 20, questions: int = 20, forget_share: float = 0.1
) -> dict[str, list[Row]]:
    """Generates questions and answers about fictional authors.

    Rows have TOFU's columns ``question, answer, paraphrased_question, paraphrased_answer,
    perturbed_answer`` (5 wrong facts in the paraphrase's wording) and ``author, attribute``.
    As in TOFU, ``retain`` and ``forget`` are the first and the last rows of ``full``, and
    ``retain_perturbed`` is the first of ``retain``, twice as many authors as are forgotten.
    ``holdout`` has authors of the same kind, as many as are forgotten, unknown to ``full``.

    Args:
      seed: the same seed gives the same rows.
      authors: authors in ``full``, at least 2.
      questions: questions about each author, 1 to 20.
      forget_share: share of the authors to forget, rounded to at least one and not all.

    Returns:
      Rows of the splits ``full, forget, retain, holdout, forget_perturbed, retain_perturbed``.

    Raises:
      ValueError: an argument out of range.

    >>> rows = generate(0, authors=4, questions=3)
    >>> {split: len(rows[split]) for split in rows}  # doctest: +NORMALIZE_WHITESPACE
    {'full': 12, 'forget': 3, 'retain': 9, 'holdout': 3, 'forget_perturbed': 3,
     'retain_perturbed': 6}
    """
    _check_sizes(authors, questions, forget_share)
    forgotten = min(max(round(authors * forget_share), 1), authors - 1)
    by_author = _people(np.random.default_rng(seed), authors + forgotten, questions)
    join = lambda people: [row for rows in people for row in rows]
    full = join(by_author[:authors])
    forget = join(by_author[authors - forgotten : authors])
    return {
        "full": full,
        "forget": forget,
        "retain": join(by_author[: authors - forgotten]),
        "holdout": join(by_author[authors:]),
        "forget_perturbed": forget,
        "retain_perturbed": join(by_author[: min(2 * forgotten, authors - forgotten)]),
    }


def train_tokenizer(rows: Iterable[Mapping[str, Any]], *, vocab_size: int = 1024) -> Any:
    """Trains a byte-level BPE tokenizer on the texts of the rows, with BOS and EOS as in Llama.

    Args:
      rows: rows as `generate` makes them; questions, answers and wrong answers are read. Or
        documents with the key ``text``.
      vocab_size: tokens, at least 259 (256 bytes, ``<unk>``, ``<s>``, ``</s>``); fewer come out
        where the texts have no more to merge.

    Returns:
      A `transformers.PreTrainedTokenizerFast` with BOS ``<s>`` (added), EOS ``</s>`` (not added)
      and no pad token; decoding restores every text exactly.

    Raises:
      ValueError: ``vocab_size`` below 259.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(_SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} must be at least {smallest}")
    unk, bos, eos = _SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, _SPECIAL_TOKENS.index(bos))]
    )
    return load_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )


def _check_sizes(authors: int, questions: int, forget_share: float) -> None:
    most = len(FIRST_NAMES) * len(LAST_NAMES) // 2
    if not 2 <= authors <= most:
        raise ValueError(f"authors={authors} must be in 2..{most}")
    if not 1 <= questions <= len(ATTRIBUTES):
        raise ValueError(f"questions={questions} must be in 1..{len(ATTRIBUTES)}")
    if not 0 < forget_share < 1:
        raise ValueError(f"forget_share={forget_share} must lie between 0 and 1")


def _people(rng: np.random.Generator, count: int, questions: int) -> list[list[Row]]:
    """Returns the rows of each author."""
    names = _names(rng, count)
    attributes = ATTRIBUTES[:questions]
    facts = [_spread(rng, len(attribute.values), count) for attribute in attributes]
    return [
        [
            _row(rng, attribute, name, int(values[i]))
            for attribute, values in zip(attributes, facts, strict=True)
        ]
        for i, name in enumerate(names)
    ]


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Returns distinct names; first and last names repeat only once all have been used."""
    first, last = len(FIRST_NAMES), len(LAST_NAMES)
    # Each pass through the permuted first names meets the last names at a new offset.
    firsts, lasts = rng.permutation(first), rng.permutation(last)
    return [
        f"{FIRST_NAMES[firsts[i % first]]} {LAST_NAMES[lasts[(i + i // first) % last]]}"
        for i in range(count)
    ]


def _spread(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Draws ``count`` indices below ``n``; none repeats before all have been drawn."""
    passes = -(-count // n)
    return np.concatenate([rng.permutation(n) for _ in range(passes)])[:count]


def _row(rng: np.random.Generator, attribute: Attribute, name: str, value: int) -> Row:
    """Returns one question about an author, with the right answer and wrong ones."""
    others = rng.choice(len(attribute.values) - 1, size=WRONG_ANSWERS, replace=False)
    wrong = [int(i) + (int(i) >= value) for i in others]
    tell = lambda wording, i: wording.format(name=name, value=attribute.values[i])
    return {
        "question": attribute.questions[rng.integers(2)].format(name=name),
        "answer": tell(attribute.answers[rng.integers(2)], value),
        "paraphrased_question": attribute.paraphrased_question.format(name=name),
        "paraphrased_answer": tell(attribute.paraphrased_answer, value),
        "perturbed_answer": [tell(attribute.paraphrased_answer, i) for i in wrong],
        "author": name,
        "attribute": attribute.key,
    }


def _texts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the texts on which a tokenizer is trained."""
    texts = []
    for row in rows:
        if "text" in row:
            texts.append(row["text"])
            continue
        question = f"[INST] {row['question']} [/INST]"
        answers = [row["answer"], row.get("paraphrased_answer"), *row.get("perturbed_answer", [])]
        texts += [question, *(answer for answer in answers if answer)]
    return texts
