"""Flags that override a configuration, among them those of entries that its file does not have."""

import dataclasses
from collections.abc import Iterator

import tyro
import yaml

from jaxunlearn.config import Config, ConfigError, Example, Objective, override

_OBJECTIVES, _EXAMPLES = "objectives.", "data.prompt.examples."
_HYPER = ("hyper", "retain_hyper")


def read(name: str, config: Config, arguments: list[str], *, keys: bool = False) -> Config:
    """Reads flags into a configuration.

    The flags are generated from the configuration, so an objective, a hyper-parameter or an example
    that the file lacks has none. It is put into the configuration first.

    Args:
      name: of the command, for the help text.
      config: from the file, whose values are the defaults.
      arguments: `--KEY VALUE` each.
      keys: whether all flags are listed instead; the process then exits.

    Raises:
      ConfigError: names the flag whose value cannot be read.
      SystemExit: an unknown flag; the message names the nearest ones.
    """
    if keys:
        arguments = ["--help"]
    config = _with_examples(_with_objectives(config, arguments), arguments)
    config, rest = _with_hyper(config, arguments)
    return tyro.cli(Config, prog=f"jaxunlearn {name}", args=rest, default=config)


def _paths(arguments: list[str], prefix: str) -> Iterator[tuple[int, str]]:
    """(position, what follows the prefix) of the flags below a key."""
    for i, argument in enumerate(arguments):
        path = argument.partition("=")[0].replace("-", "_").removeprefix("__")
        if argument.startswith("--") and path.startswith(prefix):
            yield i, path.removeprefix(prefix)


def _objective(config: Config, path: str) -> tuple[str, str]:
    """The name of an objective, which may hold dots where the file has it, and the key below it."""
    known = [name for name in config.objectives if path.startswith(f"{name}.")]
    if not known:
        name, _, key = path.partition(".")
        return name, key
    name = max(known, key=len)
    return name, path.removeprefix(f"{name}.")


def _with_objectives(config: Config, arguments: list[str]) -> Config:
    """The configuration with the objectives that flags name; new ones have all defaults."""
    entries = dict(config.objectives)
    for _, path in _paths(arguments, _OBJECTIVES):
        name, key = _objective(config, path)
        if key:
            entries.setdefault(name, Objective())
    return dataclasses.replace(config, objectives=entries)


def _with_examples(config: Config, arguments: list[str]) -> Config:
    """The configuration with as many examples as flags name; new ones are empty."""
    prompt = config.data.prompt
    examples = list(prompt.examples)
    for _, path in _paths(arguments, _EXAMPLES):
        number = path.partition(".")[0]
        if number.isdecimal() and int(number) > len(examples):
            raise ConfigError(
                f"--{_EXAMPLES}{path}: examples are numbered from 0, and the next one is"
                f" {len(examples)}"
            )
        if number.isdecimal() and int(number) == len(examples):
            examples.append(Example(question="", answer=""))
    data = dataclasses.replace(
        config.data, prompt=dataclasses.replace(prompt, examples=tuple(examples))
    )
    return dataclasses.replace(config, data=data)


def _with_hyper(config: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """The configuration with hyper-parameters that it lacked, and the arguments without them."""
    taken: set[int] = set()
    for i, path in _paths(arguments, _OBJECTIVES):
        name, key = _objective(config, path)
        section, _, hyper = key.partition(".")
        if section not in _HYPER or not hyper or hyper in getattr(config.objectives[name], section):
            continue
        flag, equals, value = arguments[i].partition("=")
        if not equals:
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise ConfigError(f"{flag}: expected a value, such as {flag} 0.5")
            value = arguments[i + 1]
            taken.add(i + 1)
        taken.add(i)
        values = {"objectives": {name: {section: {hyper: _value(flag, value)}}}}
        config = override(config, values, flag)
    return config, [argument for i, argument in enumerate(arguments) if i not in taken]


def _value(flag: str, text: str) -> object:
    """A value as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag}: the value {text!r} is not valid YAML") from error
