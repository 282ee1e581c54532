"""What the signature of a loss says: the arrays it takes, its hyper-parameters, its result.

Regular arguments are arrays, of one kind a loss:

    log-probabilities, [B, S] -> [B]   logp, ref_logp, mask, guide (weights), substitute_logp,
                                       substitute_ref_logp, substitute_mask
    logits, [..., V] -> [...]          logits, ref_logits, labels [...]
    hidden states, [..., D] -> [...]   hidden, target [D], ref_hidden

Keyword-only arguments are hyper-parameters.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.objectives.likelihood import check_known

Loss = Callable[..., jax.Array]

LOG_PROBS = (
    "logp",
    "ref_logp",
    "mask",
    "guide",
    "substitute_logp",
    "substitute_ref_logp",
    "substitute_mask",
)
LOGITS = ("logits", "ref_logits", "labels")
HIDDEN = ("hidden", "target", "ref_hidden")


def load(name: str) -> Loss:
    """The function that `my_package.my_module:my_loss` names.

    Raises:
      ValueError: a module that cannot be imported, or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module of somebody else raises
        raise ValueError(f"{name}: cannot import {module_name!r}: {error}") from error
    functions = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
    if not callable(getattr(module, attribute, None)):
        check_known(f"function of {module_name}", attribute, functions)
    return getattr(module, attribute)


def array_names(name: str, loss: Loss) -> tuple[str, ...]:
    """The arrays that a loss takes, in the order of its arguments.

    Raises:
      ValueError: an argument that is no known array, or arrays that do not belong together.
    """
    parameters = inspect.signature(loss).parameters.values()
    regular = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    for parameter in regular:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise ValueError(f"{name}: argument {str(parameter)!r} cannot be passed by its name")
        check_known(f"array of {name}", parameter.name, LOG_PROBS + LOGITS + HIDDEN)
    arrays = tuple(p.name for p in regular)
    _check_kind(name, arrays)
    return arrays


def bind(name: str, loss: Loss, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """All hyper-parameters of a loss, defaults included, sorted by name.

    Raises:
      ValueError: one that is unknown, missing, or of another kind than its default.
    """
    parameters = inspect.signature(loss).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key in hyper:
        check_known(f"hyper-parameter of {name}", key, known)
    given = known | dict(hyper)
    missing = [key for key, value in given.items() if value is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{name}: missing hyper-parameter {', '.join(missing)}")
    return {key: _checked(f"{name}: {key}", given[key], known[key]) for key in sorted(given)}


def check_result(name: str, loss: Loss, arrays: tuple[str, ...]) -> None:
    """Traces the loss on small shapes.

    Raises:
      ValueError: it cannot be traced, or does not return one float a sequence (for logits and
        hidden states: a position).
    """
    example, lead = _example(arrays)
    try:
        result = jax.eval_shape(loss, **example)
    except Exception as error:  # whatever the function of somebody else raises
        raise ValueError(f"{name}: {error}") from error
    found = (getattr(result, "shape", None), getattr(result, "dtype", jnp.bool_))
    if found[0] != lead or not jnp.issubdtype(found[1], jnp.floating):
        raise ValueError(f"{name}: returns {result} for {example}, expected floats of shape {lead}")


def _check_kind(name: str, arrays: tuple[str, ...]) -> None:
    kinds = [kind for kind in (LOG_PROBS, LOGITS, HIDDEN) if set(kind) & set(arrays)]
    if len(kinds) != 1:
        raise ValueError(
            f"{name}: takes ({', '.join(arrays)}), expected arrays of one kind: "
            f"{', '.join(LOG_PROBS)}; or {', '.join(LOGITS)}; or {', '.join(HIDDEN)}"
        )
    masked = {"logp": "mask", "substitute_logp": "substitute_mask"}
    for array, mask in masked.items():
        if array in arrays and mask not in arrays:
            raise ValueError(f"{name}: takes {array!r} without {mask!r}, so it knows no labels")
    if not {"logp", "substitute_logp", "logits", "hidden"} & set(arrays):
        raise ValueError(f"{name}: takes ({', '.join(arrays)}), nothing that the model computes")


def _checked(where: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where}: expected true or false, got {value!r}")
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: expected a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{where}: expected a finite number, got {value!r}")
        return float(value)
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{where}: expected a hashable value, got {value!r}") from error
    return value


def _example(arrays: tuple[str, ...]) -> tuple[dict[str, jax.ShapeDtypeStruct], tuple[int, ...]]:
    """Abstract arrays, and the shape of the losses they should give."""
    lead, width = (2, 3), 5
    shapes = {n: lead for n in LOG_PROBS} | {n: (*lead, width) for n in LOGITS + HIDDEN}
    shapes |= {"labels": lead, "target": (width,)}
    dtypes = {"mask": jnp.bool_, "substitute_mask": jnp.bool_, "labels": jnp.int32}
    example = {n: jax.ShapeDtypeStruct(shapes[n], dtypes.get(n, jnp.float32)) for n in arrays}
    return example, lead[:1] if arrays[0] in LOG_PROBS else lead
