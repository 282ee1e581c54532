"""Definitions of metrics: numbers can be compared if name and version of both are equal."""

from typing import Any, NamedTuple


class Definition(NamedTuple):
    """The definition of a metric.

    Attributes:
      name: of the definition; one metric can have several.
      version: grows whenever a value could change.
      meaning: in words, for the reader.
    """

    name: str
    version: int
    meaning: str


def metric_row(metric: str, over: str, value: float, definition: Definition, **more: Any) -> dict:
    """Makes a row of a table of metrics.

    Args:
      metric: the name of the number in the table.
      over: the set it was computed over.
      value: the number.
      definition: what it means.
      **more: further columns, such as the ends of an interval.

    Returns:
      {"metric", "set", "value", "definition", "version", ..}, ready for JSON.

    >>> definition = Definition("probability", 1, "mean exp(-NLL)")
    >>> list(metric_row("probability", "forget", 0.5, definition).values())
    ['probability', 'forget', 0.5, 'probability', 1]
    """
    return {"metric": metric, "set": over, "value": float(value)} | _entries(definition) | more


def missing_row(metric: str, over: str, reason: str, definition: Definition) -> dict:
    """Makes the row of a metric that could not be computed, with the reason.

    Args:
      metric: the name of the number in the table.
      over: the set it would have been computed over.
      reason: why there is no number.
      definition: what it would mean.

    Returns:
      {"metric", "set", "value": None, "definition", "version", "reason"}, ready for JSON.

    >>> missing_row("rouge", "forget", "no texts", Definition("rouge", 1, "recall"))["reason"]
    'no texts'
    """
    return (
        {"metric": metric, "set": over, "value": None} | _entries(definition) | {"reason": reason}
    )


def _entries(definition: Definition) -> dict[str, Any]:
    return {"definition": definition.name, "version": definition.version}
