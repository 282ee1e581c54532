"""Files are written whole or not at all, and logs survive a crash in the middle of a line."""

import errno
import json
import os

import numpy as np
import pytest

from jaxunlearn.core import files, hosts

LOG = [{"objective": name, "step": step} for step in range(3) for name in ("ga", "npo")]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for record in LOG:
        files.append(path, record)
    return path


def test_a_log_reads_back_what_was_appended(log, tmp_path):
    assert files.records(log) == LOG
    assert files.records(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("torn", ['{"objective": "ga", "st', "{", '{"objective": "ga", "step": 9}'])
def test_a_torn_last_line_is_not_read_and_is_replaced_by_the_next_record(log, torn):
    with log.open("a") as file:
        file.write(torn)
    assert files.records(log) == LOG
    files.append(log, {"objective": "ga", "step": 3})
    assert files.records(log) == [*LOG, {"objective": "ga", "step": 3}]
    assert torn + "{" not in log.read_text()


def test_a_log_that_is_only_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": ')
    assert files.records(path) == []
    files.append(path, {"step": 0})
    assert path.read_text() == '{"step": 0}\n'
    path.write_text("")
    files.append(path, {"step": 1})
    assert files.records(path) == [{"step": 1}]


def test_cut_back_removes_one_objectives_records_from_a_step_on(log):
    files.cut_back(log, "ga", 1)
    assert files.records(log) == [r for r in LOG if r["objective"] == "npo" or r["step"] < 1]
    files.cut_back(log, "absent", 0)
    files.cut_back(log, "npo", 3)
    assert len(files.records(log)) == 4


def test_cut_back_also_removes_a_torn_line_and_makes_no_file(log, tmp_path):
    with log.open("a") as file:
        file.write('{"objective')
    files.cut_back(log, "ga", 99)
    assert log.read_text() == "".join(json.dumps(record) + "\n" for record in LOG)
    files.cut_back(tmp_path / "absent.jsonl", "ga", 0)
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def write(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_whole(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_crash_between_writing_and_renaming_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def crash(source, target):
        assert json.loads(source.read_text()) == {"a": 2}
        raise OSError("the machine stopped")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="stopped"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("sync") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("name") or replace(*names))
    files.write_text(tmp_path / "a", "text")
    assert order == ["sync", "name", "sync"]  # the content, the name, the folder that holds it
    with files.new_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("text")
        order.clear()
    assert order == ["sync", "name", "sync"]
    order.clear()
    files.append(tmp_path / "log.jsonl", {"a": 1})
    assert not order
    files.append(tmp_path / "log.jsonl", {"a": 1}, durable=True)
    assert order == ["sync"]


def test_no_link_is_followed_and_what_was_left_is_removed(tmp_path):
    victim, home = tmp_path / "victim", tmp_path / "home"
    victim.write_text("precious")
    home.mkdir()
    names = set()

    def write(temporary):
        names.add(temporary.name)
        temporary.write_text("new")

    for _ in range(3):
        files.replace_whole(home / "a.json", write)
    assert len(names) == 3  # names that nobody can foresee, and put a link there
    for left in (".a.json.0.tmp", ".folder.1.tmp/inner", ".b.tmp"):
        (home / left).parent.mkdir(exist_ok=True)
        (home / left).symlink_to(victim)
    (home / "c.tmp").write_text("a user's own")
    files.remove_unfinished(home)
    assert sorted(os.listdir(home)) == ["a.json", "c.tmp"]
    assert victim.read_text() == "precious"
    mask = os.umask(0o027)
    try:
        files.write_text(home / "d", "text")
    finally:
        os.umask(mask)
    assert (home / "d").stat().st_mode & 0o777 == 0o640


def test_files_are_written_into_folders_that_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "array.npy"
    files.write_array(path, np.arange(3.0))
    np.testing.assert_array_equal(np.load(path), [0.0, 1.0, 2.0])
    assert os.listdir(path.parent) == ["array.npy"]


def test_a_folder_that_cannot_be_removed_is_named_whole(tmp_path, monkeypatch):
    def refused(path, *, dir_fd=None):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    (tmp_path / "run" / "inner").mkdir(parents=True)
    monkeypatch.setattr(os, "rmdir", refused)
    with pytest.raises(PermissionError) as error:
        files.remove_folder(tmp_path / "run")
    assert error.value.filename == str(tmp_path / "run")


def test_nan_and_infinities_are_written_as_null(tmp_path):
    value = {"a": [float("nan"), 1.5], "b": {"c": (float("inf"), -float("inf"))}, "d": "nan"}
    files.write_json(tmp_path / "a.json", value)
    plain = {"a": [None, 1.5], "b": {"c": [None, None]}, "d": "nan"}
    assert files.read_json(tmp_path / "a.json") == plain
    files.append(tmp_path / "a.jsonl", {"loss": float("nan")})
    assert (tmp_path / "a.jsonl").read_text() == '{"loss": null}\n'


def test_only_the_first_process_writes(log, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    files.append(log, {"objective": "ga", "step": 9})
    files.cut_back(log, "ga", 0)
    files.write_text(tmp_path / "other" / "a.txt", "a")
    assert files.records(log) == LOG and not (tmp_path / "other").exists()


def test_records_as_columns():
    assert files.columns([]) == {}
    assert files.columns([{"a": 1}, {"b": 2}]) == {"a": [1, None], "b": [None, 2]}


def test_a_file_that_is_no_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('{"models":\n {"base"')
    with pytest.raises(ValueError, match=r"evaluation\.json: not JSON: .*line 2"):
        files.read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"evaluation\.json: not JSON: "):
        files.read_json(path)


def test_a_key_that_is_given_twice_is_named():
    with pytest.raises(ValueError, match=r"a\.json: key 'y' is given twice; keep one"):
        files.parse_json('{"x": {"y": 1, "z": 2, "y": 3}}', "a.json")
