"""The benchmark of a card: what it keeps, what it goes on with, and a rehearsal of all of it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.accelerator import SECTIONS, __main__, ledger, pack, section, table
from benchmarks.accelerator.ledger import Ledger, NoMaterial, NotHere, Row
from benchmarks.accelerator.material import Corrupt, Material
from jaxunlearn.core.files import sha256

ROOT = pathlib.Path(__file__).parents[2]
ABOUT = {"device": "a card", "rehearsal": False, "date": "today", "versions": {"jax": "1"}}
COLUMNS = {"seconds": ("s", "seconds")}


def raising(error):
    def measure():
        raise error

    return measure


def open_ledger(folder, about=ABOUT):
    return Ledger(folder / "train.json", about)


def content(folder):
    return json.loads((folder / "train.json").read_text())


class Clock:
    """A clock that rows move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def row(self, name, seconds):
        def measure():
            self.now += seconds
            return {"seconds": seconds}

        return Row(name, measure)


# ---------------------------------------------------------------------------------- rows


def test_every_row_has_a_state_and_none_ends_the_section(tmp_path):
    rows = [
        Row("too large", raising(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying"))),
        Row("no card", raising(NotHere("needs a GPU"))),
        Row("no model", raising(NoMaterial("no model in the pack"))),
        Row("wrong", raising(ZeroDivisionError("by zero"))),
        Row("right", lambda: {"seconds": 1.5}),
    ]
    open_ledger(tmp_path).measure(rows, columns=COLUMNS, seconds=100)
    record = content(tmp_path)
    assert {name: row["state"] for name, row in record["rows"].items()} == {
        "too large": "does not fit",
        "no card": "not here",
        "no model": "no material",
        "wrong": "failed",
        "right": "done",
    }
    assert record["rows"]["right"]["seconds"] == 1.5
    assert "ZeroDivisionError: by zero" in record["rows"]["wrong"]["traceback"]
    assert record["left"] == ["no model", "wrong"]


def test_no_row_starts_after_the_time_and_the_next_call_goes_on(tmp_path):
    clock = Clock()
    rows = [clock.row(name, 6) for name in "abc"]
    open_ledger(tmp_path).measure(rows, columns=COLUMNS, seconds=10, clock=clock)
    assert list(content(tmp_path)["rows"]) == ["a", "b"] and content(tmp_path)["left"] == ["c"]
    never = [Row(name, raising(AssertionError("measured again"))) for name in "ab"]
    open_ledger(tmp_path).measure([*never, rows[2]], columns=COLUMNS, seconds=10, clock=clock)
    record = content(tmp_path)
    assert {row["state"] for row in record["rows"].values()} == {"done"} and record["left"] == []


def test_a_killed_process_loses_the_row_under_way(tmp_path):
    def killed():
        raise KeyboardInterrupt  # no Exception: as little handled as a signal

    rows = [Row("a", lambda: {"seconds": 1}), Row("b", killed), Row("c", lambda: {"seconds": 3})]
    with pytest.raises(KeyboardInterrupt):
        open_ledger(tmp_path).measure(rows, columns=COLUMNS, seconds=10)
    states = {name: row["state"] for name, row in content(tmp_path)["rows"].items()}
    assert states == {"a": "done", "b": "running"}
    order = []
    again = [Row(name, lambda name=name: order.append(name) or {}) for name in "abc"]
    open_ledger(tmp_path).measure(again, columns=COLUMNS, seconds=10)
    assert order == ["c", "b"]  # what was cut short may be cut short again, so it comes last


@pytest.mark.parametrize("other", [{"device": "another card"}, {"rehearsal": True}])
def test_rows_of_two_devices_are_not_mixed(tmp_path, other):
    open_ledger(tmp_path).measure([Row("a", dict)], columns=COLUMNS, seconds=1)
    with pytest.raises(ledger.OtherDevice, match=r"train\.json has .* give another --out"):
        open_ledger(tmp_path, ABOUT | other)


def test_a_section_that_fails_records_its_traceback(tmp_path, monkeypatch):
    from benchmarks.accelerator import machine

    monkeypatch.setattr(machine, "rows", lambda setting: raising(ValueError("no such thing"))())
    folders = [f"--{name}={tmp_path}" for name in ("out", "work", "pack")]
    assert section.main(["machine", *folders, "--seconds=1"]) == 1
    record = json.loads((tmp_path / "machine.json").read_text())
    assert "ValueError: no such thing" in record["traceback"]
    text = table.markdown({"machine": record}, {})
    assert "the section failed: ValueError: no such thing" in text


def test_a_section_that_cannot_be_imported_records_that(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.accelerator.job", None)
    folders = [f"--{name}={tmp_path}" for name in ("out", "work", "pack")]
    assert section.main(["job", *folders, "--seconds=1"]) == 1
    record = json.loads((tmp_path / "job.json").read_text())
    assert "benchmarks.accelerator.job" in record["traceback"]
    assert "the section failed" in table.markdown({"job": record}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "-1"], "--minutes -1: must be positive"),
        (["--minutes", "nan"], "--minutes nan: must be positive"),
        (["--pack", "nowhere"], "--pack nowhere: no such folder"),
    ],
)
def test_bad_arguments_run_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        __main__.main(arguments)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- the table


def test_expectations_hold_do_not_hold_or_were_not_measured():
    rows = {
        "7b, 64k tokens, remat full, cudnn, bfloat16": {"mfu": 0.4, "peak_over_forecast": 1.05},
        "7b, 16 samples, remat full, cudnn, bfloat16": {"mfu": 0.6, "peak_over_forecast": 0.93},
    }
    done = {name: row | {"state": "done"} for name, row in rows.items()}
    record = {"rows": done, "rehearsal": False}
    lines = table.expectations({"train": record}).splitlines()
    verdicts = {line.split("|")[1].strip(): line.split("|")[2:4] for line in lines[2:]}
    assert len(verdicts) == len(table.EXPECTATIONS)
    (mfu,) = [v for k, v in verdicts.items() if k.startswith("7B train step")]
    (peak,) = [v for k, v in verdicts.items() if k.startswith("peak memory")]
    (job,) = [v for k, v in verdicts.items() if k.startswith("a 7B measurement")]
    assert [cell.strip() for cell in mfu] == ["0.4", "does not hold"]
    assert [cell.strip() for cell in peak] == ["0.93", "holds"]
    assert [cell.strip() for cell in job] == ["-", "not measured"]
    rehearsed = table.expectations({"train": record | {"rehearsal": True}})
    assert "hold |" not in rehearsed and "holds" not in rehearsed


def test_the_table_shows_rows_in_the_order_of_the_section(tmp_path):
    clock = Clock()
    open_ledger(tmp_path).measure(
        [clock.row(n, 4) for n in "ab"], columns=COLUMNS, seconds=5, clock=clock
    )
    open_ledger(tmp_path).measure(
        [clock.row(n, 4) for n in "cab"], columns=COLUMNS, seconds=5, clock=clock
    )
    text = table.markdown({"train": content(tmp_path)}, {"job": "killed"})
    first, second, third = (text.index(f"| {name} | 4 |") for name in "cab")
    assert first < second < third
    assert "job: killed" in text and "a card, today; jax 1" in text


# ---------------------------------------------------------------------------------- the pack


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A pack of a small folder whose weights take three parts."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(range(250)))
    monkeypatch.setattr(pack, "PART_BYTES", 100)
    monkeypatch.setattr(pack, "CALL_BYTES", 800)
    pack.main([str(tmp_path / "pack"), "--model", str(model), "--wheels"])
    return tmp_path / "pack"


def test_a_model_is_joined_from_its_parts(packed, tmp_path):
    assert len(list((packed / "parts").iterdir())) == 3
    folder = Material(packed, tmp_path / "work").model
    assert (folder / "model.safetensors").read_bytes() == bytes(range(250))
    assert (folder / "config.json").read_text() == "{}"


def test_parts_may_come_in_several_calls(packed, tmp_path):
    missing = packed / "parts" / "model.safetensors.01"
    held = missing.read_bytes()
    missing.unlink()
    material = Material(packed, tmp_path / "work")
    assert material.model is None
    assert material.missing_model.endswith("parts/model.safetensors.01")
    missing.write_bytes(held)
    assert Material(packed, tmp_path / "work").model is not None


def test_a_part_with_another_content_is_refused(packed, tmp_path):
    (packed / "parts" / "model.safetensors.01").write_bytes(b"x" * 100)
    with pytest.raises(Corrupt, match=r"safetensors\.01: not the file that was packed"):
        _ = Material(packed, tmp_path / "work").model


def test_what_travels_together_has_the_manifest_and_fits(packed):
    groups = pack.calls(packed)
    assert len(groups) > 1
    assert all(packed / "manifest.json" in paths for paths, _ in groups)
    assert all(size <= pack.CALL_BYTES and len(paths) <= 8 for paths, size in groups)
    together = [path for paths, _ in groups for path in paths if path.name != "manifest.json"]
    parts = sorted((packed / "parts").iterdir())
    assert sorted(together) == sorted([*parts, packed / "model"])


def test_a_folder_that_is_no_pack_is_not_replaced(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        pack.main([str(tmp_path), "--wheels"])
    assert exit_.value.code == 2 and "not empty, and no pack" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_without_a_pack_nothing_is_found(tmp_path):
    material = Material(tmp_path / "none", tmp_path / "work")
    assert material.model is None and material.find("tofu") is None
    assert "no model in the pack" in material.missing_model


# ---------------------------------------------------------------------------------- rehearsal


def call(out, *more):
    """Runs the command as a user does, without the tests' cache of compiled programs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-m", "benchmarks.accelerator", "--rehearse", "--out", str(out)]
    # The limit is for a run that hangs: the rows that are left out would depend on the machine.
    command += ["--work", str(out) + "_work", "--minutes", "60", *more]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return process.stdout


def read(out, sections):
    return {name: json.loads((out / f"{name}.json").read_text()) for name in sections}


def rehearse(folder, sections):
    """Rehearses sections twice; returns their records, and what the second call printed."""
    out, empty = folder / "out", folder / "empty"
    empty.mkdir()
    words = ("--pack", str(empty), "--only", *sections)
    call(out, *words)
    first = read(out, sections)
    for name, record in first.items():
        assert record["traceback"] is None and record["rehearsal"], name
        failed = {n: r for n, r in record["rows"].items() if r["state"] == "failed"}
        assert not failed, (name, failed)
        assert set(record["rows"]) == set(record["planned"]), name
    printed = call(out, *words)
    second = read(out, sections)
    for name, record in first.items():
        done = {n: r for n, r in record["rows"].items() if r["state"] in ledger.FINAL}
        assert {n: second[name]["rows"][n] for n in done} == done
    assert (out / "table.md").read_text() in printed
    return first, printed


@pytest.mark.nightly
def test_a_second_call_measures_nothing_again(tmp_path):
    first, printed = rehearse(tmp_path, ("machine", "train"))
    cudnn = {n: r["reason"] for n, r in first["train"]["rows"].items() if ", cudnn, " in n}
    assert cudnn and all("needs a GPU" in reason for reason in cudnn.values())
    done = [name for name, row in first["train"]["rows"].items() if row["state"] == "done"]
    assert "train: all done" in printed
    assert done and all(f"| {name} |" in printed for name in done)


@pytest.mark.nightly
def test_a_rehearsal_runs_every_section(tmp_path):
    first, printed = rehearse(tmp_path, SECTIONS)
    assert "| 1b, jvp, K=2, 16k tokens, xla |" in printed
    states = {row["state"] for record in first.values() for row in record["rows"].values()}
    assert states == {"done", "not here", "no material"}
    known = first["truth"]["rows"]
    assert known["float32 highest: packed, jvp"]["holds"]
    assert known["a run, killed and resumed"]["equal"], known["a run, killed and resumed"]
    (large,) = (row for name, row in first["job"]["rows"].items() if name.startswith("llama"))
    assert large["measurements"] == "2 of 2" and large["stages"].keys() >= {"train", "measure"}


@pytest.mark.slow
def test_after_a_section_that_fails_the_next_one_runs(tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "lengths.json").write_text('{"a": 1}')
    manifest = {"files": {"lengths.json": sha256(folder / "lengths.json")}, "joined": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "out"
    printed = call(out, "--only", "train", "machine", "--pack", str(folder))
    record = json.loads((out / "train.json").read_text())
    assert "lengths.json: expected counts of every sample" in record["traceback"]
    assert "the section failed" in printed
    machine = json.loads((out / "machine.json").read_text())
    assert {row["state"] for row in machine["rows"].values()} == {"done"}
