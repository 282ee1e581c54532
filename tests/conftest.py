"""Shared fixtures: eight CPU devices, the folder of real material."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of a test's time is compilation. What is compiled is kept as long as the tests run, for all
# their processes: runs of one configuration compile the same programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxunlearn-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# XLA compiles in half the time with these emitters of kernels, which later versions do not have.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = " ".join(
        (
            os.environ.get("XLA_FLAGS", ""),
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=4",
        )
    ).strip()

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxunlearn.core import hosts

hosts.give_cpu_threads()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_threefry_partitionable", True)
# This halves the time of a compilation.
jax.config.update("jax_disable_most_optimizations", True)

SHARED = pathlib.Path(
    os.environ.get("JAXUNLEARN_SHARED", pathlib.Path(__file__).parents[1] / "../shared")
).resolve()


MOST_MAPS = 20_000  # memory maps of a process after a file of tests

# Files whose tests take longest: with a file to a worker they come first, or one worker ends alone.
LONG = ("pipeline/test_processes", "pipeline/test_recipe", "training/test_step", "test_contract")


def pytest_collection_modifyitems(items):
    rank = {f"tests/{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(LONG)))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real material (TOFU, stories260k, tokenizers); skips when it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real material not found: {folder} (set JAXUNLEARN_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def full_compilation(request):
    """Facts of the compiler are those of the optimising one, and of a fresh compilation."""
    if not request.node.get_closest_marker("cost"):
        yield
        return
    _compile_fully(True)
    yield
    _compile_fully(False)


def _compile_fully(fully: bool) -> None:
    jax.config.update("jax_disable_most_optimizations", not fully)
    jax.config.update("jax_enable_compilation_cache", not fully)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Forgets compiled programs before a process has more memory maps than Linux allows, 65530.

    Each holds some sixty. A process that is out of them dies, most often in a compilation.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def strict_arrays():
    """Implicit rank or dtype promotion raises: the classic [B] against [B, 1] loss bug."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield
