"""Hugging Face's config.json to `LlamaConfig` and back; what it does not understand, it refuses."""

import difflib
import json
from pathlib import Path
from typing import Any

from jaxunlearn.models.architecture import Llama3RopeScaling, LlamaConfig

# Our field -> (key of config.json, default of transformers; None = must be there).
_FIELDS = {
    "vocab_size": ("vocab_size", None),
    "hidden_size": ("hidden_size", None),
    "intermediate_size": ("intermediate_size", None),
    "num_layers": ("num_hidden_layers", None),
    "num_heads": ("num_attention_heads", None),
    "context": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
}
_DERIVED = {"num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters"}
# Keys that change the mathematics, and the only values that this Llama computes.
_ONLY = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, None),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, None),
    "sliding_window": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
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
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "return_dict",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_COMPUTE = ("dtype", "attention", "remat", "head_chunk")
_ROPE_KEYS = {
    "default": set(),
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


def load_config(folder: str | Path, **compute: Any) -> LlamaConfig:
    """Reads config.json.

    Args:
      folder: a model folder as transformers writes it (4.x or 5.x).
      **compute: how to compute: dtype, attention, remat, head_chunk of `LlamaConfig`.

    Returns:
      The model's shape.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: a missing key, a key it does not know, a value it does not compute; all name the
        file and the key.
    """
    unknown = sorted(set(compute) - set(_COMPUTE))
    if unknown:
        raise ValueError(f"load_config takes {', '.join(_COMPUTE)}, not {unknown[0]!r}")
    file = Path(folder) / "config.json"
    raw = _read_json(file)
    _refuse_unknown(raw, file)
    fields = {ours: _value(raw, key, default, file) for ours, (key, default) in _FIELDS.items()}
    heads, width = fields["num_heads"], fields["hidden_size"]
    head_dim = raw.get("head_dim") or width // heads
    if not raw.get("head_dim") and width % heads:
        raise ValueError(f"{file}: hidden_size={width} is not a multiple of {heads} heads")
    rope_theta, rope_scaling = _rope(raw, file)
    return LlamaConfig(
        **fields,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        **compute,
    )


def config_json(config: LlamaConfig, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model, readable by transformers 4 and 5.

    Args:
      config: the model.
      dtype: of the tensors beside it, such as "bfloat16".
      token_ids: bos_token_id, eos_token_id, pad_token_id.

    Returns:
      Its contents.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(config, ours) for ours, (key, _) in _FIELDS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        **{key: token_ids[key] for key in TOKEN_IDS if token_ids.get(key) is not None},
    }


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file; a model folder has a config.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected an object, found {type(raw).__name__}")
    return raw


def _refuse_unknown(raw: dict[str, Any], file: Path) -> None:
    for key, allowed in _ONLY.items():
        if key in raw and raw[key] not in allowed:
            raise ValueError(f"{file}: {key}={raw[key]!r} is not supported, only {allowed[0]!r}")
    known = {key for key, _ in _FIELDS.values()} | _DERIVED | set(_ONLY) | _HARMLESS
    for key in raw:
        if key not in known and not key.startswith("transformers.js"):
            nearest = difflib.get_close_matches(key, known, 1)
            hint = f"; perhaps {nearest[0]!r} is meant" if nearest else ""
            raise ValueError(
                f"{file}: unknown key {key!r} (value {raw[key]!r}) might change what the model "
                f"computes{hint}; remove it if it does not"
            )


def _value(raw: dict[str, Any], key: str, default: Any, file: Path) -> Any:
    value = raw.get(key, default)
    kind = bool if default is False else float if isinstance(default, float) else int
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        found = f"found {value!r}" if key in raw else "and is missing"
        raise ValueError(f"{file}: {key} should be of type {kind.__name__}, {found}")
    return value


def _rope(raw: dict[str, Any], file: Path) -> tuple[float, Llama3RopeScaling | None]:
    """theta and scaling, from rope_parameters (transformers 5) or rope_theta and rope_scaling."""
    forms = {
        key: _rope_form(raw, key) for key in ("rope_parameters", "rope_scaling") if raw.get(key)
    }
    if len(forms) == 2 and forms["rope_parameters"] != forms["rope_scaling"]:
        raise ValueError(f"{file}: rope_parameters and rope_scaling contradict each other")
    key, rope = next(iter(forms.items()), ("rope_theta", _rope_form(raw, "rope_theta")))
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    if raw.get("rope_theta") is not None and raw["rope_theta"] != theta:
        raise ValueError(f"{file}: rope_theta={raw['rope_theta']!r} contradicts {key}'s {theta!r}")
    if kind not in _ROPE_KEYS:
        raise ValueError(
            f"{file}: {key}: rope_type={kind!r} is not supported, only "
            f"{' or '.join(map(repr, _ROPE_KEYS))}"
        )
    if set(rope) != _ROPE_KEYS[kind]:
        expected = sorted(_ROPE_KEYS[kind]) or "no further keys"
        raise ValueError(f"{file}: {key}: {kind!r} takes {expected}, found {sorted(rope)}")
    if kind == "default":
        return theta, None
    context = rope.pop("original_max_position_embeddings")
    return theta, Llama3RopeScaling(**rope, original_context=context)


def _rope_form(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """One dict with rope_theta and rope_type, whichever way they are written."""
    form = dict(raw[key]) if isinstance(raw.get(key), dict) else {}
    older = form.pop("type", "default")
    form.setdefault("rope_type", older)
    form.setdefault("rope_theta", raw.get("rope_theta") or 10000.0)
    if form.get("partial_rotary_factor") == 1:
        del form["partial_rotary_factor"]
    return form
