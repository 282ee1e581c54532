"""OLMo 2: norms act on the outputs of attention and MLP, and on whole queries and keys."""

from jaxunlearn.models.families.family import (
    ATTENTION_BIASES,
    BLOCK,
    QK_NORMS,
    TENSORS,
    Family,
    Key,
    sizes,
)

_POST_NORMS = {
    "blocks/attn_norm/scale": BLOCK + "post_attention_layernorm.weight",
    "blocks/mlp_norm/scale": BLOCK + "post_feedforward_layernorm.weight",
}

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    sizes=sizes(context=2048, norm_eps=Key("rms_norm_eps", float, 1e-5)),
    tensors=TENSORS | _POST_NORMS | QK_NORMS | ATTENTION_BIASES,
    constants={"norm_placement": "post", "qk_norm": "projection"},
    switches={"attention_bias": ("qkv_bias", "o_bias")},
)
