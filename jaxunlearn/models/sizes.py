"""Shapes of published models by their hub names, for forecasts before anything is downloaded.

A run reads config.json of the model itself. These are for forecasts alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxunlearn.models.decoder import DecoderConfig, Llama3RopeScaling


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


def _gemma2(width: int, mlp: int, layers: int, heads: int, head_dim: int, scalar: int) -> dict:
    return _GEMMA | {
        "vocab_size": 256000,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads // 2,
        "head_dim": head_dim,
        "context": 8192,
        "query_scalar": scalar,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "sliding_window": 4096,
        "full_layers": tuple(range(1, layers, 2)),
        "family": "gemma2",
    }


def _gemma3(width: int, mlp: int, layers: int) -> dict:
    return _GEMMA | {
        "vocab_size": 262144,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": 4,
        "num_kv_heads": 1,
        "head_dim": 256,
        "context": 32768,
        "rope_theta": 1000000.0,
        "local_rope_theta": 10000.0,
        "qk_norm": "head",
        "query_scalar": 256,
        "sliding_window": 512,
        "full_layers": tuple(range(5, layers, 6)),
        "family": "gemma3_text",
    }


def _olmo2(width: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 100352,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": 128,
        "context": 4096,
        "rope_theta": 500000.0,
        "norm_eps": 1e-6,
        "norm_placement": "post",
        "qk_norm": "projection",
        "family": "olmo2",
    }


def _qwen25_small(width: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        **_QWEN25_SMALL,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "head_dim": width // heads,
        **more,
    }


def _qwen3_small(width: int, mlp: int) -> dict[str, Any]:
    return _QWEN3_8B | {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": 28,
        "num_heads": 16,
        "tied": True,
    }


def _phi3(width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 32064,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": width // heads,
        "context": 4096,
        "sliding_window": 2047,
        "family": "phi3",
    }


_GEMMA: dict[str, Any] = {
    "norm_eps": 1e-6,
    "norm_offset": True,
    "norm_placement": "both",
    "scaled_embedding": True,
    "activation": "gelu_tanh",
    "tied": True,
}
_QWEN25_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_layers": 28,
    "num_heads": 28,
    "num_kv_heads": 4,
    "head_dim": 128,
    "context": 131072,
    "rope_theta": 1000000.0,
    "norm_eps": 1e-6,
    "qkv_bias": True,
    "family": "qwen2",
}
_QWEN25_SMALL: dict[str, Any] = _QWEN25_7B | {
    "vocab_size": 151936,
    "num_kv_heads": 2,
    "context": 32768,
    "tied": True,
}
_QWEN3_8B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_layers": 36,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "context": 40960,
    "rope_theta": 1000000.0,
    "norm_eps": 1e-6,
    "qk_norm": "head",
    "family": "qwen3",
}
_QWEN3_4B: dict[str, Any] = _QWEN3_8B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "tied": True,
}
_QWEN3_4B_2507: dict[str, Any] = _QWEN3_4B | {"context": 262144, "rope_theta": 5000000.0}
_BASE: dict[str, Any] = {"context": 32768}
"""Qwen 3 before it was taught to answer."""
_MISTRAL_7B_V03: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "context": 32768,
    "rope_theta": 1000000.0,
    "family": "mistral",
}
_SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "context": 8192,
    "rope_theta": 100000.0,
    "tied": True,
}
_SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama2(4096, 11008, 32, 32),
    "llama-2-13b": _llama2(5120, 13824, 40, 40),
    "llama-3-8b": _llama3(4096, 14336, 32, 32, 128, context=8192),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32, 128, rope_scaling=_scaling(8.0)),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, 64, tied=True, rope_scaling=_scaling(32.0)),
    "llama-3.2-3b": _llama3(3072, 8192, 28, 24, 128, tied=True, rope_scaling=_scaling(32.0)),
    "qwen2.5-0.5b": _qwen25_small(896, 4864, 24, 14),
    "qwen2.5-1.5b": _qwen25_small(1536, 8960, 28, 12, context=131072),
    "qwen2.5-1.5b-instruct": _qwen25_small(1536, 8960, 28, 12),
    "qwen2.5-3b": _qwen25_small(2048, 11008, 36, 16),
    "qwen2.5-7b": _QWEN25_7B,
    "qwen2.5-7b-instruct": _QWEN25_7B | {"context": 32768},
    "qwen3-0.6b": _qwen3_small(1024, 3072),
    "qwen3-0.6b-base": _qwen3_small(1024, 3072) | _BASE,
    "qwen3-1.7b": _qwen3_small(2048, 6144),
    "qwen3-1.7b-base": _qwen3_small(2048, 6144) | _BASE,
    "qwen3-4b": _QWEN3_4B,
    "qwen3-4b-base": _QWEN3_4B | _BASE,
    "qwen3-4b-instruct-2507": _QWEN3_4B_2507,
    "qwen3-4b-thinking-2507": _QWEN3_4B_2507,
    "qwen3-8b": _QWEN3_8B,
    "qwen3-8b-base": _QWEN3_8B | _BASE,
    "smollm2-135m": _SMOLLM2_135M,
    "mistral-7b-v0.3": _MISTRAL_7B_V03,
    "mistral-7b-instruct-v0.3": _MISTRAL_7B_V03,
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 256, 256),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 256, 256),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 128, 144),
    "gemma-3-270m": _gemma3(640, 2048, 18),
    "gemma-3-1b": _gemma3(1152, 6912, 26),
    "olmo-2-1b": _olmo2(2048, 8192, 16, 16),
    "olmo-2-7b": _olmo2(4096, 11008, 32, 32),
    "olmo-2-13b": _olmo2(5120, 13824, 40, 40),
    "phi-3-mini-4k": _phi3(3072, 8192, 32, 32, 32),
    "phi-3-medium-4k": _phi3(5120, 17920, 40, 40, 10),
}


def published_shape(name: str, compute: Mapping[str, Any]) -> DecoderConfig:
    """The shape of a published model.

    The longest known size in the name counts, where it stands by itself: neither a letter or digit
    nor a further version may touch it.

    Args:
      name: of the hub, such as "meta-llama/Llama-2-7b-chat-hf"; fine-tuned versions that keep the
        size in their names count too ("locuslab/tofu_ft_llama2-7b").
      compute: dtype, attention, remat of `DecoderConfig`.

    Raises:
      ValueError: a name with no known size in it; lists the sizes.

    >>> published_shape("meta-llama/Llama-2-7b-chat-hf", {}).num_layers
    32
    """
    # Authors write the same model as Llama-3-8B or Llama3-8B, Qwen3-8B or Qwen-3-8B.
    plain = re.sub(r"(llama|gemma|phi|olmo)-?(?=\d)", r"\1-", name.lower())
    plain = re.sub(r"olmo-2-\d{4}-", "olmo-2-", plain)  # its names tell the month: OLMo-2-1124-7B
    plain = re.sub(r"qwen-?(?=\d)", "qwen", plain)
    mentions = lambda size: re.search(rf"(?<![a-z0-9]){re.escape(size)}(?![a-z0-9]|\.\d)", plain)
    matches = [size for size in _SHAPES if mentions(size)]
    if not matches:
        raise ValueError(
            f"{name}: no such folder, and its size is not known here; known: {', '.join(_SHAPES)}"
        )
    return DecoderConfig(**_SHAPES[max(matches, key=len)], **compute)
