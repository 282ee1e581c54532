"""How config.json says which layers attend in a sliding window: three ways."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Window(NamedTuple):
    """One way to write a sliding window.

    Attributes:
      keys: the keys of config.json that it reads.
      read: (config.json, number of layers) -> the window of all layers, None for full attention;
        raises ValueError for windows that the decoder does not compute.
      write: (window, number of layers) -> the keys and their values.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int], int | None]
    write: Callable[[int | None, int], dict[str, Any]]


def _read_none(raw: Mapping[str, Any], num_layers: int) -> None:
    if raw.get("sliding_window") is not None:
        window = raw["sliding_window"]
        raise ValueError(f"sliding_window={window!r} is not supported, only None")


FULL_ATTENTION = Window(("sliding_window",), _read_none, lambda window, num_layers: {})
"""The family has no windows."""


def _read_every_layer(raw: Mapping[str, Any], num_layers: int) -> int | None:
    # transformers' default where the key is missing; null means full attention.
    return _checked_size(raw.get("sliding_window", 4096))


EVERY_LAYER = Window(
    ("sliding_window",),
    _read_every_layer,
    lambda window, num_layers: {"sliding_window": window},
)
"""The key "sliding_window" is the window of every layer, null for full attention."""


def _read_by_layer(raw: Mapping[str, Any], num_layers: int) -> int | None:
    active = raw.get("use_sliding_window", False)
    if not isinstance(active, bool):
        raise ValueError(f"use_sliding_window should be of type bool, found {active!r}")
    # Published files give a size and switch it off: only "use_sliding_window" makes it count.
    window = _checked_size(raw.get("sliding_window", 4096)) if active else None
    first = raw.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise ValueError(f"max_window_layers should be of type int, found {first!r}")
    kinds = raw.get("layer_types") or [
        "sliding_attention" if window is not None and i >= first else "full_attention"
        for i in range(num_layers)
    ]
    if len(kinds) != num_layers:
        raise ValueError(f"layer_types names {len(kinds)} layers, but there are {num_layers}")
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"} and window is not None:
        return window
    raise ValueError(
        f"use_sliding_window={active}, sliding_window={raw.get('sliding_window')!r}, "
        f"max_window_layers={first!r}, layer_types={raw.get('layer_types')!r}: not supported, only "
        "the same window in all layers, or none"
    )


def _write_by_layer(window: int | None, num_layers: int) -> dict[str, Any]:
    kind = "full_attention" if window is None else "sliding_attention"
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": num_layers if window is None else 0,
        "layer_types": [kind] * num_layers,
    }


BY_LAYER = Window(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    _read_by_layer,
    _write_by_layer,
)
"""The key "use_sliding_window" switches a window on, from layer "max_window_layers" on."""


def _checked_size(window: Any) -> int | None:
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise ValueError(f"sliding_window should be of type int, found {window!r}")
    return window
