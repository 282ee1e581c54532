"""The examples run, and what they print adds up: tokens and layers to samples, samples to e."""

import ast
import importlib.util
import os
import pathlib
import runpy
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
TUNIX = pathlib.Path(os.environ.get("JAXUNLEARN_TUNIX", FOLDER.parent / ".venv" / "tunix"))
# Tunix takes long to import, and uses what JAX and Flax are about to drop.
MARKS = {"tunix_qwen": [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]}
PATHS = [path for path in sorted(FOLDER.glob("*.py")) if path.stem != "rows"]
SCRIPTS = [pytest.param(path.stem, marks=MARKS.get(path.stem, ())) for path in PATHS]
# The rows by layer that each prints.
LAYERS = {
    "equinox_module": ["embed", "layers.0", "layers.1", "head"],
    "flax_linen": ["params.Dense_0", "params.Dense_1", "params.embed", "params.head"],
    "flax_nnx_lora": ["layers.0", "layers.1"],
    "plain_jax": ["embed", "head", "layer_0", "layer_1"],
    "tunix_qwen": ["embedder", "final_norm", "layers.0", "layers.1"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example(name, monkeypatch, capsys):
    if name == "tunix_qwen":
        monkeypatch.syspath_prepend(str(TUNIX))
        if importlib.util.find_spec("tunix") is None:
            pytest.skip(
                f"no google-tunix, and none in {TUNIX}: `make tunix` installs it there, as its"
                " requirements would bring an older transformers"
            )
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "rows", raising=False)
    names = runpy.run_path(str(FOLDER / f"{name}.py"))
    layers, e, pg = (names[variable] for variable in ("layers", "e", "pg"))
    assert layers == LAYERS[name]
    assert capsys.readouterr().out.count("\n") == 2 + 4 + 4 + len(layers)
    for risk in ("unlearn", "retain"):
        by_sample = pg["sample"][risk]
        scale = 1e-5 * np.abs(by_sample).max()
        # Gradient ascent is the mean of the samples' log-likelihoods.
        np.testing.assert_allclose(by_sample.mean(), e[risk], rtol=0, atol=scale)
        np.testing.assert_allclose(pg["token"][risk].sum(1), by_sample, rtol=0, atol=scale)
        np.testing.assert_allclose(pg["layer"][risk].sum(1), by_sample, rtol=0, atol=scale)
    assert e["unlearn"] < 0


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_effects_are_fifteen_lines(path):
    """All but imports and the model itself: functions, classes and constants in capitals."""
    body = ast.parse(path.read_text()).body[1:]  # the docstring is the first
    model = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    constant = lambda node: isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
    nodes = [n for n in body if not isinstance(n, model) and not constant(n)]
    assert sum(node.end_lineno - node.lineno + 1 for node in nodes) <= 15
