"""config.json of Hugging Face to `DecoderConfig` and back; unknown settings are refused.

The keys of a family, and the fields they belong to, are in its table in `models.families`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxunlearn.core import files
from jaxunlearn.core.names import nearest
from jaxunlearn.models import families
from jaxunlearn.models.decoder import DecoderConfig, Llama3RopeScaling
from jaxunlearn.models.families import Family, Key

_ROPE = {"rope_theta", "rope_scaling", "rope_parameters"}
# Keys that change the mathematics, and the only values that the decoder computes, of any family.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, None),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
_MOST = 1e12
"""More than any size of a model."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that change no number that is computed here (pretraining_tp only reorders sums).
_HARMLESS = {
    *TOKEN_IDS,
    "architectures",
    "_name_or_path",
    "_attn_implementation_autoset",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "return_dict",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_COMPUTE: tuple[str, ...] = (
    "dtype",
    "precision",
    "reduce",
    "attention",
    "remat",
    "head_chunk",
)
_ROPE_KEYS = {
    "default": set(),
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


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
    return _parse(_read_json(file), file, compute)


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
    raw = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key.name: getattr(config, field) for field, key in family.sizes.items()},
        **_rope_keys(config),
        "hidden_act": "silu",
        **{key: all(_values(config, fields)) for key, fields in family.switches.items()},
        "attention_dropout": 0.0,
        **family.window.write(config.sliding_window, config.num_layers),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        **{key: token_ids[key] for key in TOKEN_IDS if token_ids.get(key) is not None},
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


def _read_json(file: Path) -> dict[str, Any]:
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
    fields["rope_theta"], fields["rope_scaling"] = _rope(raw)
    window = family.window.read(raw, fields["num_layers"])
    return {**fields, **family.constants, "sliding_window": window, "family": family.model_type}


def _unsupported(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for each key whose value the decoder does not compute."""
    for key, allowed in {**_FIXED, **family.fixed}.items():
        if key in raw and raw[key] not in allowed:
            yield f"{key}={raw[key]!r} is not supported, only {allowed[0]!r}"


def _unknown(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for each key that no table lists."""
    keys = {key.name for key in family.sizes.values()} | set(family.switches)
    keys |= {*family.window.keys, *family.fixed, *_FIXED, *_ROPE}
    for key in raw:
        if key not in keys | _HARMLESS and not key.startswith("transformers.js"):
            yield (
                f"unknown key {key!r} (value {raw[key]!r}) might change what the model "
                f"computes{nearest(key, sorted(keys))}; remove it if it does not"
            )


def _mistyped(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for each key that is missing or has a value of another type."""
    switches = [Key(name, bool, False) for name in family.switches]
    for key in [*family.sizes.values(), *switches]:
        value = raw.get(key.name, key.default)
        number = isinstance(value, (int, float) if key.kind is float else key.kind)
        fits = number and isinstance(value, bool) == (key.kind is bool)
        if not fits and not (value is None and key.default is None):
            problem = f"found {value!r}" if key.name in raw else "and is missing"
            yield f"{key.name} should be of type {key.kind.__name__}, {problem}"
        elif key.kind is not bool and isinstance(value, int | float) and not 0 < value < _MOST:
            yield f"{key.name} should be positive and below {_MOST:.0e}, found {value!r}"


def _unreadable(raw: dict[str, Any], family: Family) -> Iterator[str]:
    """A sentence for rotary frequencies or windows that the decoder does not compute."""
    readers: list[Callable[[], Any]] = [partial(_rope, raw)]
    num_layers = raw.get("num_hidden_layers")
    if isinstance(num_layers, int):
        readers.append(partial(family.window.read, raw, num_layers))
    for read in readers:
        try:
            read()
        except ValueError as error:
            yield str(error)


def _rope_keys(config: DecoderConfig) -> dict[str, Any]:
    """The rotary frequencies as transformers 4 and 5 read them."""
    scaling, rope = config.rope_scaling, {"rope_type": "default"}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    }


def _rope(raw: dict[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """theta and scaling, from rope_parameters (transformers 5) or rope_theta and rope_scaling."""
    keys = [key for key in ("rope_parameters", "rope_scaling") if raw.get(key)]
    for key in keys:
        if not isinstance(raw[key], dict):
            raise ValueError(f"{key} should be an object, found {raw[key]!r}")
    forms = {key: _rope_form(raw, key) for key in keys}
    if len(forms) == 2 and forms["rope_parameters"] != forms["rope_scaling"]:
        raise ValueError("rope_parameters and rope_scaling contradict each other")
    key, rope = next(iter(forms.items()), ("rope_theta", _rope_form(raw, "rope_theta")))
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    if raw.get("rope_theta") is not None and raw["rope_theta"] != theta:
        raise ValueError(f"rope_theta={raw['rope_theta']!r} contradicts {key}'s {theta!r}")
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise ValueError(
            f"{key}: rope_type={kind!r} is not supported, only {' or '.join(map(repr, _ROPE_KEYS))}"
        )
    if set(rope) != _ROPE_KEYS[kind]:
        expected = sorted(_ROPE_KEYS[kind]) or "no further keys"
        raise ValueError(f"{key}: {kind!r} takes {expected}, found {sorted(rope)}")
    for name, value in {"rope_theta": theta, **rope}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} should be a number, found {value!r}")
        if not 0 < value < _MOST:
            raise ValueError(f"{name} should be positive and below {_MOST:.0e}, found {value!r}")
    if kind == "default":
        return theta, None
    context = rope.pop("original_max_position_embeddings")
    return theta, Llama3RopeScaling(**rope, original_context=context)


def _rope_form(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """One dict with rope_theta and rope_type, whichever way they are written."""
    # Without the key, as in Llama-2's files, the frequencies are the default ones.
    form = dict(raw[key]) if isinstance(raw.get(key), dict) else {}
    older = form.pop("type", "default")
    form.setdefault("rope_type", older)
    form.setdefault("rope_theta", raw.get("rope_theta") or 10000.0)
    if form.get("partial_rotary_factor") == 1:
        del form["partial_rotary_factor"]
    return form
