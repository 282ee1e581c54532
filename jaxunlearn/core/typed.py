"""Checks that what was read from JSON has the type that the code relies on.

A file in a run's folder may be damaged, edited by hand or written by another program. Its type is
written down once, as a `TypedDict` or any other annotation, and is checked where it is read.
"""

import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NotRequired

from jaxunlearn.core.names import shortened

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    dict: "an object",
    list: "a list",
    types.NoneType: "null",
}


def check(value: Any, kind: Any, where: str) -> None:
    """Checks a value, with all that it holds, against a type.

    Args:
      value: as `json` reads it.
      kind: int, float, bool, str, None, Any, Literal, `list[..]`, `dict[str, ..]`, a TypedDict,
        whose further keys are not looked at, or a union of them. A whole number is a float too.
      where: the file, and the line where it has lines.

    Raises:
      ValueError: the first part that has another type; names the place, the key and both types.
    """
    for key, problem in _problems(value, kind, ""):
        raise ValueError(": ".join(filter(None, (where, key, problem))))


def _problems(value: Any, kind: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of every part that has another type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return
    if origin is NotRequired:
        yield from _problems(value, args[0], key)
    elif origin in (types.UnionType, typing.Union):
        found = [list(_problems(value, one, key)) for one in args]
        if all(found):
            # What is wrong inside of an object says more than that it is not null.
            deep = [problems for problems in found if problems[0][0] != key]
            expected = " or ".join(map(_words, args))
            yield from deep[0] if deep else [(key, _expected(expected, value))]
    elif typing.is_typeddict(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind, include_extras=True)
        for name, hint in hints.items():
            if name in value:
                yield from _problems(value[name], hint, _below(key, name))
            elif name in kind.__required_keys__:
                yield key, f"no key {name!r}"
    elif not _is_of(value, kind):
        yield key, _expected(_words(kind), value)
    elif origin is dict:
        for name, item in value.items():
            yield from _problems(item, args[1], _below(key, name))
    elif origin is list:
        for i, item in enumerate(value):
            yield from _problems(item, args[0], f"{key}[{i}]")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value itself is of a type, whatever it holds."""
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and _is_finite(value)
    plain = dict if typing.is_typeddict(kind) else typing.get_origin(kind) or kind
    return isinstance(value, plain) and isinstance(value, bool) == (plain is bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _expected(words: str, value: Any) -> str:
    return f"expected {words}, found {shortened(repr(value))}"


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    plain = dict if typing.is_typeddict(kind) else typing.get_origin(kind) or kind
    return _WORDS[plain]


def _below(key: str, name: str) -> str:
    return f"{key}.{name}".lstrip(".")
