"""Reading splits and refusals, and what is said when they cannot be read."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest

from jaxunlearn.data import fictional, sources
from jaxunlearn.data.refusals import Refusals, load_refusals, refusal_index
from jaxunlearn.data.rows import row_key
from jaxunlearn.data.sources import SourceError, Sources, SplitNotFoundError, load_split

ROW = {"question": "Who?", "answer": "Nobody."}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "forget05.jsonl", [ROW, {"question": "Where?", "answer": "Nowhere."}])
    write(tmp_path / "retain95.json", [ROW])
    (tmp_path / "idontknow.jsonl").write_text("No idea.\n\nAsk me later.\n")
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_splits_of_a_folder_and_a_single_file(folder):
    split = load_split(folder, "forget05")
    assert [row["answer"] for row in split] == ["Nobody.", "Nowhere."]
    assert load_split(folder, "retain95")[0] == ROW
    assert load_split(folder / "forget05.jsonl") == split
    assert len(load_split(str(folder / "forget05.jsonl"), "forget05")) == 2


def test_a_missing_split_lists_those_that_are_there(folder):
    with pytest.raises(FileNotFoundError) as error:
        load_split(folder, "forget5")
    assert "perhaps you meant 'forget05'" in str(error.value)
    assert str(error.value).endswith("there are: forget05, retain95")


def test_a_single_file_is_not_passed_off_as_another_split(folder):
    with pytest.raises(FileNotFoundError, match="'forget05', but 'retain95' was asked for"):
        load_split(folder / "forget05.jsonl", "retain95")


def test_a_missing_source_is_named(folder):
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        load_split(folder / "absent", "forget05")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Who?"', r"bad\.jsonl:2: not JSON"),
        ("[1, 2]", r"bad\.jsonl:2: expected one JSON object a line, got list"),
        (
            '{"question": "Who?", "answr": "A."}',
            r":2: no key 'answer' \(data\.answer_key\); perhaps you meant 'answr'; has \['answr', ",
        ),
        ('{"question": "Who?", "answer": 3}', r":2: 'answer' must be a string, got 3"),
        (
            '{"question": "Who?", "answer": "A.", "paraphrased_answer": "B."}',
            r":2: keys .* differ from the first row's \['answer', 'question'\]",
        ),
        (
            '{"question": "Who?", "answer": "\\ud800"}',
            r":2: 'answer' holds half of a",
        ),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path, "bad")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "full.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"full\.jsonl: empty"):
        load_split(tmp_path, "full")


def test_refusals_from_a_folder_a_file_and_the_package(folder):
    assert load_refusals(folder) == ["No idea.", "Ask me later."]
    assert load_refusals(folder / "idontknow.jsonl") == load_refusals(folder)
    assert len(load_refusals()) == 20


def test_absent_and_empty_refusals_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no refusals"):
        load_refusals(tmp_path)
    (tmp_path / "idontknow.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        load_refusals(tmp_path)


@pytest.mark.parametrize("line", ['{"answer": "I do not know."}', '["I do not know."]'])
def test_refusals_of_json_are_refused(tmp_path, line):
    """The name of the file ends in .jsonl, and its lines are plain text."""
    (tmp_path / "idontknow.jsonl").write_text(f"No idea.\n\n{line}\n")
    with pytest.raises(ValueError, match=r"idontknow\.jsonl:3: JSON; expected plain text"):
        load_refusals(tmp_path)


def test_a_refusal_depends_on_seed_sample_and_epoch_alone():
    draw = lambda **changed: [
        refusal_index(**({"seed": 0, "sample": s, "epoch": 0, "n": 100} | changed))
        for s in range(50)
    ]
    assert draw() == draw()
    assert draw() != draw(epoch=1) and draw() != draw(seed=1) and draw() != draw(epoch=None)
    assert len(set(draw())) > 25
    assert draw(n=1) == [0] * 50


def test_refusals_are_uniform():
    draws = [refusal_index(0, sample, None, 8) for sample in range(2000)]
    counts = np.bincount(draws, minlength=8)
    assert counts.shape == (8,) and np.abs(counts - 250).max() < 5 * np.sqrt(250)


def test_no_refusals_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        refusal_index(0, 0, None, 0)


SIZES = {"authors": 4, "questions": 3, "forget_share": 0.25}


def local(folder):
    return Sources(str(folder), fictional={"seed": 0, **SIZES})


def embedded():
    return Sources("fictional", fictional={"seed": 0, **SIZES})


def generated(split):
    """The rows of an embedded split, without the columns that nobody reads."""
    rows = fictional.generate(0, **SIZES)[split]
    return [{k: row[k] for k in row if k not in ("author", "attribute")} for row in rows]


def test_a_split_is_found_or_required(folder):
    assert local(folder).find("retain95") == [ROW] == local(folder).require("retain95", "a.key")
    assert local(folder).find("forget5") is None
    with pytest.raises(FileNotFoundError, match=r"^data\.forget: .*no split 'forget5'; perhaps"):
        local(folder).require("forget5", "data.forget")
    assert local(folder / "retain95.json").find("forget05") is None


def test_the_embedded_splits():
    assert embedded().find("forget") == generated("forget")
    assert embedded().require("forget", "key") == generated("forget")
    assert embedded().find("forget05") is None
    with pytest.raises(FileNotFoundError, match=r"^data\.forget: the embedded data has no split"):
        embedded().require("forgett", "data.forget")


def test_a_source_that_cannot_be_read_is_not_taken_for_an_absent_split(folder):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        local(folder / "absent").find("forget05")
    (folder / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"^data\.retain: .*bad\.jsonl:1"):
        local(folder).require("bad", "data.retain")
    (folder / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(ValueError, match=r"^finetune\.splits: .*latin\.jsonl:1: not UTF-8"):
        local(folder).require("latin", "finetune.splits")


def test_an_empty_split_is_refused(monkeypatch):
    monkeypatch.setattr(sources, "load_split", lambda *_: [])
    with pytest.raises(ValueError, match=r"^data\.forget: split .forget05. of a/b is empty"):
        Sources("a/b", fictional={}).require("forget05", "data.forget")


def test_a_split_may_be_a_part_of_one():
    rows = generated("retain")
    assert len(rows) > 3
    for name, expected in {
        "retain[:3]": rows[:3],
        "retain[1:3]": rows[1:3],
        "retain[2:]": rows[2:],
        "retain[:]": rows,
    }.items():
        assert embedded().require(name, "data.retain") == expected, name
    with pytest.raises(ValueError, match=r"data.retain: split 'retain\[900:\]' of .* is empty"):
        embedded().require("retain[900:]", "data.retain")
    with pytest.raises(FileNotFoundError, match="no split 'retainn'"):
        embedded().require("retainn[:3]", "data.retain")
    for typo in ("retain[3]", "retain[:x]", "retain[-2:]", "retain[:3", "[:3]"):
        with pytest.raises(FileNotFoundError, match="no split"):
            embedded().require(typo, "data.retain")


def test_every_split_is_read_once(folder, monkeypatch):
    calls = []

    def count(name, real):
        return lambda *args, **sizes: calls.append(name) or real(*args, **sizes)

    monkeypatch.setattr(sources, "load_split", count("read", load_split))
    monkeypatch.setattr(sources, "generate", count("generate", fictional.generate))
    files, rows = local(folder), embedded()
    for _ in range(2):
        files.find("retain95"), files.require("forget05", "key"), files.corpus({"retain95": "key"})
        rows.find("forget"), rows.require("retain", "key"), rows.corpus({})
    assert sorted(calls) == ["generate", "read", "read"]


def test_the_corpus_has_every_embedded_split_or_the_local_ones_that_are_named(folder):
    every = [generated(split) for split in fictional.generate(0, **SIZES)]
    assert embedded().corpus({"forget": "data.forget"}) == [row for rows in every for row in rows]
    files = local(folder)
    joined = files.corpus({"retain95": "data.retain", "forget05": "data.forget"})
    assert joined == files.find("retain95") + files.find("forget05")
    with pytest.raises(FileNotFoundError, match=r"^data\.forget: "):
        files.corpus({"forget99": "data.forget"})


def test_a_source_may_have_refusals_of_its_own(folder):
    assert local(folder).refusals() == ["No idea.", "Ask me later."]
    assert len(embedded().refusals()) == 20 == len(local(folder / "forget05.jsonl").refusals())


def test_rows_are_equal_by_question_and_answer():
    assert row_key(ROW) == row_key(ROW | {"extra": 1}) != row_key(ROW | {"answer": "Somebody."})


def test_local_files_need_no_datasets_package(folder):
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from jaxunlearn.data import load_split\n"
        f"print(len(load_split({str(folder)!r}, 'forget05')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "2\n"


# The message of datasets 4 and 5 where a dataset lacks a configuration.
UNKNOWN = "BuilderConfig 'holdout05' not found. Available: ['full', 'forget05']"
HUB_ERRORS = [
    ConnectionError("Couldn't reach 'locuslab/TOFU' on the Hub (LocalEntryNotFoundError)"),
    TimeoutError("the read operation timed out"),
    datasets.exceptions.DatasetNotFoundError("'locuslab/TOFU' is a gated dataset on the Hub"),
    datasets.exceptions.DataFilesNotFoundError("No (supported) data files found"),
    datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
    FileNotFoundError("[Errno 2] No such file or directory: 'cache/0000.arrow'"),
    ValueError("Couldn't find cache for locuslab/TOFU for config 'holdout05'"),
    RuntimeError("429 Client Error: Too Many Requests"),
    KeyError("train"),
]


def hub(monkeypatch, answer):
    """A source on the hub; what `datasets` answers is a list of rows or an error."""

    def load_dataset(name, split):
        assert (name, split) == ("locuslab/TOFU", "holdout05")
        if isinstance(answer, Exception):
            raise answer
        return {"train": datasets.Dataset.from_list(answer)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return Sources("locuslab/TOFU", fictional={})


def test_rows_from_the_hub(monkeypatch):
    assert hub(monkeypatch, [ROW]).find("holdout05") == [ROW]


def test_a_configuration_that_the_hub_does_not_have_is_an_absent_split(monkeypatch):
    source = hub(monkeypatch, ValueError(UNKNOWN))
    assert source.find("holdout05") is None
    with pytest.raises(FileNotFoundError, match=r"^data\.forget: .*holdout05.*Available"):
        source.require("holdout05", "data.forget")
    with pytest.raises(SplitNotFoundError):
        load_split("locuslab/TOFU", "holdout05")


@pytest.mark.parametrize("error", HUB_ERRORS, ids=lambda e: f"{type(e).__name__}")
def test_a_hub_that_fails_is_not_taken_for_an_absent_split(monkeypatch, error):
    source = hub(monkeypatch, error)
    with pytest.raises(SourceError, match=r"locuslab/TOFU.*holdout05.*" + type(error).__name__):
        source.find("holdout05")
    with pytest.raises(SourceError, match=r"^data\.forget: locuslab/TOFU"):
        source.require("holdout05", "data.forget")


def test_a_refusal_is_encoded_when_it_is_drawn_first():
    calls = []

    def encode(row):
        calls.append((row["question"], row["answer"]))
        return row["question"], row["answer"]

    refusals = Refusals([{"question": "a"}, {"question": "b"}], ["1", "2", "3"], encode, seed=0)
    draws = [refusals.draw(sample, epoch) for sample in (0, 1) for epoch in (None, *range(20))]
    expected = [
        (question, str(1 + refusal_index(0, sample, epoch, 3)))
        for sample, question in enumerate("ab")
        for epoch in (None, *range(20))
    ]
    assert draws == expected and sorted(calls) == sorted(set(expected))


@pytest.mark.stories
def test_tofu_as_published(shared_data):
    sizes = json.loads((shared_data / "tofu/splits.json").read_text())
    questions = lambda rows: [row["question"] for row in rows]
    full = load_split(shared_data / "tofu", "full")
    for split in ("forget01", "forget05", "forget10", "retain90", "retain95"):
        first, last = sizes[split]
        rows = load_split(shared_data / "tofu", split)
        assert questions(rows) == questions(full)[first:last]
    assert len(load_split(shared_data / "tofu", "retain_perturbed")[0]["perturbed_answer"]) == 5
    assert len(load_refusals(shared_data / "tofu")) == 100
