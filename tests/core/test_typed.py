"""Values of JSON against types: what fits, and what the error says of what does not."""

from typing import Any, Literal, NotRequired, TypedDict

import pytest

from jaxunlearn.core import typed


class Point(TypedDict):
    x: float
    names: NotRequired[list[str]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, float),
        (None, int | None),
        ({"x": 1, "other": object()}, Point),
        ({"a": [{"x": 0.5, "names": []}]}, dict[str, list[Point]]),
        ("b", Literal["a", "b"]),
        (object(), Any),
    ],
)
def test_it_fits(value, kind):
    typed.check(value, kind, "f.json")


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (True, int, "f.json: expected a whole number, found True"),
        (1.0, int, "f.json: expected a whole number, found 1.0"),
        (float("nan"), float, "f.json: expected a finite number, found nan"),
        (10**400, float, "f.json: expected a finite number, found 1000"),
        ("1", int | None, "f.json: expected a whole number or null, found '1'"),
        ([], Point, r"f.json: expected an object, found \[\]"),
        ({}, Point, "f.json: no key 'x'"),
        ({"a": [{"x": "y"}]}, dict[str, list[Point]], r"f.json: a\[0\].x: expected a finite num"),
        ({"x": 1, "names": [2]}, Point | None, r"f.json: names\[0\]: expected text, found 2"),
        ([], Literal["a", "b"], "f.json: expected one of 'a', 'b', found"),
    ],
)
def test_what_does_not_is_named(value, kind, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        typed.check(value, kind, "f.json")
