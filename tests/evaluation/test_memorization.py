"""The memorisation suite: its questions, and the rows of both kinds of metrics."""

import typing

import numpy as np
import pytest

from jaxunlearn.data.encoder import Items
from jaxunlearn.data.planning import Sample
from jaxunlearn.evaluation import memorization as suite_memorization
from jaxunlearn.metrics import memorization
from jaxunlearn.metrics.rouge import NO_WORDS

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]


def test_paraphrased_questions_take_the_place_of_the_questions():
    own = [row | {"paraphrased_question": row["question"].upper()} for row in ROWS]
    rows = suite_memorization.paraphrased_rows(own)
    assert [row["question"] for row in rows] == ["Q0", "Q1", "Q2", "Q3"]
    assert [row["answer"] for row in rows] == [row["answer"] for row in ROWS]
    assert suite_memorization.paraphrased_rows(ROWS) is None
    assert suite_memorization.paraphrased_rows([]) is None


def items(lengths, labels=2):
    samples = [[Sample(np.zeros(n, np.int32), n - labels)] for n in lengths]
    return Items(ROWS[: len(lengths)], samples)


def test_questions_are_recited_where_the_context_has_room():
    sets = {"forget": items([10, 30, 10]), "retain": items([10], labels=4)}
    sets["forget"].sequences[1] = items([30], labels=25).sequences[0]
    extra = suite_memorization.EXTRA_TOKENS
    recited = suite_memorization.recited_questions(sets, None, 15 + 2 * extra)
    assert recited.max_new_tokens == 4 + extra  # the answer of the long row does not count
    assert recited.sets == ["forget", "forget", "retain"]
    assert recited.rows == [ROWS[0], ROWS[2], ROWS[0]]
    first = suite_memorization.recited_questions(sets, 1, 100)
    assert first.sets == ["forget", "retain"]
    assert suite_memorization.recited_questions(sets, 0, 100).rows == []


def test_teacher_forced_rows_are_means_of_every_definition():
    correct, mask = np.array([[True, True], [False, True]]), np.ones((2, 2), bool)
    rows = suite_memorization.teacher_forced_rows("retain", correct, mask)
    assert [row["definition"] for row in rows] == [
        *(f"extraction_strength.{d}" for d in typing.get_args(memorization.Strength)),
        *(f"exact_memorization.{d}" for d in typing.get_args(memorization.Exact)),
    ]
    assert rows[0]["value"] == rows[3]["value"] == 0.75 and rows[4]["value"] == 0.5
    assert {(row["set"], row["items"]) for row in rows} == {("retain", 2)}


@pytest.mark.parametrize(
    ("unasked", "reason"),
    [("nothing was recited",) * 2, (None, "the context has no room for it")],
)
def test_generated_rows_are_means_of_one_set_or_say_why_not(unasked, reason):
    values = {name: np.array([1.0, 0.0, 0.5]) for name in suite_memorization.GENERATED}
    sets = ["forget", "retain", "forget"]
    rows = suite_memorization.generated_rows("forget", sets, values, unasked=unasked)
    assert [(row["value"], row["items"]) for row in rows] == [(0.75, 2)] * 3
    rows = suite_memorization.generated_rows("other", sets, values, unasked=unasked)
    assert [row["definition"] for row in rows] == list(suite_memorization.GENERATED)
    assert {row["reason"] for row in rows} == {reason}


def test_generated_rows_of_another_script_say_why_there_are_none():
    values = {name: np.array([1.0, 0.5]) for name in suite_memorization.GENERATED}
    values["verbatim_rouge.rougeL_f1"] = np.array([np.nan, np.nan])
    values["verbatim_rouge.rougeL_f1_stemmed"] = np.array([np.nan, 0.25])
    rows = suite_memorization.generated_rows("forget", ["forget"] * 2, values, unasked=None)
    by_name = {row["definition"]: row for row in rows}
    assert by_name["verbatim_rouge.rougeL_f1"]["reason"] == NO_WORDS
    stemmed = by_name["verbatim_rouge.rougeL_f1_stemmed"]
    assert (stemmed["value"], stemmed["items"]) == (0.25, 1)
    assert by_name["extraction_strength.generation"]["items"] == 2


@pytest.mark.usefixtures("on_mesh")
def test_each_set_gets_the_numbers_of_its_own_rows(context_of, params_of):
    """The rows of a set are cut out of one pass over all of them."""
    suite = suite_memorization.memorization_suite(context_of())
    rows = suite.measure("ga", params_of(1))
    sets = list(suite.settings["items"])
    assert sets == ["forget", "forget.paraphrased", "retain", "retain.paraphrased"]
    assert list(dict.fromkeys(row["set"] for row in rows)) == sets
    for row in rows:
        if row["value"] is not None:
            assert row["items"] == suite.settings["items"][row["set"]]
    reasons = {row["reason"] for row in rows if "reason" in row}
    assert reasons == {"nothing was recited"}
