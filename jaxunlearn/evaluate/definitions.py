"""The name and version that stand beside every number, so that two numbers can be compared."""

from typing import Any, NamedTuple


class Definition(NamedTuple):
    """What a number means; the version grows whenever its value could change."""

    name: str
    version: int
    meaning: str


def row(metric: str, over: str, value: float, definition: Definition, **more: Any) -> dict:
    """A row of a table of metrics.

    Args:
      metric: what the number is called in the table.
      over: the set it was computed over.
      value: the number.
      definition: what it means.
      **more: further columns, such as the ends of an interval.

    Returns:
      {"metric", "set", "value", "definition", "version", ..}, ready for JSON.

    >>> found = row("probability", "forget", 0.5, Definition("probability", 1, "mean exp(-NLL)"))
    >>> list(found.values())
    ['probability', 'forget', 0.5, 'probability', 1]
    """
    return {"metric": metric, "set": over, "value": float(value)} | _named(definition) | more


def absent(metric: str, over: str, reason: str, definition: Definition) -> dict:
    """The row of a number that there is not, and why.

    >>> absent("rouge", "forget", "no texts", Definition("rouge", 1, "mean recall"))["reason"]
    'no texts'
    """
    return {"metric": metric, "set": over, "value": None} | _named(definition) | {"reason": reason}


def _named(definition: Definition) -> dict[str, Any]:
    return {"definition": definition.name, "version": definition.version}
