"""Gemma 3, its text models: every sixth layer attends to all, the others in a window."""

from jaxunlearn.models.families.family import (
    AROUND_NORMS,
    ATTENTION_BIASES,
    QK_NORMS,
    TENSORS,
    Family,
    Key,
    sizes,
)
from jaxunlearn.models.families.gemma2 import ACTIVATION, CONSTANTS
from jaxunlearn.models.families.rotary import BY_KIND
from jaxunlearn.models.families.window import every_nth_full

GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    # transformers' default of num_key_value_heads, 4, fits no other size: the key must be there.
    sizes=sizes(
        context=131072,
        num_kv_heads=Key("num_key_value_heads", int),
        head_dim=Key("head_dim", int, 256),
        tied=Key("tie_word_embeddings", bool, True),
        query_scalar=Key("query_pre_attn_scalar", int, 256),
        logit_softcap=Key("final_logit_softcapping", float, None),
    ),
    tensors=TENSORS | AROUND_NORMS | QK_NORMS | ATTENTION_BIASES,
    constants=CONSTANTS | {"qk_norm": "head"},
    switches={"attention_bias": ("qkv_bias", "o_bias")},
    window=every_nth_full(6, key="sliding_window_pattern"),
    rotary=BY_KIND,
    # transformers reads attn_logit_softcapping, but its Gemma 3 never applies it.
    fixed=ACTIVATION
    | {"use_bidirectional_attention": (False, None), "attn_logit_softcapping": (None,)},
    # A copy of the period, which "layer_types" always comes with.
    unread=("_sliding_window_pattern",),
    wrapper="gemma3",
)
