"""Qwen 3, its dense models: queries and keys are normalised, each head by itself."""

from jaxunlearn.models.families.family import (
    ATTENTION_BIASES,
    PRE_NORMS,
    QK_NORMS,
    TENSORS,
    Family,
    Key,
    sizes,
)
from jaxunlearn.models.families.window import BY_LAYER

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    # transformers' defaults, 32 heads of width 128, fit no other size: the keys must be there.
    sizes=sizes(
        context=32768,
        num_kv_heads=Key("num_key_value_heads", int),
        head_dim=Key("head_dim", int),
    ),
    tensors=TENSORS | PRE_NORMS | QK_NORMS | ATTENTION_BIASES,
    constants={"qk_norm": "head"},
    switches={"attention_bias": ("qkv_bias", "o_bias")},
    window=BY_LAYER,
)
