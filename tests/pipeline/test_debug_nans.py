"""`--debug-nans`: what diverges names the operation that is to blame."""

import inspect

import jax
import pytest

from jaxunlearn.config import Objective
from jaxunlearn.core import files
from jaxunlearn.pipeline import recipe
from jaxunlearn.record.folder import RunFolder
from tests.pipeline import tiny_losses
from tests.pipeline.tiny import replace

UNMEASURED = {"every": 0, "pg_steps": (), "token_steps": ()}


@pytest.mark.slow
def test_the_line_of_a_loss_of_somebodys_own_is_named(tmp_path):
    """An objective that goes well has no such entry, and its steps are those without the option."""
    broken = Objective(loss="tests.pipeline.tiny_losses:logarithm_of_a_negative")
    config = replace(
        finetune={"epochs": 0}, objectives={"mine": broken, "ga": Objective()}, measure=UNMEASURED
    )
    folder = RunFolder(tmp_path / "run")
    recipe.run(config, folder.path, devices=jax.devices()[:1], debug_nans=True)
    source, first = inspect.getsourcelines(tiny_losses.logarithm_of_a_negative)
    line = first + next(i for i, text in enumerate(source) if "jnp.log" in text)
    words = f"log at tests/pipeline/tiny_losses.py:{line} makes the first NaN"
    models = files.read_json(folder.results)["models"]
    assert (
        models["mine"]["diverged"] | {"step": 0, "operation": words} == models["mine"]["diverged"]
    )
    assert words in folder.html.read_text()
    assert models["mine"]["forget_nll"] == models["base"]["forget_nll"]
    assert models["ga"]["steps"] == models["ga"]["of_steps"] and "diverged" not in models["ga"]


@pytest.mark.slow
def test_fine_tuning_that_diverges_names_the_operation(tmp_path):
    config = replace(finetune={"lr": 1e20, "epochs": 1}, measure=UNMEASURED)
    with pytest.raises(
        FloatingPointError, match=r"after \d steps: \w+ at jaxunlearn/\S+ makes the"
    ):
        recipe.run(config, tmp_path / "run", devices=jax.devices()[:1], debug_nans=True)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    """Some of them would stop at an operation that others wait for."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"debug_nans \(--debug-nans\): works in one process"):
        recipe.begin(replace(), tmp_path / "run", debug_nans=True)
    assert not (tmp_path / "run").exists()
