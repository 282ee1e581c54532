"""Every format of a local source gives the same rows, and names what is wrong with them."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxunlearn.data import Columns, load_split
from jaxunlearn.data.rows import row_key, title
from jaxunlearn.data.sources import Sources, SplitNotFoundError

ROWS = [
    {"question": 'Who is "Ana", then?', "answer": "A poet,\nof Basel."},
    {"question": "Où ? 東京", "answer": "1999"},
]


def write_lines(folder, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "forget.jsonl").write_text(lines, encoding="utf-8")


def write_list(folder, rows):
    (folder / "forget.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_csv(folder, rows):
    datasets.Dataset.from_list(rows).to_pandas().to_csv(folder / "forget.csv", index=False)


def write_parquet(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "forget.parquet")


def write_dataset(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(folder / "forget")


def write_dictionary(folder, rows):
    splits = {"forget": datasets.Dataset.from_list(rows)}
    datasets.DatasetDict(splits | {"other": datasets.Dataset.from_list(ROWS[:1])}).save_to_disk(
        folder
    )


WRITERS = [write_lines, write_list, write_csv, write_parquet, write_dataset, write_dictionary]
every_format = pytest.mark.parametrize("write", WRITERS)
# In a CSV file every value is text.
typed_formats = pytest.mark.parametrize("write", [w for w in WRITERS if w is not write_csv])


@every_format
def test_every_format_gives_the_same_rows(write, tmp_path):
    write(tmp_path, ROWS)
    assert load_split(tmp_path, "forget") == ROWS
    with pytest.raises(SplitNotFoundError, match=r"no split 'forgt'; perhaps you meant 'forget'"):
        load_split(tmp_path, "forgt")


@every_format
def test_columns_may_have_any_names(write, tmp_path):
    write(tmp_path, [{"prompt": row["question"], "gold": row["answer"]} for row in ROWS])
    assert load_split(tmp_path, "forget", Columns(question="prompt", answer="gold")) == ROWS


@every_format
def test_a_missing_column_is_named_with_the_nearest(write, tmp_path):
    write(tmp_path, [row | {"id": "7"} for row in ROWS])
    with pytest.raises(ValueError, match=r"forget.*: no key 'anser' \(data\.answer_key\)") as error:
        load_split(tmp_path, "forget", Columns(answer="anser"))
    message = str(error.value)
    assert "perhaps you meant 'answer'" in message and "has ['answer', 'id', 'question']" in message
    # None of the columns that are read is there.
    with pytest.raises(ValueError, match=r"no key 'a' \(data\.question_key\); has \['answer'"):
        load_split(tmp_path, "forget", Columns("a", "b", "c", "d", "e", "f"))


@typed_formats
def test_wrong_answers_and_paraphrases_keep_their_place(write, tmp_path):
    extra = {"paraphrased_answer": "Bo.", "perturbed_answer": ["Cy.", "Di."]}
    write(tmp_path, [row | extra for row in ROWS])
    assert load_split(tmp_path, "forget") == [row | extra for row in ROWS]
    columns = Columns(paraphrased_answer="p", perturbed_answer="perturbed_answer")
    found = load_split(tmp_path, "forget", columns)
    assert found == [row | {"perturbed_answer": ["Cy.", "Di."]} for row in ROWS]


@pytest.mark.parametrize("write", [write_lines, write_list])
def test_columns_without_a_use_may_hold_anything(write, tmp_path):
    extras = ({"id": 1, "meta": {"a": [1]}}, {"id": "two", "meta": None, "more": float("nan")})
    write(tmp_path, [row | extra for row, extra in zip(ROWS, extras, strict=True)])
    assert load_split(tmp_path, "forget") == ROWS


def test_columns_without_a_use_are_not_decoded(tmp_path):
    features = datasets.Features(
        question=datasets.Value("string"), answer=datasets.Value("string"), photo=datasets.Image()
    )
    rows = [row | {"photo": {"path": "nowhere.png", "bytes": b"no image"}} for row in ROWS]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "forget")
    assert load_split(tmp_path / "forget") == ROWS


@typed_formats
def test_a_value_of_another_type_is_named_by_its_row(write, tmp_path):
    write(tmp_path, [{"question": "Who?", "answer": 3}, {"question": "Who?", "answer": 4}])
    place = r"forget\.jsonl:1" if write is write_lines else "forget.*: row 0"
    with pytest.raises(ValueError, match=rf"{place}: 'answer' must be a string, got 3"):
        load_split(tmp_path, "forget")


@typed_formats
def test_a_null_is_a_missing_text(write, tmp_path):
    write(tmp_path, [ROWS[0], {"question": "Who?", "answer": None}])
    with pytest.raises(ValueError, match=r"(row 1|:2): 'answer' must be a string, got None"):
        load_split(tmp_path, "forget")


def test_wrong_answers_must_be_a_list_of_texts(tmp_path):
    for wrong, message in (
        ("Bo.", r":1: 'perturbed_answer' must be a list of strings, got 'Bo\.'"),
        (["Bo.", 3], r":1: 'perturbed_answer'\[1\] must be a string, got 3"),
    ):
        write_lines(tmp_path, [ROWS[0] | {"perturbed_answer": wrong}])
        with pytest.raises(ValueError, match=message):
            load_split(tmp_path, "forget")


@pytest.mark.parametrize("write", [write_lines, write_list, write_csv])
def test_a_byte_order_mark_is_read(write, tmp_path):
    write(tmp_path, ROWS)
    (file,) = tmp_path.glob("forget.*")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_split(tmp_path, "forget") == ROWS


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_another_encoding_is_named_by_file_and_line(tmp_path, suffix):
    (tmp_path / f"forget.{suffix}").write_bytes(b"question,answer\nWho?,na\xefve\n")
    with pytest.raises(ValueError, match=rf"forget\.{suffix}:2: not UTF-8 text"):
        load_split(tmp_path, "forget")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2]", r"a\.json: row 0: expected a list of JSON objects, got int"),
        ("a.json", b"[]", r"a\.json: empty"),
        ("a.json", b'[{"question": ', r"a\.json: not JSON"),
        ("a.csv", b"", r"a\.csv: cannot be read as CSV: Empty"),
        ("a.csv", b"question,answer\n", r"a\.csv: empty"),
        ("a.csv", b"question,answer\nWho?,A.,B.\n", r"a\.csv: .*CSV.*[Ee]xpected 2 columns, got 3"),
        (
            "a.csv",
            b"question,answer,answer\nWho?,A.,B.\n",
            r".*column 'answer' is there twice",
        ),
        ("a.parquet", b"PAR1 no PAR1", r"a\.parquet: cannot be read as Parquet"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path, "a")


def test_a_damaged_dataset_is_named(tmp_path):
    write_dataset(tmp_path, ROWS)
    for file in (tmp_path / "forget").glob("*.arrow"):
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"forget: cannot be read as a saved dataset: "):
        load_split(tmp_path, "forget")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('question,answer\nq0,a0\nq1,"a1\nq2,a2\n', 3),
        ('question,answer\n"q0,a0\n', 2),
        ('question,answer\n"q\n""0""","a0"\nq1,"a""\n', 4),
        ('"question,answer\nq0,a0\n', 1),
    ],
)
def test_a_quote_in_a_csv_file_that_is_never_closed(tmp_path, text, line):
    """All rows after it would be one answer."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(
        ValueError, match=rf"a\.csv:{line}: a quotation mark is opened here and nev"
    ):
        load_split(tmp_path, "a")


def test_quotes_in_a_csv_file_that_open_nothing(tmp_path):
    text = 'question,answer\nq0,5" of rain\n"q,""1""","a\n1"\nq2,""\nq3, "a"\n'
    (tmp_path / "a.csv").write_text(text)
    rows = load_split(tmp_path, "a")
    assert [row["answer"] for row in rows] == ['5" of rain', "a\n1", "", ' "a"']
    assert rows[1]["question"] == 'q,"1"'


def test_another_separator_than_commas_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("question;answer\nq0;a0\n")
    with pytest.raises(
        ValueError, match=r"one column is 'question;answer'; separate values by com"
    ):
        load_split(tmp_path, "a")


def test_long_texts_and_line_breaks_in_a_csv_file(tmp_path):
    rows = [{"question": "q\r\n" * 9, "answer": "word, " * 400_000}, ROWS[0]]
    write_csv(tmp_path, rows)
    assert load_split(tmp_path, "forget") == rows


def test_two_files_of_one_split_are_refused(tmp_path):
    write_lines(tmp_path, ROWS)
    write_csv(tmp_path, ROWS)
    with pytest.raises(ValueError, match=r"'forget' is there several times \(forget\.csv, forget"):
        load_split(tmp_path, "forget")


def test_one_saved_dataset_is_one_split(tmp_path):
    write_dataset(tmp_path, ROWS)
    assert load_split(tmp_path / "forget") == load_split(tmp_path / "forget", "forget") == ROWS
    with pytest.raises(SplitNotFoundError, match=r"one split, 'forget', but 'retain' was asked"):
        load_split(tmp_path / "forget", "retain")


def test_a_source_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path, ROWS)
    (tmp_path / "idontknow.jsonl").write_bytes(b"\xef\xbb\xbfNo idea.\n")
    source = Sources("~", fictional={})
    assert source.find("forget") == ROWS and source.refusals() == ["No idea."]


# ------------------------------------------------------------------------------- the hub


def on_the_hub(monkeypatch, parts):
    def load_dataset(name, configuration):
        assert configuration in ("raw", None)
        return {part: datasets.Dataset.from_list(rows) for part, rows in parts.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_a_split_of_a_configuration_on_the_hub(monkeypatch):
    on_the_hub(monkeypatch, {"forget": ROWS, "retain1": ROWS[:1]})
    assert load_split("muse-bench/MUSE-News", "raw/forget") == ROWS
    source = Sources("muse-bench/MUSE-News", fictional={})
    assert source.find("raw/holdout") is None and source.find("raw/forget[1:]") == ROWS[1:]
    with pytest.raises(SplitNotFoundError, match=r"'raw' has no split 'train'; .* raw/forget, raw"):
        load_split("muse-bench/MUSE-News", "raw")
    on_the_hub(monkeypatch, {"train": ROWS})
    assert load_split("muse-bench/MUSE-News") == ROWS


# ------------------------------------------------------------------------------- conversations

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "Ana."}


@typed_formats
def test_the_last_turn_of_a_conversation_is_its_answer(write, tmp_path):
    long = [SYSTEM, USER, ASSISTANT, USER | {"content": "Where?"}, ASSISTANT | {"content": "Here."}]
    write(tmp_path, [{"messages": long}, {"messages": [USER, ASSISTANT]}])
    assert load_split(tmp_path, "forget") == [
        {"question": "Where?", "answer": "Here.", "history": long[:3]},
        {"question": "Who?", "answer": "Ana.", "history": []},
    ]


def test_conversations_are_read_where_there_are_no_questions(tmp_path):
    write_lines(tmp_path, [ROWS[0] | {"messages": "anything"}])
    assert load_split(tmp_path, "forget") == ROWS[:1]
    write_lines(tmp_path, [{"turns": [USER, ASSISTANT]}])
    (row,) = load_split(tmp_path, "forget", Columns(messages="turns"))
    assert (row["question"], row["answer"]) == ("Who?", "Ana.")
    with pytest.raises(ValueError, match=r"no key 'question' .* has \['turns'\]"):
        load_split(tmp_path, "forget")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], r":1: 'messages' must end with a turn of 'user'.* end with \[\]"),
        ([USER], r"its roles end with \['user'\]"),
        ([USER, ASSISTANT, USER], r"its roles end with \['assistant', 'user'\]"),
        ([SYSTEM, ASSISTANT], r"its roles end with \['system', 'assistant'\]"),
        ("Who?", r":1: 'messages' must be a list of turns, got 'Who\?'"),
        ([USER, {"role": "assistant"}], r"'messages'\[1\] must have 'role' and 'content'"),
        ([USER, ["assistant"]], r"'messages'\[1\] must have 'role' and 'content'"),
        (
            [USER, ASSISTANT | {"role": "asistant"}],
            r"'messages'\[1\]: the role .*'assistant'",
        ),
        ([USER, ASSISTANT | {"content": None}], r"content of 'messages'\[1\] must be a string"),
    ],
)
def test_a_conversation_that_ends_with_no_answer_is_refused(tmp_path, turns, message):
    write_lines(tmp_path, [{"messages": turns}])
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path, "forget")


def test_pairs_and_conversations_do_not_mix(tmp_path):
    write_lines(tmp_path, [ROWS[0], {"messages": [USER, ASSISTANT]}])
    with pytest.raises(ValueError, match=r":2: keys \['messages'\] differ from the first row"):
        load_split(tmp_path, "forget")


def test_conversations_are_equal_with_all_their_turns():
    row = {"question": "Who?", "answer": "Ana.", "history": []}
    assert row_key(row) == row_key({"question": "Who?", "answer": "Ana."})
    assert row_key(row) != row_key(row | {"history": [SYSTEM]})


# ------------------------------------------------------------------------------- free text


@every_format
def test_documents_of_free_text(write, tmp_path):
    write(tmp_path, [{"text": "Once upon a time.", "url": "a"}, {"text": "The end.", "url": "b"}])
    rows = load_split(tmp_path, "forget", Columns(text="text"))
    assert rows == [
        {"text": "Once upon a time.", "document": 0},
        {"text": "The end.", "document": 1},
    ]
    assert row_key(rows[0]) == ("Once upon a time.",) and title(rows[1]) == "document 1"
    with pytest.raises(ValueError, match=r"no key 'txt' \(data\.text_key\); perhaps you meant 'te"):
        load_split(tmp_path, "forget", Columns(text="txt"))


def test_the_embedded_rows_have_the_same_columns_as_files():
    sizes = {"seed": 0, "authors": 2, "questions": 1, "forget_share": 0.5}
    documents = Sources("fictional", fictional=sizes, columns=Columns(text="answer"))
    rows = Sources("fictional", fictional=sizes).require("forget", "data.forget")
    assert documents.require("forget", "data.forget") == [
        {"text": rows[0]["answer"], "document": 0}
    ]
    other = Sources("fictional", fictional=sizes, columns=Columns(question="quest"))
    with pytest.raises(ValueError, match=r"^data\.forget: embedded .*no key 'quest' .*'question'"):
        other.require("forget", "data.forget")
