"""Devices that are not there, for their compilers: meshes of CPUs, GPUs and TPUs to compile for.

    cpu:64                 64 forced CPU devices
    cuda:8:FILE            8 GPUs of one node; FILE describes the card (a GpuTargetConfigProto)
    tpu:v5e:2x4            a slice of TPU chips

The CPU's is always there. A card's compiler is in the packages jax-cuda12-plugin and
jax-cuda12-pjrt, a TPU's in libtpu: neither needs the card, the chip, or a driver.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

# Published dense bfloat16 FLOPs a second of a device, and bytes a second to its neighbours.
RATES = {
    "H200": (989e12, 450e9),
    "H100": (989e12, 450e9),
    "A100": (312e12, 300e9),
    "v5 lite": (197e12, 200e9),
    "v5p": (459e12, 600e9),
    "v5": (459e12, 600e9),
}


CUDA = "jax_plugins/xla_cuda12/xla_cuda_plugin.so"
TPU = "libtpu/libtpu.so"


class NoCompiler(Exception):
    """The compiler of a target is not installed."""


def devices(target: str, compilers: Path | None = None) -> Sequence[Any]:
    """The devices of a target; for `cpu:N` before anything else of JAX.

    Args:
      target: see the module.
      compilers: the folder into which the packages of a GPU or TPU were installed.

    Raises:
      NoCompiler: it is not there; says what is missing.
      ValueError: no such target.
    """
    kind, _, rest = target.partition(":")
    count, _, file = rest.partition(":")
    if kind == "cpu" and rest.isdigit():
        jax.config.update("jax_num_cpu_devices", int(rest))
        return jax.devices("cpu")
    if kind == "cuda" and count.isdigit() and file:
        return _cuda(int(count), Path(file), _library(compilers, CUDA))
    if kind == "tpu" and count and file:
        return _tpu(rest, _library(compilers, TPU))
    raise ValueError(f"target {target!r}: expected cpu:N, cuda:N:FILE or tpu:NAME:SHAPE")


def _library(compilers: Path | None, name: str) -> Path:
    if compilers is None or not (compilers / name).is_file():
        raise NoCompiler(f"no compiler: {name} is not in the folder --compilers {compilers}")
    return compilers / name


def rates(device: Any) -> tuple[float, float] | None:
    """Published peaks of a device, (FLOPs a second, bytes a second), where they are known."""
    return next((rate for name, rate in RATES.items() if name in device.device_kind), None)


def _cuda(count: int, file: Path, library: Path) -> Sequence[Any]:
    from jax._src import xla_bridge  # the only way to a plugin without its card

    xla_bridge.register_plugin("cuda", library_path=str(library))
    described = topologies.get_topology_desc(
        "gpu", "cuda", target_config=file.read_text(), topology=f"1x1x{count}"
    )
    return described.devices


def _tpu(name: str, library: Path) -> Sequence[Any]:
    os.environ["TPU_LIBRARY_PATH"] = str(library)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a metadata server
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
