"""config.json of Hugging Face to `DecoderConfig` and back; unknown settings are refused.

The keys of a family, and the fields they belong to, are in its table in `models.families`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.core.limits import SIZES
from jaxunlearn.core.names import nearest, shortened
from jaxunlearn.models import families
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.models.families import Family, Key
from jaxunlearn.models.hf.defaults import DEFAULTS, TOKEN_IDS, UNREAD

# Keys that change the mathematics, and the only values that the decoder computes, of any family
# that does not say otherwise.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0.0, None),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, None),
}
_MOST = 1e12
"""More than any number that is no size."""
_COMPUTE: tuple[str, ...] = (
    "dtype",
    "precision",
    "reduce",
    "attention",
    "remat",
    "head_chunk",
)


def load_config(folder: str | Path, **compute: Any) -> DecoderConfig:
    """Reads config.json.

    Args:
      folder: a model folder as transformers writes it (4.x or 5.x).
      **compute: how to compute: dtype, attention, remat, head_chunk of `DecoderConfig`.

    Returns:
      The model's shape.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: a family that is not known, missing keys, keys it does not know, values it does
        not compute; names the file and all such keys at once.
    """
    for option in compute:
        if option not in _COMPUTE:
            hint = nearest(option, _COMPUTE)
            raise ValueError(f"load_config takes {', '.join(_COMPUTE)}, not {option!r}{hint}")
    file = Path(folder) / "config.json"
    return _parse(read_object(file), file, compute)


def config_json(config: DecoderConfig, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a model, readable by transformers 4 and 5.

    Args:
      config: the model.
      dtype: of the tensors in the same folder, such as "bfloat16".
      token_ids: bos_token_id, eos_token_id, pad_token_id.

    Returns:
      Its contents.

    Raises:
      ValueError: a model that config.json of its family cannot describe.
    """
    family = families.by_model_type(config.family)
    fixed = {key: _FIXED[key] for key in ("hidden_act", "attention_dropout")} | dict(family.fixed)
    raw = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key.name: getattr(config, field) for field, key in family.sizes.items()},
        **family.rotary.write(config),
        **{key: values[0] for key, values in fixed.items()},
        **{key: all(_values(config, fields)) for key, fields in family.switches.items()},
        **family.window.write(config),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        **{key: token_ids[key] for key in TOKEN_IDS if key in token_ids},
    }
    _check_same(config, raw)
    return raw


def _check_same(config: DecoderConfig, raw: dict[str, Any]) -> None:
    """Raises ValueError unless a config.json describes exactly this model."""
    compute = dict(zip(_COMPUTE, _values(config, _COMPUTE), strict=True))
    read = _parse(raw, Path("config.json"), compute)
    fields = [field.name for field in dataclasses.fields(config)]
    lost = [name for name in fields if getattr(read, name) != getattr(config, name)]
    if lost:
        settings = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise ValueError(
            f"config.json of the family {config.family!r} cannot describe a model with {settings}"
        )


def _values(config: DecoderConfig, fields: Iterable[str]) -> list[Any]:
    return [getattr(config, field) for field in fields]


def read_object(file: Path) -> dict[str, Any]:
    """Reads a config.json as it is.

    Raises:
      FileNotFoundError, ValueError: no such file, or it holds no JSON object; names it.
    """
    try:
        raw = files.read_json(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file; a model folder has a config.json") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected an object, found {type(raw).__name__}")
    return raw


def _parse(raw: dict[str, Any], file: Path, compute: Mapping[str, Any]) -> DecoderConfig:
    """The contents of config.json as a `DecoderConfig`; errors name the file."""
    try:
        _check_single(raw)
        family = families.by_model_type(raw.get("model_type", "missing"))
        problems = [
            *_unsupported(raw, family),
            *_unknown(raw, family),
            *_mistyped(raw, family),
            *_unreadable(raw, family),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        config = DecoderConfig(**_fields(raw, family))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return dataclasses.replace(config, **compute)


def _fields(raw: dict[str, Any], family: Family) -> dict[str, Any]:
    """The fields of `DecoderConfig` that a checked config.json gives."""
    fields = {field: raw.get(key.name, key.default) for field, key in family.sizes.items()}
    heads, width = fields["num_heads"], fields["hidden_size"]
    fields["num_kv_heads"] = fields["num_kv_heads"] or heads
    if not fields["head_dim"]:
        if width % heads:
            raise ValueError(f"hidden_size={width} is not a multiple of {heads} heads")
        fields["head_dim"] = width // heads
    for key, names in family.switches.items():
        fields |= dict.fromkeys(names, raw.get(key, False))
    fields |= family.rotary.read(raw) | family.window.read(raw, fields["num_layers"])
    return {**fields, **family.constants, "family": family.model_type}


def _check_single(raw: dict[str, Any]) -> None:
    """Refuses a model of texts and images, whose config.json holds that of its language model.

    Raises:
      ValueError: it is such a model; says how to save the language model by itself.
    """
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        return
    outer, kind = raw.get("model_type"), inner.get("model_type", "missing")
    message = f"model_type={outer!r} holds a language model ({kind!r}, text_config) and others"
    for family in families.FAMILIES.values():
        if family.wrapper is not None and (family.wrapper, family.model_type) == (outer, kind):
            raise ValueError(
                f"{message}: save it by itself with transformers 5, "
                f"{family.architecture}.from_pretrained(SOURCE, "
                'key_mapping={"^language_model.": ""}).save_pretrained(FOLDER, '
                "save_original_format=False)"
            )
    raise ValueError(f"{message}: only a language model by itself is supported")


def _unsupported(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for each key whose value the decoder does not compute."""
    for key, allowed in {**DEFAULTS, **_FIXED, **family.fixed}.items():
        if key in raw and raw[key] not in allowed:
            remove = "; remove it if the model does not need it" if key in DEFAULTS else ""
            yield f"{key}={raw[key]!r} is not supported, only {allowed[0]!r}{remove}"


def _unknown(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for each key that no table lists."""
    keys = {key.name for key in family.sizes.values()} | set(family.switches)
    keys |= {*family.window.keys, *family.rotary.keys, *family.fixed, *_FIXED}
    harmless = {*UNREAD, *DEFAULTS, *family.unread}
    for key in raw:
        if key not in keys | harmless and not key.startswith("transformers.js"):
            yield (
                f"unknown key {key!r} (value {raw[key]!r}) might change what the model "
                f"computes{nearest(key, sorted(keys))}; remove it if it does not"
            )


def _mistyped(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for each key that is missing or has a value of another type."""
    switches = [Key(name, bool, False) for name in family.switches]
    sizes = [(key, SIZES.get(field, _MOST)) for field, key in family.sizes.items()]
    for key, most in [*sizes, *((key, _MOST) for key in switches)]:
        value = raw.get(key.name, key.default)
        number = isinstance(value, (int, float) if key.kind is float else key.kind)
        fits = number and isinstance(value, bool) == (key.kind is bool)
        if not fits and not (value is None and (key.default is None or key.nullable)):
            problem = f"found {value!r}" if key.name in raw else "and is missing"
            yield f"{key.name} should be of type {key.kind.__name__}, {problem}"
        elif key.kind is not bool and isinstance(value, int | float) and not 0 < value <= most:
            found = shortened(repr(value))
            yield f"{key.name} should be positive and at most {most:.15g}, found {found}"


def _unreadable(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for rotary frequencies or windows that the decoder does not compute."""
    readers: list[Callable[[], Any]] = [partial(family.rotary.read, raw)]
    num_layers = raw.get("num_hidden_layers")
    if isinstance(num_layers, int) and 0 < num_layers <= SIZES["num_layers"]:
        readers.append(partial(family.window.read, raw, num_layers))
    for read in readers:
        try:
            read()
        except ValueError as error:
            yield str(error)
