"""How config.json says which layers attend in a sliding window, by family."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxunlearn.models.decoder.config import DecoderConfig

_SLIDING, _FULL = "sliding_attention", "full_attention"


class Window(NamedTuple):
    """One way to write a sliding window.

    Attributes:
      keys: the keys of config.json that it reads.
      read: (config.json, number of layers) -> the fields `sliding_window` and `full_layers`; raises
        ValueError for windows that the decoder does not compute.
      write: the model -> the keys and their values.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int], dict[str, Any]]
    write: Callable[["DecoderConfig"], dict[str, Any]]


def _read_none(raw: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    if raw.get("sliding_window") is not None:
        window = raw["sliding_window"]
        raise ValueError(f"sliding_window={window!r} is not supported, only None")
    return {}


FULL_ATTENTION = Window(("sliding_window",), _read_none, lambda config: {})
"""The family has no windows."""


def every_layer(default: int | None) -> Window:
    """The key "sliding_window" is the window of every layer, null for full attention.

    Args:
      default: the value that transformers takes where the key is missing.
    """

    def read(raw: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
        return {"sliding_window": _checked_size(raw.get("sliding_window", default))}

    write = lambda config: {"sliding_window": config.sliding_window}
    return Window(("sliding_window",), read, write)


def every_nth_full(period: int, key: str | None = None) -> Window:
    """Every n-th layer attends to all, the others in the window; "layer_types" may say otherwise.

    Args:
      period: n; the value that transformers takes where its key is missing.
      key: the key that n has, None where the family has none.
    """

    def read(raw: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
        n = raw.get(key, period) if key else period
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"{key} should be a positive int, found {n!r}")
        kinds = [_SLIDING if (i + 1) % n else _FULL for i in range(num_layers)]
        window = _checked_size(raw.get("sliding_window", 4096))
        return _read_kinds(raw, kinds, window)

    def write(config: "DecoderConfig") -> dict[str, Any]:
        # transformers asks for a size even where no layer has the window.
        size = config.context if config.sliding_window is None else config.sliding_window
        return {"sliding_window": size, "layer_types": _kinds(config)}

    return Window(("sliding_window", "layer_types", *([key] if key else [])), read, write)


def _read_by_layer(raw: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    active = raw.get("use_sliding_window", False)
    if not isinstance(active, bool):
        raise ValueError(f"use_sliding_window should be of type bool, found {active!r}")
    # Published files give a size and switch it off: only "use_sliding_window" makes it count.
    window = _checked_size(raw.get("sliding_window", 4096)) if active else None
    first = raw.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise ValueError(f"max_window_layers should be of type int, found {first!r}")
    sliding = lambda layer: window is not None and layer >= first
    kinds = [_SLIDING if sliding(i) else _FULL for i in range(num_layers)]
    return _read_kinds(raw, kinds, window)


def _write_by_layer(config: "DecoderConfig") -> dict[str, Any]:
    kinds = _kinds(config)
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": [*kinds, _SLIDING].index(_SLIDING),
        "layer_types": kinds,
    }


BY_LAYER = Window(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    _read_by_layer,
    _write_by_layer,
)
"""The key "use_sliding_window" switches a window on, from layer "max_window_layers" on."""


def _read_kinds(raw: Mapping[str, Any], default: list[str], window: int | None) -> dict[str, Any]:
    """The fields, from "layer_types" where config.json has it.

    Args:
      raw: config.json.
      default: the kinds of all layers where it has not.
      window: of the layers that have one.
    """
    kinds = raw.get("layer_types") or default
    if not isinstance(kinds, list):
        raise ValueError(f"layer_types should be a list, found {kinds!r}")
    if len(kinds) != len(default):
        raise ValueError(f"layer_types names {len(kinds)} layers, but there are {len(default)}")
    for kind in kinds:
        if kind not in (_SLIDING, _FULL):
            raise ValueError(
                f"layer_types: {kind!r} is not supported, only {_FULL!r} and {_SLIDING!r}"
            )
    full = tuple(layer for layer, kind in enumerate(kinds) if kind == _FULL)
    if len(full) == len(kinds):
        return {}
    if window is None:
        keys = ("use_sliding_window", "sliding_window")
        found = ", ".join(f"{key}={raw[key]!r}" for key in keys if key in raw)
        raise ValueError(
            f"layer_types names layers with {_SLIDING!r}, but there is no window"
            f" ({found or 'its keys are missing'})"
        )
    return {"sliding_window": window, "full_layers": full}


def _kinds(config: "DecoderConfig") -> list[str]:
    full = range(config.num_layers) if config.sliding_window is None else config.full_layers
    return [_FULL if layer in full else _SLIDING for layer in range(config.num_layers)]


def _checked_size(window: Any) -> int | None:
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise ValueError(f"sliding_window should be of type int, found {window!r}")
    return window
