"""Emulates the products of accelerators on a CPU: float32 operands rounded before they meet.

A program is rewritten after it has been differentiated: in its jaxpr the operands of every float32
`dot_general` are rounded to few bits, also inside scans, conditions and rematerialised blocks. The
product itself and its sum stay float32, as the accumulators of the hardware are; everything that is
no matrix product is left as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

Dot = Callable[[jax.Array, jax.Array], jax.Array]
"""A `dot_general` with its dimension numbers: (a, b) -> their product."""

Products = Callable[[Dot, jax.Array, jax.Array], jax.Array]
"""How two operands in float32 are multiplied: (dot, a, b) -> about dot(a, b)."""

EXPONENT_BITS = 8  # of float32, TF32 and bfloat16 alike

CALLS = ("closed_call", "custom_jvp_call", "custom_vjp_call")
"""Calls of one function, evaluated in line: the derivatives that custom rules give are taken."""


def round_operands(mantissa_bits: int) -> Products:
    """One product of operands rounded to the nearest number of so many mantissa bits.

    10 bits are TF32, 7 are bfloat16, and 23 leave float32 as it is.
    """
    return lambda dot, a, b: dot(_round(a, mantissa_bits), _round(b, mantissa_bits))


def split_operands(dot: Dot, a: jax.Array, b: jax.Array) -> jax.Array:
    """Three products of operands split into two bfloat16 parts each; that of the small ones is 0.

    a b = (a1 + a2) (b1 + b2), of which a1 b1 + (a1 b2 + a2 b1) is computed.
    """
    (a1, a2), (b1, b2) = _split(a), _split(b)
    return dot(a1, b1) + (dot(a1, b2) + dot(a2, b1))


def with_products(function: Callable[..., Any], products: Products) -> Callable[..., Any]:
    """The function with another way to multiply float32 matrices.

    Args:
      function: of arrays (in any pytrees), to arrays. What is to be differentiated must have been:
        a derivative of the result would be that of the rounding.
      products: replaces every `dot_general` of two float32 operands.

    Returns:
      A function of the same arguments.
    """

    def rounded(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), products)
        return jax.tree.unflatten(jax.tree.structure(shapes), values)

    return rounded


def count_products(function: Callable[..., Any], *args: Any) -> int:
    """The `dot_general`s of two float32 operands in the jaxpr of a function, nested ones included.

    A product inside a scan counts once.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _round(x: jax.Array, mantissa_bits: int) -> jax.Array:
    return jax.lax.reduce_precision(x, EXPONENT_BITS, mantissa_bits)


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two numbers of 7 mantissa bits whose sum is x up to its last 8 of 24 bits."""
    first = _round(x, 7)
    return first, _round(x - first, 7)


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], products: Products
) -> list[Any]:
    """The results of a jaxpr, with `products` in the place of its float32 products."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    for eqn in jaxpr.eqns:
        results = _apply(eqn, [read(atom) for atom in eqn.invars], products)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, args: list[Any], products: Products) -> Sequence[Any]:
    """The results of one equation."""
    if _is_product(eqn):
        return [products(lambda a, b: eqn.primitive.bind(a, b, **eqn.params), *args)]
    inner = _inner_jaxprs(eqn.params)
    if eqn.primitive.name in CALLS:
        (function,) = inner.values()
        return _evaluate(function.jaxpr, function.consts, args, products)
    rewritten = {
        name: jax.tree.map(lambda j: _rewrite(j, products), param, is_leaf=_is_jaxpr)
        for name, param in inner.items()
    }
    results = eqn.primitive.bind(*args, **(eqn.params | rewritten))
    return results if eqn.primitive.multiple_results else [results]


def _rewrite(jaxpr: Any, products: Products) -> Any:
    """A jaxpr, closed or not, with the products replaced in it."""
    is_closed = isinstance(jaxpr, core.ClosedJaxpr)
    inner, consts = (jaxpr.jaxpr, jaxpr.consts) if is_closed else (jaxpr, ())
    inputs = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        for v in inner.invars
    ]
    rewritten = jax.make_jaxpr(lambda *args: _evaluate(inner, consts, args, products))(*inputs)
    return rewritten if is_closed else rewritten.jaxpr


def _count(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        total += _is_product(eqn)
        for param in _inner_jaxprs(eqn.params).values():
            for inner in jax.tree.leaves(param, is_leaf=_is_jaxpr):
                total += _count(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
    return total


def _is_product(eqn: Any) -> bool:
    is_single = all(getattr(v.aval, "dtype", None) == jnp.float32 for v in eqn.invars)
    return eqn.primitive.name == "dot_general" and is_single


def _inner_jaxprs(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an equation that are jaxprs, or tuples of them."""
    return {
        name: param
        for name, param in params.items()
        if _is_jaxpr(param) or (isinstance(param, tuple) and param and all(map(_is_jaxpr, param)))
    }


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)
