"""The record of a model family, and the entries that most families share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn.models.families.rotary import ALL_ALIKE, Rotary
from jaxunlearn.models.families.window import FULL_ATTENTION, Window


class Key(NamedTuple):
    """A key of config.json that one field of `DecoderConfig` is read from and written to.

    Attributes:
      name: the key.
      kind: type of its value: int, float or bool.
      default: the value that transformers takes where the key is missing; `...` where there is no
        good one, and the key must be there. None also lets the key be null.
      nullable: whether the key may be null, whatever its default.
    """

    name: str
    kind: type
    default: Any = ...
    nullable: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """How the files of one model family on Hugging Face map to the decoder.

    Attributes:
      model_type: its name, the value of "model_type" in config.json.
      architecture: its class in transformers, the value of "architectures".
      sizes: {field of `DecoderConfig`: its key of config.json}.
      tensors: {path of a leaf: its name in the files}; "{layer}" stands for the index of the block.
        Leaves of one name are one tensor, their outputs one after another, in the order of the
        leaf table.
      constants: fields that have the same value in every model of the family.
      switches: {boolean key of config.json: the fields that it turns on together}.
      window: how config.json says which layers have a sliding window.
      rotary: how config.json writes the rotary frequencies.
      fixed: {key of config.json: the values under which the decoder computes the model}; all other
        values are refused, and the first of them is written.
      unread: keys of config.json that change nothing, whatever they say.
      wrapper: "model_type" of a model of texts and images that holds one of the family, and whose
        files call its tensors "language_model.NAME".
    """

    model_type: str
    architecture: str
    sizes: Mapping[str, Key]
    tensors: Mapping[str, str]
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    switches: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    window: Window = FULL_ATTENTION
    rotary: Rotary = ALL_ALIKE
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()
    wrapper: str | None = None


def sizes(context: int, **changes: Key) -> dict[str, Key]:
    """The keys of config.json that every family has, in the order in which they are written.

    Args:
      context: the default of "max_position_embeddings".
      **changes: fields whose key, type or default differs.

    Returns:
      {field of `DecoderConfig`: key}. A null "num_key_value_heads" means as many as query heads, a
      null "head_dim" the width divided by the query heads.
    """
    return {
        "vocab_size": Key("vocab_size", int),
        "hidden_size": Key("hidden_size", int),
        "intermediate_size": Key("intermediate_size", int),
        "num_layers": Key("num_hidden_layers", int),
        "num_heads": Key("num_attention_heads", int),
        "context": Key("max_position_embeddings", int, context),
        "norm_eps": Key("rms_norm_eps", float, 1e-6),
        "tied": Key("tie_word_embeddings", bool, False),
        "num_kv_heads": Key("num_key_value_heads", int, None),
        "head_dim": Key("head_dim", int, None),
    } | changes


BLOCK = "model.layers.{layer}."

TENSORS = {
    "embed/embedding": "model.embed_tokens.weight",
    "blocks/q/kernel": BLOCK + "self_attn.q_proj.weight",
    "blocks/k/kernel": BLOCK + "self_attn.k_proj.weight",
    "blocks/v/kernel": BLOCK + "self_attn.v_proj.weight",
    "blocks/o/kernel": BLOCK + "self_attn.o_proj.weight",
    "blocks/gate/kernel": BLOCK + "mlp.gate_proj.weight",
    "blocks/up/kernel": BLOCK + "mlp.up_proj.weight",
    "blocks/down/kernel": BLOCK + "mlp.down_proj.weight",
    "norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}
"""Names that all families share."""

PRE_NORMS = {
    "blocks/attn_norm/scale": BLOCK + "input_layernorm.weight",
    "blocks/mlp_norm/scale": BLOCK + "post_attention_layernorm.weight",
}
"""Names of the norms of a block that normalise the input of attention and MLP."""

QKV_BIASES = {
    "blocks/q/bias": BLOCK + "self_attn.q_proj.bias",
    "blocks/k/bias": BLOCK + "self_attn.k_proj.bias",
    "blocks/v/bias": BLOCK + "self_attn.v_proj.bias",
}
"""Names of the biases of queries, keys and values."""

ATTENTION_BIASES = QKV_BIASES | {"blocks/o/bias": BLOCK + "self_attn.o_proj.bias"}
"""Names of all biases of the attention."""

QK_NORMS = {
    "blocks/q_norm/scale": BLOCK + "self_attn.q_norm.weight",
    "blocks/k_norm/scale": BLOCK + "self_attn.k_norm.weight",
}
"""Names of the norms of queries and keys."""

AROUND_NORMS = {
    "blocks/attn_norm/scale": BLOCK + "input_layernorm.weight",
    "blocks/attn_out_norm/scale": BLOCK + "post_attention_layernorm.weight",
    "blocks/mlp_norm/scale": BLOCK + "pre_feedforward_layernorm.weight",
    "blocks/mlp_out_norm/scale": BLOCK + "post_feedforward_layernorm.weight",
}
"""Names of the norms of a block that normalise the input and the output of attention and MLP."""
