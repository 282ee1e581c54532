"""Qwen 2 and 2.5: queries, keys and values have a bias."""

from jaxunlearn.models.families.family import PRE_NORMS, QKV_BIASES, TENSORS, Family, Key, sizes
from jaxunlearn.models.families.window import BY_LAYER

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    # transformers' default of num_key_value_heads, 32, fits no other size: the key must be there.
    sizes=sizes(context=32768, num_kv_heads=Key("num_key_value_heads", int)),
    tensors=TENSORS | PRE_NORMS | QKV_BIASES,
    constants={"qkv_bias": True},
    window=BY_LAYER,
    # Qwen2.5's files carry the switch of the rotary positions of its vision models.
    fixed={"use_mrope": (False,)},
)
