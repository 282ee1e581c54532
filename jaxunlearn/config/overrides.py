"""Values that override keys of a configuration, given from Python as a mapping."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from jaxunlearn.config.reader import dump, loads, plain
from jaxunlearn.config.schema import Config, ConfigError
from jaxunlearn.core.names import nearest


def override(
    config: Config, values: Mapping[str, Any], source: str, others: Iterable[str] = ()
) -> Config:
    """Returns a configuration with other values of some keys.

    Args:
      config: the configuration.
      values: {key: value}. A key is a field of `Config` with a nested mapping of the fields to
        change, or a dotted path such as "unlearn.lr". Mappings are merged with those of the
        configuration; all other values replace what is there.
      source: what the values were given to, for messages.
      others: names that the source takes besides, for messages.

    Returns:
      The configuration; its values are not checked yet, see `validate`.

    Raises:
      ConfigError: an unknown key, with the nearest known one, or a value of the wrong type.

    >>> changed = override(Config(), {"unlearn": {"lr": 0.1}, "measure.every": 2}, "an example")
    >>> changed.unlearn.lr, changed.unlearn.epochs, changed.measure.every
    (0.1, 5, 2)
    """
    # One after the other: a key may go below one that was given in its short form, `prompt: chat`.
    for key, value in values.items():
        first, *rest = key.split(".")
        _check_section(first, source, others)
        nested = plain(value, key, source)
        for name in reversed(rest):
            nested = {name: nested}
        document = _merge(yaml.safe_load(dump(config)), {first: nested})
        config = loads(yaml.safe_dump(document, sort_keys=False), source)
    return config


def _check_section(name: str, source: str, others: Iterable[str]) -> None:
    """Refuses an unknown first key; says so where it is a key of a section."""
    known = [field.name for field in dataclasses.fields(Config)]
    if name in known:
        return
    homes = [section for section in known if name in _fields_of(section)]
    if homes:
        paths = " or ".join(f"{section}={{{name!r}: ..}}" for section in homes)
        raise ConfigError(f"{source}: unknown key {name!r}; write {paths}")
    known = list(dict.fromkeys([*others, *known]))
    raise ConfigError(
        f"{source}: unknown key {name!r}; known here: {', '.join(known)}{nearest(name, known)}"
    )


def _fields_of(section: str) -> Iterable[str]:
    """The keys of a section of the configuration; none where it is a single value."""
    value = getattr(Config(), section)
    return (f.name for f in dataclasses.fields(value)) if dataclasses.is_dataclass(value) else ()


def _merge(old: Any, new: Any) -> Any:
    """A nested document with the values of another one put in."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merge(old.get(key), value) for key, value in new.items()}
