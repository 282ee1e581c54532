"""Tensors of safetensors files: how a file is opened, and what each tensor of weights must be."""

import contextlib
from pathlib import Path
from typing import Any

import safetensors

from jaxunlearn.core import files

FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of weights, as safetensors names them."""


def open_tensors(file: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Opens a file for as long as `stack` lives.

    Returns:
      {tensor: a slice of the file}, of which nothing is read yet.

    Raises:
      ValueError: it is missing, damaged, or something else than tensors; names it.
    """
    try:
        opened = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
    except (safetensors.SafetensorError, OSError) as error:
        if stand_in := files.stands_in_place_of(file):
            message = f"{file}: expected tensors, found {stand_in}"
            raise ValueError(message) from None
        raise ValueError(f"{file}: cannot be read ({error}); download it again") from None
    return {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118


def check_tensor(file: Path, name: str, values: Any, shape: tuple[int, ...]) -> None:
    """Checks the shape and the type of a tensor.

    Args:
      file: that holds it.
      name: of the tensor.
      values: its slice.
      shape: what the model needs.

    Raises:
      ValueError: another shape, or numbers that are no floats; names the file and the tensor.
    """
    actual = tuple(values.get_shape())
    if actual != shape:
        raise ValueError(f"{file}: tensor {name} should have shape {shape}, found {actual}")
    if (kind := values.get_dtype()) not in FLOATS:
        raise ValueError(
            f"{file}: tensor {name} is of type {kind}, expected one of {', '.join(FLOATS)};"
            " quantised weights are to be converted first"
        )
