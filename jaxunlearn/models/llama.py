"""Llama, from a packed batch to one value a label.

Letters: R rows, W width, M slots of a row, B = R * M samples, N labels of a row, V vocabulary,
D model width, F MLP width, L layers, H head size, K directions of a probe.

Parameters are a plain pytree of kernels [in, out]; those of the blocks are stacked over layers
(axis 0) and scanned. Its top-level keys are the layers of the gradient effects.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.models import layers
from jaxunlearn.models.architecture import Llama3RopeScaling as Llama3RopeScaling
from jaxunlearn.models.architecture import LlamaConfig as LlamaConfig
from jaxunlearn.models.architecture import abstract_params as abstract_params
from jaxunlearn.models.architecture import init_params as init_params
from jaxunlearn.models.sharding import ROWS, constrain, row_shards

Tree = Any
Head = Callable[..., Any]

CHUNK_ENTRIES = 2**24  # most logits of a chunk on a device: 64 MiB in float32


class Outputs(NamedTuple):
    """What `forward` returns."""

    labels: Any  # the head's tree of [R, N, ...]; None without a head
    hidden: jax.Array | None  # [R, N, D] after `tap` blocks; None without a tap
    final_hidden: jax.Array  # [R, N, D] after the last block and the final norm


def label_log_probs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log p(label) = z_label - log sum_v exp z_v: the default head.

    Args:
      logits: [..., V].
      labels: [...] int.

    Returns:
      [...] float32 or wider.

    >>> [f"{logp:.4f}" for logp in label_log_probs(jnp.zeros((1, 4)), jnp.array([2]))]
    ['-1.3863']
    """
    logits = logits.astype(layers.wide(logits.dtype))
    vocabulary = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    # Not a gather: that is no good on logits split over the vocabulary.
    chosen = jnp.sum(jnp.where(vocabulary == labels[..., None], logits, 0), -1)
    return chosen - jax.nn.logsumexp(logits, -1)


def label_statistics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """A head for exact matches: {"logp": [...], "correct": [...] bool, argmax == label}."""
    correct = jnp.argmax(logits, -1) == labels
    return {"logp": label_log_probs(logits, labels), "correct": correct}


def head_logits(
    params: Tree,
    final_hidden: jax.Array,
    config: LlamaConfig,
    *,
    directions: tuple[Tree, ...] = (),
    gates: Tree = None,
) -> jax.Array:
    """Logits of final hidden states: the one place where the unembedding is applied.

    Args:
      params: the parameters, or only "lm_head" (tied: only "embed") of them.
      final_hidden: [R, N, D] after the final norm.
      config: the model.
      directions: K trees like `params`, read where `gates` are given.
      gates: [R, N, K], or a tree of them, one a parameter.

    Returns:
      [R, N, V] float32 or wider.
    """
    if config.tied:
        module, key, method = layers.Embed(config.dtype), "embed", "attend"
    else:
        module, key, method = layers.Unembed(config.dtype), "lm_head", None
    own = [tree[key] for tree in directions]
    logits = _apply(module, params[key], own, gates, final_hidden, method=method)
    return constrain(logits, ROWS, None, "tensor")


def forward(
    params: Tree,
    batch: Any,
    config: LlamaConfig,
    *,
    head: Head | None = label_log_probs,
    head_inputs: tuple[jax.Array, ...] = (),
    tap: int | None = None,
    probe: Mapping[str, Any] | None = None,
) -> Outputs:
    """The model on packed rows: values per label.

    Attention is causal and stays inside a segment; hidden states are gathered where a label is
    predicted, and only those meet the vocabulary, a chunk at a time.

    Args:
      params: see `abstract_params`.
      batch: packed rows with tokens, positions, segments [R, W], label_at, label_tokens [R, N] and
        mask [R, M, S].
      config: the model.
      head: (logits [R, c, V] float32, labels [R, c], *chunks of head_inputs) -> tree of
        [R, c, ...]; None leaves it out.
      head_inputs: arrays [R, N, ...] that the head also needs.
      tap: also return the hidden states after this many blocks, 0 (the embedding's output) to
        num_layers (after the final norm too, as Hugging Face's last hidden state). Without a head,
        blocks after the tap cost nothing unless `final_hidden` is used.
      probe: {"directions": K trees like params, "gates": {layer: [K, B], blocks: [L, K, B]}}; one
        gate for all samples where B is 1, and a tree of such arrays in the place of a layer's one
        for gates by tensor. The values are those without a probe, gates are 0, and
        d logp(b) / d gate[layer, k, b] = <grad_layer logp(b), V_k>.

    Returns:
      Outputs.

    Raises:
      ValueError: a tap outside 0..num_layers.
    """
    if tap is not None and not 0 <= tap <= config.num_layers:
        raise ValueError(f"tap={tap} is not in 0..{config.num_layers}, the blocks of the model")
    directions, gates = (probe["directions"], probe["gates"]) if probe else ((), {})
    of = lambda key: (params[key], [tree[key] for tree in directions])
    token_gates = lambda key: _token_gates(gates.get(key), batch)
    at_labels = partial(_at_labels, batch=batch)

    x = _apply(layers.Embed(config.dtype), *of("embed"), token_gates("embed"), batch.tokens)
    x = constrain(x, ROWS, None, None)
    stack = (params["blocks"], tuple(tree["blocks"] for tree in directions), gates.get("blocks"))
    x, hidden = _run_blocks(x, stack, batch, config, tap, head is None)
    # The norm acts on single positions: gather first, and normalise only what is read.
    norm_gates = jax.tree.map(at_labels, token_gates("norm"))
    final_hidden = _apply(layers.RMSNorm(config.norm_eps), *of("norm"), norm_gates, at_labels(x))
    hidden = final_hidden if tap == config.num_layers else hidden
    if head is None:
        return Outputs(None, hidden, final_hidden)
    label_gates = jax.tree.map(at_labels, token_gates("embed" if config.tied else "lm_head"))
    own, *along = (
        _head_layout(_cast(tree, config) if probe else tree, config)
        for tree in (params, *directions)
    )
    logits = partial(head_logits, own, config=config, directions=tuple(along))
    arrays = (final_hidden, label_gates, batch.label_tokens, tuple(head_inputs))
    labels = _apply_head(head, logits, arrays, _head_chunk(batch.label_tokens.shape, config))
    return Outputs(labels, hidden, final_hidden)


def _run_blocks(
    x: jax.Array, stack: Tree, batch: Any, config: LlamaConfig, tap: int | None, split: bool
) -> tuple[jax.Array, jax.Array | None]:
    """x after a stack of blocks (parameters, directions, gates), and hidden states at the tap.

    A split stack needs no block after the tap for the tap's sake, but it is a copy of the
    parameters where both are read; one scan that carries the tap along is not.
    """
    block = _block(batch, config)
    run = lambda x, stack: jax.lax.scan(lambda x, layer: (block(x, layer), None), x, stack)[0]
    if tap is None or tap == config.num_layers:
        return run(x, stack), None
    if split:
        x = run(x, jax.tree.map(lambda leaf: leaf[:tap], stack))
        return run(x, jax.tree.map(lambda leaf: leaf[tap:], stack)), _at_labels(x, batch)

    def body(carry, layer):
        x, hidden = carry
        hidden = jnp.where(layer[0] == tap, _at_labels(x, batch), hidden)
        return (block(x, layer[1]), hidden), None

    first = (x, jnp.zeros_like(_at_labels(x, batch)))
    return jax.lax.scan(body, first, (jnp.arange(config.num_layers), stack))[0]


def _block(batch: Any, config: LlamaConfig) -> Callable:
    """(x, (parameters, directions, gates) of one block) -> x after it."""
    rope = layers.rope_tables(jnp.asarray(batch.positions), config)
    mask = layers.attention_mask(jnp.asarray(batch.segments))
    attend = layers.causal_attention(config, mask)

    def block(x, layer):
        params, directions, gates = layer
        gates = _token_gates(gates, batch)
        x = _apply(layers.Block(config), params, directions, gates, x, rope, attend)
        return constrain(x, ROWS, None, None)

    if config.remat == "none":
        return block
    policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
    return jax.checkpoint(block, prevent_cse=False, policy=policies[config.remat])


def _apply_head(head: Head, logits: Callable, arrays: tuple, chunk: int) -> Any:
    """The head on `chunk` labels of every row at a time; logits are recomputed in reverse."""

    def apply(part):
        hidden, gates, labels, inputs = part
        return head(logits(hidden, gates=gates), labels, *inputs)

    rows, count = arrays[2].shape
    if chunk >= count:
        return apply(arrays)
    chunks = -(-count // chunk)

    def split(x):
        widths = [(0, chunks * chunk - count) if axis == 1 else (0, 0) for axis in range(x.ndim)]
        return jnp.moveaxis(jnp.pad(x, widths).reshape(rows, chunks, chunk, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(rows, chunks * chunk, *x.shape[3:])[:, :count]

    body = jax.checkpoint(lambda _, part: (None, apply(part)), prevent_cse=False)
    return jax.tree.map(join, jax.lax.scan(body, None, jax.tree.map(split, arrays))[1])


def _head_chunk(shape: tuple[int, int], config: LlamaConfig) -> int:
    """Labels of a row per chunk: as asked, or chunks of equal size within CHUNK_ENTRIES."""
    rows, count = shape
    most = config.head_chunk or max(
        CHUNK_ENTRIES // (-(-rows // row_shards()) * config.vocab_size), 1
    )
    return -(-count // -(-count // most))


def _head_layout(params: Tree, config: LlamaConfig) -> Tree:
    """The unembedding, gathered over `fsdp` once instead of once a chunk."""
    if config.tied:
        return {"embed": {"embedding": constrain(params["embed"]["embedding"], "tensor", None)}}
    return {"lm_head": {"kernel": constrain(params["lm_head"]["kernel"], None, "tensor")}}


def _cast(params: Tree, config: LlamaConfig) -> Tree:
    """The unembedding in the precision of its product: under a probe, where it has no gradient."""
    key = "embed" if config.tied else "lm_head"
    return {key: jax.tree.map(lambda x: x.astype(config.dtype), params[key])}


def _apply(
    module: nn.Module, params: Tree, directions: Any, gates: Tree, *args: Any, method=None
) -> Any:
    """A part on its parameters and, leaf by leaf, the directions and gates of a probe."""
    variables = {"params": params}
    if gates is not None:
        each = gates if isinstance(gates, Mapping) else jax.tree.map(lambda _: gates, params)
        variables["gates"] = each
        variables["direction"] = jax.tree.map(lambda *leaves: leaves, *directions)
    return module.apply(variables, *args, method=method)


def _token_gates(gates: Tree, batch: Any) -> Tree:
    """Each token's gates, [K, B] -> [R, W, K]; padding reads slot 0, which no label sees."""
    rows, slots = batch.mask.shape[:2]
    slot = jnp.maximum(batch.segments, 0)[..., None]

    def spread(gates):
        table = jnp.broadcast_to(gates, (gates.shape[0], rows * slots)).reshape(-1, rows, slots)
        return jnp.take_along_axis(jnp.moveaxis(table, 0, -1), slot, axis=1)

    return jax.tree.map(spread, gates)


def _at_labels(x: jax.Array, batch: Any) -> jax.Array:
    """The columns that predict labels, [R, W, D] -> [R, N, D]."""
    return jnp.take_along_axis(x, batch.label_at[..., None], axis=1)
