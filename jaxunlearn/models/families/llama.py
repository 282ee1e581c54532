"""Llama 2 and 3, and the many models of their architecture."""

from jaxunlearn.models.families.family import (
    ATTENTION_BIASES,
    BLOCK,
    PRE_NORMS,
    TENSORS,
    Family,
    sizes,
)

_MLP_BIASES = {
    "blocks/gate/bias": BLOCK + "mlp.gate_proj.bias",
    "blocks/up/bias": BLOCK + "mlp.up_proj.bias",
    "blocks/down/bias": BLOCK + "mlp.down_proj.bias",
}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    sizes=sizes(context=2048),
    tensors=TENSORS | PRE_NORMS | ATTENTION_BIASES | _MLP_BIASES,
    switches={"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": ("mlp_bias",)},
)
