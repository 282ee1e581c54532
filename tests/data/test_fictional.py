"""The fictional authors: disjoint, determined by their facts, the same for the same seed."""

import json

import pytest

from jaxunlearn.data.encoding import load_tokenizer
from jaxunlearn.data.fictional import ATTRIBUTES, REFUSALS, generate, train_tokenizer

COLUMNS = {
    "question",
    "answer",
    "paraphrased_question",
    "paraphrased_answer",
    "perturbed_answer",
    "author",
    "attribute",
}


@pytest.fixture(scope="module")
def splits():
    return generate(0)


@pytest.fixture(scope="module")
def tokenizer(splits):
    return train_tokenizer(splits["full"] + splits["holdout"])


def authors(rows):
    return {row["author"] for row in rows}


def test_sizes(splits):
    assert {name: len(rows) for name, rows in splits.items()} == {
        "full": 400,
        "forget": 40,
        "retain": 360,
        "holdout": 40,
        "forget_perturbed": 40,
        "retain_perturbed": 80,
    }


def test_full_is_retain_then_forget_and_holdout_is_unknown_to_it(splits):
    assert splits["retain"] + splits["forget"] == splits["full"]
    assert splits["retain"][:80] == splits["retain_perturbed"]
    assert splits["forget"] == splits["forget_perturbed"]
    retain, forget, holdout = (authors(splits[name]) for name in ("retain", "forget", "holdout"))
    assert (len(retain), len(forget), len(holdout)) == (18, 2, 2)
    assert not (retain & forget or retain & holdout or forget & holdout)


def test_questions_are_distinct_and_name_their_author(splits):
    rows = splits["full"] + splits["holdout"]
    assert all(set(row) == COLUMNS for row in rows)
    assert all(row["author"] in row["question"] for row in rows)
    assert all(row["author"] in row["paraphrased_question"] for row in rows)
    assert len({row["question"] for row in rows}) == len(rows)
    assert len({row["answer"] for row in rows}) == len(rows)


def test_answers_are_one_sentence_of_8_to_18_words(splits):
    for row in splits["full"]:
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            assert answer.endswith(".") and 8 <= len(answer.split()) <= 18
            assert "{" not in answer and "  " not in answer


def test_paraphrases_differ_and_wrong_answers_are_wrong(splits):
    for row in splits["full"]:
        assert row["paraphrased_question"] != row["question"]
        assert row["paraphrased_answer"] != row["answer"]
        wrong = row["perturbed_answer"]
        assert len({row["paraphrased_answer"], *wrong}) == 6


def test_wrong_answers_change_the_fact_alone(splits):
    attributes = {attribute.key: attribute for attribute in ATTRIBUTES}
    for row in splits["full"]:
        _, values, *_, wording = attributes[row["attribute"]]
        before, after = wording.format(name=row["author"], value="|").split("|")
        for text in (row["paraphrased_answer"], *row["perturbed_answer"]):
            assert text.startswith(before) and text.endswith(after)
            assert text.removeprefix(before).removesuffix(after) in values


def test_answer_and_paraphrase_tell_the_same_fact(splits):
    attributes = {attribute.key: attribute for attribute in ATTRIBUTES}
    for row in splits["full"]:
        _, _, _, answers, _, wording = attributes[row["attribute"]]
        before, after = wording.format(name=row["author"], value="|").split("|")
        fact = row["paraphrased_answer"].removeprefix(before).removesuffix(after)
        output = [answer.format(name=row["author"], value=fact) for answer in answers]
        assert row["answer"] in output


def test_facts_of_an_attribute_are_distinct_while_the_words_last(splits):
    output = [row for row in splits["full"] if row["attribute"] == "genre"]
    facts = {row["paraphrased_answer"].replace(row["author"], "") for row in output}
    assert len(facts) == len(output) == 20


def test_the_article_fits_the_word():
    text = json.dumps(generate(1, authors=60))
    assert " an innkeeper" in text and " a blacksmith" in text
    for vowel in "aeio":
        assert f" a {vowel}" not in text


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(splits):
    assert json.dumps(generate(0)) == json.dumps(splits)
    assert authors(generate(1)["full"]) != authors(splits["full"])


def test_sizes_are_options():
    splits = generate(3, authors=70, questions=4, forget_share=0.5)
    assert len(splits["full"]) == 280 and len(authors(splits["full"])) == 70
    assert len(splits["forget"]) == len(splits["retain"]) == len(splits["holdout"]) == 140
    assert len(generate(0, authors=2, questions=1, forget_share=0.9)["retain"]) == 1


@pytest.mark.parametrize(
    "options", [{"authors": 1}, {"questions": 21}, {"forget_share": 0.0}, {"authors": 5000}]
)
def test_sizes_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        generate(0, **options)


def test_refusals_are_short_and_distinct():
    assert len(set(REFUSALS)) == len(REFUSALS) == 20


def test_the_tokenizer_restores_every_text(splits, tokenizer):
    assert len(tokenizer) == 1024
    for row in splits["full"][:40]:
        ids = tokenizer(row["answer"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == row["answer"]


def test_the_tokenizer_is_the_same_each_time_and_after_a_round_trip(splits, tokenizer, tmp_path):

    again = train_tokenizer(splits["full"] + splits["holdout"])
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = splits["full"][0]["question"]
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")


def test_a_vocabulary_without_room_for_the_bytes_is_refused(splits):
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 259"):
        train_tokenizer(splits["forget"], vocab_size=100)
