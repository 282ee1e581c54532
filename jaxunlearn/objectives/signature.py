"""The signature of a loss: the arrays it takes, its hyper-parameters, its result.

Regular arguments are arrays by the names of `ARRAYS`, all of one kind:

    log-probabilities -> one loss a sequence, [B]
    logits, hidden states -> one loss a position, [...]

Keyword-only arguments are hyper-parameters.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxunlearn.objectives.likelihood import check_known

Loss = Callable[..., jax.Array]
"""A loss or weight: (**arrays) -> array."""

Kind = Literal["log_probs", "logits", "hidden"]


class ArraySpec(NamedTuple):
    """One array that a loss may take.

    Attributes:
      kind: the arrays it can be combined with.
      dims: its dimensions: B sequences, S predictions, V vocabulary, D width. Losses on logits and
        hidden states apply to any leading dimensions, [B, S] stands for them.
      dtype: of its elements.
      needs: what the caller must provide for it, beyond the log-probabilities of the answers.
      computed: whether the model computes it, so that a loss of it has a gradient.
      mask: name of the mask that says where it means something.
    """

    kind: Kind
    dims: tuple[str, ...]
    dtype: Any = jnp.float32
    needs: tuple[str, ...] = ()
    computed: bool = False
    mask: str | None = None


_TOKENS, _LOGITS, _HIDDEN = ("B", "S"), ("B", "S", "V"), ("B", "S", "D")

ARRAYS: dict[str, ArraySpec] = {
    # log p of the answer's tokens, under the model and under the model before unlearning
    "logp": ArraySpec("log_probs", _TOKENS, computed=True, mask="mask"),
    "ref_logp": ArraySpec("log_probs", _TOKENS, needs=("ref",)),
    "mask": ArraySpec("log_probs", _TOKENS, jnp.bool_),
    # weights that guide an ascent, such as those of `effects.guide_weights`
    "guide": ArraySpec("log_probs", _TOKENS, needs=("guide",)),
    # the same of another answer to the same question, such as "I don't know"
    "substitute_logp": ArraySpec(
        "log_probs", _TOKENS, needs=("substitute",), computed=True, mask="substitute_mask"
    ),
    "substitute_ref_logp": ArraySpec("log_probs", _TOKENS, needs=("substitute", "ref")),
    "substitute_mask": ArraySpec("log_probs", _TOKENS, jnp.bool_, needs=("substitute",)),
    # next-token logits, and the tokens that follow
    "logits": ArraySpec("logits", _LOGITS, needs=("logits",), computed=True),
    "ref_logits": ArraySpec("logits", _LOGITS, needs=("ref",)),
    "labels": ArraySpec("logits", _TOKENS, jnp.int32),
    # states after a block of the model, and what they are compared with
    "hidden": ArraySpec("hidden", _HIDDEN, needs=("hidden",), computed=True),
    "target": ArraySpec("hidden", ("D",)),
    "ref_hidden": ArraySpec("hidden", _HIDDEN, needs=("ref",)),
}
"""Every array that a loss may take. A new one is declared here and filled in by the training code
(`jaxunlearn.training`); only `OF_WEIGHTS` lists some of them again."""

OF_WEIGHTS = ("logp", "ref_logp", "mask", "guide")
"""The arrays that a weight may take: what is known of a sample beside its PG-effects."""


def load(name: str) -> Any:
    """The object that `my_package.my_module:NAME` names; its module is imported now.

    Raises:
      ValueError: a module that cannot be imported, or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    # A module of the user's may raise anything, and one that is a script may end the process.
    except (Exception, SystemExit) as error:
        what = f"it ends Python ({error!r})" if isinstance(error, SystemExit) else error
        raise ValueError(f"{name}: cannot import {module_name!r}: {what}") from error
    if not hasattr(module, attribute):
        public = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
        check_known(f"function of {module_name}", attribute, public)
    return getattr(module, attribute)


def array_names(name: str, loss: Loss) -> tuple[str, ...]:
    """The arrays that a loss takes, in the order of its arguments.

    Raises:
      ValueError: an argument that is no known array, or arrays that do not belong together.
    """
    arrays = _regular_arguments(name, loss)
    for array in arrays:
        try:
            check_known(f"array of {name}", array, ARRAYS)
        except ValueError as error:
            hint = f"a hyper-parameter is keyword-only: write `*, {array}=..`"
            raise ValueError(f"{error}; {hint}") from None
    _check_kind(name, arrays)
    return arrays


def kind_of(arrays: tuple[str, ...]) -> Kind:
    """The kind of the arrays of a checked loss."""
    return ARRAYS[arrays[0]].kind


def needs_of(arrays: tuple[str, ...]) -> frozenset[str]:
    """What the caller must provide for some arrays."""
    return frozenset(need for array in arrays for need in ARRAYS[array].needs)


def bind(name: str, loss: Loss, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """All hyper-parameters of a loss, defaults included, sorted by name.

    Raises:
      ValueError: one that is unknown, missing, or of another kind than its default.
    """
    known = _hyper_parameters(loss)
    for key in hyper:
        check_known(f"hyper-parameter of {name}", key, known)
    values = known | dict(hyper)
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{name}: missing hyper-parameter {', '.join(missing)}")
    return {key: _checked(f"{name}: {key}", values[key], known[key]) for key in sorted(values)}


def check_result(name: str, loss: Loss, arrays: tuple[str, ...]) -> None:
    """Traces the loss on small shapes.

    Raises:
      ValueError: it cannot be traced, or does not return one float a sequence (for logits and
        hidden states: a position).
    """
    shape = ("B",) if kind_of(arrays) == "log_probs" else _TOKENS
    _check_shape(name, loss, arrays, [shape])


def is_traceable(function: Loss, arrays: tuple[str, ...], numbers: tuple[str, ...]) -> bool:
    """Whether a function of arrays can be traced with scalar arrays as hyper-parameters."""
    scalars = dict.fromkeys(numbers, jax.ShapeDtypeStruct((), jnp.float32))
    try:
        jax.eval_shape(function, **_examples(arrays), **scalars)
    except Exception:  # a function of the user's may raise anything
        return False
    return True


def program(function: Loss, arrays: tuple[str, ...]) -> str:
    """A function as JAX traces it on small shapes, with the constants that it reads.

    It says what the function computes, not how its text is written, but for the names of compiled
    functions inside it. It is the same in every process that has one version of JAX.
    """
    traced = jax.make_jaxpr(function)(**_examples(arrays))
    # Colours would depend on the terminal, addresses on the process.
    text = re.sub(r" at 0x[0-9a-f]+", "", traced.jaxpr.pretty_print(use_color=False))
    return "\n".join([text, *_constants(traced)])


def _constants(traced: Any) -> Iterator[str]:
    """The arrays that a traced function and those inside it read; they are not in its text."""
    arrays = list(getattr(traced, "consts", ()))
    equations = getattr(traced, "jaxpr", traced).eqns
    arrays += [x.val for equation in equations for x in equation.invars if hasattr(x, "val")]
    yield from (_bytes(x).hex() for x in arrays)
    for equation in equations:
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "jaxpr") or hasattr(part, "eqns"):
                yield from _constants(part)


def _bytes(x: Any) -> bytes:
    """The content of an array; a number is in the text."""
    return jax.device_get(x).tobytes() if getattr(x, "ndim", 0) else b""


def check_weight(
    name: str, loss: Loss, weight: Loss, arrays: tuple[str, ...], hyper: Mapping[str, Any]
) -> None:
    """Checks that a weight function belongs to its loss.

    Args:
      name: the objective's, for errors.
      loss: the loss.
      weight: the weight function.
      arrays: those of the loss.
      hyper: its hyper-parameters, defaults included.

    Raises:
      ValueError: a loss that is not on log-probabilities, or reads others than `OF_WEIGHTS`; a
        weight with other arrays or hyper-parameters than the loss, one that cannot be traced, or
        does not return one float a sequence or token.
    """
    if kind_of(arrays) != "log_probs":
        raise ValueError(
            f"{name}: has a weight, but a weight multiplies gradients of log-probabilities, and"
            f" the loss takes ({', '.join(arrays)})"
        )
    if unknown := [array for array in arrays if array not in OF_WEIGHTS]:
        raise ValueError(
            f"{name}: has a weight, which is computed from {', '.join(OF_WEIGHTS)}, and the loss"
            f" takes {', '.join(unknown)}; give the loss without a weight"
        )
    where = f"weight of {name}"
    for what, own, others in (
        ("arrays", _regular_arguments(where, weight), arrays),
        ("hyper-parameters", tuple(_hyper_parameters(weight)), tuple(_hyper_parameters(loss))),
    ):
        if set(own) != set(others):
            raise ValueError(
                f"{where}: takes the {what} ({', '.join(own)}), expected those of the loss:"
                f" ({', '.join(others)})"
            )
    bound = lambda **values: weight(**values, **hyper)
    _check_shape(where, bound, arrays, [("B",), _TOKENS])


def _regular_arguments(name: str, function: Loss) -> tuple[str, ...]:
    """The arguments that are not keyword-only."""
    parameters = inspect.signature(function).parameters.values()
    regular = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    for parameter in regular:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise ValueError(
                f"{name}: argument {str(parameter)!r} cannot be passed by its name; declare it"
                " without / and *"
            )
    return tuple(p.name for p in regular)


def _hyper_parameters(function: Loss) -> dict[str, Any]:
    """{name: default} of the keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _check_kind(name: str, arrays: tuple[str, ...]) -> None:
    kinds = {ARRAYS[array].kind for array in arrays}
    if len(kinds) != 1:
        by_kind: dict[str, list[str]] = {}
        for array, spec in ARRAYS.items():
            by_kind.setdefault(spec.kind, []).append(array)
        raise ValueError(
            f"{name}: takes ({', '.join(arrays)}), expected arrays of one kind: "
            + "; or ".join(map(", ".join, by_kind.values()))
        )
    for array in arrays:
        mask = ARRAYS[array].mask
        if mask and mask not in arrays:
            raise ValueError(f"{name}: takes {array!r} without {mask!r}, so it knows no labels")
    if not any(ARRAYS[array].computed for array in arrays):
        raise ValueError(f"{name}: takes ({', '.join(arrays)}), nothing that the model computes")


def _checked(where: str, value: Any, default: Any) -> Any:
    """A hyper-parameter in the type of its default.

    YAML writes 1 for 1.0; settings that mean the same must be equal, so numbers become floats.
    """
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where}: expected true or false, got {value!r}")
    elif isinstance(default, float):
        if isinstance(value, Tracer):
            raise ValueError(
                f"{where}: is traced; get the objective outside of jit, and pass what is traced to"
                " the loss of its opened(), or to the function itself"
            )
        if getattr(value, "ndim", None) == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{where}: expected a number, got {value!r}")
        return _single(where, value)
    elif isinstance(default, int):
        # Configurations hand over 3 as 3.0.
        whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise ValueError(f"{where}: expected a whole number, got {value!r}")
        return int(value)
    elif isinstance(default, str) and not isinstance(value, str):
        raise ValueError(f"{where}: expected text, got {value!r}")
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{where}: expected a hashable value, got {value!r}") from error
    return value


def _single(where: str, value: Real) -> float:
    """A number that float32, in which losses compute, can hold."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, got {number!r}")
    least, most = (float(getattr(jnp.finfo(jnp.float32), name)) for name in ("tiny", "max"))
    if number and not least <= abs(number) <= most:
        raise ValueError(
            f"{where}: {number!r} must be 0, or of a size from {least:.3g} to {most:.3g}, as"
            " float32 holds no other"
        )
    return number


def _check_shape(
    name: str, function: Loss, arrays: tuple[str, ...], dims: list[tuple[str, ...]]
) -> None:
    """Traces a function of arrays, and compares its result with the shapes it may have."""
    example = _examples(arrays)
    try:
        result = jax.eval_shape(function, **example)
    except Exception as error:  # a function of the user's may raise anything
        raise ValueError(f"{name}: {error}") from error
    shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", jnp.bool_)
    allowed = [_example_shape(d) for d in dims]
    if shape not in allowed or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name}: returns {result} for {example}, expected floats of shape"
            f" {' or '.join(map(str, allowed))}"
        )


def _examples(arrays: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Small shapes of some arrays, to trace a function with."""
    return {
        array: jax.ShapeDtypeStruct(_example_shape(ARRAYS[array].dims), ARRAYS[array].dtype)
        for array in arrays
    }


def _example_shape(dims: tuple[str, ...]) -> tuple[int, ...]:
    sizes = {"B": 2, "S": 3, "V": 5, "D": 5}
    return tuple(sizes[d] for d in dims)
