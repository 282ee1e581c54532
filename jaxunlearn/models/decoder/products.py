"""Matrix products of the decoder, in the precision that its configuration names."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from jaxunlearn.models.decoder.config import DecoderConfig

HALF = jnp.bfloat16

# Names of intermediate values, for policies of `jax.checkpoint`.
PRODUCT, CAST = "product", "cast"

# What each kind of remat keeps for the reverse pass. None of them keeps weights in bfloat16, which
# are as quick to cast again as to read; that would take two bytes for every parameter.
KEPT = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(CAST),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PRODUCT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Of the result of a product: XLA's CPU compiler brings a copy that changes no shape back into the
# product, but not one that a few zeros make longer.
PADDING = 8


def paired(
    a: jax.Array, b: jax.Array, config: DecoderConfig, *, axis: int = 0, wide: bool = False
) -> jax.Array:
    """Products of the matrices of two stacks, pair by pair, in the configuration's precision.

    The precision is a part of the program, so JAX's global flag does not change it.

    Args:
      a: [..., n, k], in the type of the computation.
      b: [..., k, m] or [..., m, k].
      config: the model.
      axis: of a matrix of b, 0 or 1, that is contracted with the last one of a.
      wide: whether the product is kept in float32, or left in the type of the factors.

    Returns:
      [..., n, m].
    """
    if config.dtype == "bfloat16":
        return _half(a, b, (1, axis), jnp.float32 if wide else HALF)
    return jax.lax.dot_general(a, b, _numbers((1, axis), a.ndim - 2), precision=config.precision)


def product(
    x: jax.Array,
    weight: jax.Array,
    config: DecoderConfig,
    *,
    axis: int = 0,
    wide: bool = False,
) -> jax.Array:
    """A product of activations [..., n] and a weight matrix, which is cast to x's type.

    The positions of all rows are one axis of the product. With two of them XLA's CPU compiler
    writes the cotangent once more, transposed, to form the gradient of the weight.

    Args:
      x: [..., n], in the type of the computation.
      weight: a matrix, [n, m] or [m, n], of the type of x or wider.
      config: the model.
      axis: of the weight, that is contracted with the last one of x.
      wide: whether the product is kept in float32, or left in the type of x.

    Returns:
      [..., m].
    """
    flat = x.reshape(-1, x.shape[-1])
    if config.dtype == "bfloat16":
        dtype = jnp.float32 if wide else HALF
        if config.reduce == "float32":
            factor = checkpoint_name(jax.lax.stop_gradient(weight).astype(HALF), CAST)
            y = _keep_gradient(axis, dtype, flat, factor, weight)
        else:
            factor = checkpoint_name(weight.astype(HALF), CAST)
            y = _half(flat, factor, (1, axis), dtype)
        y = checkpoint_name(y, PRODUCT)
    else:
        y = paired(flat, weight.astype(config.dtype), config, axis=axis)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _keep_gradient(axis, dtype, x, factor, weight):
    """A bfloat16 product whose weight gradient leaves its own product in float32.

    Autodiff would give the gradient the type of the factor, which is the weight cast to bfloat16.
    The partial sums of all devices would be rounded to it before they are added. The factor is an
    argument of its own so that devices exchange it, and not the wider weight.
    """
    return _half(x, factor, (1, axis), dtype)


def _keep_gradient_tangent(axis, dtype, primals, tangents):
    x, factor, _ = primals
    dx, _, d_weight = tangents
    parts = []
    # A factor that is no variable has no tangent, and a product with zeros is not worth a FLOP.
    if not isinstance(dx, SymbolicZero):
        parts.append(_half(dx, factor, (1, axis), dtype))
    if not isinstance(d_weight, SymbolicZero):
        parts.append(_half(x, d_weight, (1, axis), dtype))
    y = _keep_gradient(axis, dtype, *primals)
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


_keep_gradient.defjvp(_keep_gradient_tangent, symbolic_zeros=True)


# ---- The product of matrices in bfloat16 ----
# It is a primitive because its forward and its reverse pass need different forms, and a platform
# others than the next; `custom_vjp` would take forward mode away, which PG-effects are made of.

half_dot_p = Primitive("half_dot_general")
"""The `dot_general` of `_half`; it has the same "dimension_numbers" among its parameters."""


def _half(a: jax.Array, b: jax.Array, axes: tuple[int, int], dtype: DTypeLike) -> jax.Array:
    """Contracts matrices, cast to bfloat16, along these axes; sums are float32, then `dtype`.

    Axes before the last two count pairs of matrices. In the reverse pass the cotangent is cast to
    bfloat16 as well. A gradient has its factor's type.
    """
    numbers = _numbers(axes, a.ndim - 2)
    return half_dot_p.bind(a, b, dimension_numbers=numbers, preferred_element_type=jnp.dtype(dtype))


def _numbers(axes: tuple[int, int], stacked: int) -> Any:
    first, second = axes
    stack = tuple(range(stacked))
    return ((stacked + first,), (stacked + second,)), (stack, stack)


def _axes(dimension_numbers: Any) -> tuple[int, int]:
    ((first,), (second,)), (stack, _) = dimension_numbers
    return first - len(stack), second - len(stack)


def _dot(a, b, *, dimension_numbers, preferred_element_type):
    if jnp.float32 not in (a.dtype, b.dtype, preferred_element_type):
        return jax.lax.dot_general(a, b, dimension_numbers, precision="default")
    # The preset casts float32 factors inside the product.
    y = jax.lax.dot_general(
        a,
        b,
        dimension_numbers,
        precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
        preferred_element_type=jnp.float32,
    )
    return y.astype(preferred_element_type)


def _dot_on_cpu(a, b, *, dimension_numbers, preferred_element_type):
    """`_dot` in the forms that are fast there, by a factor of two each.

    XLA's CPU compiler multiplies in float32 where a factor is float32; up to jax 0.10 where the
    result is bfloat16; and over the first axes of both factors: the gradient of a weight.
    """
    a, b = a.astype(HALF), b.astype(HALF)
    form = partial(_dot, preferred_element_type=jnp.dtype(jnp.float32))
    if _axes(dimension_numbers) == (0, 0):
        *stack, count, size = a.shape
        a = jnp.concatenate([a.mT, jnp.zeros((*stack, PADDING, count), HALF)], axis=-2)
        y = form(a, b, dimension_numbers=_numbers((1, 0), len(stack)))[..., :size, :]
    else:
        y = form(a, b, dimension_numbers=dimension_numbers)
    return y.astype(preferred_element_type)


def _abstract(a, b, *, dimension_numbers, preferred_element_type):
    first, second = _axes(dimension_numbers)
    shape = *a.shape[:-2], a.shape[-1 - first], b.shape[-1 - second]
    return a.update(shape=shape, dtype=preferred_element_type, weak_type=False)


def _transpose_first(cotangent, a, b, *, dimension_numbers, preferred_element_type):
    first, second = _axes(dimension_numbers)
    if first == 1:
        return _half(cotangent, b, (1, 1 - second), a.aval.dtype)
    return _half(b, cotangent, (1 - second, 1), a.aval.dtype)


def _transpose_second(cotangent, a, b, *, dimension_numbers, preferred_element_type):
    first, second = _axes(dimension_numbers)
    if second == 0:
        return _half(a, cotangent, (1 - first, 0), b.aval.dtype)
    return _half(cotangent, a, (0, 1 - first), b.aval.dtype)


def _batch(args, axes, **params):
    a, b = args
    if all(axis is not None for axis in axes):
        a, b = (jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True))
        contracted = _axes(params["dimension_numbers"])
        return _half(a, b, contracted, params["preferred_element_type"]), 0
    if max(a.ndim, b.ndim) > 3:
        return _batch_pairs(args, axes, **params)
    # XLA's CPU compiler has no product of a matrix and an array of three axes in bfloat16.
    if axes[0] is None and b.dtype == HALF:
        a, axes = jnp.broadcast_to(a, (b.shape[axes[1]], *a.shape)), (0, axes[1])
    return jax.vmap(partial(_dot, **params), in_axes=axes)(a, b), 0


def _batch_pairs(args, axes, *, dimension_numbers, preferred_element_type):
    """Pairs of which one side is batched: its batch becomes a part of the axis that is kept.

    So the other side is not written once for each of the batch, as attention's weights would be.
    """
    contracted = _axes(dimension_numbers)
    side = 0 if axes[0] is not None else 1
    x, size = args[side], args[side].shape[axes[side]]
    kept = x.ndim - 2 - contracted[side]  # once the batch axis is out of the way
    x = jnp.moveaxis(x, axes[side], kept + 1)
    shape = (*x.shape[:kept], x.shape[kept] * size, *x.shape[kept + 2 :])
    x = x.reshape(shape)
    a, b = (x, args[1]) if side == 0 else (args[0], x)
    y = _half(a, b, contracted, preferred_element_type)
    at = y.ndim - 2 + side  # the axis of the result that the batch is a part of
    split = (*y.shape[:at], y.shape[at] // size, size, *y.shape[at + 1 :])
    return y.reshape(split), at + 1


PARAMETERS = ("dimension_numbers", "preferred_element_type")
half_dot_p.def_impl(jax.jit(half_dot_p.bind, static_argnames=PARAMETERS))
half_dot_p.def_abstract_eval(_abstract)
ad.defbilinear(half_dot_p, _transpose_first, _transpose_second)
batching.primitive_batchers[half_dot_p] = _batch
mlir.register_lowering(half_dot_p, mlir.lower_fun(_dot, multiple_results=False))
mlir.register_lowering(
    half_dot_p, mlir.lower_fun(_dot_on_cpu, multiple_results=False), platform="cpu"
)
