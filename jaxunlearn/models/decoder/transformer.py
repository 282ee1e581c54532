"""The decoder, from a packed batch to one value a label.

Letters: R rows, W width, M slots of a row, B = R * M samples, N labels of a row, S labels of the
longest answer, V vocabulary, D model width, L layers, K directions of a probe.

Parameters are a plain pytree of kernels [in, out]; those of the blocks are stacked over layers
(axis 0) and scanned. Its top-level keys are the layers of the gradient effects.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import Tree
from jaxunlearn.models.decoder import modules, products
from jaxunlearn.models.decoder.config import DecoderConfig
from jaxunlearn.models.decoder.heads import Head, label_log_probs
from jaxunlearn.models.sharding import ROWS, constrain, row_shards

if TYPE_CHECKING:  # models run without the package's data
    from jaxunlearn.data.packing import Packed

CHUNK_ENTRIES = 2**24
"""Most logits of a chunk on a device: 64 MiB in float32."""


class Outputs(NamedTuple):
    """Values of a forward pass.

    Attributes:
      labels: the head's tree of [R, N, ...]; None without a head.
      hidden: [R, N, D] after `tap` blocks; None without a tap.
      final_hidden: [R, N, D] after the last block and the final norm.
    """

    labels: Any
    hidden: jax.Array | None
    final_hidden: jax.Array


def head_logits(
    params: Tree,
    final_hidden: jax.Array,
    config: DecoderConfig,
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
        module, key, method = modules.Embed(config), "embed", "attend"
    else:
        module, key, method = modules.Unembed(config), "lm_head", None
    own = [tree[key] for tree in directions]
    logits = _apply(module, params[key], own, gates, final_hidden, method=method)
    logits = constrain(logits, ROWS, None, "tensor")
    return modules.softcapped(logits, config.logit_softcap)


def forward(
    params: Tree,
    batch: "Packed",
    config: DecoderConfig,
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
      head: (logits [R, c, V] float32, labels [R, c], *head_inputs) -> tree [R, c, ...], or None.
      head_inputs: arrays [R, N, ...] that the head also needs, and gets in the same chunks.
      tap: also return the hidden states after this many blocks, 0 (the embedding's output) to
        num_layers (after the final norm too, as Hugging Face's last hidden state). Without a head,
        blocks after the tap cost nothing unless `final_hidden` is used.
      probe: {"directions": K trees like params, "gates": {layer: [K, B], blocks: [L, K, B]}}, B = 1
        for all samples at once, a tree of arrays for gates by tensor. Gates are 0 and change no
        value: d logp(b) / d gate[layer, k, b] = <grad_layer logp(b), V_k>. Directions are None at
        frozen parameters, and layers without others have no gates.

    Returns:
      Outputs.

    Raises:
      ValueError: a tap outside 0..num_layers, or a batch without rows or tokens.
    """
    if 0 in batch.tokens.shape:
        raise ValueError(f"batch.tokens {batch.tokens.shape}: expected a row and a token at least")
    if tap is not None and not 0 <= tap <= config.num_layers:
        raise ValueError(f"tap={tap} must be in 0..{config.num_layers}, the blocks of the model")
    directions, gates = (probe["directions"], probe["gates"]) if probe else ((), {})
    of = lambda key: (params[key], [tree[key] for tree in directions])
    token_gates = lambda key: _token_gates(gates.get(key), batch)
    at_labels = partial(_at_labels, batch=batch)
    # ---- Embedding ----
    x = _apply(modules.Embed(config), *of("embed"), token_gates("embed"), batch.tokens)
    x = constrain(x, ROWS, None, None)
    # ---- Blocks ----
    along = tuple(tree["blocks"] for tree in directions)
    stack = (params["blocks"], along, gates.get("blocks"), modules.full_layers(config))
    x, hidden = _run_blocks(x, stack, batch, config, tap, split=head is None)
    # ---- Final norm ----
    # It acts on single positions: gather first, and normalise only the positions that are read.
    norm_gates = jax.tree.map(at_labels, token_gates("norm"))
    final_hidden = _apply(modules.RMSNorm(config), *of("norm"), norm_gates, at_labels(x))
    hidden = final_hidden if tap == config.num_layers else hidden
    if head is None:
        return Outputs(None, hidden, final_hidden)
    # ---- Head ----
    # A tied unembedding is the embedding: its gates act at both places, and their effects add up.
    label_gates = jax.tree.map(at_labels, token_gates("embed" if config.tied else "lm_head"))
    weights = [_cast(tree, config) if probe else tree for tree in (params, *directions)]
    arrays = (final_hidden, label_gates, batch.label_tokens, tuple(head_inputs))
    return Outputs(_label_values(head, weights, arrays, config), hidden, final_hidden)


def forward_head(
    params: Tree,
    final_hidden: jax.Array,
    batch: "Packed",
    config: DecoderConfig,
    *,
    head: Head = label_log_probs,
    head_inputs: tuple[jax.Array, ...] = (),
) -> Any:
    """The end of `forward`: a head on final hidden states, a chunk of labels at a time.

    Args:
      params: see `abstract_params`.
      final_hidden: [R, N, D], `Outputs.final_hidden` of these rows.
      batch: the packed rows.
      config: the model.
      head: as in `forward`.
      head_inputs: as in `forward`.

    Returns:
      The head's tree of [R, N, ...].
    """
    arrays = (final_hidden, None, jnp.asarray(batch.label_tokens), tuple(head_inputs))
    return _label_values(head, [params], arrays, config)


def _label_values(
    head: Head, weights: Sequence[Tree], arrays: tuple[Any, ...], config: DecoderConfig
) -> Any:
    """The head's values of every label, [R, N, ...].

    Args:
      head: see `forward`.
      weights: the parameters, and the directions of a probe.
      arrays: final hidden states, gates, labels and inputs of the head, each [R, N, ...].
      config: the model.
    """
    own, *along = (_head_layout(tree, config) for tree in weights)
    logits = partial(head_logits, own, config=config, directions=tuple(along))
    return _apply_head(head, logits, arrays, _head_chunk(arrays[2].shape, config))


def _run_blocks(
    x: jax.Array, stack: Tree, batch: "Packed", config: DecoderConfig, tap: int | None, split: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Runs x through the blocks, and reads hidden states at the tap.

    Args:
      x: [R, W, D].
      stack: (parameters, directions, gates, `modules.full_layers`), stacked over layers.
      batch: the packed rows.
      config: the model.
      tap: number of blocks before the hidden states; None, or all of them, reads none here.
      split: cut the scan at the tap, for callers that may not use the blocks after it.

    Returns:
      [R, W, D] after all blocks, and [R, N, D] at the tap.
    """
    # One block is compiled, whatever their number: `scan` runs it on each slice of the stack.
    block = _block(batch, config)
    run = lambda x, stack: jax.lax.scan(lambda x, layer: (block(x, layer), None), x, stack)[0]
    if tap is None or tap == config.num_layers:
        return run(x, stack), None
    # Two scans: if only the tap is used, XLA drops the second one and its blocks cost nothing.
    if split:
        x = run(x, jax.tree.map(lambda leaf: leaf[:tap], stack))
        return run(x, jax.tree.map(lambda leaf: leaf[tap:], stack)), _at_labels(x, batch)

    # Where both results are used, two slices of the stack would copy the parameters. One scan
    # carries the tapped states along instead, and writes them when it reaches the tap.
    def body(carry, layer):
        x, hidden = carry
        hidden = jnp.where(layer[0] == tap, _at_labels(x, batch), hidden)
        return (block(x, layer[1]), hidden), None

    first = (x, jnp.zeros_like(_at_labels(x, batch)))
    return jax.lax.scan(body, first, (jnp.arange(config.num_layers), stack))[0]


def _block(batch: "Packed", config: DecoderConfig) -> Callable:
    """Returns (x, (parameters, directions, gates, kind) of one block) -> x after it."""
    mask = partial(modules.attention_mask, jnp.asarray(batch.segments))
    seen = modules.by_kind(jnp.asarray(batch.positions), mask, config)

    def block(x, layer):
        params, directions, gates, kind = layer
        rope, mask = seen(kind)
        attend = modules.causal_attention(config, mask)
        # Gates are spread over the tokens here, so that only one block's are spread at a time.
        gates = _token_gates(gates, batch)
        x = _apply(modules.Block(config), params, directions, gates, x, rope, attend)
        return constrain(x, ROWS, None, None)

    # In float32 no weight is cast, and nothing is left out of what autodiff keeps.
    if config.remat == "none" and config.dtype != "bfloat16":
        return block
    # Inside a scan XLA cannot merge the recomputation with the forward pass: no barrier is needed.
    return jax.checkpoint(block, prevent_cse=False, policy=products.KEPT[config.remat])


def _apply_head(head: Head, logits: Callable, arrays: tuple, chunk: int) -> Tree:
    """Applies the head to `chunk` labels of every row at a time.

    Args:
      head: see `forward`.
      logits: (hidden [R, c, D], gates=) -> [R, c, V].
      arrays: (final hidden states, gates, labels, head inputs), each [R, N, ...] or a tree of such.
      chunk: labels of a row in a chunk, c.

    Returns:
      The head's tree of [R, N, ...].
    """

    def apply(part):
        hidden, gates, labels, inputs = part
        return head(logits(hidden, gates=gates), labels, *inputs)

    rows, count = arrays[2].shape
    if chunk >= count:
        return apply(arrays)
    chunks = -(-count // chunk)

    # [R, N, ...] <-> [chunks, R, c, ...]: chunks are cut along the labels and not along the rows,
    # for the rows are split over devices. The last chunk is filled up with zeros, cut off again.
    def split(x):
        widths = [(0, chunks * chunk - count) if axis == 1 else (0, 0) for axis in range(x.ndim)]
        return jnp.moveaxis(jnp.pad(x, widths).reshape(rows, chunks, chunk, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(rows, chunks * chunk, *x.shape[3:])[:, :count]

    # Without the checkpoint the reverse pass would keep the logits of all chunks, the very array
    # that chunks avoid. With it, each chunk's logits are computed again there.
    body = jax.checkpoint(lambda _, part: (None, apply(part)), prevent_cse=False)
    return jax.tree.map(join, jax.lax.scan(body, None, jax.tree.map(split, arrays))[1])


def _head_chunk(shape: tuple[int, ...], config: DecoderConfig) -> int:
    """Labels of a row per chunk: `config.head_chunk`, or as many as CHUNK_ENTRIES allows."""
    rows, count = shape
    if rows * count == 0:
        return count  # no logits, and no chunks to divide them into
    # A device holds the logits of its own rows. That `tensor` may split them again is not counted.
    most = config.head_chunk or max(
        CHUNK_ENTRIES // (-(-rows // row_shards()) * config.vocab_size), 1
    )
    # Chunks of equal size: as few as `most` allows, and then no larger than they need to be.
    return -(-count // -(-count // most))


def _head_layout(params: Tree, config: DecoderConfig) -> Tree:
    """The unembedding, gathered over `fsdp` here once, instead of once a chunk of the head."""
    key, axes = ("embed", ("tensor", None)) if config.tied else ("lm_head", (None, "tensor"))
    return {key: jax.tree.map(lambda x: constrain(x, *axes), params[key])}


def _cast(params: Tree, config: DecoderConfig) -> Tree:
    """The unembedding, cast once to the precision of its product.

    Only under a probe, where the gradient is that of the gates: a gradient of the parameters would
    be rounded to this precision between chunks.
    """
    key = "embed" if config.tied else "lm_head"
    return {key: jax.tree.map(lambda x: x.astype(config.dtype), params[key])}


def _apply(
    module: nn.Module, params: Tree, directions: Any, gates: Tree, *args: Any, method=None
) -> Any:
    """Applies a part to its parameters and, leaf by leaf, the directions and gates of a probe."""
    variables = {"params": params}
    if gates is not None:
        # One array gates all parameters of the part; a tree of them has one for each. Frozen ones
        # have None in the place of their directions and gates.
        along = directions[0]
        each = gates if isinstance(gates, Mapping) else jax.tree.map(lambda _: gates, along)
        variables["gates"] = each
        variables["direction"] = jax.tree.map(lambda *leaves: leaves, *directions)
    return module.apply(variables, *args, method=method)


def _token_gates(gates: Tree, batch: "Packed") -> Tree:
    """Spreads the gates of samples over their tokens.

    Args:
      gates: [K, B], or [K, 1] for one gate of all samples; or a tree of such arrays, or None.
      batch: the packed rows.

    Returns:
      [R, W, K], or a tree of such arrays.
    """
    rows, slots = batch.mask.shape[:2]
    # Padding has segment -1 and reads the gates of slot 0. No label sees padding, so the
    # derivative of every value with respect to these copies is 0.
    slot = jnp.maximum(batch.segments, 0)[..., None]

    def spread(gates):
        # Sample b = r * M + m is slot m of row r.
        table = jnp.broadcast_to(gates, (gates.shape[0], rows * slots)).reshape(-1, rows, slots)
        return jnp.take_along_axis(jnp.moveaxis(table, 0, -1), slot, axis=1)

    return jax.tree.map(spread, gates)


def _at_labels(x: jax.Array, batch: "Packed") -> jax.Array:
    """Gathers the columns that predict labels, [R, W, D] -> [R, N, D]."""
    return jnp.take_along_axis(x, batch.label_at[..., None], axis=1)
