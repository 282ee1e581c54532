"""Turns Flax models of other projects into pure functions of a parameter pytree.

Objectives and effects take functions and pytrees; these adapters make both from a module.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxunlearn.core.trees import Tree


class NnxFunction(NamedTuple):
    """An NNX module as a pure function.

    Attributes:
      apply: apply(params, *args, **kwargs) -> the module's output.
      params: its whole state, a nested dict of arrays.
      trainable: a dict like `params` of bools: which leaves an effect differentiates.
    """

    apply: Callable[..., Any]
    params: Tree
    trainable: Tree


def from_linen(module: nn.Module, variables: Mapping[str, Any]) -> tuple[Callable[..., Any], Tree]:
    """Returns a Linen module and its variables as (apply, params).

    Args:
      module: a `flax.linen.Module`.
      variables: from `module.init`; collections other than "params" stay as they are. They become
        constants of what is compiled: where they are large, take `module.apply` and `variables`
        themselves, with `trainable="^params"` for the effects.

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


def from_nnx(module: Any, *, wrt: Any = None) -> NnxFunction:
    """Returns an NNX module as (apply, params, trainable).

    All of the state is in `params`, also what is not differentiated, such as the weights under
    LoRA: JAX embeds arrays that a function closes over in what it compiles, gigabytes of them too.

        apply, params, trainable = from_nnx(model, wrt=nnx.LoRAParam)
        effects.pg_effect(sample_logp, params, batches, directions, trainable=trainable)

    Args:
      module: a `flax.nnx.Module`; what a call writes into its state is dropped. Set `module.eval()`
        first: in training mode dropout would draw the same mask at every call.
      wrt: what is trainable, a filter of `flax.nnx` such as a type of variables; by default
        `nnx.Param`.

    Returns:
      NnxFunction.

    Raises:
      TypeError: not an NNX module.
      ValueError: no variable passes the filter.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(f"expected a flax.nnx.Module, got {type(module).__name__}")
    wrt = nnx.Param if wrt is None else wrt
    passes = nnx.filterlib.to_predicate(wrt)
    graph, state = nnx.split(module)
    flags = nnx.map_state(lambda path, variable: variable.replace(passes(path, variable)), state)
    trainable = nnx.to_pure_dict(flags)
    if not any(jax.tree.leaves(trainable)):
        types = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(state)})
        raise ValueError(f"wrt={wrt!r}: no variable passes; the module has {', '.join(types)}")

    def apply(params: Tree, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, nnx.State(params))(*args, **kwargs)

    return NnxFunction(apply, nnx.to_pure_dict(state), trainable)
