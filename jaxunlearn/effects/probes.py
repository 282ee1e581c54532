"""Gates: scalars `a` that move each layer along a direction, inside the model.

A model that takes `probe=` evaluates every linear map as `x @ (W + sum_k a_k V_k)` at a = 0, with
one `a` per layer (or tensor), direction k and sample. The derivative of a sample's log-likelihood
with respect to `a[layer, k, sample]` is <grad_layer log p(s), V_k>: a table by sample and layer in
one reverse pass that never forms a gradient.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxunlearn.effects import layers

Tree = Any
Probe = dict[str, Any]


def make(
    params: Mapping[str, Any],
    directions: Sequence[Tree],
    *,
    samples: int = 1,
    by: Literal["layer", "tensor"] = "layer",
    stacked: tuple[str, ...] = layers.STACKED,
) -> Probe:
    """A probe at rest.

    Args:
      params: mapping of layers.
      directions: K trees like `params`.
      samples: gates per layer and direction; 1 = one gate shared by all samples.
      by: a gate per "layer", or per "tensor": then a tree of gates in the place of a layer's.

    Returns:
      {"directions": tuple of K trees, "gates": {key: [K, samples] or [L, K, samples]}}, gates zero.
    """
    shape = (len(directions), samples)

    def gates(key: str) -> Any:
        zeros = jnp.zeros((layers.depth(params[key]), *shape) if key in stacked else shape)
        return jax.tree.map(lambda _: zeros, params[key]) if by == "tensor" else zeros

    return {"directions": tuple(directions), "gates": {key: gates(key) for key in params}}


def basis(gates: Tree) -> Tree:
    """K tangents of a probe's gates along a new leading axis; the k-th moves along V_k alone."""

    def one(gate):
        picks = jnp.eye(gate.shape[-2], dtype=gate.dtype)[..., None]
        picks = jnp.expand_dims(picks, tuple(range(1, gate.ndim - 1)))
        return jnp.broadcast_to(picks, (gate.shape[-2], *gate.shape))

    return jax.tree.map(one, gates)


def accepts(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument named `probe`."""
    return "probe" in inspect.signature(function).parameters


def require(function: Callable[..., Any], caller: str, others: str) -> None:
    """Raises TypeError where `function` cannot be gated.

    Raises:
      TypeError: names the function, the missing argument and the methods that work without it.
    """
    if not accepts(function):
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{caller}(method='gates') needs a function with an argument `probe`, and {name} has"
            f" none; add `probe=None` and pass it to the model, or use {others}"
        )
