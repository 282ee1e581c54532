"""Shared fixtures: eight CPU devices, full matmul precision, the folder of real material."""

import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_threefry_partitionable", True)
# Most of a test's time is compilation: this halves it.
jax.config.update("jax_disable_most_optimizations", True)

SHARED = pathlib.Path(
    os.environ.get("JAXUNLEARN_SHARED", pathlib.Path(__file__).parents[1] / "../shared")
).resolve()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real material (TOFU, stories260k, tokenizers); skips when it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real material not found: {folder} (set JAXUNLEARN_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def full_compilation(request):
    """Facts of the compiler are those of the optimising one."""
    if not request.node.get_closest_marker("cost"):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def strict_arrays():
    """Implicit rank or dtype promotion raises: the classic [B] against [B, 1] loss bug."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield
