"""What the makers of accelerators publish of their speed, and what devices tell of themselves."""

import math
from collections.abc import Iterable
from typing import Any

from jaxunlearn.core.names import shortened

TERA = 10**12

BF16_PEAKS: dict[str, float] = {
    # NVIDIA's data sheets of the H200, H100, A100 and L4: "Tensor Core", without sparsity.
    "NVIDIA H200": 989.5,
    "NVIDIA H100 80GB HBM3": 989.5,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L4": 121.0,
    # Google Cloud's pages on TPU versions, for a chip, which is one device of JAX.
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}
"""Dense bfloat16 peak of one device in TFLOP/s, by `device_kind`."""


def check_peak(tflops: float | None) -> None:
    """Checks the peak of a device that a user states.

    Raises:
      ValueError: it is not a positive number.
    """
    if tflops is not None and not 0 < tflops < math.inf:
        raise ValueError(f"peak (--peak): {tflops} must be a positive number of TFLOP/s")


def peak_flops(devices: Iterable[Any], dtype: str, tflops: float | None = None) -> float | None:
    """The FLOP/s that some devices together cannot exceed.

    Args:
      devices: of a mesh.
      dtype: of the computation.
      tflops: of one device, where the user states it; default: the published peak.

    Returns:
      The number; None for a device that the table lacks and for a dtype that is not bfloat16: what
      a product in float32 can reach depends on its precision.
    """
    devices = list(devices)
    if tflops is not None:
        return tflops * TERA * len(devices)
    if dtype != "bfloat16" or any(device.device_kind not in BF16_PEAKS for device in devices):
        return None
    return TERA * sum(BF16_PEAKS[device.device_kind] for device in devices)


class OutOfMemory(ValueError):
    """A device has not the memory that a program needs; names the step of the run."""


def out_of_memory(error: RuntimeError, where: str) -> OutOfMemory | None:
    """What to raise in the place of an error of JAX; None where it is of another kind.

    Args:
      error: what JAX raised.
      where: the step of the run.
    """
    if "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return OutOfMemory(
        f"{where}: the device is out of memory ({shortened(str(error))}); `jaxunlearn forecast"
        " CONFIG --memory GIB` says what fits: a smaller compute.batch_tokens, a larger"
        " unlearn.accumulate, compute.remat: full, compute.offload: true, or compute.fsdp over more"
        " devices"
    )


def peak_bytes(devices: Iterable[Any]) -> int | None:
    """The most bytes that were in use on one device of this process so far, None if none tells."""
    stats = [device.memory_stats() for device in devices]
    peaks = [
        entry["peak_bytes_in_use"] for entry in stats if entry and "peak_bytes_in_use" in entry
    ]
    return max(peaks, default=None)
