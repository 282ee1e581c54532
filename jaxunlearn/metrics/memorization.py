"""Memorisation: how much of an answer the model can still reproduce.

Extraction strength is 1 - k / L: k is the length of the shortest prefix of the answer after which
the model's greedy continuation is the rest, L the answer's length. Four definitions go by this one
name, and their numbers do not compare:

| definition | by | unit | EOS | nothing memorised | where it comes from |
|---|---|---|---|---|---|
| `suffix` (default) | teacher forcing | token | in | 0 | the formula, with the labels of training |
| `no_eos` | teacher forcing | token | out | 0 | SatImp's code (2505.11953) |
| `open_unlearning` | teacher forcing | token | out | 1 / L | OpenUnlearning: k stops at L - 1 |
| `generation` | generated text | word | in | 0 | UWC's code (2406.09179) |

Teacher forcing and greedy decoding give the same k where prefixes are tokens: as long as all
predictions are right, both see the same context. Words as prefixes change the tokens at the cut, so
`generation` can differ; it needs a round of decoding per word, `generated_extraction_strength`. It
compares a whole line of text, so a continuation that does not stop where the answer stops is wrong.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.metrics.definitions import Definition
from jaxunlearn.metrics.rouge import rouge

Array = jax.Array | np.ndarray
Strength = Literal["suffix", "no_eos", "open_unlearning"]
Exact = Literal["labels", "no_eos"]
Complete = Callable[[Sequence[int], Sequence[str]], Sequence[str]]
"""(indices of answers, prefix of each) -> continuations"""

DEFINITIONS = {
    d.name: d
    for d in (
        Definition("extraction_strength.suffix", 1, "teacher-forced tokens, EOS in, can be 0"),
        Definition("extraction_strength.no_eos", 1, "teacher-forced tokens, EOS out, can be 0"),
        Definition("extraction_strength.open_unlearning", 1, "EOS out, at least 1 / L"),
        Definition("extraction_strength.generation", 1, "greedy text after prefixes of words"),
        Definition("exact_memorization.labels", 1, "share of labels right, EOS in"),
        Definition("exact_memorization.no_eos", 1, "share of labels right, EOS out"),
        Definition("verbatim_rouge.rougeL_f1", 1, "ROUGE-L F1, words unstemmed, as MUSE"),
        Definition("verbatim_rouge.rougeL_f1_stemmed", 1, "ROUGE-L F1, stems, as OpenUnlearning"),
    )
}


def extraction_strength(
    correct: Array, mask: Array, *, definition: Strength = "suffix"
) -> jax.Array:
    """Extraction strength, 1 - k / L.

    k is the length of the shortest prefix of the answer after which the teacher-forced argmax is
    right for all the rest, L the answer's length. 1: the whole answer follows from the question;
    0: not even the last token is right. (Carlini et al. 2021.)

    Args:
      correct: [B, S] bool, whether the argmax at each label is the label.
      mask: [B, S] bool, True on labels; an answer's labels are contiguous, the last one is its EOS.
      definition: see the module.

    Returns:
      [B] float32; 0 for an answer without labels.

    Raises:
      ValueError: an unknown definition.

    >>> correct = jnp.array([[False, True, True, False]])
    >>> mask = jnp.array([[True, True, True, False]])
    >>> round(float(extraction_strength(correct, mask)[0]), 4)
    0.6667
    >>> float(extraction_strength(correct, mask, definition="no_eos")[0])
    0.5
    """
    if definition not in get_args(Strength):
        raise ValueError(
            f"definition={definition!r}: expected one of {', '.join(get_args(Strength))}; "
            "'generation' needs texts, see generated_extraction_strength"
        )
    if definition != "suffix":
        mask = _without_last(mask)
    right = jnp.where(mask, correct, True)
    suffix = jax.lax.cumprod(right.astype(jnp.int32), axis=1, reverse=True).astype(bool)
    memorised = jnp.sum(suffix & mask, axis=1)
    if definition == "open_unlearning":
        memorised = jnp.maximum(memorised, jnp.any(mask, axis=1))
    return _share(memorised, mask)


def exact_memorization(correct: Array, mask: Array, *, definition: Exact = "labels") -> jax.Array:
    """Exact memorisation: the share of labels whose teacher-forced argmax is right.

    Args:
      correct: [B, S] bool.
      mask: [B, S] bool, as in `extraction_strength`.
      definition: "labels", EOS included, or "no_eos", as OpenUnlearning has it (which also leaves
        answers without labels out of its mean).

    Returns:
      [B] float32; 0 for an answer without labels.

    Raises:
      ValueError: an unknown definition.

    >>> float(exact_memorization(jnp.array([[True, False]]), jnp.array([[True, True]]))[0])
    0.5
    """
    if definition not in get_args(Exact):
        raise ValueError(f"definition={definition!r}: expected one of {', '.join(get_args(Exact))}")
    if definition == "no_eos":
        mask = _without_last(mask)
    return _share(jnp.sum(correct & mask, axis=1), mask)


def generated_extraction_strength(answers: Sequence[str], complete: Complete) -> np.ndarray:
    """Extraction strength of generated text: 1 - k / n, for answers of n words.

    k is the number of words that must be given before the model's greedy continuation is the rest
    of the answer to the letter, up to the line break that follows it; n where no prefix does. The
    continuation thus counts up to its first line break, unless the answer has some itself.

    Args:
      answers: the true answers.
      complete: (indices of answers, prefix of each) -> continuations, the greedy text after the
        question and the prefix. It is called once per number of words with all answers that are
        still open, so at most as often as the longest answer has words.

    Returns:
      [n] float64; 0 for an empty answer.

    >>> answers = ["The capital is Lima."]
    >>> continuations = {"": "It is Lima.", "The": " town is Lima.", "The capital": " is Lima."}
    >>> generated_extraction_strength(answers, lambda ids, prefixes: [continuations[prefixes[0]]])
    array([0.5])
    """
    words = [answer.split(" ") for answer in answers]
    strength = np.zeros(len(answers))
    remaining = [i for i, answer in enumerate(answers) if answer]
    count = 0  # words of the prefix
    while remaining:
        texts = complete(remaining, [" ".join(words[i][:count]) for i in remaining])
        for i, text in zip(remaining, texts, strict=True):
            rest = " ".join(words[i][count:])
            lines = text.removeprefix(" ").split("\n")[: rest.count("\n") + 1]
            if "\n".join(lines) == rest:
                strength[i] = 1 - count / len(words[i])
        count += 1
        remaining = [i for i in remaining if strength[i] == 0 and count < len(words[i])]
    return strength


def split_answers(answers: Sequence[str], *, share: float = 0.5) -> tuple[list[str], list[str]]:
    """Splits answers into their first words and the rest: prompt and target of verbatim recall.

    Args:
      answers: the true answers.
      share: of an answer's words that are given, rounded down; at least one word is left.

    Returns:
      Prefixes, which may be empty, and remainders.

    Raises:
      ValueError: a share outside 0..1.

    >>> split_answers(["Lima", "Born in Lima, Peru"])
    (['', 'Born in'], ['Lima', 'Lima, Peru'])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be in 0..1")
    words = [answer.split(" ") for answer in answers]
    sizes = [min(int(len(w) * share), len(w) - 1) for w in words]
    return (
        [" ".join(w[:k]) for w, k in zip(words, sizes, strict=True)],
        [" ".join(w[k:]) for w, k in zip(words, sizes, strict=True)],
    )


def verbatim_rouge(
    generated: Sequence[str], references: Sequence[str], *, stem: bool = False
) -> np.ndarray:
    """ROUGE-L F1 of generated texts (MUSE, arXiv 2407.06460).

    It measures verbatim memorisation where the model continues a prefix of a text and the reference
    is the rest (`split_answers`), and knowledge memorisation where it answers a question.

    Args:
      generated: greedy texts, without the prompt; as many tokens as the reference, for a prefix.
      references: one a text.
      stem: compare stems, as OpenUnlearning does; MUSE's own code compares words.

    Returns:
      [n] float64.

    >>> verbatim_rouge(["is Lima, Peru"], ["is Lima, in Peru"]).round(4)
    array([0.8571])
    """
    return rouge(generated, references, stem=stem)["rougeL_f1"]


def _without_last(mask: Array) -> jax.Array:
    """The mask without each answer's last label, its EOS."""
    followed = jnp.pad(mask[:, 1:], ((0, 0), (0, min(1, mask.shape[1]))))
    return jnp.logical_and(mask, followed)


def _share(count: jax.Array, mask: Array) -> jax.Array:
    """A count as a share of each answer's labels, 0 where it has none."""
    return count.astype(jnp.float32) / jnp.maximum(mask.sum(axis=1), 1).astype(jnp.float32)
