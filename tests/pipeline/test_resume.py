"""A run's folder: what is the same run, and what is another."""

import dataclasses
import importlib
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn.config import Lora, Objective, load
from jaxunlearn.core import files, hosts
from jaxunlearn.models import hf
from jaxunlearn.pipeline import inputs, recipe, stored
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.pipeline.resume import open_folder, open_results
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.lock import locked
from jaxunlearn.reporting.report import compare_runs
from tests.pipeline.tiny import TINY, replace


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    open_folder(folder, TINY, {})
    folder.metrics.write_text('{"step": 0, "objective": "base"}\n')  # what it computed so far
    return folder


def test_a_new_folder_holds_the_configuration(folder):
    assert load(folder.config) == TINY


@pytest.mark.parametrize(
    "section",
    [{"compute": {"fsdp": 2}}, {"evaluate": {"suites": ("uwc",)}}, {"relearn": {"samples": (1,)}}],
)
def test_how_a_run_is_computed_and_looked_at_may_change(folder, section):
    changed = replace(**section)
    open_folder(folder, changed, {})
    assert load(folder.config) == changed


@pytest.mark.parametrize(
    ("key", "value"), [("dtype", "bfloat16"), ("precision", "default"), ("reduce", "bfloat16")]
)
def test_how_exactly_a_run_computes_may_not_change(folder, key, value):
    """One table would show models that were trained in different precisions."""
    with pytest.raises(ValueError, match=rf"run: compute\.{key}: .* -> '{value}';"):
        open_folder(folder, replace(compute={key: value}), {})
    assert load(folder.config) == TINY


def test_an_objective_that_computes_something_else_makes_another_run(tmp_path, monkeypatch):
    """Its name in the configuration is the same; without this, nothing would be trained again."""
    monkeypatch.syspath_prepend(tmp_path)
    text = "SIGN = 1.0\ndef mine(logp, mask):\n    return SIGN * (logp * mask).sum(-1)\n"
    config = replace(objectives={"mine": Objective(loss="changing:mine")})
    module = tmp_path / "changing.py"
    for source, message in ((text, None), (f"# as before\n{text}", None), ("-1.0", "mine.loss")):
        module.write_text(text.replace("1.0", source) if source == "-1.0" else source)
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        expected = pytest.raises(ValueError, match=message) if message else nullcontext()
        with expected:
            run = recipe.begin(config, tmp_path / "run", jax.devices()[:1])
            run.folder.metrics.write_text("")


def test_objectives_may_be_added_and_are_kept(folder):
    only_new = replace(objectives={"wga": Objective()})
    open_folder(folder, only_new, {})
    assert list(load(folder.config).objectives) == ["ga", "npo", "wga"]
    open_folder(folder, TINY, {})
    assert list(load(folder.config).objectives) == ["ga", "npo", "wga"]


def test_a_changed_objective_is_another(folder):
    changed = replace(objectives={"npo": Objective(hyper={"beta": 2.0})})
    with pytest.raises(ValueError, match=r"run: objectives\.npo\.hyper\.beta: 0.5 -> 2.0;"):
        open_folder(folder, changed, {})
    assert load(folder.config) == TINY


def test_a_changed_key_is_another_run(folder):
    with pytest.raises(ValueError, match=r"run: unlearn\.lr: 0.001 -> 0.5;"):
        open_folder(folder, replace(unlearn={"lr": 0.5}), {})
    assert load(folder.config) == TINY


def test_every_difference_is_listed(folder):
    changed = replace(
        seed=3, unlearn={"lr": 0.5, "epochs": 9}, objectives={"npo": Objective(hyper={"beta": 2.0})}
    )
    with pytest.raises(ValueError, match=r"begin anew \(--overwrite\)") as refused:
        open_folder(folder, changed, {})
    for text in (
        "seed: 0 -> 3",
        "unlearn.lr: 0.001 -> 0.5",
        "unlearn.epochs: 4 -> 9",
        "objectives.npo.hyper.beta: 0.5 -> 2.0",
    ):
        assert text in str(refused.value)
    assert load(folder.config) == TINY


OTHER = dataclasses.replace(TINY, seed=5)


def test_overwrite_removes_the_files_of_another_run_alone(folder):
    folder.metrics.write_text("{}\n")
    (folder.path / "notes.txt").write_text("mine")
    open_folder(folder, OTHER, {"data.forget": "b"}, overwrite=True)
    assert load(folder.config) == OTHER
    assert files.read_json(folder.inputs) == {"data.forget": "b"}
    assert not folder.metrics.exists()
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_overwrite_resumes_an_earlier_part_of_the_same_run(folder):
    folder.metrics.write_text("{}\n")
    open_folder(folder, TINY, {}, overwrite=True)
    assert folder.metrics.exists()


def test_other_data_make_another_run_which_overwrite_removes(folder):
    open_folder(folder, TINY, {"data.forget": "a"})
    folder.metrics.write_text("{}\n")
    open_folder(folder, TINY, {"data.forget": "b"}, overwrite=True)
    assert not folder.metrics.exists()
    assert files.read_json(folder.inputs) == {"data.forget": "b"}


def test_overwrite_removes_runs_alone(folder, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no run of ours \(there is no config.yaml\)"):
        open_folder(RunFolder(foreign), OTHER, {}, overwrite=True)
    # A configuration in somebody's folder makes no run of it.
    (foreign / "config.yaml").write_bytes(folder.config.read_bytes())
    with pytest.raises(ValueError, match=r"there is no inputs.json"):
        open_folder(RunFolder(foreign), OTHER, {}, overwrite=True)
    assert sorted(path.name for path in foreign.iterdir()) == ["config.yaml", "notes.txt"]


def test_somebodys_configuration_is_not_written_over(folder, tmp_path):
    """Even where it says what the run's does."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml").write_text("# my comment\n" + folder.config.read_text())
    with pytest.raises(ValueError, match=r"has a config.yaml and is no run of ours"):
        open_folder(RunFolder(mine), TINY, {})
    assert (mine / "config.yaml").read_text().startswith("# my comment")
    assert [path.name for path in mine.iterdir()] == ["config.yaml"]


def test_a_folder_of_seeds_is_told_from_one_of_somebody(folder, tmp_path):
    seed = tmp_path / "seeds" / "seed-0"
    shutil.copytree(folder.path, seed)
    with pytest.raises(ValueError, match=r"holds runs with several seeds, such as seed-0; give"):
        open_folder(RunFolder(seed.parent), TINY, {})


def test_a_run_that_somebody_works_on_is_not_removed(folder):
    with locked(folder), pytest.raises(ValueError, match="another process works on this run"):
        open_folder(folder, OTHER, {}, overwrite=True)
    assert load(folder.config) == TINY


@pytest.mark.parametrize("key", ["model", "data", "train"])
def test_a_new_run_must_not_read_what_overwrite_removes(folder, key):
    inside = str(folder.path / "base")
    sections = {
        "model": inside,
        "data": {"source": inside},
        "train": {"lora": Lora(start=inside)},
    }
    changed = replace(OTHER, **{key: sections[key]})
    with pytest.raises(ValueError, match=rf"{key}.*base is in .*--overwrite removes"):
        open_folder(folder, changed, {}, overwrite=True)
    assert load(folder.config) == TINY


def test_other_processes_do_not_wait_for_one_that_refuses(folder, monkeypatch):
    """The first process finds the folder of another run; its decision ends the others too."""
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "agreed", lambda decision: True)
    with pytest.raises(ValueError, match="the first process cannot open the folder"):
        open_folder(folder, dataclasses.replace(TINY, seed=5), {})


def test_a_file_in_the_place_of_the_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"run: is a file; --out must name a folder"):
        open_folder(RunFolder(path), TINY, {})
    assert path.read_text() == "mine"


def test_a_run_goes_on_with_the_inputs_it_was_begun_with(folder):
    open_folder(folder, TINY, {"data.forget": "a", "model": "m"})
    # What an earlier start did not read is noted, and kept.
    open_folder(folder, TINY, {"data.forget": "a", "data.retain": "r"})
    assert files.read_json(folder.inputs) == {"data.forget": "a", "model": "m", "data.retain": "r"}
    before = folder.config.read_bytes()
    message = "other contents of data.forget; other contents of data.retain;"
    with pytest.raises(ValueError, match=message):
        open_folder(folder, TINY, {"data.forget": "b", "data.retain": "s", "model": "m"})
    assert folder.config.read_bytes() == before


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_that_were_edited_are_other_inputs(tmp_path):
    rows = [{"question": f"Who is {i}?", "answer": f"Number {i}."} for i in range(8)]
    for split in ("forget", "retain", "retain_perturbed"):
        write_rows(tmp_path / f"{split}.jsonl", rows[:4] if split == "forget" else rows[4:])
    config = replace(data={"source": str(tmp_path)}, finetune={"epochs": 0})
    digests = lambda: inputs.digests(prepare(config, jax.devices()[:1]))
    first = digests()
    assert digests() == first
    write_rows(tmp_path / "forget.jsonl", [*rows[:3], rows[3] | {"answer": "Number 33."}])
    # Its tokenizer is trained on the rows, so that the other sets are encoded otherwise too.
    assert "data.forget" in inputs.changed(first, digests())


def test_weights_that_were_exchanged_are_other_inputs(tmp_path):
    run = prepare(TINY, jax.devices()[:1])
    hf.save_params(tmp_path / "model", run.initial(), run.model, tokenizer=run.tokenizer)
    config = replace(model=str(tmp_path / "model"))
    digests = lambda: inputs.digests(prepare(config, jax.devices()[:1]))
    first = digests()
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    file.write_bytes(bytes(content))
    assert inputs.changed(first, digests()) == ["model"]


def test_a_damaged_configuration_is_found(folder):
    open_folder(folder, TINY, {"data.forget": "a"})
    whole = folder.config.read_text()
    folder.config.write_text(whole.replace("epochs: 4", "epochs: 5"))
    assert load(folder.config) != TINY
    message = r"config\.yaml: is damaged or was changed.*give `jaxunlearn run` the configuration"
    with pytest.raises(ValueError, match=message):
        open_folder(folder, replace(objectives={"wga": Objective()}), {"data.forget": "a"})
    with pytest.raises(ValueError, match=message):
        stored.configuration(folder)
    # The configuration that it held is known again.
    open_folder(folder, TINY, {"data.forget": "a"})
    assert folder.config.read_text() == whole
    assert stored.configuration(folder) == TINY


@pytest.mark.parametrize("content", [None, "", "\0\0", "seed: [", "nonsense: 1\n"])
def test_a_configuration_that_cannot_be_read_is_written_anew(folder, content):
    open_folder(folder, TINY, {"data.forget": "a"})
    whole = folder.config.read_bytes()
    folder.metrics.write_text("{}\n")
    if content is None:
        folder.config.unlink()
    else:
        folder.config.write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml: is (missing|damaged)"):
        open_folder(folder, OTHER, {"data.forget": "a"})
    open_folder(folder, TINY, {"data.forget": "a"})
    assert folder.config.read_bytes() == whole
    assert folder.metrics.exists()


def test_overwrite_removes_a_run_with_a_damaged_configuration(folder):
    folder.config.write_text("seed: [")
    folder.metrics.write_text("{}\n")
    open_folder(folder, OTHER, {}, overwrite=True)
    assert load(folder.config) == OTHER
    assert not folder.metrics.exists()


def test_a_start_that_was_killed_before_there_was_a_configuration(tmp_path):
    """What it leaves are the lock, its owner and a file that had no name yet."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".config.yaml.0123456789abcdef.tmp").write_text("seed")
    folder.lock.touch()
    folder.owner.write_text("{}")
    open_folder(folder, TINY, {})
    assert load(folder.config) == TINY


def begun(path):
    """The folder of a start that wrote all that every start writes, and computed nothing."""
    folder = RunFolder(path)
    open_folder(folder, TINY, {"model": "broken"})
    for file in (folder.starts, folder.timings, folder.memory / "rows-0a" / "forget.jsonl"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    files.write_text(folder.texts, "texts")
    manifest.seal(folder, manifest.TEXTS, [folder.texts], redo=folder.texts)
    folder.checkpoints("npo").mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    return folder


def test_a_start_that_computed_nothing_binds_to_nothing(tmp_path):
    """Neither to its weights, nor to its keys, its objectives or the texts of its samples."""
    folder = begun(tmp_path / "run")
    other = replace(OTHER, objectives={"wga": Objective()})
    open_folder(folder, other, {"model": "whole"})
    assert load(folder.config) == other
    assert files.read_json(folder.inputs) == {"model": "whole"}
    assert not folder.texts.exists() and (folder.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [None, "seed: ["])
def test_nor_to_a_configuration_that_is_damaged(tmp_path, content):
    folder = begun(tmp_path / "run")
    folder.config.unlink() if content is None else folder.config.write_text(content)
    open_folder(folder, OTHER, {})
    assert load(folder.config) == OTHER


@pytest.mark.parametrize(
    "result",
    [
        lambda folder: folder.metrics,
        lambda folder: folder.reference("forget"),
        lambda folder: folder.model("base") / "model.safetensors",
        lambda folder: folder.checkpoints("npo") / "0" / "state",
        lambda folder: folder.finetune_checkpoints("base") / "0" / "state",
        lambda folder: folder.part("g_effect", "npo", 0),
    ],
)
def test_any_result_binds(tmp_path, result):
    folder = begun(tmp_path / "run")
    file = result(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    with pytest.raises(ValueError, match="another run: seed: 0 -> 5; other contents of model;"):
        open_folder(folder, OTHER, {"model": "whole"})
    assert file.exists() and load(folder.config) == TINY


class Kill(BaseException):
    """Ends a process in the middle of something."""


@pytest.mark.parametrize("left", range(4))
def test_overwriting_may_be_killed_between_any_two_files(tmp_path, folder, monkeypatch, left):
    """What is left of the old run is no run of its own, and keeps nobody from beginning."""
    (folder.path / "notes.txt").write_text("mine")
    last = [folder.metrics, folder.config, folder.inputs, folder.manifest]
    unlink = Path.unlink

    def killed(path, *args, **options):
        if path == last[left]:
            raise Kill
        unlink(path, *args, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Kill):
        open_folder(folder, OTHER, {}, overwrite=True)
    monkeypatch.undo()
    open_folder(folder, OTHER, {}, overwrite=left == 0)  # all files of the old run are still there
    assert load(folder.config) == OTHER and not folder.metrics.exists()
    assert (folder.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("writes", range(4))
def test_beginning_may_be_killed_between_any_two_files(tmp_path, monkeypatch, writes):
    """Another run may begin in what is left."""
    folder, done = RunFolder(tmp_path / "run"), []
    replace_whole, append = files.replace_whole, files.append

    def counted(write):
        def killed(path, *args, **options):
            done.append(path)
            if len(done) > writes:
                raise Kill
            write(path, *args, **options)

        return killed

    monkeypatch.setattr(files, "replace_whole", counted(replace_whole))
    monkeypatch.setattr(files, "append", counted(append))
    with pytest.raises(Kill):
        open_folder(folder, TINY, {"model": "broken"})
    assert [path.name for path in done] == NAMES[: writes + 1]
    monkeypatch.undo()
    # A configuration without a line of the manifest may be somebody's.
    open_folder(folder, OTHER, {"model": "whole"}, overwrite=writes == 3)
    assert load(folder.config) == OTHER


NAMES = [".owner.json", "inputs.json", "config.yaml", "manifest.jsonl"]


@pytest.mark.parametrize("content", ["null\n", "x\n", '{"stage": 1}\n'])
def test_a_damaged_manifest_keeps_nobody_from_removing_the_run(folder, content):
    (folder.path / "notes.txt").write_text("mine")
    folder.manifest.write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.jsonl:1"):
        open_folder(folder, OTHER, {})
    assert folder.metrics.exists() and load(folder.config) == TINY
    open_folder(folder, OTHER, {}, overwrite=True)
    assert not folder.metrics.exists() and load(folder.config) == OTHER
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path):
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "gone")
    for call in (
        lambda: open_folder(RunFolder(link), TINY, {}),
        lambda: open_results(RunFolder(link), {}, TINY).__enter__(),
        lambda: compare_runs([], link),
    ):
        with pytest.raises(ValueError, match="is a link that leads nowhere; --out must name a fo"):
            call()
    assert not (tmp_path / "gone").exists()


def test_results_of_models_may_follow_a_process_that_was_killed_as_it_began(tmp_path):
    folder = RunFolder(tmp_path / "results")
    folder.path.mkdir()
    folder.lock.touch()
    folder.inputs.write_text('{"model": "a"}')
    with open_results(folder, {"model": "b"}, TINY):
        pass
    assert files.read_json(folder.inputs) == {"model": "b"}


def test_somebodys_manifest_makes_no_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.manifest.write_text("{}\n")
    with pytest.raises(ValueError, match="not empty and no run of ours"):
        open_folder(folder, TINY, {})
    assert folder.manifest.read_text() == "{}\n"


def test_data_and_models_may_move(folder):
    here = replace(model="old/model", data={"source": "old"}, train={"lora": Lora(start="a")})
    digests = {"data.forget": "d", "model": "m", "train.lora.start": "l"}
    moved = replace(
        here, model="new/model", data={"source": "new"}, train={"lora": Lora(start="b")}
    )
    path = RunFolder(folder.path.parent / "moved")
    open_folder(path, here, digests)
    path.metrics.write_text("")
    open_folder(path, moved, digests)
    assert load(path.config) == moved
    # Other contents in the other place make another run, and both are named.
    with pytest.raises(
        ValueError, match=r"model: 'new/model' -> 'old/model'; other contents of mo"
    ):
        open_folder(path, here, digests | {"model": "other"})
    assert load(path.config) == moved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "epochs", "message"),
    [(np.nan, 0, "norm.scale are not all finite"), (3e38, 1, "before fine-tuning is broken")],
)
def test_a_corrected_model_may_follow_a_broken_one(tmp_path, factor, epochs, message):
    """Its weights are known to be broken only once they were read, when the folder is there."""
    prepared = prepare(TINY, jax.devices()[:1])
    whole, broken = prepared.initial(), prepared.initial()
    broken["norm"]["scale"] = broken["norm"]["scale"] * factor
    config = replace(model=str(tmp_path / "model"), finetune={"epochs": epochs})
    for params in (broken, whole):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        options = {"tokenizer": prepared.tokenizer}
        hf.save_params(tmp_path / "model", params, prepared.model, **options)
        if params is broken:
            with pytest.raises((FloatingPointError, ValueError), match=message):
                recipe.run(config, tmp_path / "run", devices=jax.devices()[:1])
    run = recipe.begin(config, tmp_path / "run", jax.devices()[:1])
    assert files.read_json(run.folder.inputs) == inputs.digests(run.prepared)
