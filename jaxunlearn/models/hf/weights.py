"""Reads and writes Hugging Face's files: safetensors to stacked, sharded parameters and back.

Tensors are read by slices, each device's own, from the memory-mapped files, and converted slice by
slice: no second copy of the model, nor of a shard of it, is ever in host memory.
"""

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from jaxunlearn.core import files, hosts, trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.models import families
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.models.decoder.config import Leaf
from jaxunlearn.models.hf.config import config_json, read_object
from jaxunlearn.models.hf.defaults import TOKEN_IDS
from jaxunlearn.models.hf.frequencies import check_frequencies
from jaxunlearn.models.hf.sharded_read import Read, read_array
from jaxunlearn.models.hf.tensors import check_tensor, open_tensors

if TYPE_CHECKING:  # transformers is imported where it is used
    from transformers import PreTrainedTokenizerBase

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS = 4096  # of both matrices that are compared at a time
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Elements in flight to the devices: at most 1 / _SHARE of all parameters, or _FEW if that is more.
_SHARE, _FEW = 256, 2**20
_ENTRY = 256  # bytes of a tensor in a file's header, at most
# Files of a model folder other than tensors and config.json.
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
    folder: str | Path,
    config: DecoderConfig,
    *,
    shardings: Tree = None,
    dtype: DTypeLike | Mapping[str, Any] = jnp.float32,
) -> Tree:
    """Reads the parameters of a model folder.

    Args:
      folder: holds model.safetensors, or an index and its shards.
      config: from `load_config`.
      shardings: tree of shardings (`sharding.param_shardings`); None puts all on the first device.
      dtype: of the parameters, whatever the files' is; or a tree of dtypes like the parameters.

    Returns:
      The parameters.

    Raises:
      FileNotFoundError: no safetensors files.
      ValueError: a tensor that is missing, not expected or of another shape, or a damaged file; all
        name the file and the tensor. Or float64 while JAX's x64 mode is off.
    """
    folder, tree = Path(folder), {}
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    dtype_of = lambda leaf: jnp.dtype(leaf.get(dtype) if isinstance(dtype, Mapping) else dtype)
    for leaf in config.leaves():
        trees.check_available("dtype", dtype_of(leaf))
    max_in_flight = max(sum(math.prod(leaf.shape) for leaf in config.leaves()) // _SHARE, _FEW)
    with contextlib.ExitStack() as stack:
        slices = _open_tensors(folder, stack)
        _check_tensors(slices, config, folder)
        _check_tied(slices, config)
        for leaf in config.leaves():
            sharding = single if shardings is None else leaf.get(shardings)
            read = _reader(leaf, config, slices, dtype_of(leaf))
            leaf.put(tree, read_array(leaf.shape, dtype_of(leaf), sharding, read, max_in_flight))
    return tree


def check_params(folder: str | Path, config: DecoderConfig) -> None:
    """Checks that a folder holds every tensor of the model, by the files' headers.

    Only a second output layer and rotary frequencies, which few files hold, are read.

    Raises:
      FileNotFoundError, ValueError: as `load_params`.
    """
    with contextlib.ExitStack() as stack:
        slices = _open_tensors(Path(folder), stack)
        _check_tensors(slices, config, Path(folder))
        _check_tied(slices, config)


def save_params(
    folder: str | Path,
    params: Tree,
    config: DecoderConfig,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    source: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model folder that `transformers.AutoModelForCausalLM` loads.

    The folder appears whole or not at all. Of several processes all must call this: each gives its
    shards, and the first writes.

    Args:
      folder: to be made; must not hold anything yet.
      params: the parameters of the model, written in the dtypes that they have. config.json names
        the widest of these, in which transformers then computes, so that it rounds none.
      config: the model.
      tokenizer: of transformers, written next to the tensors.
      source: the folder of the model this one comes from: its tokenizer, generation settings and
        special tokens are copied.
      max_shard_bytes: one file up to here, an index and several beyond; a larger tensor has a file
        of its own.

    Raises:
      FileExistsError: the folder is not empty.
      FileNotFoundError: the source has no config.json.
      ValueError: a model that the files of its family cannot describe, parameters that are not
        those of the model, or a source whose config.json is damaged.
    """
    folder = Path(folder)
    check_free(folder)
    # What cannot be written is refused before anything is.
    _check_params(params, config)
    dtype = reduce(jnp.promote_types, (leaf.dtype for leaf in jax.tree.leaves(params)))
    content = config_json(config, str(dtype), _token_ids(tokenizer, source))
    # The first process makes the folder: all others must have seen that it is free.
    hosts.wait(f"{folder} is free")
    table = tensor_table(config)
    pull = lambda name: _pull(params, table[name])
    shards = _files(params, config, max_shard_bytes)
    if hosts.is_first():
        with files.new_folder(folder) as temporary:
            _write_tensors(temporary, shards, pull)
            _write_companions(temporary, content, tokenizer, source)
    else:
        # Every process gives its part of every tensor, in the order in which the first one writes.
        for name in itertools.chain.from_iterable(shards.values()):
            pull(name)
    hosts.wait(f"{folder} is written")


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
        slices |= {name: (file, values) for name, values in open_tensors(file, stack).items()}
    return slices


def _tensor_files(folder: Path) -> list[Path]:
    # Of both transformers reads the single file, too: it may leave an index when it saves again.
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return [folder / name for name in _shard_names(folder / _INDEX)]
    others = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no weights"
    raise FileNotFoundError(f"{folder}: no {_SINGLE} but {others}; {_CONVERT}")


def _shard_names(index: Path) -> list[str]:
    """The files that an index names, which are all in its folder.

    Raises:
      ValueError: it is no such index; names it.
    """
    content = files.read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f'{index}: expected {{"weight_map": {{tensor: file}}}}')
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
            raise ValueError(f"{index}: {tensor}: expected a file of this folder, got {name!r}")
    return sorted(set(weight_map.values()))


def _check_tensors(
    slices: dict[str, tuple[Path, Any]], config: DecoderConfig, folder: Path
) -> None:
    table = tensor_table(config)
    for name, (_, _, shape) in table.items():
        if name not in slices:
            raise ValueError(
                f"{folder}: tensor {name} of shape {shape} is missing; download the model again, or"
                " correct its config.json"
            )
        file, values = slices[name]
        check_tensor(file, name, values, shape)
    for name, (file, values) in slices.items():
        tied_copy = config.tied and name == HEAD
        if name.endswith("rotary_emb.inv_freq"):
            check_frequencies(f"{file}: tensor {name}", values, config)
        elif name not in table and not tied_copy:
            raise ValueError(f"{file}: tensor {name} has no place in the model of config.json")


def _check_tied(slices: dict[str, tuple[Path, Any]], config: DecoderConfig) -> None:
    """Compares an output layer that the files hold in spite of tied embeddings with the embedding.

    Raises:
      ValueError: they differ: the model would answer otherwise than the one that was saved.
    """
    if not config.tied or HEAD not in slices:
        return
    (file, head), (_, embedding) = slices[HEAD], slices[EMBEDDING]
    rows = config.vocab_size
    parts = (slice(first, min(first + _ROWS, rows)) for first in range(0, rows, _ROWS))
    if head.get_shape() != embedding.get_shape() or not all(
        np.array_equal(_bits(head[part]), _bits(embedding[part])) for part in parts
    ):
        raise ValueError(
            f"{file}: tensor {HEAD} differs from {EMBEDDING}, though config.json says"
            " tie_word_embeddings: true; write false there to use both"
        )


def _bits(x: np.ndarray) -> np.ndarray:
    """The bytes of an array, so that equal NaN are equal and any type can be compared."""
    return np.ascontiguousarray(x).view(np.uint8)


class Tensor(NamedTuple):
    """One tensor of the files.

    Attributes:
      leaves: the parameters that it holds, one after another along its first axis; most hold one.
      layer: its index along the leaves' axis of layers, 0 for a leaf without one.
      shape: in the files.
    """

    leaves: tuple[Leaf, ...]
    layer: int
    shape: tuple[int, ...]


def tensor_table(config: DecoderConfig) -> dict[str, Tensor]:
    """The tensors of a model's files by their names, in the order of the model."""
    table: dict[str, Tensor] = {}
    for leaf in config.leaves():
        for layer in range(leaf.shape[0] if leaf.stacked else 1):
            name = _name_pattern(leaf, config).format(layer=layer)
            leaves, shape = (leaf,), _file_shape(leaf)
            if name in table:
                before = table[name]
                leaves, shape = before.leaves + leaves, (before.shape[0] + shape[0], *shape[1:])
            table[name] = Tensor(leaves, layer, shape)
    first = {"embed": -1, "blocks": 0, "norm": config.num_layers, "lm_head": config.num_layers}
    place = lambda tensor: first[tensor.leaves[0].path[0]] + tensor.layer
    return dict(sorted(table.items(), key=lambda item: place(item[1])))


def _file_shape(leaf: Leaf) -> tuple[int, ...]:
    """The shape of one layer of a leaf in the files."""
    shape = leaf.shape[1:] if leaf.stacked else leaf.shape
    return shape[::-1] if leaf.transposed else shape


def _name_pattern(leaf: Leaf, config: DecoderConfig) -> str:
    """The name of a leaf's tensors in the files; "{layer}" stands for the index of the block."""
    path = "/".join(leaf.path)
    try:
        return families.by_model_type(config.family).tensors[path]
    except KeyError:
        message = f"{path}: models of the family {config.family!r} have no such parameter"
        raise ValueError(message) from None


def _reader(
    leaf: Leaf, config: DecoderConfig, slices: dict[str, tuple[Path, Any]], dtype: np.dtype
) -> Read:
    """Returns index of a leaf -> its part, read from the files of the layers concerned."""
    pattern = _name_pattern(leaf, config)
    names = [pattern.format(layer=layer) for layer in range(leaf.shape[0])]
    # Where a tensor holds several leaves, this one follows those before it in the leaf table.
    leaves = list(config.leaves())
    shared = [x for x in leaves[: leaves.index(leaf)] if _name_pattern(x, config) == pattern]
    offset = sum(_file_shape(x)[0] for x in shared)

    def layer_part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        rows, *rest = index[::-1] if leaf.transposed else index
        first, stop, _ = rows.indices(_file_shape(leaf)[0])
        part = slices[name][1][(slice(first + offset, stop + offset), *rest)]
        return part.T if leaf.transposed else part

    def read(index: Any) -> np.ndarray:
        if not leaf.stacked:
            return np.ascontiguousarray(layer_part(pattern, index), dtype)
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, leaf.shape, strict=True)]
        out = np.empty(sizes, dtype)
        for row, name in zip(out, names[index[0]], strict=True):
            row[...] = layer_part(name, index[1:])
        return out

    return read


def _write_tensors(
    folder: Path, shards: dict[str, list[str]], pull: Callable[[str], np.ndarray]
) -> None:
    """Writes the safetensors files, and their index where they are several."""
    weight_map: dict[str, str] = {}
    size = 0
    for file, names in shards.items():
        tensors = {name: pull(name) for name in names}  # the host holds one file at a time
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2))


def _files(params: Tree, config: DecoderConfig, max_shard_bytes: int) -> dict[str, list[str]]:
    """{file: the tensors in it}, filled up in the order of the model."""
    sizes = {}
    for name, (leaves, _, shape) in tensor_table(config).items():
        sizes[name] = math.prod(shape) * leaves[0].get(params).dtype.itemsize + _ENTRY
    shards = _shards(sizes, max_shard_bytes)
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": names for i, names in enumerate(shards, 1)}


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


def _pull(params: Tree, tensor: Tensor) -> np.ndarray:
    """One tensor on the host, as Hugging Face lays it out."""

    def part(leaf: Leaf) -> np.ndarray:
        value = leaf.get(params)
        value = trees.on_host(value[tensor.layer] if leaf.stacked else value)
        return value.T if leaf.transposed else value

    parts = [part(leaf) for leaf in tensor.leaves]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.ascontiguousarray(whole).reshape(tensor.shape)


def _check_params(params: Tree, config: DecoderConfig) -> None:
    """Checks that a tree holds the parameters of a model and no others, which would be left out."""
    expected = {"/".join(leaf.path): leaf.shape for leaf in config.leaves()}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name_of = partial(jax.tree_util.keystr, simple=True, separator="/")
    found = {name_of(path): tuple(leaf.shape) for path, leaf in leaves}
    for name in expected | found:
        if name not in expected:
            raise ValueError(
                f"params: {name} has no place in the model of the configuration; adapters are "
                "merged first, by decoder.merge_adapters"
            )
        if name not in found:
            raise ValueError(f"params: {name} of shape {expected[name]} is missing")
        if found[name] != expected[name]:
            raise ValueError(
                f"params: {name} should have shape {expected[name]}, found {found[name]}"
            )


def _token_ids(
    tokenizer: "PreTrainedTokenizerBase | None", source: str | Path | None
) -> dict[str, Any]:
    """The special tokens that the source names, and those of the tokenizer where it names none."""
    given = {} if source is None else read_object(Path(source) / "config.json")
    named = {name: given[name] for name in TOKEN_IDS if name in given}
    own = {name: getattr(tokenizer, name, None) for name in TOKEN_IDS}
    return named | {
        name: token for name, token in own.items() if token is not None and named.get(name) is None
    }


def _write_companions(
    folder: Path,
    content: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase | None",
    source: str | Path | None,
) -> None:
    """Writes config.json, and copies or writes the tokenizer's files."""
    if source is not None:
        for name in _COMPANIONS:
            if (Path(source) / name).is_file():
                shutil.copy(Path(source) / name, folder / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
