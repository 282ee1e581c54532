"""Would it learn again? Forgetting that a few steps of fine-tuning undo has only been hidden.

| attack | what is done to the unlearned model |
|---|---|
| `1`, `5`, .., `all` | fine-tuning on so many samples of the data to forget |
| `benign` | fine-tuning on samples to retain, none to forget |
| `int8` | its weights are rounded, nothing is trained |

Each is followed by the extraction strength (ES) of all the data to forget, and of the samples that
the attack does not show: what comes back there was not learned from the attack.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.effects import trees
from jaxunlearn.evaluate.definitions import Definition

Tree = Any
Status = Literal["recovered", "not recovered", "nothing forgotten"]

LEAST = 0.01  # ES: to have forgotten less is to have forgotten nothing
LEVELS = 127  # int8 codes are -127 .. 127
# The inputs of an output channel, as an axis of Flax's parameters. A row of an embedding is a
# channel: that of a token, also where the table is the head.
INPUTS = {"kernel": -2, "embedding": -1}
_STREAM = 2  # keeps the draw apart from those of the run's batches

DEFINITIONS = {
    d.name: d
    for d in (
        Definition(
            "relearning.steps_to_recover",
            1,
            "first evaluated step with ES >= ES_unlearned + 0.5 (ES_before - ES_unlearned), never"
            " interpolated; null where no step has, or where less than 0.01 ES was forgotten",
        ),
        Definition(
            "relearning.g_effect",
            1,
            "grad R(D_u) . grad L of the fine-tuning loss over its samples; both are mean NLL per"
            " label token, and a gradient step of size eta changes R(D_u) by about -eta times it",
        ),
        Definition(
            "relearning.int8",
            1,
            "every matrix rounded to 255 levels of its output channel's largest magnitude",
        ),
    )
}


class Recovery(NamedTuple):
    """How soon what was forgotten is back."""

    status: Status
    step: int | None  # the first with enough of it
    tried: int  # the last step evaluated
    target: float | None  # the ES to reach


def steps_to_recover(
    es_by_step: Mapping[int, float], before: float, unlearned: float, *, share: float = 0.5
) -> Recovery:
    """The first step at which a share of the forgotten extraction strength is back.

    ES >= ES_unlearned + share (ES_before - ES_unlearned), at a step that was evaluated.

    Args:
      es_by_step: ES after so many steps of the attack.
      before: ES before unlearning.
      unlearned: ES after unlearning, before the attack.
      share: of what was forgotten.

    Returns:
      Recovery. `step` and `target` are None where less than LEAST was forgotten, `step` also where
      no step of `tried` reaches the target.

    Raises:
      ValueError: nothing evaluated, or a share outside (0, 1].

    >>> steps_to_recover({0: 0.1, 1: 0.4, 2: 0.7}, before=0.9, unlearned=0.1)
    Recovery(status='recovered', step=2, tried=2, target=0.5)
    >>> steps_to_recover({0: 0.9, 1: 0.9}, before=0.9, unlearned=0.9).status
    'nothing forgotten'
    """
    if not es_by_step:
        raise ValueError("steps_to_recover needs at least one evaluated step, got none")
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be in (0, 1]")
    tried = max(es_by_step)
    if before - unlearned < LEAST:
        return Recovery("nothing forgotten", None, tried, None)
    target = unlearned + share * (before - unlearned)
    reached = [step for step, es in es_by_step.items() if es >= target]
    if not reached:
        return Recovery("not recovered", None, tried, target)
    return Recovery("recovered", min(reached), tried, target)


def chosen(seed: int, n: int, k: int) -> np.ndarray:
    """The k of n samples that an attack shows: a smaller choice is the start of a larger one.

    Args:
      seed: of the run.
      n: samples there are.
      k: how many to choose.

    Returns:
      [k] int64, distinct.

    Raises:
      ValueError: k is not in 1..n.

    >>> chosen(0, 10, 3).tolist() == chosen(0, 10, 7)[:3].tolist()
    True
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} samples to show must be in 1..{n}")
    return np.random.default_rng((seed, 0, 0, _STREAM)).permutation(n)[:k]


def evaluated_steps(steps: int, most: int = 20) -> tuple[int, ...]:
    """Steps to evaluate at: 0, every so many, and the last; every step where they are few.

    >>> evaluated_steps(3), evaluated_steps(50, most=4)
    ((0, 1, 2, 3), (0, 13, 26, 39, 50))
    """
    return (*range(0, steps, -(-steps // most)), steps)


def int8_rounded(params: Tree) -> Tree:
    """Parameters after a passage through int8: every matrix rounded, all else as it was.

    w -> s round(w / s), s = max |w| / 127 over the inputs of an output channel: |error| <= s / 2.

    Args:
      params: leaves are told by Flax's names: `kernel` [.., in, out] and `embedding` [.., rows,
        width] are matrices, with any leading axes; others stay.

    Returns:
      The parameters, of the same shapes and dtypes.

    >>> int8_rounded({"kernel": jnp.array([[127.0, 0.0], [38.4, 0.0]])})["kernel"].tolist()
    [[127.0, 0.0], [38.0, 0.0]]
    """

    def rounded(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        inputs = INPUTS.get(getattr(path[-1], "key", ""))
        if inputs is None:
            return x
        exact = trees.wide(x)
        scale = jnp.max(jnp.abs(exact), axis=inputs, keepdims=True) / LEVELS
        codes = jnp.round(exact / jnp.where(scale > 0, scale, 1))
        return (codes * scale).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(rounded, params)
