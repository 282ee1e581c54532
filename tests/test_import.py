"""`import jaxunlearn` costs no more than importing jax."""

import subprocess
import sys

HEAVY = (
    "flax", "optax", "orbax", "transformers", "datasets", "safetensors", "matplotlib", "rich",
    "tyro", "yaml", "chex", "pyarrow", "tokenizers", "torch", "pandas",
)  # fmt: skip


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_the_package_loads_nothing_heavier_than_jax():
    extra = loaded("import jaxunlearn") - loaded("import jax")
    assert extra == {"jaxunlearn"} | (extra & set(sys.stdlib_module_names)), extra
    assert not extra & set(HEAVY)


def test_the_command_line_starts_without_jax():
    assert not loaded("from jaxunlearn import config") & {"transformers", "orbax", "matplotlib"}
