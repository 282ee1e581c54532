"""Adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from jaxunlearn.core import files, trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.models import families
from jaxunlearn.models.decoder import MATRICES, DecoderConfig, Lora, adapter_leaves
from jaxunlearn.models.decoder.config import ADAPTER_KEYS
from jaxunlearn.models.hf.tensors import check_tensor, open_tensors
from jaxunlearn.models.hf.weights import check_free

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _WEIGHT = "base_model.model.", ".weight"
_LETTERS: Mapping[str, str] = dict(zip(ADAPTER_KEYS, ("lora_A", "lora_B"), strict=True))

# The values under which a key changes nothing that is computed here.
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Other ways to begin ("pissa", "olora", ..) change the weights of the model as well.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
# Keys that are read elsewhere, or that change nothing whatever they say: dropout is for training,
# which is without it here, and the targets are those that have tensors. How an adapter was begun is
# told by `init_lora_weights`; the settings of each way to begin change nothing beside it.
_HARMLESS = frozenset(
    {
        *("r", "lora_alpha", "target_modules", "base_model_name_or_path"),
        *("auto_mapping", "inference_mode", "lora_dropout", "megatron_core", "parent_library"),
        *("peft_version", "qalora_group_size", "revision", "task_type"),
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    }
)


def load_lora(folder: str | Path, model: DecoderConfig) -> Lora:
    """Reads what an adapter is: its rank, alpha and targets.

    Args:
      folder: as PEFT's `save_pretrained` writes it.
      model: the model that it is an adapter of.

    Returns:
      The rank and alpha of adapter_config.json, and the matrices that have tensors.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: settings that are not understood, all of them at once, or tensors that do not fit
        the model or are no floats; names the file.
    """
    folder = Path(folder)
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; an adapter of PEFT has one")
    raw = files.read_json(file)
    problems = list(_problems(raw)) if isinstance(raw, dict) else ["expected an object"]
    if problems:
        raise ValueError(f"{file}: " + "\n  ".join(problems))
    file = folder / TENSORS
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; an adapter of PEFT has one")
    with contextlib.ExitStack() as stack:
        slices = open_tensors(file, stack)
        own = [m for m in MATRICES if not _is_shared(f"blocks/{m}/kernel", model)]
        targets = tuple(m for m in own if _name(f"blocks/{m}/lora_a", model, 0) in slices)
        if not targets:
            raise ValueError(f"{file}: holds no adapter of {', '.join(MATRICES)}")
        lora = Lora(raw["r"], float(raw["lora_alpha"]), targets)
        _check_tensors(file, slices, model, lora)
    return lora


def load_adapters(folder: str | Path, model: DecoderConfig, shardings: Tree) -> Tree:
    """Reads the matrices of an adapter.

    Args:
      folder: checked by `load_lora`.
      model: with the adapter's `lora`.
      shardings: of the parameters of `model`.

    Returns:
      A tree like the parameters that holds the adapters alone, float32.
    """
    tree: dict[str, Any] = {}
    with safetensors.safe_open(Path(folder) / TENSORS, framework="numpy") as tensors:
        for leaf in adapter_leaves(model):
            names = [_name("/".join(leaf.path), model, i) for i in range(leaf.shape[0])]
            value = np.stack([tensors.get_tensor(n).T.astype(np.float32) for n in names])
            part = lambda index, value=value: value[index]
            sharding = leaf.get(shardings)
            leaf.put(tree, jax.make_array_from_callback(leaf.shape, sharding, part))
    return tree


def save_adapters(
    folder: str | Path, params: Tree, model: DecoderConfig, *, base: str, dtype: str = "float32"
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` puts on the model it belongs to.

    Args:
      folder: to be made; it appears whole or not at all.
      params: holds the adapters of `model`, perhaps among others.
      model: with `lora`.
      base: the folder or name of the plain model.
      dtype: of the tensors.

    Raises:
      FileExistsError: the folder is not empty.
      ValueError: a family whose files hold several matrices in one tensor.
    """
    assert model.lora is not None  # there are adapters
    check_free(folder)
    tensors: dict[str, np.ndarray] = {}
    for leaf in adapter_leaves(model):
        value = np.asarray(trees.on_host(leaf.get(params))).astype(jax.numpy.dtype(dtype))
        for layer, matrix in enumerate(value):
            name = _name("/".join(leaf.path), model, layer)
            tensors[name] = np.ascontiguousarray(matrix.T)
    modules = [_module(f"blocks/{m}/kernel", model).rsplit(".", 1)[-1] for m in model.lora.targets]
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with files.new_folder(Path(folder)) as temporary:
        save_file(tensors, temporary / TENSORS, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(described, indent=2) + "\n")


def _problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each setting of an adapter that is not understood."""
    for key, value in raw.items():
        allowed = _ALLOWED.get(key)
        if allowed is not None and value not in allowed:
            yield f"{key}={value!r} is not supported, only {allowed[0]!r}"
        # Whatever else a version of PEFT knows is off where its value is null, false or empty.
        if allowed is None and key not in _HARMLESS and value:
            yield f"{key}={value!r} is not supported: only plain LoRA is"
    for key, kind in (("r", int), ("lora_alpha", (int, float))):
        value = raw.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
            yield f"{key} should be a positive number, found {value!r}"


def _check_tensors(file: Path, slices: Mapping[str, Any], model: DecoderConfig, lora: Lora) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for leaf in adapter_leaves(dataclasses.replace(model, lora=lora)):
        for layer in range(leaf.shape[0]):
            expected[_name("/".join(leaf.path), model, layer)] = leaf.shape[:0:-1]
    for name, shape in expected.items():
        if name not in slices:
            raise ValueError(f"{file}: tensor {name} of shape {shape} is missing")
        check_tensor(file, name, slices[name], shape)
    for name in slices:
        if name not in expected:
            raise ValueError(f"{file}: tensor {name} is no part of an adapter of the blocks")


def _name(path: str, model: DecoderConfig, layer: int) -> str:
    """The name in PEFT's files of an adapter's matrix, `blocks/q/lora_a` for example."""
    kernel, key = path.rsplit("/", 1)
    module = _module(f"{kernel}/kernel", model).format(layer=layer)
    return f"{_PREFIX}{module}.{_LETTERS[key]}{_WEIGHT}"


def _module(path: str, model: DecoderConfig) -> str:
    """The name of the module that holds a matrix; "{layer}" stands for the index of the block.

    Raises:
      ValueError: it holds others too, so that PEFT's adapter of it is one of all of them together.
    """
    name = families.by_model_type(model.family).tensors[path]
    if _is_shared(path, model):
        raise ValueError(
            f"models of the family {model.family!r} hold {path.split('/')[1]} and others in one"
            f" tensor ({name}), of which PEFT makes one adapter: it cannot be read or written here"
        )
    return name.removesuffix(_WEIGHT)


def _is_shared(path: str, model: DecoderConfig) -> bool:
    """Whether the tensor of a matrix holds others too in the files of its family."""
    tensors = families.by_model_type(model.family).tensors
    return list(tensors.values()).count(tensors[path]) > 1
