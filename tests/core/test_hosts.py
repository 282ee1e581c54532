"""One process agrees with itself, half an address is refused, and the user's settings stay."""

import os
import subprocess
import sys

import jax
import pytest

from jaxunlearn.core import hosts


def test_one_process_is_the_first_and_agrees_with_itself():
    assert hosts.is_first()
    assert hosts.agreed(True) is True and hosts.agreed(False) is False
    assert hosts.wait("nobody else comes") is None


@pytest.mark.parametrize(
    ("address", "missing"),
    [
        ({"coordinator": "a:1"}, "--processes, --process: give all of"),
        ({"processes": 2, "process": 0}, "--coordinator: give all of"),
        ({"coordinator": "a:1", "process": 0}, "--processes: give all of"),
    ],
)
def test_an_incomplete_address_names_the_missing_flags(address, missing):
    with pytest.raises(ValueError, match=missing):
        hosts.connect(**address)
    with pytest.raises(ValueError, match=missing):
        hosts.start(**address)


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_cluster_that_cannot_be_joined_is_a_clear_error(monkeypatch, error):
    def initialize(*address, heartbeat_timeout_seconds):
        assert address == ("a:1", 2, 1) and heartbeat_timeout_seconds == 7
        raise error("nobody answers")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="cannot join the other processes: nobody answers"):
        hosts.connect("a:1", 2, 1, heartbeat=7)


def test_the_users_number_of_threads_stays(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "3")
    hosts.give_cpu_threads()
    assert os.environ["PJRT_NPROC"] == "3"
    monkeypatch.delenv("PJRT_NPROC")
    hosts.give_cpu_threads()
    assert int(os.environ["PJRT_NPROC"]) >= 64


def updates(monkeypatch):
    """The settings of JAX that a function changes."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    return changed


def test_the_users_platform_stays(monkeypatch):
    changed = updates(monkeypatch)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    hosts.use_cpu()
    assert changed == {}
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    hosts.use_cpu(0)
    assert changed == {"jax_platforms": "cpu", "jax_num_cpu_devices": 1}


def test_a_command_moves_arrays_whatever_the_environment_says(monkeypatch):
    with jax.transfer_guard("disallow"):
        changed = updates(monkeypatch)
        hosts.start()
    assert changed["jax_transfer_guard"] == "allow"


def test_programs_of_accelerators_are_kept_where_the_user_says(monkeypatch, tmp_path):
    changed = updates(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    hosts.keep_compilations()
    assert changed == {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    hosts.keep_compilations()
    assert changed == {"jax_compilation_cache_dir": str(tmp_path / "jaxunlearn")}
    changed.clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    hosts.keep_compilations()
    assert changed == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_is_kept_unless_the_user_says_otherwise():
    """In a process of its own: faults of pages by buffers that are allocated again and again."""
    program = """
import resource
from jaxunlearn.core import hosts
import jax
jax.config.update("jax_platforms", "cpu")
{call}
import ctypes
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def turn():
    blocks = [c.malloc(2**24) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 2**24)
        c.free(block)
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(call, **environment):
        names = [n for n in os.environ if not n.startswith(("MALLOC_", "GLIBC_TUNABLES"))]
        env = {name: os.environ[name] for name in names} | environment
        command = [sys.executable, "-c", program.format(call=call)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept = faults("hosts.keep_memory()")
    theirs = faults("hosts.keep_memory()", MALLOC_ARENA_MAX="8")
    assert kept < 100 and theirs > 1000
