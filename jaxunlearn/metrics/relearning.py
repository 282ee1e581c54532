"""Relearning attacks: how soon forgotten data come back under fine-tuning, or under rounding.

Forgetting that a few steps of fine-tuning undo has only been hidden.

| attack | what is done to the unlearned model |
|---|---|
| `1`, `5`, .., `all` | fine-tuning on so many samples of the forget set D_u |
| `benign` | fine-tuning on samples of the retain set D_r, none of D_u |
| `int8` | its weights are rounded, nothing is trained |

After each attack the extraction strength (ES) is measured on all of D_u, and on the samples that
the attack does not show: recovery on these was not learned from the attack.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.metrics.definitions import Definition

Status = Literal["recovered", "not recovered", "nothing forgotten", "diverged"]
LEAST = 0.01
"""A model whose ES fell by less than this has forgotten nothing."""
ROUNDING = 1e-6  # of differences of strengths, which are float32
LEVELS = 127
"""The codes of int8 are -127 .. 127."""
INPUTS = {"kernel": -2, "embedding": -1}
"""The axis of Flax's parameters over the inputs of an output channel.

A row of an embedding is the channel of one token, also where the table is the head.
"""
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
    """The recovery of forgotten data under an attack.

    Attributes:
      status: whether they came back, or were never forgotten; "diverged" where the model broke
        before they did.
      step: the first step at which enough of them is back, if there is one.
      tried: the last step evaluated, of those at which the model was not broken.
      target: the ES to reach, None where nothing was forgotten.
    """

    status: Status
    step: int | None
    tried: int
    target: float | None


def steps_to_recover(
    es_by_step: Mapping[int, float | None],
    before: float,
    unlearned: float | None,
    *,
    share: float = 0.5,
) -> Recovery:
    """The first step at which a share of the forgotten extraction strength is back.

    ES >= ES_unlearned + share (ES_before - ES_unlearned), at a step that was evaluated.

    Args:
      es_by_step: ES after so many steps of the attack; None where the model was broken.
      before: ES before unlearning.
      unlearned: ES after unlearning, before the attack; None likewise.
      share: the share of the forgotten ES that counts as recovery.

    Returns:
      Recovery. `step` and `target` are None where less than LEAST was forgotten, `step` also where
      no step of `tried` reaches the target.

    Raises:
      ValueError: nothing evaluated, or a share outside (0, 1].

    >>> steps_to_recover({0: 0.1, 1: 0.4, 2: 0.7}, before=0.9, unlearned=0.1)
    Recovery(status='recovered', step=2, tried=2, target=0.5)
    >>> steps_to_recover({5: 0.3}, before=0.4, unlearned=0.2).step
    5
    >>> steps_to_recover({0: 0.9, 1: 0.9}, before=0.9, unlearned=0.9).status
    'nothing forgotten'
    """
    if not es_by_step:
        raise ValueError("steps_to_recover needs at least one evaluated step, got none")
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be in (0, 1]")
    known = {step: es for step, es in es_by_step.items() if es is not None}
    if unlearned is None or not known:
        return Recovery("diverged", None, 0, None)
    tried = max(known)
    if before - unlearned < LEAST - ROUNDING:
        return Recovery("nothing forgotten", None, tried, None)
    target = unlearned + share * (before - unlearned)
    reached = [step for step, es in known.items() if es >= target - ROUNDING]
    if not reached:
        status: Status = "diverged" if len(known) < len(es_by_step) else "not recovered"
        return Recovery(status, None, tried, target)
    return Recovery("recovered", min(reached), tried, target)


def evaluated_steps(steps: int, most: int = 20) -> tuple[int, ...]:
    """The steps of an attack at which it is evaluated: evenly spaced, with the first and the last.

    Args:
      steps: of the attack.
      most: the most steps to evaluate, not counting the last; fewer steps are all evaluated.

    >>> evaluated_steps(3), evaluated_steps(50, most=4)
    ((0, 1, 2, 3), (0, 13, 26, 39, 50))
    """
    return (*range(0, steps, -(-steps // most)), steps)


_NNX_VALUE = jax.tree_util.GetAttrKey("value")


def int8_rounded(params: Tree) -> Tree:
    """Parameters rounded to int8 and back: every matrix changes, all else stays as it is.

    w -> s round(w / s), s = max |w| / 127 over the inputs of an output channel: |error| <= s / 2.

    Args:
      params: a tree with Flax's names: `kernel` [.., in, out] and `embedding` [.., rows, width] are
        matrices, with any leading axes; leaves of other names stay. The state of an NNX module is
        such a tree. Kernels with several axes of inputs or outputs, such as those of convolutions
        and of `DenseGeneral`, are not known as such: their last axis but one counts as the inputs.

    Returns:
      The parameters, of the same shapes and dtypes.

    Raises:
      ValueError: no leaf has one of these names, so that nothing would change.

    >>> int8_rounded({"kernel": jnp.array([[127.0, 0.0], [38.4, 0.0]])})["kernel"].tolist()
    [[127.0, 0.0], [38.0, 0.0]]
    """

    def rounded(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        inputs = INPUTS.get(_last_name(path))
        if inputs is None:
            return x
        exact = trees.wide(x)
        scale = jnp.max(jnp.abs(exact), axis=inputs, keepdims=True) / LEVELS
        codes = jnp.round(exact / jnp.where(scale > 0, scale, 1))
        return (codes * scale).astype(x.dtype)

    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not any(_last_name(path) in INPUTS for path in paths):
        raise ValueError(f"int8_rounded: no leaf is called {' or '.join(INPUTS)}")
    return jax.tree_util.tree_map_with_path(rounded, params)


def _last_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf; in the state of an NNX module it has an attribute `value` below."""
    names = [getattr(key, "key", None) for key in path if key != _NNX_VALUE]
    return str(names[-1]) if names else ""


# ------------------------------------------------------------------------------- names of attacks

Count = int | str
"""A number of forget samples to show, or `ALL`."""

ALL, BENIGN, INT8 = "all", "benign", "int8"
"""Names of attacks; the other attacks are named by the number of forget samples that they show."""

COUNTS = (1, 5, 20)
"""Numbers of forget samples shown by default, apart from all of them."""


class AttackKind(NamedTuple):
    """Properties of an attack that follow from its name.

    Attributes:
      trains_on: the data that it fine-tunes on, in words; None where it trains nothing, so that its
        results do not depend on `Settings` and there are no steps to count.
      shows_some: it shows some samples of D_u, so that others remain unseen.
    """

    trains_on: str | None
    shows_some: bool = False


NAMED_ATTACKS = {
    ALL: AttackKind("all forget samples"),
    BENIGN: AttackKind("data to retain"),
    INT8: AttackKind(None),
}
"""The attacks with a name, in the order of tables; the others show so many forget samples."""


def attack_kind(attack: str) -> AttackKind:
    """The properties of an attack.

    >>> attack_kind("5")
    AttackKind(trains_on='5 forget samples', shows_some=True)
    """
    samples = f"{attack} forget sample{'s' if attack != '1' else ''}"
    return NAMED_ATTACKS.get(attack, AttackKind(samples, shows_some=True))


def is_attack(name: str) -> bool:
    """Whether an attack may have this name: one of `NAMED_ATTACKS`, or a number of samples.

    >>> [is_attack(name) for name in ("int8", "5", "05", "five")]
    [True, True, False, False]
    """
    return name in NAMED_ATTACKS or re.fullmatch(r"[1-9][0-9]{0,17}", name) is not None


def attack_order(attack: str) -> tuple[int, int]:
    """The place of an attack among others, as a sort key.

    Attacks that show some forget samples come first, by their number; then those with a name, in
    the order of `NAMED_ATTACKS`.

    >>> sorted(["int8", "benign", "20", "all", "5"], key=attack_order)
    ['5', '20', 'all', 'benign', 'int8']
    """
    if attack in NAMED_ATTACKS:
        return list(NAMED_ATTACKS).index(attack) + 1, 0
    return 0, int(attack)


class Settings(NamedTuple):
    """The fine-tuning settings that all attacks of a call share.

    Attributes:
      steps: updates.
      lr: the learning rate, without warm-up or decay.
      batch_size: samples of a step, at most.
    """

    steps: int
    lr: float
    batch_size: int


def counts(samples: Sequence[Count] | Count | None, forget: int) -> list[int]:
    """Parses how many forget samples each attack shows.

    "all" and the full count are the same attack and are merged.

    Args:
      samples: one or several numbers, also as text, or "all"; None: those of COUNTS that are not
        all, and all.
      forget: samples of D_u.

    Returns:
      Distinct numbers, ascending.

    Raises:
      ValueError: neither "all" nor in 1..forget.

    >>> counts(["all", 5, "5"], forget=10)
    [5, 10]
    """
    if samples is None:
        return [*(k for k in COUNTS if k < forget), forget]
    numbers = set()
    for value in [samples] if isinstance(samples, int | str) else samples:
        count = 0
        if value == ALL:
            count = forget
        elif str(value).isdecimal():
            count = int(value)
        if not 1 <= count <= forget:
            raise ValueError(
                f"relearn.samples (--samples): {value!r} is neither 'all' nor in 1..{forget}"
            )
        numbers.add(count)
    return sorted(numbers)
