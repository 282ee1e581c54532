"""One decoder-only transformer on packed rows, whose variants are data of its configuration."""

from jaxunlearn.models.decoder.config import (
    STACKED,
    DecoderConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    abstract_params,
    init_params,
)
from jaxunlearn.models.decoder.flops import GRADIENT, forward_flops
from jaxunlearn.models.decoder.groups import layer_groups
from jaxunlearn.models.decoder.heads import (
    Head,
    label_log_probs,
    label_moments,
    label_statistics,
)
from jaxunlearn.models.decoder.sampling import GREEDY, Sampling
from jaxunlearn.models.decoder.transformer import Outputs, forward, forward_head, head_logits

__all__ = [
    "GRADIENT",
    "GREEDY",
    "STACKED",
    "DecoderConfig",
    "Head",
    "LinearRopeScaling",
    "Llama3RopeScaling",
    "Outputs",
    "Sampling",
    "abstract_params",
    "forward",
    "forward_flops",
    "forward_head",
    "head_logits",
    "init_params",
    "label_log_probs",
    "label_moments",
    "label_statistics",
    "layer_groups",
]
