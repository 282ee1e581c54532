"""The package stands on jax alone, and its examples run."""

import ast
import doctest
import importlib
import pathlib
import sys

import pytest

from jaxunlearn import objectives
from jaxunlearn.objectives import registry

FILES = sorted(pathlib.Path(objectives.__file__).parent.glob("**/*.py"))


def foreign_imports(source):
    """Imported modules that are neither jax, nor stdlib, nor the package's own."""
    result = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        result += [n for n in names if not _allowed(n)]
    return result


def _allowed(name):
    is_ours = f"{name}.".startswith(("jaxunlearn.objectives.", "jaxunlearn.core."))
    top = name.split(".")[0]
    return is_ours or top == "jax" or top in sys.stdlib_module_names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_objectives_import_jax_alone(file):
    assert foreign_imports(file.read_text()) == []


def test_the_rule_sees_what_it_forbids():
    source = (
        "import os, flax.linen, jax.numpy\nfrom jaxunlearn.effects import trees\nfrom . import x"
    )
    assert foreign_imports(source) == ["flax.linen", "jaxunlearn.effects", "."]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_examples_run(file):
    name = f"jaxunlearn.objectives.{file.stem}".removesuffix(".__init__")
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_every_loss_has_an_example():
    losses = {getattr(objectives, n) for n in (*registry.names(), "gd", "kl", "rr")}
    assert all(">>>" in loss.__doc__ for loss in losses)
