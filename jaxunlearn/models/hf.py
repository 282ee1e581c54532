"""Hugging Face's files in and out: safetensors to stacked, sharded parameters and back.

Tensors are read by slices, each device's own, from the memory-mapped files, and converted slice by
slice: no second copy of the model, nor of a shard of it, is ever in host memory.
"""

import contextlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy must know bfloat16 before safetensors reads it
import numpy as np
import safetensors
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from jaxunlearn.models.architecture import Leaf, LlamaConfig
from jaxunlearn.models.hf_config import TOKEN_IDS, config_json
from jaxunlearn.models.hf_config import load_config as load_config
from jaxunlearn.models.hub import resolve as resolve
from jaxunlearn.models.pieces import read_array

Tree = Any

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# At most this share of the parameters is on its way to the devices, or a few in any case.
_SHARE, _FEW = 256, 2**20
_ENTRY = 256  # bytes of a tensor in a file's header, at most
# What a model folder holds beside tensors and config.json.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_CONVERT = (
    "convert it once with transformers: "
    "AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(FOLDER)"
)


def load_params(
    folder: str | Path, config: LlamaConfig, *, shardings: Tree = None, dtype: Any = jnp.float32
) -> Tree:
    """Reads the parameters of a model folder.

    Args:
      folder: holds model.safetensors, or an index and its shards.
      config: from `load_config`.
      shardings: tree of shardings (`sharding.param_shardings`); None puts all on the first device.
      dtype: of the parameters, whatever the files' is.

    Returns:
      The parameters.

    Raises:
      FileNotFoundError: no safetensors files.
      ValueError: a tensor that is missing, not expected or of another shape, or a damaged file; all
        name the file and the tensor.
    """
    folder, tree = Path(folder), {}
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    dtype = jnp.dtype(dtype)
    most = max(sum(math.prod(leaf.shape) for leaf in config.leaves()) // _SHARE, _FEW)
    with contextlib.ExitStack() as stack:
        slices = _open_tensors(folder, stack)
        _check_tensors(slices, config, folder)
        for leaf in config.leaves():
            sharding = single if shardings is None else leaf.get(shardings)
            read = _reader(leaf, slices, dtype)
            leaf.put(tree, read_array(leaf.shape, dtype, sharding, read, most))
    return tree


def check_params(folder: str | Path, config: LlamaConfig) -> None:
    """Checks that a folder holds every tensor of the model, by the files' headers alone.

    Raises:
      FileNotFoundError, ValueError: as `load_params`.
    """
    with contextlib.ExitStack() as stack:
        _check_tensors(_open_tensors(Path(folder), stack), config, Path(folder))


def save_params(
    folder: str | Path,
    params: Tree,
    config: LlamaConfig,
    *,
    tokenizer: Any = None,
    source: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model folder that `transformers.AutoModelForCausalLM` loads.

    The folder appears whole or not at all. Of several processes all must call this: each gives its
    shards, and the first writes.

    Args:
      folder: to be made; must not hold anything yet.
      params: written in the dtype they have.
      config: the model.
      tokenizer: of transformers, written beside the tensors.
      source: the folder of the model this one comes from: its tokenizer, generation settings and
        special tokens are copied.
      max_shard_bytes: one file up to here, an index and several beyond; a larger tensor has a file
        of its own.

    Raises:
      FileExistsError: the folder is not empty.
    """
    folder = Path(folder)
    check_free(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder} is free")
    files = _files(params, config, max_shard_bytes)
    locations = _locations(config)
    pull = lambda name: _pull(params, *locations[name])
    if jax.process_index() == 0:
        _write_folder(folder, files, pull, params, config, tokenizer, source)
    else:
        for name in itertools.chain.from_iterable(files.values()):
            pull(name)  # every process gives its part of every tensor
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder} is written")


def check_free(folder: str | Path) -> None:
    """Checks that a folder can be made.

    Raises:
      FileExistsError: there is something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose a new folder for the model")


def _open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Path, Any]]:
    """{tensor: (file, slice of it)} for every tensor of the folder."""
    slices: dict[str, tuple[Path, Any]] = {}
    for file in _tensor_files(folder):
        try:
            opened = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cannot be read ({error}); download it again") from None
        tensors = opened.keys()
        slices |= {tensor: (file, opened.get_slice(tensor)) for tensor in tensors}
    return slices


def _tensor_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        weight_map = json.loads((folder / _INDEX).read_text())["weight_map"]
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    found = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights"
    raise FileNotFoundError(f"{folder}: no {_SINGLE} but {found}; {_CONVERT}")


def _check_tensors(slices: dict[str, tuple[Path, Any]], config: LlamaConfig, folder: Path) -> None:
    expected = {name: shape for name, (_, _, shape) in _locations(config).items()}
    for name, shape in expected.items():
        if name not in slices:
            raise ValueError(f"{folder}: tensor {name} of shape {shape} is missing")
        file, found = slices[name][0], tuple(slices[name][1].get_shape())
        if found != shape:
            raise ValueError(f"{file}: tensor {name} should have shape {shape}, found {found}")
    for name, (file, _) in slices.items():
        tied_copy = config.tied and name == "lm_head.weight"
        if name not in expected and not tied_copy and not name.endswith("rotary_emb.inv_freq"):
            raise ValueError(f"{file}: tensor {name} belongs to no Llama of this config.json")


def _locations(config: LlamaConfig) -> dict[str, tuple[Leaf, int, tuple[int, ...]]]:
    """{tensor: (its leaf, its layer, its shape)}, in the order of the model."""
    found = {}
    for leaf in config.leaves():
        shape = leaf.shape[1:] if leaf.stacked else leaf.shape
        for layer in range(leaf.shape[0] if leaf.stacked else 1):
            name = leaf.hf_name.format(layer=layer)
            found[name] = (leaf, layer, shape[::-1] if leaf.transposed else shape)
    first = {"embed": -1, "blocks": 0, "norm": config.num_layers, "lm_head": config.num_layers}
    return dict(sorted(found.items(), key=lambda item: first[item[1][0].path[0]] + item[1][1]))


def _reader(leaf: Leaf, slices: dict[str, tuple[Path, Any]], dtype: np.dtype):
    """index of a leaf -> its part, read from the files of the layers concerned."""
    names = [leaf.hf_name.format(layer=layer) for layer in range(leaf.shape[0])]

    def one(name: str, index: tuple[slice, ...]) -> np.ndarray:
        part = slices[name][1][index[::-1] if leaf.transposed else index]
        return part.T if leaf.transposed else part

    def read(index: Any) -> np.ndarray:
        if not leaf.stacked:
            return np.ascontiguousarray(one(leaf.hf_name, index), dtype)
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, leaf.shape, strict=True)]
        out = np.empty(sizes, dtype)
        for row, name in zip(out, names[index[0]], strict=True):
            row[...] = one(name, index[1:])
        return out

    return read


def _write_folder(
    folder: Path, files: dict[str, list[str]], pull: Callable[[str], np.ndarray], *model: Any
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    weight_map: dict[str, str] = {}
    size = 0
    try:
        for file, names in files.items():
            tensors = {name: pull(name) for name in names}  # the host holds one file at a time
            save_file(tensors, temporary / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            size += sum(tensor.nbytes for tensor in tensors.values())
            del tensors
        if len(files) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (temporary / _INDEX).write_text(json.dumps(index, indent=2))
        _write_companions(temporary, *model)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(params: Tree, config: LlamaConfig, max_shard_bytes: int) -> dict[str, list[str]]:
    """{file: the tensors in it}, filled up in the order of the model."""
    sizes = {}
    for name, (leaf, _, shape) in _locations(config).items():
        sizes[name] = math.prod(shape) * leaf.get(params).dtype.itemsize + _ENTRY
    shards = _shards(sizes, max_shard_bytes)
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    name = lambda i: f"model-{i:05}-of-{len(shards):05}.safetensors"
    return {name(i): names for i, names in enumerate(shards, 1)}


def _shards(sizes: dict[str, int], max_shard_bytes: int) -> list[list[str]]:
    """The tensors of each file, filled up in order."""
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _pull(params: Tree, leaf: Leaf, layer: int, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor on the host, as Hugging Face lays it out."""
    value = leaf.get(params)
    value = _on_host(value[layer] if leaf.stacked else value)
    return np.ascontiguousarray(value.T if leaf.transposed else value).reshape(shape)


def _on_host(value: jax.Array) -> np.ndarray:
    if value.is_fully_addressable:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _write_companions(
    folder: Path, params: Tree, config: LlamaConfig, tokenizer: Any, source: str | Path | None
) -> None:
    token_ids: dict[str, Any] = {}
    if source is not None:
        token_ids = json.loads((Path(source) / "config.json").read_text())
        for name in _COMPANIONS:
            if (Path(source) / name).is_file():
                shutil.copy(Path(source) / name, folder / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        token_ids = {name: getattr(tokenizer, name, None) for name in TOKEN_IDS} | token_ids
    dtype = str(params["embed"]["embedding"].dtype)
    text = json.dumps(config_json(config, dtype, token_ids), indent=2)
    (folder / "config.json").write_text(text + "\n")
