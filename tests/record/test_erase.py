"""Erasing a run: all files of the layout go, and no other."""

import json

import pytest

from jaxunlearn.record import manifest, tables
from jaxunlearn.record.erase import erase
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder


@pytest.fixture
def run(tmp_path):
    """The files of a run, of every kind."""
    folder = RunFolder(tmp_path / "run")
    own = [
        *(folder.config, folder.inputs, folder.metrics, folder.timings, folder.starts),
        *(folder.texts, folder.html, folder.results, folder.evaluation, folder.summary),
        *(folder.relearn, folder.relearn_records, folder.relearn_layers),
        *(folder.table(name) for name in tables.SCHEMAS),
        folder.reference("forget"),
        folder.part("g_effect", "npo", 5),
        folder.result("npo"),
        folder.guide_weights("npo", 0),
        folder.checkpoints("npo") / "12" / "state" / "data",
        folder.finetune_checkpoints(BASE) / "6" / "state",
        folder.tofu_log("npo-5"),
        folder.attack("npo", "5"),
        folder.figures / "plane.png",
        folder.figures / "plane.pdf",
        folder.profile / "plugins" / "profile" / "x.pb",
        folder.memory / "rows-0a" / "forget.jsonl",
        folder.memory / "model-0a" / "model.safetensors",
        folder.tensorboard / "npo" / "events.out.tfevents.1",
        *(folder.model(BASE) / name for name in ("config.json", "model.safetensors")),
        folder.model(RETRAINED) / "tokenizer.json",
        folder.model(BASE) / "listed",
    ]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    manifest.seal(folder, BASE, [folder.model(BASE)])
    return folder


def files_of(folder):
    return sorted(str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file())


def test_every_file_of_a_run_goes(run):
    erase(run)
    assert not list(run.path.iterdir())


FOREIGN = (
    "notes.txt",
    "figures/mine.png",
    "objectives/npo/notes.md",
    "objectives/npo/checkpoints/readme",
    "parts/mine/npo-000005.parquet",
    "relearn/thoughts-on-it.json",
    "tofu_logs/somebody.json",
    "seed-0/config.yaml",
    "reference/paper.pdf",
    "wandb/run.log",
)


def test_foreign_files_survive_wherever_they_are(run):
    for name in FOREIGN:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("mine")
    erase(run)
    assert files_of(run) == sorted(FOREIGN)
    assert all((run.path / name).read_text() == "mine" for name in FOREIGN)


def test_a_foreign_file_in_the_place_of_a_model_is_refused_before_anything_goes(run):
    (run.model(BASE) / "notes.txt").write_text("mine")
    before = files_of(run)
    with pytest.raises(ValueError, match=r"base/notes.txt: is no file of the run; move it"):
        erase(run)
    assert files_of(run) == before


def test_what_a_link_points_at_survives(run, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "mine").write_text("mine")
    (run.checkpoints("npo") / "24").symlink_to(target)
    (run.profile / "plugins" / "link").symlink_to(target)
    erase(run)
    assert (target / "mine").read_text() == "mine" and not run.config.exists()


def test_a_manifest_names_nothing_outside_of_the_folder(run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    entry = {"stage": "x", "redo": None, "files": {"../mine": "", str(tmp_path / "mine"): ""}}
    with run.manifest.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    erase(run)
    assert (tmp_path / "mine").exists()
