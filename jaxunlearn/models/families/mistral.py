"""Mistral 7B: a Llama whose layers, up to version 0.1, attend in a sliding window."""

from jaxunlearn.models.families.family import PRE_NORMS, TENSORS, Family, Key, sizes
from jaxunlearn.models.families.window import every_layer

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    # transformers' default of num_key_value_heads, 8, fits no other size: the key must be there.
    sizes=sizes(context=131072, num_kv_heads=Key("num_key_value_heads", int)),
    tensors=TENSORS | PRE_NORMS,
    window=every_layer(default=4096),
)
