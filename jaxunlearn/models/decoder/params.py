"""Parameters of the decoder made from its leaf table: their shapes, and random ones."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxunlearn.core.trees import Tree
from jaxunlearn.models.decoder.config import DecoderConfig, Leaf


def abstract_params(config: DecoderConfig, dtype: DTypeLike = jnp.float32) -> Tree:
    """Shapes of the parameters, nothing allocated.

    Args:
      config: the model.
      dtype: of every leaf.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """
    tree: dict[str, Any] = {}
    for leaf in config.leaves():
        leaf.put(tree, jax.ShapeDtypeStruct(leaf.shape, dtype))
    return tree


INITIALIZERS = {
    "normal": nn.initializers.normal(0.02),
    # Uniform in +- 1 / sqrt(in), as PEFT draws A: `kaiming_uniform_` with a = sqrt(5).
    "kaiming": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0),
    "ones": nn.initializers.ones,
    "zeros": nn.initializers.zeros,
}


def init_params(key: jax.Array, config: DecoderConfig, dtype: DTypeLike = jnp.float32) -> Tree:
    """Random parameters as Hugging Face draws them: normal(0, 0.02), norms scale by 1, biases 0.

    Args:
      key: a PRNG key.
      config: the model.
      dtype: of every leaf.

    Returns:
      The parameters.
    """
    return draw(key, config.leaves(), dtype)


def draw(key: jax.Array, leaves: Sequence[Leaf], dtype: DTypeLike = jnp.float32) -> Tree:
    """Random values of some leaves, each drawn as the table says.

    Args:
      key: a PRNG key.
      leaves: the rows of the table.
      dtype: of every leaf.

    Returns:
      A tree of these leaves alone.
    """
    tree: dict[str, Any] = {}
    for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        leaf.put(tree, INITIALIZERS[leaf.init](leaf_key, leaf.shape, dtype))
    return tree
