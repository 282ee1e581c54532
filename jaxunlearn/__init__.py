"""Unlearning in language models on JAX, and why it works or fails, seen through gradients.

`objectives` are pure losses (arrays in, loss out), `effects` the gradient effects of any function
of a parameter pytree. Both import jax alone. `jaxunlearn run` and `jaxunlearn demo` put them to
work.
"""

from jaxunlearn import effects as effects
from jaxunlearn import objectives as objectives

__version__ = "0.1.0"
