"""The cost of a function before it runs: memory by the compiler, FLOPs by its program.

Nothing is allocated: arguments may be `jax.ShapeDtypeStruct`, with shardings of a mesh of devices.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes on each device, by kind, and the FLOPs of all devices together.

    Attributes:
      arguments: bytes of the call's arguments.
      output: bytes of its results.
      alias: bytes of results that take the place of donated arguments.
      temp: bytes of everything in between.
      flops: FLOPs of all devices together, see `count_flops`.
    """

    arguments: int
    output: int
    alias: int
    temp: int
    flops: int

    @property
    def peak(self) -> int:
        """Bytes at once: arguments + output - alias + temp."""
        return self.arguments + self.output - self.alias + self.temp


def estimate_cost(step: Callable[..., Any], /, *args: Any, **static: Any) -> Cost:
    """Compiles a function for abstract arguments and reads off what it needs.

    Args:
      step: a function, or one compiled by `jax.jit` (with its donations and output shardings).
      *args: arrays or `jax.ShapeDtypeStruct`, whose shardings say where they live.
      **static: static keyword arguments of a jitted `step`.

    Returns:
      Cost. `temp` depends on the backend that compiles: a CPU's compiler keeps bfloat16 products in
      float32 and orders operations without regard to memory, a TPU's may keep a bfloat16 copy of
      the parameters.

    >>> import jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    >>> cost = estimate_cost(lambda x: x @ x, x)
    >>> cost.flops, cost.arguments, cost.output
    (524288, 16384, 16384)
    """
    jitted: Any = step if hasattr(step, "lower") else jax.jit(step)
    return cost_of_compiled(jitted.lower(*args, **static).compile(), step, *args, **static)


def cost_of_compiled(compiled: Any, step: Callable[..., Any], /, *args: Any, **static: Any) -> Cost:
    """The cost of a function that is compiled already.

    Args:
      compiled: the result of `step.lower(*args, **static).compile()`.
      step: the function.
      *args: the arguments it was compiled for.
      **static: its static keyword arguments.

    Returns:
      Cost.
    """
    memory = compiled.memory_analysis()
    return Cost(
        arguments=memory.argument_size_in_bytes,
        output=memory.output_size_in_bytes,
        alias=memory.alias_size_in_bytes,
        temp=memory.temp_size_in_bytes,
        flops=count_flops(step, *args, **static),
    )


def count_flops(fn: Callable[..., Any], /, *args: Any, **static: Any) -> int:
    """FLOPs of a function: 2 x multiply-adds of every matrix product that its results need.

    Scans are multiplied out and dead code is left out, as the compiler does; its own cost analysis
    counts the body of a loop once. Of a `cond` the dearest branch counts, of a `while_loop`, whose
    length is not known, one turn. Element-wise work, 1-2 % of a transformer, does not count.

    Args:
      fn: a function, compiled or not.
      *args: arrays or `jax.ShapeDtypeStruct`.
      **static: static keyword arguments.

    Returns:
      The number, of all devices together.

    >>> import jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    >>> count_flops(lambda x: x @ x.T, x)
    24
    """
    program = jax.make_jaxpr(lambda *args: fn(*args, **static))(*args).jaxpr
    live, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return _count(live)


def _count(program: Any) -> int:
    """FLOPs of the matrix products in a jaxpr and in those nested in it."""
    total = 0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        # A model's own primitive for a product is named like JAX's, and has its parameters.
        if name.endswith("dot_general"):
            total += _product(equation)
        inner = [_count(nested) for nested in jax.extend.core.jaxprs_in_params(params)]
        if name == "cond":
            total += max(inner)  # one branch runs
        else:
            total += _times(name, params) * sum(inner)
    return total


def _times(name: str, params: Mapping[str, Any]) -> int:
    """How often the program nested in an equation runs, on all devices together."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its program is that of one device
        axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _product(equation: Any) -> int:
    """FLOPs of a matrix product: an element of the result is a sum over the contracted axes."""
    params, groups = equation.params, 1
    ragged = params.get("ragged_dot_dimension_numbers")
    numbers = params["dimension_numbers"] if ragged is None else ragged.dot_dimension_numbers
    (contracted, _), _ = numbers
    if ragged is not None and set(ragged.lhs_ragged_dimensions) & set(contracted):
        # The groups share the contracted axis, and each has a result of its own.
        groups = equation.outvars[0].aval.shape[0]
    depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape) // groups
