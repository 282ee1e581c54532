"""Shapes of published Llamas by their hub names, for questions asked before anything is downloaded.

A run reads config.json of the model itself; these are for forecasts alone.
"""

from collections.abc import Mapping
from typing import Any

from jaxunlearn.models.architecture import Llama3RopeScaling, LlamaConfig


def _llama2(width: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": 128,
        "context": 4096,
    }


def _llama3(width: int, mlp: int, layers: int, heads: int, head_dim: int, **more: Any) -> dict:
    return {
        "vocab_size": 128256,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": 8,
        "head_dim": head_dim,
        "context": 131072,
        "rope_theta": 500000.0,
        **more,
    }


def _scaling(factor: float) -> Llama3RopeScaling:
    return Llama3RopeScaling(factor, 1.0, 4.0, 8192)


_SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama2(4096, 11008, 32, 32),
    "llama-2-13b": _llama2(5120, 13824, 40, 40),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, 64, tied=True, rope_scaling=_scaling(32.0)),
    "llama-3.2-3b": _llama3(3072, 8192, 28, 24, 128, tied=True, rope_scaling=_scaling(32.0)),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32, 128, rope_scaling=_scaling(8.0)),
}


def shape(name: str, compute: Mapping[str, Any]) -> LlamaConfig:
    """The shape of a published Llama.

    Args:
      name: of the hub, such as "meta-llama/Llama-2-7b-chat-hf"; fine-tuned versions that keep the
        size in their names count too ("locuslab/tofu_ft_llama2-7b").
      compute: dtype, attention, remat of `LlamaConfig`.

    Raises:
      ValueError: a name with no known size in it; lists the sizes.

    >>> shape("meta-llama/Llama-2-7b-chat-hf", {}).num_layers
    32
    """
    plain = name.lower().replace("llama2", "llama-2").replace("llama3", "llama-3")
    for size, fields in _SHAPES.items():
        if size in plain:
            return LlamaConfig(**fields, **compute)
    raise ValueError(
        f"{name}: no such folder, and its size is not known here; known: {', '.join(_SHAPES)}"
    )
