"""A run's folder: what is the same run, and what is another."""

import dataclasses

import pytest

from jaxunlearn.config import Objective, load
from jaxunlearn.core import hosts
from jaxunlearn.pipeline.resume import open_folder
from jaxunlearn.record.folder import RunFolder
from tests.pipeline.tiny import TINY, replace


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    open_folder(folder, TINY)
    return folder


def test_a_new_folder_holds_the_configuration(folder):
    assert load(folder.config) == TINY


@pytest.mark.parametrize(
    "section",
    [{"compute": {"fsdp": 2}}, {"evaluate": {"suites": ("uwc",)}}, {"relearn": {"samples": (1,)}}],
)
def test_how_a_run_is_computed_and_looked_at_may_change(folder, section):
    changed = replace(**section)
    open_folder(folder, changed)
    assert load(folder.config) == changed


def test_objectives_may_be_added_and_are_kept(folder):
    only_new = replace(objectives={"wga": Objective()})
    open_folder(folder, only_new)
    assert list(load(folder.config).objectives) == ["ga", "npo", "wga"]
    open_folder(folder, TINY)
    assert list(load(folder.config).objectives) == ["ga", "npo", "wga"]


def test_a_changed_objective_is_another(folder):
    changed = replace(objectives={"npo": Objective(hyper={"beta": 2.0})})
    with pytest.raises(ValueError, match=r"objectives\.npo\.hyper\.beta = 0.5, this one has 2.0"):
        open_folder(folder, changed)
    assert load(folder.config) == TINY


def test_a_changed_key_is_another_run(folder):
    with pytest.raises(ValueError, match=r"unlearn\.lr = 0.001, this one has 0.5"):
        open_folder(folder, replace(unlearn={"lr": 0.5}))
    assert load(folder.config) == TINY


def test_other_processes_do_not_wait_for_one_that_refuses(folder, monkeypatch):
    """The first process finds the folder of another run; its decision ends the others too."""
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "agreed", lambda decision: True)
    with pytest.raises(ValueError, match="the first process cannot open the folder"):
        open_folder(folder, dataclasses.replace(TINY, seed=5))


def test_a_file_in_the_place_of_the_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"run: is a file; --out must name a folder"):
        open_folder(RunFolder(path), TINY)
    assert path.read_text() == "mine"
