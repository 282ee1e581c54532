"""A run's folder: every file has a place of its own, inside the folder."""

import inspect
from pathlib import Path

from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder

FOLDER = RunFolder(Path("runs/mine"))


def places():
    """Every property and method of a run's folder, called with one name for each parameter."""
    result = {}
    for name, member in inspect.getmembers(RunFolder):
        if isinstance(member, property):
            result[name] = getattr(FOLDER, name)
        elif inspect.isfunction(member) and not name.startswith("_"):
            names = list(inspect.signature(member).parameters)[1:]
            values = (7 if x == "step" else f"some_{x}" for x in names)
            result[name] = getattr(FOLDER, name)(*values)
    return result


def test_all_are_inside_and_different():
    result = places()
    assert len(result) > 20 and len(set(result.values())) == len(result)
    assert all(path.is_relative_to(FOLDER.path) for path in result.values())


def test_every_place_says_what_is_there():
    assert all(getattr(RunFolder, name).__doc__ for name in places())


def test_known_names():
    assert FOLDER.results.name == "results.json" and FOLDER.evaluation.name == "evaluation.json"
    assert FOLDER.model(BASE) == Path("runs/mine/base")
    assert FOLDER.model(RETRAINED) == Path("runs/mine/retrained")
    assert FOLDER.checkpoints("npo") == Path("runs/mine/objectives/npo/checkpoints")
    assert FOLDER.guide_weights("npo", 5).name == "000005.npy"
    assert FOLDER.part("samples", "npo", 5) == Path("runs/mine/parts/samples/npo-000005.parquet")
    assert FOLDER.table("g_effect") == Path("runs/mine/g_effect.parquet")
