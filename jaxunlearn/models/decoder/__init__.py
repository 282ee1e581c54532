"""One decoder-only transformer on packed rows, whose variants are data of its configuration."""

from jaxunlearn.models.decoder.config import (
    MATRICES,
    STACKED,
    DecoderConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    Lora,
)
from jaxunlearn.models.decoder.flops import GRADIENT, forward_flops, gradient_passes
from jaxunlearn.models.decoder.groups import is_block, layer_groups
from jaxunlearn.models.decoder.heads import (
    Head,
    label_log_probs,
    label_moments,
    label_statistics,
)
from jaxunlearn.models.decoder.lora import (
    adapter_leaves,
    add_adapters,
    init_adapters,
    merge_adapters,
)
from jaxunlearn.models.decoder.params import abstract_params, init_params
from jaxunlearn.models.decoder.sampling import GREEDY, Sampling
from jaxunlearn.models.decoder.transformer import Outputs, forward, forward_head, head_logits

__all__ = [
    "GRADIENT",
    "GREEDY",
    "MATRICES",
    "STACKED",
    "DecoderConfig",
    "Head",
    "LinearRopeScaling",
    "Llama3RopeScaling",
    "Lora",
    "Outputs",
    "Sampling",
    "abstract_params",
    "adapter_leaves",
    "add_adapters",
    "forward",
    "forward_flops",
    "forward_head",
    "gradient_passes",
    "head_logits",
    "init_adapters",
    "init_params",
    "is_block",
    "label_log_probs",
    "label_moments",
    "label_statistics",
    "layer_groups",
    "merge_adapters",
]
