"""Model folders of Hugging Face: configurations, weights and hub names, of any family."""

from jaxunlearn.models.hf.config import config_json, load_config
from jaxunlearn.models.hf.hub import resolve, resolve_adapter
from jaxunlearn.models.hf.lora import load_adapters, load_lora, save_adapters
from jaxunlearn.models.hf.weights import (
    check_free,
    check_params,
    load_params,
    save_params,
    tensor_table,
)

__all__ = [
    "check_free",
    "check_params",
    "config_json",
    "load_adapters",
    "load_config",
    "load_lora",
    "load_params",
    "resolve",
    "resolve_adapter",
    "save_adapters",
    "save_params",
    "tensor_table",
]
