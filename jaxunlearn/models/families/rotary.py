"""How config.json writes the rotary frequencies, by family: as transformers 4 does, or 5."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxunlearn.models.decoder.config import DecoderConfig, LinearRopeScaling, Llama3RopeScaling

Scaling = Llama3RopeScaling | LinearRopeScaling | None

_MOST = 1e12
"""More than any number of a scaling."""
_PARAMETERS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}
"""The kinds of scaling, and what each takes."""


class Rotary(NamedTuple):
    """One way to write the rotary frequencies.

    Attributes:
      keys: the keys of config.json that it reads.
      read: config.json -> the fields `rope_theta`, `rope_scaling` and `local_rope_theta` that it
        has; raises ValueError for frequencies that the decoder does not compute.
      write: the model -> the keys and their values, as transformers 4 and 5 read them.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[DecoderConfig], dict[str, Any]]


def all_alike(*kinds: str) -> Rotary:
    """The frequencies of all layers are the same.

    Args:
      *kinds: the kinds of scaling that the family has.
    """

    def read(raw: Mapping[str, Any]) -> dict[str, Any]:
        forms = {key: raw.get(key) for key in ("rope_parameters", "rope_scaling")}
        theta, scaling = _read(forms, ("rope_theta", raw.get("rope_theta")), 10000.0, kinds)
        return {"rope_theta": theta, "rope_scaling": scaling}

    def write(config: DecoderConfig) -> dict[str, Any]:
        return _older_keys(config) | {
            "rope_parameters": _form(config.rope_scaling) | {"rope_theta": config.rope_theta}
        }

    return Rotary(("rope_theta", "rope_scaling", "rope_parameters"), read, write)


ALL_ALIKE = all_alike("default", "llama3")
"""The frequencies of all layers are the same, perhaps with Llama 3's scaling."""


def _read_by_kind(raw: Mapping[str, Any]) -> dict[str, Any]:
    nested = raw.get("rope_parameters") or {}
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(nested, dict) or not nested.keys() <= set(kinds):
        raise ValueError(f"rope_parameters should have the keys {list(kinds)}, found {nested!r}")
    forms = {f"rope_parameters.{kind}": nested.get(kind) for kind in kinds}
    local = {"rope_parameters.sliding_attention": forms.pop("rope_parameters.sliding_attention")}
    forms["rope_scaling"] = raw.get("rope_scaling")
    base, local_base = ((key, raw.get(key)) for key in ("rope_theta", "rope_local_base_freq"))
    theta, scaling = _read(forms, base, 1e6, ("default", "linear"))
    local_theta, _ = _read(local, local_base, 1e4, ("default",))
    return {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local_theta}


def _write_by_kind(config: DecoderConfig) -> dict[str, Any]:
    return _older_keys(config) | {
        "rope_local_base_freq": config.local_rope_theta,
        "rope_parameters": {
            "full_attention": _form(config.rope_scaling) | {"rope_theta": config.rope_theta},
            "sliding_attention": _form(None) | {"rope_theta": config.local_rope_theta},
        },
    }


BY_KIND = Rotary(
    ("rope_theta", "rope_local_base_freq", "rope_scaling", "rope_parameters"),
    _read_by_kind,
    _write_by_kind,
)
"""Layers with a window have frequencies of their own; those of the others may be scaled."""


def _older_keys(config: DecoderConfig) -> dict[str, Any]:
    scaling = None if config.rope_scaling is None else _form(config.rope_scaling)
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def _form(scaling: Scaling) -> dict[str, Any]:
    """A scaling as transformers writes it."""
    if scaling is None:
        return {"rope_type": "default"}
    if isinstance(scaling, LinearRopeScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def _read(
    found: Mapping[str, Any], base: tuple[str, Any], default: float, kinds: tuple[str, ...]
) -> tuple[float, Scaling]:
    """theta and scaling, wherever they are written.

    Args:
      found: {key of config.json: what it says of theta and scaling, as in transformers 5, or of the
        scaling alone, as in 4}; None or empty says nothing.
      base: the key of theta alone, and its value or None.
      default: theta where nothing says it.
      kinds: the kinds of scaling that the family has.
    """
    forms = {}
    for key, value in found.items():
        if value and not isinstance(value, dict):
            raise ValueError(f"{key} should be an object, found {value!r}")
        if value:
            forms[key] = _plain(key, value, base[1] or default)
    (key, form), *others = forms.items() or [(base[0], _plain(base[0], {}, base[1] or default))]
    for other, another in others:
        if form != another:
            raise ValueError(f"{key} and {other} contradict each other; remove one of them")
    theta, kind = form.pop("rope_theta"), form.pop("rope_type")
    if base[1] is not None and base[1] != theta:
        raise ValueError(f"{base[0]}={base[1]!r} contradicts {key}'s {theta!r}")
    if not isinstance(kind, str) or kind not in kinds:
        supported = " or ".join(map(repr, kinds))
        raise ValueError(f"{key}: rope_type={kind!r} is not supported, only {supported}")
    if set(form) != _PARAMETERS[kind]:
        expected = sorted(_PARAMETERS[kind]) or "no further keys"
        raise ValueError(f"{key}: {kind!r} takes {expected}, found {sorted(form)}")
    for name, value in {base[0]: theta, **form}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} should be a number, found {value!r}")
        if not 0 < value < _MOST:
            raise ValueError(f"{name} should be positive and below {_MOST:.0e}, found {value!r}")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearRopeScaling(**form)
    context = form.pop("original_max_position_embeddings")
    return theta, Llama3RopeScaling(**form, original_context=context)


def _plain(key: str, value: Mapping[str, Any], theta: Any) -> dict[str, Any]:
    """One dict with rope_theta and rope_type, whichever way they are written."""
    # Without the key, as in Llama-2's files, the frequencies are the default ones.
    form = dict(value)
    older = form.pop("type", "default")
    form.setdefault("rope_type", older)
    form.setdefault("rope_theta", theta)
    share = form.pop("partial_rotary_factor", 1)
    if share != 1:
        raise ValueError(f"{key}: partial_rotary_factor={share!r} is not supported, only 1")
    return form
