"""Low-rank adapters: how they are made, put beside their matrices, and added into them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.models.decoder.config import ADAPTER_KEYS, DecoderConfig, Leaf
from jaxunlearn.models.decoder.params import draw


def adapter_leaves(config: DecoderConfig) -> tuple[Leaf, ...]:
    """The rows of the leaf table that are matrices of adapters; none without `config.lora`."""
    return tuple(leaf for leaf in config.leaves() if leaf.of_adapter)


def init_adapters(key: jax.Array, config: DecoderConfig) -> Tree:
    """Adapters that change nothing yet, as PEFT draws them: A uniform in +- 1 / sqrt(in), B 0.

    Args:
      key: a PRNG key.
      config: the model, with `lora`.

    Returns:
      A tree like the parameters that holds the adapters alone, float32.
    """
    return draw(key, adapter_leaves(config))


def add_adapters(params: Tree, adapters: Tree) -> Tree:
    """The parameters of a model with adapters.

    Args:
      params: of the plain model.
      adapters: from `init_adapters`.

    Returns:
      A tree of the leaves of both.
    """
    both = dict(params)
    for key, part in adapters.items():
        is_inner = isinstance(part, Mapping)
        both[key] = add_adapters(params.get(key, {}), part) if is_inner else part
    return both


def merge_adapters(params: Tree, config: DecoderConfig, *, donate: bool = False) -> Tree:
    """The parameters of the plain model that computes the same: W + (alpha / rank) A B.

    Args:
      params: of a model with adapters, or of a plain one, which is only widened.
      config: the model.
      donate: whether the arrays of `params` may be used up, so that no second copy of a float32
        model is in memory.

    Returns:
      The parameters of the model without `lora`, float32 or wider, sharded as they were.
    """
    blocks = {name: _merge_part(part, config, donate) for name, part in params["blocks"].items()}
    return jax.tree.map(trees.wide, {**params, "blocks": blocks})


def _merge_part(part: Mapping[str, Any], config: DecoderConfig, donate: bool) -> dict[str, Any]:
    """The parameters of one part of the blocks, with its adapter merged if it has one."""
    plain = {key: leaf for key, leaf in part.items() if key not in ADAPTER_KEYS}
    if len(plain) < len(part):
        assert config.lora is not None  # the parameters are those of the configuration
        # A narrower matrix has no room for the sum.
        merge = _merge_in_place if donate and part["kernel"].dtype.itemsize >= 4 else _merge
        # Left alone, the compiler might spread the sum over devices otherwise than the matrix.
        options = {"scale": config.lora.scale, "shardings": trees.named_shardings(part["kernel"])}
        plain["kernel"] = merge(part["kernel"], *(part[key] for key in ADAPTER_KEYS), **options)
    return plain


def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array, *, scale: float, shardings: Any):
    change = jnp.einsum("lir,lro->lio", trees.wide(a), trees.wide(b), precision="highest")
    return trees.pin(trees.wide(kernel) + scale * change, shardings)


_merge = jax.jit(_sum, static_argnames=("scale", "shardings"))
_merge_in_place = jax.jit(_sum, static_argnames=("scale", "shardings"), donate_argnames="kernel")
