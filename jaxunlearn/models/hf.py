"""Hugging Face's files in and out: safetensors to stacked, sharded parameters and back.

Tensors are read by slices, each device's own, from the memory-mapped files: no second copy of the
model is ever in host memory.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy must know bfloat16 before safetensors reads it
import numpy as np
import safetensors
from safetensors.numpy import save_file

from jaxunlearn.models.architecture import Leaf, LlamaConfig
from jaxunlearn.models.hf_config import TOKEN_IDS, config_json
from jaxunlearn.models.hf_config import load_config as load_config

Tree = Any

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WANTED = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
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


def resolve(model: str | Path) -> Path:
    """The local folder of a model, downloaded where `model` is a name of the Hugging Face hub.

    Args:
      model: a folder, or a name such as "meta-llama/Llama-2-7b-hf".

    Returns:
      The folder.

    Raises:
      FileNotFoundError: neither a folder nor a name that the hub knows.
      PermissionError: a gated model whose licence is not accepted.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name}: no such folder (a hub model is called 'owner/name')")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_WANTED))
    except errors.GatedRepoError:
        raise PermissionError(
            f"{name} is gated: accept its licence on https://huggingface.co/{name} and set HF_TOKEN"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise FileNotFoundError(
            f"{name}: no such folder, and no such model on the hub (for a private one set HF_TOKEN)"
        ) from None
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: no such folder, and the hub is out of reach ({type(error).__name__}); "
            "check the network and HF_HUB_OFFLINE"
        ) from None


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
    with contextlib.ExitStack() as stack:
        slices = _open_tensors(folder, stack)
        _check_tensors(slices, config, folder)
        for leaf in config.leaves():
            sharding = single if shardings is None else leaf.get(shardings)
            read = _reader(leaf, slices, jnp.dtype(dtype))
            leaf.put(tree, jax.make_array_from_callback(leaf.shape, sharding, read))
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

    The folder appears whole or not at all.

    Args:
      folder: to be made; must not hold anything yet.
      params: written in the dtype they have.
      config: the model.
      tokenizer: of transformers, written beside the tensors.
      source: the folder of the model this one comes from: its tokenizer, generation settings and
        special tokens are copied.
      max_shard_bytes: one file up to here, an index and several beyond.

    Raises:
      FileExistsError: the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose a new folder for the model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_tensors(temporary, params, config, max_shard_bytes)
        _write_companions(temporary, params, config, tokenizer, source)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _write_tensors(folder: Path, params: Tree, config: LlamaConfig, max_shard_bytes: int) -> None:
    locations, sizes = _locations(config), {}
    for name, (leaf, _, shape) in locations.items():
        sizes[name] = math.prod(shape) * leaf.get(params).dtype.itemsize
    shards = _shards(sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = _SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _pull(params, *locations[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2))


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
    value = np.asarray(value[layer] if leaf.stacked else value)
    return np.ascontiguousarray(value.T if leaf.transposed else value).reshape(shape)


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
