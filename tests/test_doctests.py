"""Every example in a docstring of the package runs and prints what it says."""

import doctest
import importlib
import pathlib

import pytest

import jaxunlearn

ROOT = pathlib.Path(jaxunlearn.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text() and path.parent.name != "objectives"  # these have their own test
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
