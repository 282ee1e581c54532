"""The precision of matrix products in the functions that callers pass."""

import contextlib
from typing import Literal, get_args

import jax

Precision = Literal["highest", "high", "default"]
"""That of float32 products: "highest" is float32 on every device. GPUs compute "high" and "default"
with TF32 factors (10 bits); TPUs "high" with three passes in bfloat16, "default" with one (7 bits).
"""


def products(precision: Precision) -> contextlib.AbstractContextManager:
    """Products traced inside that state no precision of their own have this one.

    It replaces JAX's global flag, whose own default is "default": an effect that claims to be exact
    would be computed with TF32 or bfloat16 factors on an accelerator, without a word. A function is
    compiled once for each precision.

    Raises:
      ValueError: another precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}; it is 'highest', 'high' or 'default'")
    return jax.default_matmul_precision(precision)
