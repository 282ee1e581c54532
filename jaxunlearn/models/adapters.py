"""Turns Flax models of other projects into pure functions of a parameter pytree.

Objectives and effects take functions and pytrees; these adapters make both from a module.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jaxunlearn.core.trees import Tree


def from_linen(module: nn.Module, variables: Mapping[str, Any]) -> tuple[Callable[..., Any], Tree]:
    """Returns a Linen module and its variables as (apply, params).

    Args:
      module: a `flax.linen.Module`.
      variables: from `module.init`; collections other than "params" stay as they are.

    Returns:
      apply(params, *args, **kwargs) -> the module's output, and the parameters.

    Raises:
      ValueError: `variables` has no collection "params".
    """
    if "params" not in variables:
        raise ValueError(f"variables have no collection 'params', only {sorted(variables)}")
    fixed = {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params: Tree, *args: Any, **kwargs: Any) -> Any:
        return module.apply({"params": params, **fixed}, *args, **kwargs)

    return apply, variables["params"]


def from_nnx(module: Any) -> tuple[Callable[..., Any], Tree]:
    """Returns an NNX module as (apply, params).

    Args:
      module: a `flax.nnx.Module`; its state other than `nnx.Param` stays as it is, and what a call
        writes there is dropped.

    Returns:
      apply(params, *args, **kwargs) -> the module's output, and the parameters, a nested dict of
      arrays.

    Raises:
      TypeError: not an NNX module.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(f"expected a flax.nnx.Module, got {type(module).__name__}")
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(params: Tree, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, nnx.State(params), rest)(*args, **kwargs)

    return apply, nnx.to_pure_dict(params)
