"""Gemma 2: norms around attention and MLP, capped scores and logits, windows in every 2nd layer."""

from jaxunlearn.models.families.family import (
    AROUND_NORMS,
    ATTENTION_BIASES,
    TENSORS,
    Family,
    Key,
    sizes,
)
from jaxunlearn.models.families.window import every_nth_full

CONSTANTS = {
    "norm_placement": "both",
    "norm_offset": True,
    "scaled_embedding": True,
    "activation": "gelu_tanh",
}
"""What Gemma 2 and 3 have in common."""

# Older files have the first key, newer ones the second, some both.
ACTIVATION = {"hidden_act": ("gelu_pytorch_tanh",), "hidden_activation": ("gelu_pytorch_tanh",)}

GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    # transformers' default of num_key_value_heads, 4, fits no other size: the key must be there.
    sizes=sizes(
        context=8192,
        num_kv_heads=Key("num_key_value_heads", int),
        head_dim=Key("head_dim", int, 256),
        tied=Key("tie_word_embeddings", bool, True),
        query_scalar=Key("query_pre_attn_scalar", int, 256),
        attention_softcap=Key("attn_logit_softcapping", float, 50.0, nullable=True),
        logit_softcap=Key("final_logit_softcapping", float, 30.0, nullable=True),
    ),
    tensors=TENSORS | AROUND_NORMS | ATTENTION_BIASES,
    constants=CONSTANTS,
    switches={"attention_bias": ("qkv_bias", "o_bias")},
    window=every_nth_full(2),
    fixed=ACTIVATION | {"use_bidirectional_attention": (None, False)},
)
