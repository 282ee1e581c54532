"""Reads configurations from YAML and writes them back; errors name file, line and key."""

import dataclasses
import numbers
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxunlearn.config.schema import Config, ConfigError, Objective
from jaxunlearn.config.train import Lora
from jaxunlearn.core.names import check_list, nearest
from jaxunlearn.core.paths import read_text, user_path

DEMO = Path(__file__).parents[1] / "demo.yaml"
"""The configuration of `jaxunlearn demo`."""


def load(path: str | Path) -> Config:
    """Reads a configuration from YAML.

    Types and names are checked here; values by `validate`, when the configuration is used.

    Args:
      path: file whose keys are the fields of `Config`; absent keys keep their defaults.

    Returns:
      The configuration.

    Raises:
      ConfigError: no such file, bad YAML, an unknown key or a value of the wrong type.
    """
    path = user_path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return loads(text, str(path), lines=True)


def loads(text: str, source: str, *, lines: bool = False) -> Config:
    """Reads a configuration from a text in YAML, see `load`.

    Args:
      text: the configuration.
      source: where it comes from, for errors.
      lines: whether errors name the line too; of a text that nobody sees they must not.

    Raises:
      ConfigError: as `load`.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: it is nested too deeply") from None
    if node is None:
        raise ConfigError(
            f"{source}: the configuration is empty; `jaxunlearn run --keys` shows what may be in it"
        )
    return _Reader(source, lines).read(Config, node, "")


def dump(config: Config) -> str:
    """Returns a configuration, defaults included, as YAML that `load` reads back."""
    return yaml.safe_dump(plain(config, "", "configuration"), sort_keys=False)


def check_readable(config: Config) -> None:
    """Checks that a configuration can be read back from what is written of it.

    One that was made in Python may hold values of other types than the schema's. Written into a
    run's folder, it would lock the folder for resuming, reports and evaluation.

    Raises:
      ConfigError: it cannot; names the key.
    """
    text = dump(config)
    again = dump(loads(text, "configuration"))
    for key, written, read in differences(yaml.safe_load(text), yaml.safe_load(again)):
        raise ConfigError(f"{key}: {written!r} would be read back as {read!r}; choose another text")


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two nested documents differ.

    1 and 1.0 do not, nor do two NaN.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys(), key=str):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}".strip("."))
    elif old != new and (old == old or new == new):  # a NaN is not equal to itself
        yield key, old, new


def only(config: Config, names: typing.Sequence[str]) -> Config:
    """Returns the configuration with only some of its objectives.

    Args:
      config: the configuration.
      names: its objectives to run, in this order.

    Raises:
      ConfigError: it has no objective of this name.
    """
    known = config.objectives
    check_list("only (--only)", names, ConfigError)
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"objectives: no {name!r}; there are: {', '.join(known)}{hint}")
    return dataclasses.replace(config, objectives={name: known[name] for name in names})


def _hint(kind: type, name: str, fields: typing.Iterable[str]) -> str:
    """What a key that is not known was perhaps meant to be."""
    hyper = f"; a hyper-parameter stands in hyper: {{{name}: ..}}" if kind is Objective else ""
    return nearest(name, fields) + hyper


def plain(value: Any, key: str, source: str) -> Any:
    """A nested value in the types that YAML writes.

    Numbers of NumPy and JAX, paths and tuples become plain ones.

    Args:
      value: of a configuration.
      key: its key, for messages.
      source: what it was given to, for messages.

    Raises:
      ConfigError: it holds something else; names the key.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(item, _join(key, str(k)), source) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, key, source) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0:
        value = getattr(value, "item", lambda: value)()
    if isinstance(value, str):
        return str.__str__(value)  # YAML knows no members of an enumeration
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise ConfigError(
        f"{source}: {key}: a value of type {type(value).__name__} cannot be a setting; expected"
        " text, numbers, true or false, None, and lists or mappings of them"
    )


class _Reader:
    """Builds dataclasses from YAML nodes, whose line numbers go into the errors."""

    def __init__(self, source: str, lines: bool):
        self.source = source
        self.lines = lines

    def read(self, kind: Any, node: yaml.Node, key: str) -> Any:
        if dataclasses.is_dataclass(kind):
            # Read as its defaults, an empty section would train the whole model.
            if kind is Lora and isinstance(node, yaml.MappingNode) and not node.value:
                self._fail(node, f"{key}: is empty; give rank, or start")
            return self._dataclass(typing.cast(type, kind), node, key)
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self._union(args, node, key)
        if origin is Literal:
            return self._choice(args, node, key)
        if origin is tuple:
            return self._tuple(args, node, key)
        if origin is dict:
            return self._mapping(args, node, key)
        return self._scalar(kind, node, key)

    def _dataclass(self, kind: type, node: yaml.Node, key: str) -> Any:
        hints = typing.get_type_hints(kind)
        fields = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
        bare = getattr(kind, "BARE", None)
        if bare is not None and isinstance(node, yaml.ScalarNode):
            return kind(**{bare: self.read(fields[bare], node, key)})
        values = {}
        for name, value in self._items(node, key):
            if name.value not in fields:
                self._fail(
                    name,
                    f"unknown key '{_join(key, name.value)}'; known here: {', '.join(fields)}"
                    + _hint(kind, name.value, fields),
                )
            values[name.value] = self.read(fields[name.value], value, _join(key, name.value))
        for field in dataclasses.fields(kind):
            if _is_required(field) and field.name not in values:
                self._fail(node, f"'{key}' must have the key {field.name!r}")
        return kind(**values)

    def _mapping(self, args: tuple[Any, ...], node: yaml.Node, key: str) -> dict[str, Any]:
        items = self._items(node, key)
        return {k.value: self._entry(args[1], v, _join(key, k.value)) for k, v in items}

    def _entry(self, kind: Any, node: yaml.Node, key: str) -> Any:
        """Reads the value of a mapping; an entry without one (`ga:`) has all the defaults."""
        if dataclasses.is_dataclass(kind) and _is_null(node):
            return typing.cast(type, kind)()
        return self.read(kind, node, key)

    def _items(self, node: yaml.Node, key: str) -> list[tuple[Any, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"'{key or 'the file'}' must be a mapping of keys to values")
        items = typing.cast(list, node.value)
        seen: set[str] = set()
        for name, _ in items:
            if not isinstance(name, yaml.ScalarNode):
                place = f"'{key}'" if key else "the file"
                self._fail(name, f"a key of {place} must be text, not a list or mapping")
            if name.value in seen:
                self._fail(name, f"key '{_join(key, name.value)}' is given twice; keep one")
            seen.add(name.value)
        return items

    def _union(self, args: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
        if type(None) in args and _is_null(node):
            return None
        *first, last = (a for a in args if a is not type(None))
        for kind in first:
            try:
                return self.read(kind, node, key)
            except ConfigError:
                continue
        words = [w for kind in first if typing.get_origin(kind) is Literal for w in kind.__args__]
        try:
            return self.read(last, node, key)
        except ConfigError as error:
            if not words:
                raise
            raise ConfigError(f"{error}; or write {', '.join(words)}") from error

    def _choice(self, choices: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        if value not in choices:
            options = ", ".join(map(str, choices))
            hint = nearest(str(value), choices)
            self._fail(node, f"'{key}' must be one of {options}, not {value!r}{hint}")
        return value

    def _tuple(self, args: tuple[Any, ...], node: yaml.Node, key: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, f"'{key}' must be a list")
        items = typing.cast(list, node.value)
        if args[-1] is not Ellipsis and len(items) != len(args):
            self._fail(node, f"'{key}' must be a list of {len(args)} values, not {len(items)}")
        return tuple(self.read(args[0], item, key) for item in items)

    def _scalar(self, kind: type, node: yaml.Node, key: str) -> Any:
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        try:
            if value is None or _is_null(node):
                raise ValueError
            if kind is bool:
                return {"true": True, "false": False}[value.lower()]
            if kind is float and _NOT_FINITE.fullmatch(value):
                value = value.replace(".", "")  # YAML's spelling, which Python does not read
            return kind(value)
        except (ValueError, KeyError):
            actual = "a list or mapping" if value is None else repr(value)
            self._fail(node, f"'{key}' must be {_in_words(kind)}, not {actual}")

    def _fail(self, node: yaml.Node, message: str) -> typing.NoReturn:
        line = f":{node.start_mark.line + 1}" if self.lines else ""
        raise ConfigError(f"{self.source}{line}: {message}")


_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _in_words(kind: type) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, kind.__name__)
