"""Extraction strength and exact memorisation against slow loops, in all their definitions."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.metrics import memorization

ANSWERS = st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=5)
WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5)


def slow_strength(right: list[bool]) -> float:
    """Try every prefix length k: the first after which all the rest is right."""
    for k in range(len(right) + 1):
        if all(right[k:]):
            return 1 - k / len(right)
    raise AssertionError


def slow_open_unlearning(right: list[bool]) -> float:
    """The loop never tries the whole answer as a prefix: its last k stands even if it fails."""
    for k in range(len(right)):
        if all(right[k:]):
            break
    return 1 - k / len(right)


def padded(answers):
    """Answers at different offsets of their rows, and noise off the labels."""
    correct = np.random.default_rng(0).random((5, 12)) < 0.5
    mask = np.zeros((5, 12), bool)
    for row, answer in enumerate(answers):
        where = slice(row % 3, row % 3 + len(answer))
        correct[row, where], mask[row, where] = answer, True
    return correct, mask


@settings(max_examples=50, deadline=None)
@given(ANSWERS)
def test_equal_a_slow_loop(answers):
    correct, mask = padded(answers)
    strength = memorization.extraction_strength(correct, mask)
    exact = memorization.exact_memorization(correct, mask)
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(strength[row], slow_strength(answer) if answer else 0, rtol=1e-6)
        np.testing.assert_allclose(exact[row], np.mean(answer) if answer else 0, rtol=1e-6)
    assert not strength[len(answers) :].any()


@settings(max_examples=50, deadline=None)
@given(ANSWERS)
def test_the_other_definitions_equal_their_own_slow_loops(answers):
    correct, mask = padded(answers)
    strength = {
        name: memorization.extraction_strength(correct, mask, definition=name)
        for name in ("no_eos", "open_unlearning")
    }
    exact = memorization.exact_memorization(correct, mask, definition="no_eos")
    for row, answer in enumerate(answers):
        text = answer[:-1]  # the last label is the EOS
        slow = {"no_eos": slow_strength, "open_unlearning": slow_open_unlearning}
        for name, result in strength.items():
            np.testing.assert_allclose(result[row], slow[name](text) if text else 0, rtol=1e-6)
        np.testing.assert_allclose(exact[row], np.mean(text) if text else 0, rtol=1e-6)


def test_the_extremes():
    mask = np.ones((2, 4), bool)
    correct = np.array([[True] * 4, [True, True, True, False]])
    assert memorization.extraction_strength(correct, mask).tolist() == [1.0, 0.0]


def test_where_the_definitions_part():
    """Four labels and an EOS: all wrong; only the EOS wrong; only the EOS right."""
    mask = np.ones((3, 5), bool)
    correct = np.array([[False] * 5, [True] * 4 + [False], [False] * 4 + [True]])
    result = {
        name: memorization.extraction_strength(correct, mask, definition=name).round(4).tolist()
        for name in ("suffix", "no_eos", "open_unlearning")
    }
    assert result["suffix"] == pytest.approx([0, 0, 0.2])
    assert result["no_eos"] == [0, 1, 0]
    assert result["open_unlearning"] == [0.25, 1, 0.25]
    nothing = memorization.extraction_strength(
        np.zeros((1, 0), bool), np.zeros((1, 0), bool), definition="no_eos"
    )
    assert nothing.tolist() == [0]


@pytest.mark.parametrize("name", ["generation", "sufix"])
def test_an_unknown_definition_lists_those_there_are(name):
    mask = np.ones((1, 2), bool)
    with pytest.raises(ValueError, match=r"suffix, no_eos, open_unlearning; .*texts"):
        memorization.extraction_strength(mask, mask, definition=name)
    with pytest.raises(ValueError, match="expected one of labels, no_eos"):
        memorization.exact_memorization(mask, mask, definition=name)


def word_model(table, length=7):
    """A greedy model of words: the next one depends on the last one; it stops at "."."""

    def complete(prefix: str) -> str:
        words, out = prefix.split(), []
        while len(out) < length:
            word = table[(words + out)[-1] if words or out else ""]
            if word == ".":
                break
            out.append(word)
        return " ".join(out)

    return complete


@settings(max_examples=50, deadline=None)
@given(
    st.lists(WORDS, min_size=1, max_size=4),
    st.fixed_dictionaries({k: st.sampled_from(["a", "b", "c", "."]) for k in ("", "a", "b", "c")}),
)
def test_generated_strength_equals_teacher_forcing_on_words(answers, table):
    """A model that sees the same context either way: words for tokens, "." for the EOS."""
    model, rounds = word_model(table), []

    def complete(ids, prefixes):
        rounds.append(list(ids))
        for i, prefix in zip(ids, prefixes, strict=True):
            assert texts[i].startswith(prefix)
        return [model(prefix) for prefix in prefixes]

    texts = [" ".join(words) for words in answers]
    result = memorization.generated_extraction_strength(texts, complete)
    for strength, words in zip(result, answers, strict=True):
        right = [table[last] == word for last, word in pairwise(["", *words, "."])]
        whole = slow_strength(right)  # over the words and the EOS
        n = len(words)
        memorised = round(whole * (n + 1)) - 1  # words after the prefix, if the EOS is right
        assert strength == pytest.approx(max(memorised, 0) / n)
    assert len(rounds) <= max(map(len, answers))
    assert all(set(later) <= set(earlier) for earlier, later in pairwise(rounds))


def test_generated_text_counts_up_to_its_first_line_and_to_the_letter():
    answer = ["Born in Lima."]
    strength = lambda *texts: memorization.generated_extraction_strength(
        answer, lambda ids, prefixes: [texts[len(prefixes[0].split())]]
    )
    assert strength("Born in Lima.") == [1]
    assert strength(" Born in Lima.\nHe writes.") == [1]
    assert strength("No", "in Lima. He writes.", "Lima.") == pytest.approx([1 / 3])
    assert strength("No", "No", "Lima. He") == [0]
    assert memorization.generated_extraction_strength([""], lambda i, p: 1 / 0).tolist() == [0]


def test_an_answer_of_several_lines_counts_with_all_of_them():
    strength = lambda text: memorization.generated_extraction_strength(
        ["Born in\nLima."], lambda ids, prefixes: [text if not prefixes[0] else "No"]
    )
    assert strength("Born in\nLima.\nHe writes.") == strength(" Born in\nLima.") == [1]
    assert strength("Born in") == strength("Born in\nLima. He writes.") == [0]


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.floats(0, 1))
def test_a_split_answer_is_the_answer(answers, share):
    texts = [" ".join(words) for words in answers]
    prefixes, rests = memorization.split_answers(texts, share=share)
    for text, prefix, rest in zip(texts, prefixes, rests, strict=True):
        assert rest and f"{prefix} {rest}".removeprefix(" ") == text
        assert len(prefix.split()) <= share * len(text.split())


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"share=1\.5 must be in 0\.\.1"):
        memorization.split_answers(["a b"], share=1.5)


def test_verbatim_rouge_is_f1_of_words_or_of_stems():
    generated, references = ["she writes novels now"], ["she writing novels"]
    assert memorization.verbatim_rouge(generated, references) == pytest.approx(2 * 2 / 7)
    stemmed = memorization.verbatim_rouge(generated, references, stem=True)
    assert stemmed == pytest.approx(2 * 3 / 7)
    assert memorization.verbatim_rouge(references, references).tolist() == [1]


def test_every_definition_is_named_and_versioned():
    names = {f"extraction_strength.{d}" for d in get_args(memorization.Strength)}
    names |= {f"exact_memorization.{d}" for d in get_args(memorization.Exact)}
    assert names < memorization.DEFINITIONS.keys()
    assert all(d.name == name and d.version for name, d in memorization.DEFINITIONS.items())
