"""The choice of the next token: the most probable one, or a draw by temperature, top-k, top-p.

Letters: B rows, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Draw = Callable[[jax.Array, jax.Array | int], jax.Array]
"""(logits [B, V], step) -> tokens [B] int32."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; greedy by default. Hashable, a static argument of `jax.jit`.

    Attributes:
      temperature: 0 takes the most probable token, the first of equals; above 0, tokens are drawn
        from the softmax of the logits divided by it.
      top_k: draws from the k most probable tokens, and those as probable as the last of them.
      top_p: of these, draws from the fewest of the most probable tokens whose probabilities add up
        to top_p, and those as probable as the last of them (nucleus sampling, arXiv 1904.09751).

    Raises:
      ValueError: an option out of range, or one that greedy decoding does not have.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        # Comparisons that NaN fails, so that it is refused too.
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature} must be 0 (greedy) or more, and finite")
        if temperature == 0 and (top_k is not None or top_p is not None):
            raise ValueError(
                f"top_k={top_k}, top_p={top_p}: greedy decoding (temperature=0) has none"
            )
        if top_k is not None and not top_k >= 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p} must be in (0, 1]")


GREEDY = Sampling()
"""The most probable token, always."""


def drawer(rows: int, sampling: Sampling, key: jax.Array | None = None) -> Draw:
    """Returns the function by which every row chooses its next token.

    Args:
      rows: B.
      sampling: the options.
      key: None where nothing is drawn; [B] PRNG keys, one a row, or one to be folded with each
        row's index. A row's draws depend on its own key, the step and its logits alone.

    Returns:
      (logits [B, V], step) -> tokens [B] int32.

    Raises:
      ValueError: keys that are missing, or that are not those of the rows.
    """
    if sampling.temperature == 0:
        return lambda logits, step: jnp.argmax(logits, -1).astype(jnp.int32)
    keys = _row_keys(rows, key, sampling.temperature)

    def draw(logits, step):
        logits = filter_logits(logits, sampling)
        sample = lambda key, logits: jax.random.categorical(jax.random.fold_in(key, step), logits)
        return jax.vmap(sample)(keys, logits).astype(jnp.int32)

    return draw


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits to draw from: divided by the temperature, -inf on tokens that are left out.

    Args:
      logits: [..., V].
      sampling: the options; the temperature is above 0.

    Returns:
      [..., V].

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> (filter_logits(logits, Sampling(temperature=1.0, top_p=0.6)) > -jnp.inf).tolist()
    [True, True, False]
    """
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        # A token is needed where those before it do not add up to top_p yet.
        needed = jnp.cumsum(probability, axis=-1) - probability < sampling.top_p
        least = jnp.min(jnp.where(needed, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _row_keys(rows: int, key: jax.Array | None, temperature: float) -> jax.Array:
    if key is None:
        raise ValueError(f"temperature={temperature} draws tokens: give key=jax.random.key(SEED)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (rows,)):
        raise ValueError(
            f"key: expected one jax.random.key or [{rows}] of them, one a row, got "
            f"{key.dtype} of shape {key.shape}"
        )
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
