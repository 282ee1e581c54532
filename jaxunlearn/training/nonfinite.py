"""Names the operation to blame for a value that is not finite.

JAX's own check (`jax_debug_nans`) is of no use here. It sits in the Python path by which `jax.jit`
runs a program, so that what was compiled beforehand (`Compiled`) is never checked; of a loop it
names no more than the loop; and its check of infinities ends at the first one, while softmax and
losses mask with infinities on purpose. So a function is traced, and its operations are run one by
one. A value that is not finite carries the operation that made it of finite ones, along the data
flow: a mask that ends in exp(-inf) = 0 is gone there, and what reaches the loss is to blame.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

_OF_JAX = Path(jax.__path__[0]).resolve()
# Operations that call other ones, by the name of the primitive. All else that has operations of
# its own, such as kernels, counts as one operation.
_CALLS = (
    *("jit", "pjit", "closed_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
)


class Origin(NamedTuple):
    """Where a value that is not finite comes from.

    Attributes:
      number: of the operation in the order in which they run; a constant comes after all others,
        as most often it is a mask.
      words: "NaN" or "inf", the primitive, and the line that calls it.
    """

    number: float
    words: str


class _Value(NamedTuple):
    """A value, and where it comes from if it is not finite."""

    array: Any
    origin: Origin | None = None


def first_operation(function: Callable[..., Any], *args: Any) -> str | None:
    """Runs a function operation by operation, to name the one that makes it not finite.

    Args:
      function: of arrays. Where several of its results are not finite, the first one counts.
      args: its arguments, all finite.

    Returns:
      The operation in words; None where all results are finite.
    """
    traced = jax.make_jaxpr(function)(*args)
    inputs = [_Value(array) for array in jax.tree.leaves(args)]
    results = _Interpreter().run(traced.jaxpr, traced.consts, inputs)
    return next((value.origin.words for value in results if value.origin is not None), None)


class _Interpreter:
    """Runs operations one by one."""

    def __init__(self) -> None:
        self._count = 0

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Value]) -> list[_Value]:
        """Runs a jaxpr; returns its results."""
        values = dict(zip(jaxpr.constvars, map(_Value, consts), strict=True))
        values |= zip(jaxpr.invars, inputs, strict=True)
        read = lambda x: _Value(x.val) if isinstance(x, core.Literal) else values[x]
        for equation in jaxpr.eqns:
            results = self._results(equation, [read(x) for x in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def _results(self, equation: Any, inputs: list[_Value]) -> list[_Value]:
        name, params = equation.primitive.name, equation.params
        if name == "scan" and params["length"]:
            return self._scan(equation, inputs)
        if name == "while":
            return self._while(inputs, **params)
        if name == "cond":
            return self._closed(params["branches"][int(inputs[0].array)], inputs[1:])
        if name in _CALLS:
            return self._closed(params.get("jaxpr", params.get("call_jaxpr")), inputs)
        return self._operation(equation, inputs)

    def _closed(self, jaxpr: Any, inputs: Sequence[_Value]) -> list[_Value]:
        # Only some primitives close their jaxpr over constants.
        closed = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())
        return self.run(*closed, inputs)

    def _operation(self, equation: Any, inputs: list[_Value]) -> list[_Value]:
        self._count += 1
        primitive = equation.primitive
        params = primitive.get_bind_params(equation.params)
        results = primitive.bind(*(value.array for value in inputs), **params)
        results = results if primitive.multiple_results else [results]
        origins = [value.origin for value in inputs if value.origin is not None]
        return [_Value(x, self._origin(x, equation, origins)) for x in results]

    def _origin(self, array: Any, equation: Any, origins: list[Origin]) -> Origin | None:
        problem = _problem(array)
        if problem is None:
            return None
        if origins:
            return min(origins)
        is_constant = all(isinstance(x, core.Literal) for x in equation.invars)
        number = float("inf") if is_constant else self._count
        place = _place(equation.source_info.traceback)
        return Origin(number, f"{equation.primitive.name} at {place} makes the first {problem}")

    def _scan(self, equation: Any, inputs: list[_Value]) -> list[_Value]:
        jaxpr, length = equation.params["jaxpr"], equation.params["length"]
        # The releases of jax say in different ways which are consts, carry and xs; but only xs and
        # ys have an axis more outside of the loop than inside.
        same_rank = lambda outer, inner: [
            a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True)
        ]
        first_x = sum(same_rank(equation.invars, jaxpr.jaxpr.invars))
        num_carry = sum(same_rank(equation.outvars, jaxpr.jaxpr.outvars))
        consts, carry = inputs[: first_x - num_carry], inputs[first_x - num_carry : first_x]
        xs, outputs = inputs[first_x:], []
        for i in reversed(range(length)) if equation.params["reverse"] else range(length):
            # What is not finite in one slice says nothing of the others.
            slices = [_same_origin(value.array[i], value) for value in xs]
            results = self._closed(jaxpr, [*consts, *carry, *slices])
            carry = results[:num_carry]
            outputs.append(results[num_carry:])
        outputs = outputs[::-1] if equation.params["reverse"] else outputs
        return [*carry, *map(_stacked, zip(*outputs, strict=True))]

    def _while(self, inputs, *, cond_jaxpr, body_jaxpr, cond_nconsts, body_nconsts, **_):
        of_cond, carry = inputs[:cond_nconsts], inputs[cond_nconsts + body_nconsts :]
        of_body = inputs[cond_nconsts : cond_nconsts + body_nconsts]
        while bool(self._closed(cond_jaxpr, [*of_cond, *carry])[0].array):
            carry = self._closed(body_jaxpr, [*of_body, *carry])
        return carry


def _problem(array: Any) -> str | None:
    """ "NaN" or "inf" where an array is not finite."""
    if not jnp.issubdtype(array.dtype, jnp.inexact) or bool(jnp.isfinite(array).all()):
        return None
    return "NaN" if bool(jnp.isnan(array).any()) else "inf"


def _same_origin(array: Any, value: _Value) -> _Value:
    """A part of a value, which has its origin unless the part is finite."""
    if value.origin is None or _problem(array) is None:
        return _Value(array)
    return _Value(array, value.origin)


def _stacked(values: Sequence[_Value]) -> _Value:
    """The results of all steps of a loop as one value."""
    origins = [value.origin for value in values if value.origin is not None]
    return _Value(jnp.stack([value.array for value in values]), min(origins, default=None))


def _place(trace: Any) -> str:
    """FILE:LINE of the innermost code outside of JAX; files below Python's search path."""
    frames = [] if trace is None else [*_frames(trace)]
    if not frames:
        return "an unknown line"
    file, line = frames[-1]
    entries = [Path(entry).resolve() for entry in sys.path if entry]
    shorter = [file.relative_to(entry) for entry in entries if file.is_relative_to(entry)]
    return f"{min(shorter, key=lambda path: len(path.parts), default=file)}:{line}"


def _frames(trace: Any) -> Iterator[tuple[Path, int]]:
    """Files and lines that an operation was called from, those of JAX left out."""
    for frame in traceback.extract_tb(trace.as_python_traceback()):
        file = Path(frame.filename).resolve()
        if not file.is_relative_to(_OF_JAX):
            yield file, frame.lineno or 0
