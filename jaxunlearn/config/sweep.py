"""A sweep: an objective becomes one objective for every value of its keys."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import yaml

from jaxunlearn.config.reader import dump, loads
from jaxunlearn.config.schema import Config, ConfigError
from jaxunlearn.core.names import nearest

WHERE = "--sweep"


def sweep(config: Config, specs: Sequence[str]) -> Config:
    """Replaces objectives by copies with other values of their keys.

    All share the run's model, its references and the order of samples, so that they compare.

    Args:
      config: the configuration.
      specs: "objectives.NAME.KEY=VALUE,VALUE" each, such as "objectives.npo.hyper.beta=0.1,1"; of
        several keys of an objective, all combinations are made.

    Returns:
      The configuration; the copies of NAME stand in its place, as NAME_KEY_VALUE.

    Raises:
      ConfigError: a spec that is not of this form, an unknown objective or key, one that is given
        twice, or a bad value.

    >>> list(sweep(Config(), ["objectives.npo.hyper.beta=0.1,1"]).objectives)[2:4]
    ['npo_beta_0.1', 'npo_beta_1']
    """
    axes: dict[str, list[list[tuple[list[str], str]]]] = {}
    for spec in specs:
        name, path, values = _parsed(spec, config)
        if any(path == other for axis in axes.get(name, []) for other, _ in axis):
            key = ".".join(["objectives", name, *path])
            raise ConfigError(f"{WHERE}: {key} is given twice; write all its values in one list")
        axes.setdefault(name, []).append([(path, value) for value in values])
    document = yaml.safe_load(dump(config))
    objectives: dict[str, Any] = {}
    for name, entry in document["objectives"].items():
        copies = _copies(config, name, entry, axes[name]) if name in axes else [(name, entry)]
        for copy, changed in copies:
            if copy in objectives:
                raise ConfigError(f"{WHERE}: two objectives would be called {copy!r}")
            objectives[copy] = changed
    document["objectives"] = objectives
    return loads(yaml.safe_dump(document, sort_keys=False), WHERE)


def _parsed(spec: str, config: Config) -> tuple[str, list[str], list[str]]:
    """The objective, the keys below it and the values of a spec."""
    key, equals, values = spec.partition("=")
    parts = key.split(".")
    if not equals or len(parts) < 3 or parts[0] != "objectives":
        raise ConfigError(
            f"{WHERE} {spec!r}: expected objectives.NAME.KEY=VALUE,VALUE, such as"
            " objectives.npo.hyper.beta=0.1,1"
        )
    # A name may hold dots, so the longest objective that fits is meant.
    known = config.objectives
    fitting = [n for n in known if key.startswith(f"objectives.{n}.")]
    if not fitting:
        hint = nearest(parts[1], known)
        raise ConfigError(
            f"{WHERE} {spec!r}: no objective {parts[1]!r}; there are: {', '.join(known)}{hint}"
        )
    name = max(fitting, key=len)
    found = [value.strip() for value in values.split(",")]
    if not all(found):
        raise ConfigError(f"{WHERE} {spec!r}: a value is empty")
    return name, key.removeprefix(f"objectives.{name}.").split("."), found


def _copies(
    config: Config, name: str, entry: dict[str, Any], axes: list[list[tuple[list[str], str]]]
) -> list[tuple[str, dict[str, Any]]]:
    """(new name, entry) for every combination of values."""
    copies = []
    for combination in itertools.product(*axes):
        label = "_".join(f"{path[-1]}_{value}" for path, value in combination)
        copy = dict(entry) | {"loss": config.objectives[name].loss or name}
        for path, value in combination:
            copy = _changed(copy, path, _value(value))
        copies.append((re.sub(r"[^A-Za-z0-9_.]", "_", f"{name}_{label}"), copy))
    return copies


def _value(text: str) -> Any:
    """A value as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{WHERE}: the value {text!r} is not valid YAML") from error


def _changed(entry: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with one value changed."""
    first, *rest = path
    if rest:
        below = entry.get(first) or {}
        if not isinstance(below, dict):
            raise ConfigError(f"{WHERE}: {first!r} has no keys such as {rest[0]!r}")
        value = _changed(below, rest, value)
    return {**entry, first: value}
