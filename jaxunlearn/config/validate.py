"""Checks every value of a configuration that can be checked without data, model or devices."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

from jaxunlearn.config.schema import Config, ConfigError, Data, Objective, Prompt
from jaxunlearn.config.train import Lora, Train
from jaxunlearn.core.limits import SIZES, STEPS
from jaxunlearn.core.names import nearest

RESERVED_NAMES = ("before", "base", "retrained")
"""Names of models that a run makes by itself, and so not of objectives."""

LONGEST_NAME = 150
"""Bytes of a name: names of files end at 255, and get endings."""

RETAIN_TERMS = ("gd", "kl", "rr")


class Range(NamedTuple):
    """The values that a number may have.

    Attributes:
      words: the end of the sentence "KEY: VALUE must ...".
      holds: whether a finite number is in the range.
      unlimited: what to give instead of infinity, where somebody may mean something by it.
    """

    words: str
    holds: Callable[[Any], bool]
    unlimited: str = ""


FINITE = Range("be a finite number", lambda x: True)
POSITIVE = Range("be positive", lambda x: x > 0)
NOT_NEGATIVE = Range("not be negative", lambda x: x >= 0)
SHARE = Range("be between 0 and 1, both excluded", lambda x: 0 < x < 1)


def at_least(least: int) -> Range:
    """Returns the range of the numbers from `least` on."""
    return Range(f"be at least {least}", lambda x: x >= least)


def between(least: int, most: int) -> Range:
    """Returns the range of the numbers from `least` to `most`."""
    return Range(f"be in {least}..{most}", lambda x: least <= x <= most)


# Seeds of 64 bits and more do not fit the random keys.
SEED = between(0, 2**63 - 1)
# A TPU pod has less than 2**14 chips. A forecast makes as many devices as it is asked for.
DEVICES = between(1, 2**14)
TOKENS = between(1, 2**31 - 1)
WARMUP = between(0, STEPS)

RANGES: Mapping[str, Range] = {
    "seed": SEED,
    "new_model.hidden_size": between(1, SIZES["hidden_size"]),
    "new_model.intermediate_size": between(1, SIZES["intermediate_size"]),
    "new_model.num_layers": between(1, SIZES["num_layers"]),
    "new_model.num_heads": between(1, SIZES["num_heads"]),
    "new_model.num_kv_heads": between(1, SIZES["num_kv_heads"]),
    "new_model.context": between(1, SIZES["context"]),
    "new_model.vocab_size": between(259, SIZES["vocab_size"]),  # 256 bytes and three special tokens
    "compute.batch_tokens": TOKENS,
    "compute.width_step": between(1, 2**16),
    "compute.save_minutes": POSITIVE,
    "compute.data": DEVICES,
    "compute.fsdp": DEVICES,
    "compute.tensor": DEVICES,
    "data.chunk_tokens": between(2, SIZES["context"]),
    "data.fictional.seed": SEED,
    "data.fictional.authors": between(2, 10**6),
    "data.fictional.questions": between(1, 20),
    "data.fictional.forget_share": SHARE,
    "finetune.epochs": between(0, STEPS),
    "finetune.batch_size": at_least(1),
    "finetune.lr": POSITIVE,
    "finetune.warmup_epochs": WARMUP,
    "finetune.weight_decay": NOT_NEGATIVE,
    "finetune.evaluate_every": at_least(1),
    "finetune.target_nll": POSITIVE._replace(unlimited="leave it out (null) to train all epochs"),
    "finetune.patience": at_least(1),
    "unlearn.epochs": between(1, STEPS),
    "unlearn.batch_size": at_least(1),
    "unlearn.lr": POSITIVE,
    "unlearn.warmup_epochs": WARMUP,
    "unlearn.weight_decay": NOT_NEGATIVE,
    "unlearn.accumulate": at_least(1),
    "unlearn.keep_checkpoints": between(1, STEPS),
    # 0 would stop all updates, and a negative norm would turn the gradient round.
    "unlearn.clip_norm": POSITIVE._replace(unlimited="leave it out (null) for no clipping"),
    "train.lora.rank": between(1, SIZES["hidden_size"]),
    "train.lora.alpha": POSITIVE,
    "objectives.*.hyper.*": FINITE,
    "objectives.*.gamma": FINITE,
    "objectives.*.retain_hyper.*": FINITE,
    "objectives.*.retain_weight": FINITE,
    "objectives.*.layer": NOT_NEGATIVE,
    "objectives.*.scale": POSITIVE,
    "objectives.*.guide.every": at_least(1),
    "objectives.*.guide.penalty": NOT_NEGATIVE,
    "objectives.*.guide.power": NOT_NEGATIVE,
    "objectives.*.lr": POSITIVE,
    "measure.every": NOT_NEGATIVE,
    "measure.steps": NOT_NEGATIVE,
    "measure.pg_steps": NOT_NEGATIVE,
    "measure.token_steps": NOT_NEGATIVE,
    "measure.layer_cuts": NOT_NEGATIVE,
    "evaluate.generate": NOT_NEGATIVE,
    "evaluate.recite": NOT_NEGATIVE,
    "evaluate.every": NOT_NEGATIVE,
    "relearn.samples": at_least(1),
    "relearn.steps": between(1, STEPS),
    "relearn.lr": POSITIVE,
}
"""The range of every number of the schema; `*` stands for the keys of a mapping."""


def validate(config: Config) -> None:
    """Checks the values of a configuration, alone and against each other.

    What depends on data, model or devices is checked when a run is prepared.

    Args:
      config: the configuration.

    Raises:
      ConfigError: the first bad value; names the key, the value and what is allowed.
    """
    for key, pattern, value in _numbers(config, "", ""):
        check_number(key, RANGES[pattern], value)
    _check_file_name("name", config.name)
    # An empty path would be the working directory, and an empty name that of another thing.
    paths = {
        "model": config.model,
        "data.source": config.data.source,
        "train.lora.start": config.train.lora.start,
        "evaluate.retain_log": config.evaluate.retain_log,
    } | {f"objectives.{name}.loss": spec.loss for name, spec in config.objectives.items()}
    for key, path in paths.items():
        if path == "":
            raise ConfigError(f"{key}: '' must not be empty; leave it out for the default")
    if config.model is None:
        _check_new_model(config)
    _check_data(config.data)
    _check_batches(config)
    _check_train(config)
    _check_measurements(config)
    if not config.objectives:
        raise ConfigError("objectives: there are none; name at least one")
    check_distinct(config.objectives)
    for name, spec in config.objectives.items():
        _check_objective(f"objectives.{name}", name, spec)


def check_distinct(names: Iterable[str]) -> None:
    """Checks that objectives have different folders on disks that do not tell A from a.

    Raises:
      ConfigError: names two that differ in case alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(
                f"objectives.{name}: differs from objectives.{other} in case alone, and some disks"
                " have one folder for both; choose another name"
            )


def _check_file_name(key: str, name: str) -> None:
    """Checks a name that becomes that of a folder."""
    if not name:
        raise ConfigError(f"{key}: '' must not be empty")
    if not name.isprintable() or "/" in name or "\\" in name or name in (".", ".."):
        raise ConfigError(f"{key}: {name!r} must be the name of a folder, without slashes")
    if (size := len(name.encode())) > LONGEST_NAME:
        raise ConfigError(f"{key}: of {size} bytes, must have at most {LONGEST_NAME}")


def _numbers(value: Any, key: str, pattern: str) -> Iterator[tuple[str, str, Real]]:
    """Yields every number of a configuration as (key, key in `RANGES`, value)."""
    below = lambda name: f"{key}.{name}".lstrip(".")
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            part = f"{pattern}.{field.name}".lstrip(".")
            yield from _numbers(getattr(value, field.name), below(field.name), part)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, below(name), f"{pattern}.*")
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item, key, pattern)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield key, pattern, value


def check_number(key: str, allowed: Range, value: Any) -> None:
    """Checks that a number is finite and in a range.

    Raises:
      ConfigError: names the key, the value and what is allowed.
    """
    # A whole number of any size is finite, and may be too large for a float.
    if not isinstance(value, int) and not math.isfinite(value):
        remedy = f"; {allowed.unlimited}" if allowed.unlimited else ""
        raise ConfigError(f"{key}: {value} must be a finite number{remedy}")
    if not allowed.holds(value):
        raise ConfigError(f"{key}: {value} must {allowed.words}")


def _check_new_model(config: Config) -> None:
    sizes = config.new_model
    for key, parts, whole in (
        ("num_heads", sizes.num_heads, "hidden_size"),
        ("num_kv_heads", sizes.num_kv_heads, "num_heads"),
    ):
        if getattr(sizes, whole) % parts:
            raise ConfigError(
                f"new_model.{key}: {parts} must divide new_model.{whole}, {getattr(sizes, whole)}"
            )
    width = sizes.hidden_size // sizes.num_heads
    if width % 2:
        raise ConfigError(
            f"new_model.num_heads: {sizes.num_heads} makes heads of width {width}, which must be"
            " even for rotary positions"
        )


def _check_data(data: Data) -> None:
    """Checks the columns and the prompt, and that none of them is without effect."""
    columns: dict[str, str] = {}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if not field.name.endswith("_key") or value is None:
            continue
        if not value:
            raise ConfigError(f"data.{field.name}: '' must not be empty")
        if value in columns and data.text_key is None:
            raise ConfigError(f"data.{field.name}: {value!r} is data.{columns[value]} already")
        columns[value] = field.name
    if data.text_key is None and data.chunk_tokens is not None:
        raise ConfigError("data.chunk_tokens: is for free text; set data.text_key")
    if data.text_key is not None and data.prompt != Prompt():
        raise ConfigError("data.prompt: free text (data.text_key) has no questions to write")
    if data.prompt.style == "tofu":
        for field in dataclasses.fields(Prompt):
            if field.name != "style" and getattr(data.prompt, field.name) != field.default:
                raise ConfigError(f"data.prompt.{field.name}: needs data.prompt.style: chat")
    for i, example in enumerate(data.prompt.examples):
        for field in dataclasses.fields(example):
            if not getattr(example, field.name).strip():
                raise ConfigError(f"data.prompt.examples[{i}].{field.name}: must not be empty")


def _check_batches(config: Config) -> None:
    size, parts = config.unlearn.batch_size, config.unlearn.accumulate
    if size % parts:
        raise ConfigError(f"unlearn.accumulate: {parts} does not divide the batch_size of {size}")
    if config.finetune.retrained and not config.finetune.epochs:
        raise ConfigError("finetune.retrained: needs finetune.epochs of at least 1")
    if config.finetune.epochs and not config.finetune.splits:
        raise ConfigError("finetune.splits: there are none; name at least one")
    if config.compute.attention == "cudnn" and config.compute.dtype != "bfloat16":
        raise ConfigError(
            f"compute.attention: cudnn needs compute.dtype: bfloat16, not {config.compute.dtype}"
        )


def _check_train(config: Config) -> None:
    """Checks that what trains is said once, and that no key of it is without effect."""
    train, lora = config.train, config.train.lora
    for name in ("alpha", "targets"):
        if not lora.used and getattr(lora, name) != getattr(Lora(), name):
            raise ConfigError(f"train.lora.{name}: needs train.lora.rank")
    if lora.used and train.only:
        raise ConfigError("train.only: with train.lora the adapters alone train; give one of them")
    if lora.start is not None and config.finetune.epochs:
        raise ConfigError(
            "train.lora.start: the adapter belongs to the model as it is; set finetune.epochs: 0"
        )
    if lora.start is not None and config.model is None:
        raise ConfigError("train.lora.start: needs the model of the adapter; set model")
    if not lora.used and not train.only and train.frozen_dtype != Train().frozen_dtype:
        raise ConfigError("train.frozen_dtype: nothing is frozen; set train.lora or train.only")
    if "" in train.only:
        raise ConfigError("train.only: '' is in every name; leave it out to train all parameters")
    for pattern in train.only:
        try:
            re.compile(pattern)
        except re.error as error:
            message = f"train.only: {pattern!r} is no regular expression: {error}"
            raise ConfigError(message) from error


def _check_measurements(config: Config) -> None:
    measure = config.measure
    extra = set(measure.token_steps) - set(measure.pg_steps)
    if extra:
        raise ConfigError(f"measure.token_steps: {min(extra)} is not one of measure.pg_steps")


def _check_objective(key: str, name: str, spec: Objective) -> None:
    if name in RESERVED_NAMES or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", name):
        raise ConfigError(
            f"{key}: names are letters, digits, '_' and, not first, '.', and none of"
            f" {', '.join(RESERVED_NAMES)}"
        )
    _check_file_name(key, name)
    if spec.retain is not None and ":" not in spec.retain and spec.retain not in RETAIN_TERMS:
        raise ConfigError(
            f"{key}.retain: {spec.retain!r} must be one of {', '.join(RETAIN_TERMS)}, or"
            f" my_package.my_module:my_term{nearest(spec.retain, RETAIN_TERMS)}"
        )
    if spec.retain is None and spec.retain_hyper:
        raise ConfigError(f"{key}.retain_hyper: needs a retain term; set {key}.retain: gd")
    if spec.retain is None and spec.spare is not None:
        raise ConfigError(f"{key}.spare: needs a retain term to spare; set {key}.retain: gd")
