"""Damage to a run's files is named with its remedy, or does no harm; it never changes a result."""

import collections
import dataclasses
import io
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.config import Relearn, only
from jaxunlearn.core import files
from jaxunlearn.core.interrupts import Stopped
from jaxunlearn.pipeline import recipe
from jaxunlearn.pipeline.evaluate import evaluate
from jaxunlearn.pipeline.export import export
from jaxunlearn.pipeline.relearn import relearn
from jaxunlearn.record import manifest, tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import report
from tests.pipeline.test_recipe import digests
from tests.pipeline.test_stop import StopAt
from tests.pipeline.tiny import replace

CONFIG = replace(
    measure={"pg_steps": (2,), "token_steps": (), "pg_by": ("sample",)},
    evaluate={"suites": ("uwc",)},
    relearn={"samples": (1,), "steps": 2},
)
HARMLESS = {"starts.jsonl", ".owner.json", ".lock", "summary.md", "report.html"}
"""Files that nothing is computed from."""


def start(folder, interrupts=None, config=CONFIG, write_report=None):
    begun = recipe.begin(config, folder, jax.devices()[:1])
    recipe.execute(begun, interrupts=interrupts, write_report=write_report)


def flip(content, draw):
    changed = bytearray(content)
    changed[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
    return bytes(changed)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda content, draw: content[: draw.integers(len(content))],
    "zeroed": lambda content, draw: bytes(len(content)),
    "emptied": lambda content, draw: b"",
    "deleted": None,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and one that stopped half-way through its second objective."""
    folder = tmp_path_factory.mktemp("runs")
    start(folder / "whole")
    with pytest.raises(Stopped):
        start(folder / "half", StopAt(15))
    return folder


@pytest.mark.parametrize(
    "trials",
    [pytest.param(60, marks=pytest.mark.slow), pytest.param(600, marks=pytest.mark.nightly)],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_same_command_after_damage(runs, tmp_path, monkeypatch, trials):
    whole, draw, outcomes = digests(runs / "whole"), np.random.default_rng(trials), []
    for trial in range(trials):
        kind = ("whole", "half")[trial % 2]
        victims = [
            file
            for file in sorted((runs / kind).rglob("*"))
            if file.is_file() and file.stat().st_size and file.name not in HARMLESS
        ]
        victim = victims[draw.integers(len(victims))].relative_to(runs / kind)
        damage = list(DAMAGES)[draw.integers(len(DAMAGES))]
        folder = tmp_path / str(trial)
        shutil.copytree(runs / kind, folder)
        hurt(folder / victim, damage, draw)
        where = f"{damage} {victim} of the {kind} run"
        try:
            start(folder)
        except (ValueError, OSError) as error:
            assert str(folder) in str(error), f"{where}: {error}"
            outcomes.append("refused")
        else:
            # The file itself may stay damaged where nothing reads it.
            found = digests(folder)
            apart = {name for name in whole if found.get(name) != whole[name]} - {str(victim)}
            assert not apart, f"{where}: {apart} differ"
            outcomes.append("harmless")
        shutil.rmtree(folder)
    counts = collections.Counter(outcomes)
    print(counts)
    assert counts["refused"] > trials // 4


def hurt(file: Path, damage, draw):
    if DAMAGES[damage] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGES[damage](file.read_bytes(), draw))


@pytest.mark.slow
def test_what_is_removed_on_purpose_is_computed_again(runs, tmp_path, monkeypatch):
    whole = digests(runs / "whole")
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    of_ga, of_npo = (folder / "relearn" / f"{name}-1.json" for name in ("ga", "npo"))
    before = [file.stat().st_mtime_ns for file in (of_ga, of_npo)]
    for removed in ("objectives/npo", "reference", "relearn"):
        shutil.rmtree(folder / removed)
        start(folder)
        assert digests(folder) == whole
        if removed == "objectives/npo":
            # The new model is attacked again, as it may be another: the settings do not say so.
            assert of_ga.stat().st_mtime_ns == before[0] < of_npo.stat().st_mtime_ns != before[1]
    for file in ("evaluation.json", "relearn.json", "relearn/npo-1.json"):
        (folder / file).unlink()
    start(folder)
    assert digests(folder) == whole


@pytest.mark.slow
def test_what_was_removed_is_nowhere_until_it_is_computed_again(runs, tmp_path):
    """Neither in tables, nor in measurements, nor in figures."""
    whole = digests(runs / "whole")
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    shutil.rmtree(folder / "objectives" / "npo")
    start(folder, config=only(CONFIG, ["ga"]), write_report=report.write_report)
    assert set(tables.read(folder, "g_effect")["objective"]) == {"ga"}
    for file in ("results.json", "evaluation.json", "relearn.json"):
        assert "npo" not in files.read_json(folder / file)["models"], file
    assert not any("npo" in file.name for file in (folder / "figures").iterdir())
    start(folder)
    found = digests(folder)  # with figures, which the whole run did not draw
    assert {name: found[name] for name in whole} == whole


@pytest.mark.slow
def test_without_the_model_before_unlearning_attacks_have_no_table(runs, tmp_path):
    """Both remedies of damage at once: removing an objective, and the attack on theta_0."""
    whole = digests(runs / "whole")
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    shutil.rmtree(folder / "objectives" / "npo")
    (folder / "relearn" / "base-int8.json").unlink()
    unasked = dataclasses.replace(CONFIG, relearn=Relearn())
    start(folder, config=unasked, write_report=report.write_report)
    assert not (folder / "relearn.json").exists()
    assert not (folder / "figures" / "relearn.png").exists()
    start(folder)
    found = digests(folder)  # with figures, which the whole run did not draw
    assert {name: found[name] for name in whole} == whole


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_references_are_computed_again_with_a_note(runs, tmp_path, monkeypatch, damage):
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    hurt(folder / "reference" / "forget.npz", damage, np.random.default_rng(0))
    console = Console(file=io.StringIO())
    recipe.execute(recipe.begin(CONFIG, folder, jax.devices()[:1]), console)
    assert "forget.npz: is" in console.file.getvalue().replace("\n", "")
    assert "they are removed, and the next start computes" in console.file.getvalue()
    assert digests(folder) == digests(runs / "whole")


def evaluate_again(folder, console):
    evaluate(folder, suites=["memorization"], console=console, devices=jax.devices()[:1])


def relearn_again(folder, console):
    relearn(folder, samples=[1], steps=1, console=console, devices=jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("measure", [evaluate_again, relearn_again])
def test_evaluation_and_attacks_say_of_damage_what_a_run_says(runs, tmp_path, measure):
    """References are none of their business; what is missing is noted, and nothing else changes."""
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    hurt(folder / "reference" / "forget.npz", "flipped", np.random.default_rng(0))
    console = Console(file=io.StringIO(), width=1000)
    measure(folder, console)
    said = console.file.getvalue()
    assert "forget.npz: is damaged" in said and "they are removed, and the next start" in said
    assert not (folder / "reference").exists()
    (folder / "manifest.jsonl").unlink()
    measure(folder, console)
    assert "manifest.jsonl: is missing or empty" in console.file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["emptied", "deleted"])
def test_a_lost_manifest_and_a_torn_line_are_noted(runs, tmp_path, monkeypatch, damage):
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    hurt(folder / "manifest.jsonl", damage, None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99')
    console = Console(file=io.StringIO(), width=1000)
    recipe.execute(recipe.begin(CONFIG, folder, jax.devices()[:1]), console)
    said = console.file.getvalue()
    assert "manifest.jsonl: is missing or empty" in said
    assert "metrics.jsonl: the last line was cut short" in said


@pytest.mark.slow
def test_reports_and_exports_do_without_references(runs, tmp_path):
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    hurt(folder / "reference" / "forget.npz", "zeroed", None)
    report.write_report(folder, Console(file=io.StringIO()))
    export(folder, "npo", tmp_path / "model")
    assert (folder / "reference").is_dir()  # a run looks after them


class TestManifest:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = RunFolder(tmp_path)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
        folder.metrics.write_text('{"objective": "a", "step": 0, "loss": 1.5}\n')
        manifest.seal(folder, "a", [tmp_path / "a"], before=1)
        manifest.seal(folder, "b", [tmp_path / "b" / "file"], redo=tmp_path / "b")
        manifest.check(folder)
        return folder

    def test_a_changed_file_is_named_with_the_remedy(self, folder):
        (folder.path / "a" / "file").write_text("x")
        with pytest.raises(ValueError, match=r"a/file: is damaged .* begin in a new folder"):
            manifest.check(folder)
        manifest.check(folder, without=["a"])

    def test_the_records_of_a_finished_model_are_named_without_a_step(self, folder):
        manifest.seal(folder, "a", [], before=manifest.ALL_STEPS)
        folder.metrics.unlink()
        with pytest.raises(ValueError, match=r"metrics\.jsonl: the records of a are damaged"):
            manifest.check(folder)

    def test_a_missing_file_is_named_unless_all_of_its_stage_was_removed(self, folder):
        (folder.path / "b" / "file").unlink()
        with pytest.raises(ValueError, match=r"b/file: is missing.*remove .*b, and the run comp"):
            manifest.check(folder)
        (folder.path / "b").rmdir()
        manifest.check(folder)

    def test_records_of_later_steps_and_of_others_may_change(self, folder):
        with folder.metrics.open("a") as file:
            file.write('{"objective": "a", "step": 1}\n{"objective": "c", "step": 0}\n')
        manifest.check(folder)
        folder.metrics.write_text('{"objective": "a", "step": 0, "loss": 1.25}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl: the records of a before step 1"):
            manifest.check(folder)

    def test_an_opened_stage_accuses_nobody(self, folder):
        manifest.open_stage(folder, "a")
        (folder.path / "a" / "file").write_text("half-writ")
        manifest.check(folder)
        manifest.seal(folder, "a", [folder.path / "a"])
        manifest.check(folder)
