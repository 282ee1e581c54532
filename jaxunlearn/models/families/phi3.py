"""Phi-3: a Llama whose files hold q, k and v in one tensor, gate and up in another."""

from jaxunlearn.models.families.family import BLOCK, PRE_NORMS, TENSORS, Family, Key, sizes
from jaxunlearn.models.families.rotary import all_alike
from jaxunlearn.models.families.window import every_layer

_FUSED = {
    "blocks/q/kernel": BLOCK + "self_attn.qkv_proj.weight",
    "blocks/k/kernel": BLOCK + "self_attn.qkv_proj.weight",
    "blocks/v/kernel": BLOCK + "self_attn.qkv_proj.weight",
    "blocks/gate/kernel": BLOCK + "mlp.gate_up_proj.weight",
    "blocks/up/kernel": BLOCK + "mlp.gate_up_proj.weight",
}

PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    sizes=sizes(context=4096, norm_eps=Key("rms_norm_eps", float, 1e-5)),
    tensors=TENSORS | PRE_NORMS | _FUSED,
    window=every_layer(default=None),
    # The models with a long context have the scaling "longrope", which depends on a text's length.
    rotary=all_alike("default"),
    # Dropout acts in training, which is without it here.
    fixed={"attention_bias": (False,), "resid_pdrop": (0.0,), "embd_pdrop": (0.0,)},
    # The first is a size for "longrope" alone; the second names code that comes with the files.
    unread=("original_max_position_embeddings", "auto_map"),
)
