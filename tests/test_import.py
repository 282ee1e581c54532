"""`import jaxunlearn` costs no more than importing jax, and its names come when they are used."""

import ast
import importlib
import importlib.metadata
import inspect
import itertools
import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import jax
import pytest

import jaxunlearn
import jaxunlearn.config
from tests.pipeline import tiny

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = (
    "flax", "optax", "orbax", "transformers", "datasets", "safetensors", "matplotlib", "rich",
    "tyro", "yaml", "chex", "pyarrow", "tokenizers", "torch", "pandas",
)  # fmt: skip
# One objective that is only trained: little to compile.
SMALL = tiny.replace(
    objectives={"ga": jaxunlearn.config.Objective()},
    finetune={"epochs": 0},
    unlearn={"epochs": 1, "warmup_epochs": 0},
    measure={"every": 0},
)


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_package_loads_nothing_heavier_than_jax():
    extra = loaded("import jaxunlearn") - loaded("import jax")
    assert extra == {"jaxunlearn"} | (extra & set(sys.stdlib_module_names)), extra
    assert not extra & set(HEAVY)


def test_the_command_line_starts_without_jax():
    heavy = {"jax", "transformers", "orbax", "matplotlib"}
    assert not loaded("from jaxunlearn import config, cli") & heavy


@pytest.mark.parametrize("name", jaxunlearn.__all__)
def test_every_public_name_resolves(name):
    value = getattr(jaxunlearn, name)
    assert value is getattr(jaxunlearn, name)  # the second time it is an ordinary attribute
    assert name in dir(jaxunlearn)
    assert value.__doc__


def test_names_come_in_any_order_and_by_any_import():
    code = (
        "import jaxunlearn as j; f = j.report; import jaxunlearn.reporting.report;"
        "from jaxunlearn import report, run, metrics, Config; from jaxunlearn import *;"
        "assert f is report is j.report and callable(run) and j.metrics is metrics;"
        "assert Config is j.config.Config"
    )
    loaded(code)


def test_no_function_hides_a_package():
    packages = {module.name for module in pkgutil.iter_modules(jaxunlearn.__path__)}
    for name in jaxunlearn.__all__:
        is_package = inspect.ismodule(getattr(jaxunlearn, name))
        assert is_package == (name in packages)
    for name in packages:
        module = importlib.import_module(f"jaxunlearn.{name}")
        assert getattr(jaxunlearn, name) is module


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxunlearn' has no attribute 'unlern'"):
        jaxunlearn.unlern  # noqa: B018
    assert not hasattr(jaxunlearn, "unlearned")


@pytest.mark.parametrize("name", ["run", "evaluate", "relearn", "report", "forecast"])
def test_a_console_is_optional(name):
    parameters = inspect.signature(getattr(jaxunlearn, name)).parameters
    assert parameters["console"].default is None


def test_a_forecast_prints_nothing_without_a_console(capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *a, real=jax.devices: real(*a)[:1])
    programs = jaxunlearn.forecast(SMALL)
    assert programs and capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_run_and_its_report_print_nothing_without_a_console(tmp_path, capsys):
    jaxunlearn.run(SMALL, str(tmp_path / "run"), devices=jax.devices()[:1])
    jaxunlearn.report(str(tmp_path / "run"))
    assert capsys.readouterr().out == ""
    assert (tmp_path / "run" / "summary.md").is_file()


OPTIONAL = ("altair", "vl_convert", "rouge_score", "tensorboardX", "wandb", "trackio")
"""What only extras bring."""
WALK = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys(sys.argv[1:])  # None: an import of it fails
import jaxunlearn
for module in pkgutil.walk_packages(jaxunlearn.__path__, "jaxunlearn."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(module.name, error, sep=": ")
from jaxunlearn.metrics import rouge
try:
    rouge.rouge(["a"], ["a"])
except ImportError as error:
    print("rouge", error, sep=": ")
"""


def test_every_module_is_imported_without_extras_or_names_its_own():
    result = subprocess.run(
        [sys.executable, "-c", WALK, *OPTIONAL], capture_output=True, text=True, check=True
    )
    install = "is not installed: pip install 'jaxunlearn[{}]'"
    assert result.stdout.splitlines() == [
        f"jaxunlearn.reporting.page.charts: altair {install.format('report')}",
        f"jaxunlearn.reporting.page.comparison: altair {install.format('report')}",
        f"jaxunlearn.reporting.page.render: altair {install.format('report')}",
        f"rouge: rouge_score.rouge_scorer {install.format('evaluate')}",
    ]


# Import names that differ from the name of the distribution.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "orbax": "orbax-checkpoint",
    "vl_convert": "vl-convert-python",
}
# What belongs to the interface of a dependency is declared with it: {package: dependency}.
INTERFACES = {
    "numpy": "jax",
    "pyarrow": "datasets",
    "tokenizers": "transformers",
    "safetensors": "transformers",
    "huggingface-hub": "transformers",
}
# Extras that the package itself imports; trackers are imported by the names that a run gives.
EXTRAS = ("evaluate", "report")


def imported_by_the_package() -> set[str]:
    """Top-level modules that any file of the package imports, also inside functions."""
    modules = set()
    for path in pathlib.Path(jaxunlearn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"jaxunlearn"}


def test_every_import_is_a_declared_dependency():
    """What another dependency happens to bring along may be gone with its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in EXTRAS)
    declared = [*project["dependencies"], *itertools.chain(*extras)]
    names = {re.split(r"[\[<>=!~; ]", line)[0] for line in declared}
    wanted = {DISTRIBUTIONS.get(m, m.replace("_", "-")) for m in imported_by_the_package()}
    assert wanted - INTERFACES.keys() == names
    assert INTERFACES.keys() <= wanted


@pytest.mark.parametrize("package", INTERFACES)
def test_an_interface_is_still_required_by_its_dependency(package):
    lines = importlib.metadata.requires(INTERFACES[package]) or ()
    required = [line for line in lines if "extra ==" not in line]
    assert any(re.match(rf"{package}\b", line) for line in required), required


def test_chat_templates_can_be_rendered_without_an_extra():
    """Transformers renders them with a package that it requires in one of its own extras."""
    lines = importlib.metadata.requires("transformers") or ()
    assert any(re.match("jinja2.*extra == .chat-template.", line) for line in lines), lines


def test_the_base_install_stays_small():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 12
