"""The code of the recipes of docs/extending.md, taken from the page and installed.

A block of Python begins with `# FILE`. Modules of your own are written to a folder that is then the
working directory; new modules of the package, and what is added to existing ones, are executed
in the package; rows after `# in NAME` go into the real table.
"""

import ast
import importlib
import pathlib
import re
import sys
import textwrap
import types

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
RECIPES = {
    int(number): text
    for number, text in re.findall(r"^## (\d)\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}


def blocks(recipe: int, language: str) -> list[tuple[str, str]]:
    """The (file, code) of every block of a recipe."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", RECIPES[recipe], re.S)
    assert len(found) == RECIPES[recipe].count(f"```{language}\n")  # every block names its file
    return found


def install(
    recipe: int, patch: pytest.MonkeyPatch, folder: pathlib.Path, only: str | None = None
) -> None:
    """Installs the Python blocks of a recipe, or of one file of it; all is undone with `patch`."""
    for file, code in blocks(recipe, "python"):
        if only in (None, file):
            _install_block(file, code, patch, folder)


def _install_block(file: str, code: str, patch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if "/" not in file:
        (folder / file).write_text(code)
        patch.setitem(sys.modules, name, None)  # so that `patch` removes what is imported
        del sys.modules[name]
    elif (ROOT / file).exists():
        add_to(importlib.import_module(name), code, patch)
    else:
        module = types.ModuleType(name)
        patch.setitem(sys.modules, name, module)
        package, _, attribute = name.rpartition(".")
        patch.setattr(importlib.import_module(package), attribute, module, raising=False)
        exec(code, vars(module))


def add_to(module: types.ModuleType, code: str, patch: pytest.MonkeyPatch) -> None:
    """Adds definitions, then rows of tables, to a module of the package."""
    definitions, *sections = re.split(r"^# in (\w+)\n", code, flags=re.M)
    for name in names_bound(definitions):
        patch.setattr(module, name, None, raising=False)  # so that `patch` removes it again
    exec(definitions, vars(module))
    for table, rows in zip(sections[::2], sections[1::2], strict=True):
        for key, row in entries(textwrap.dedent(rows), vars(module)).items():
            assert key not in getattr(module, table), f"{key} is in {table} already"
            patch.setitem(getattr(module, table), key, row)


def names_bound(code: str) -> list[str]:
    """The names that a block imports or defines."""
    bound = []
    for node in ast.parse(code).body:
        imported = isinstance(node, ast.Import | ast.ImportFrom)
        bound += [alias.name for alias in node.names] if imported else [node.name]
    return bound


def entries(rows: str, namespace: dict) -> dict:
    """Rows of a dict, or of a table that is made from a tuple of objects with a name."""
    if isinstance(ast.parse(f"{{\n{rows}}}", mode="eval").body, ast.Dict):
        return eval(f"{{\n{rows}}}", namespace)
    return {
        value.model_type if hasattr(value, "model_type") else value.name: value
        for value in eval(f"(\n{rows})", namespace)
    }


def objectives_of(recipe: int) -> dict:
    """The section `objectives` of a recipe's configuration."""
    ((_, text),) = blocks(recipe, "yaml")
    return yaml.safe_load(text)["objectives"]
