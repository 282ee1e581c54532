"""Loading holds the model once, where it is wanted; whatever else it needs is little."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.hf import sharded_read, weights

BAR = 0.05  # of the bytes of the model's files
PROGRAMS = 64 * 10**6  # bytes: what the compiler keeps of its programs, twice what was seen


def shape(hidden, layers, **changes):
    """A Llama of Llama-2's proportions."""
    sizes = {
        "vocab_size": 16 * hidden,
        "hidden_size": hidden,
        "intermediate_size": hidden * 43 // 16,
    }
    heads = {"num_heads": hidden // 32, "num_kv_heads": hidden // 32, "head_dim": 32}
    return decoder.DecoderConfig(**sizes, **heads, num_layers=layers, context=64, **changes)


def tensor_names(config):
    """{tensor: its shape in the files}."""
    return {name: tensor.shape for name, tensor in hf.tensor_table(config).items()}


def write(folder, config, files=4):
    """Random bfloat16 in several files, by safetensors alone."""
    folder.mkdir()
    rng, names = np.random.default_rng(0), tensor_names(config)
    weight_map = {name: f"model-{i % files}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        inside = [name for name in names if weight_map[name] == file]
        draw = lambda size: rng.integers(0x3C00, 0x3D00, size, np.uint16).view(ml_dtypes.bfloat16)
        save_file({name: draw(names[name]) for name in inside}, folder / file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(hf.config_json(config, "bfloat16", {})))
    return folder


class Counted:
    """A slice of a file that adds up the elements read of it."""

    def __init__(self, part, counts, name):
        self.part, self.counts, self.name = part, counts, name

    def get_shape(self):
        return self.part.get_shape()

    def get_dtype(self):
        return self.part.get_dtype()

    def __getitem__(self, index):
        values = self.part[index]
        self.counts.setdefault(self.name, []).append(values.size)
        return values


@pytest.fixture
def counts(monkeypatch):
    """{tensor: elements of each read}, of all that is loaded."""
    result, opened = {}, weights._open_tensors

    def counting(folder, stack):
        tensors = opened(folder, stack).items()
        return {name: (file, Counted(part, result, name)) for name, (file, part) in tensors}

    monkeypatch.setattr(weights, "_open_tensors", counting)
    return result


MESHES = [(1, 8, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1)]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("few", [0, 2**20], ids=["pieces", "shards"])
def test_every_byte_is_read_once(tmp_path, counts, monkeypatch, mesh, few):
    """By however many devices hold it; and what is loaded is what the files hold."""
    monkeypatch.setattr(weights, "_FEW", few)
    monkeypatch.setattr(weights, "_SHARE", 32)
    config = shape(128, 2)
    folder = write(tmp_path / "model", config)
    whole = hf.load_params(folder, config)
    counts.clear()
    shardings = sharding.param_shardings(config, sharding.make_mesh(*mesh))
    params = hf.load_params(folder, config, shardings=shardings)
    assert jax.tree.map(lambda p: p.sharding, params) == shardings
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    sizes = {name: math.prod(size) for name, size in tensor_names(config).items()}
    assert {name: sum(reads) for name, reads in counts.items()} == sizes
    most = max(sum(sizes.values()) // weights._SHARE, few)
    assert max(max(reads) for reads in counts.values()) <= most


@pytest.mark.parametrize(
    ("mesh", "dtype"), [(None, "float32"), ((1, 8, 1), "float32"), ((1, 2, 4), "bfloat16")]
)
def test_host_buffers(tmp_path, monkeypatch, mesh, dtype):
    """What Python and numpy allocate: exact, and nothing of the devices among it."""
    monkeypatch.setattr(weights, "_FEW", 0)
    config = shape(256, 8)
    folder = write(tmp_path / "model", config)
    shardings = mesh and sharding.param_shardings(config, sharding.make_mesh(*mesh))
    load = lambda: hf.load_params(folder, config, shardings=shardings, dtype=dtype)
    jax.block_until_ready(load())  # compiles
    tracemalloc.start()
    try:
        jax.block_until_ready(load())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    files = sum(2 * math.prod(size) for size in tensor_names(config).values())
    print(f"{mesh} {dtype}: {peak / files:.2%} of {files} bytes")
    assert peak <= BAR * files


CASES = [
    pytest.param((1, 1, 1), "float32", marks=pytest.mark.nightly),
    pytest.param((1, 8, 1), "float32", marks=pytest.mark.nightly),
    pytest.param((2, 2, 2), "float32", marks=pytest.mark.slow),
    pytest.param((1, 2, 4), "bfloat16", marks=pytest.mark.slow),
]


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("mesh", "dtype"), CASES)
def test_peak_memory_of_the_process(tmp_path_factory, mesh, dtype):
    """Watched from outside, so that nothing the process holds can hide.

    The model is tied: of its leaves the last is as large as any, so the peak is where all arrays
    but a piece are on their devices, and arrays that are not there yet hide nothing.
    """
    config = shape(1024, 12, tied=True)
    folder = tmp_path_factory.getbasetemp() / "large"
    if not folder.exists():
        write(folder, config)
    script = pathlib.Path(__file__).with_name("hf_memory.py")
    command = [sys.executable, str(script), str(folder), *map(str, mesh), dtype]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "loading\n"
        peak = watched(process)
        output = json.loads(process.stdout.read())
    files = sum(2 * math.prod(size) for size in tensor_names(config).values())
    extra = max(peak, output["after"]) - output["before"] - output["device"]
    print(f"{mesh} {dtype}: {extra / files:.2%} of {files} bytes beside {output}")
    assert extra <= BAR * files
    assert output["before"] - output["start"] <= PROGRAMS  # nothing of the first load is left


def watched(process) -> int:
    """The most anonymous memory a process has, looked at every millisecond until it ends."""
    status, peak = pathlib.Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(0.001)
    assert process.returncode == 0
    return peak


SHARDINGS = {
    "replicated": P(),
    "first axis": P(("fsdp", "tensor")),
    "two axes": P(None, "fsdp", "tensor"),
}


@pytest.mark.parametrize("spec", SHARDINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("most", [2**20, 800, 200, 1])
def test_read_array(spec, dtype, most):
    """Any cut of any sharding gives the array, bit for bit, with a mesh current or not."""
    mesh = sharding.make_mesh(2, 2, 2)
    values = np.random.default_rng(0).normal(size=(4, 6, 10)).astype(dtype)
    values[0, 0, :2] = np.nan, -0.0
    sizes = []

    def read(index):
        sizes.append(values[index].size)
        return values[index]

    with jax.set_mesh(mesh):
        expected = jax.NamedSharding(mesh, SHARDINGS[spec])
        result = sharded_read.read_array(values.shape, values.dtype, expected, read, most)
    assert result.sharding == expected and result.dtype == values.dtype
    assert np.asarray(result).tobytes() == values.tobytes()
    assert sum(sizes) == values.size and (max(sizes) <= max(most // 8, 1) or len(set(sizes)) == 1)
