"""Reading splits and refusals, and what is said when they cannot be read."""

import json

import numpy as np
import pytest

from jaxunlearn.data.tofu import load_refusals, load_split, refusal_index

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
    assert split["answer"][:] == ["Nobody.", "Nowhere."]
    assert load_split(folder, "retain95")[0] == ROW
    assert load_split(folder / "forget05.jsonl").to_list() == split.to_list()
    assert load_split(str(folder / "forget05.jsonl"), "forget05").num_rows == 2


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
        ('{"question": "Who?"', r"bad\.jsonl:2: invalid JSON"),
        ("[1, 2]", r"bad\.jsonl:2: expected a JSON object, got list"),
        ('{"question": "Who?", "answr": "A."}', r":2: no key 'answer' \(perhaps you meant 'answr'"),
        ('{"question": "Who?", "answer": 3}', r":2: 'answer' must be a string, got 3"),
        ('{"question": "Who?", "answer": "A.", "extra": 1}', r":2: keys .* differ from the first"),
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


@pytest.mark.stories
def test_tofu_as_published(shared_data):
    sizes = json.loads((shared_data / "tofu/splits.json").read_text())
    full = load_split(shared_data / "tofu", "full")
    for split in ("forget01", "forget05", "forget10", "retain90", "retain95"):
        first, last = sizes[split]
        rows = load_split(shared_data / "tofu", split)
        assert rows["question"][:] == full["question"][first:last]
    assert len(load_split(shared_data / "tofu", "retain_perturbed")[0]["perturbed_answer"]) == 5
    assert len(load_refusals(shared_data / "tofu")) == 100
