"""The README's examples run, its two ways to PG-effects agree, and what it names is there."""

import ast
import inspect
import pathlib
import re

import numpy as np
import pytest
import yaml

import jaxunlearn

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
CALL, EXAMPLE, COMMANDS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_example_runs():
    names: dict = {}
    exec(EXAMPLE, names)
    for risk, effect in names["e"].items():
        fast, exact = names["fast"][risk], names["exact"][risk]
        assert fast.shape == (2,)
        np.testing.assert_allclose(fast, exact, rtol=1e-5)
        # Gradient ascent is the mean of the samples' log-likelihoods.
        np.testing.assert_allclose(fast.mean(), effect, rtol=1e-5)
    assert names["e"]["unlearn"] < 0


def test_the_call_is_short():
    assert CALL.count("\n") <= 10


@pytest.mark.nightly
def test_the_call_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(CALL, names)
    summary = names["result"].summary
    assert summary["base"]["forget_es"] > 0.9
    assert summary["npo"]["forget_nll"] > 2 * summary["base"]["forget_nll"]
    assert (tmp_path / "unlearned" / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == [tmp_path / "unlearned"]


def test_the_functions_take_these_arguments():
    calls = [node for node in ast.walk(ast.parse(COMMANDS)) if isinstance(node, ast.Call)]
    names = ["load_config", "run", "evaluate", "relearn", "evaluate"]
    assert [call.func.attr for call in calls] == names
    for call in calls:
        values = {keyword.arg: None for keyword in call.keywords}
        function = getattr(jaxunlearn, call.func.attr)
        inspect.signature(function).bind(*call.args, **values)


def test_the_configuration_can_be_read(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (tmp_path / "config.yaml").write_text(text)
    measure = jaxunlearn.load_config(tmp_path / "config.yaml").measure
    for key, value in yaml.safe_load(text)["measure"].items():
        assert getattr(measure, key) == (tuple(value) if isinstance(value, list) else value)


def test_every_file_and_target_it_names_is_there():
    root = pathlib.Path(__file__).parents[1]
    for name in re.findall(r"(?:configs|tests|docs)/[\w./]*\w", README):
        assert (root / name).exists(), name
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, re.M):
        assert f"\n{target}:" in makefile, target
