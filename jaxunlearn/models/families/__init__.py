"""Model families: for each, a table of how its Hugging Face files map to the one decoder.

A family is data. To add one: write FAMILY.py with a `Family` (which key of config.json is which
field of `DecoderConfig`, what the tensors are called, which settings are refused) and list it in
`FAMILIES`. What the decoder cannot compute yet is first a new field of `DecoderConfig`.
"""

from collections.abc import Mapping

from jaxunlearn.core.names import nearest
from jaxunlearn.models.families.family import Family, Key
from jaxunlearn.models.families.gemma2 import GEMMA2
from jaxunlearn.models.families.gemma3 import GEMMA3
from jaxunlearn.models.families.llama import LLAMA
from jaxunlearn.models.families.mistral import MISTRAL
from jaxunlearn.models.families.olmo2 import OLMO2
from jaxunlearn.models.families.phi3 import PHI3
from jaxunlearn.models.families.qwen2 import QWEN2
from jaxunlearn.models.families.qwen3 import QWEN3

__all__ = ["FAMILIES", "Family", "Key", "by_model_type"]

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (GEMMA2, GEMMA3, LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3)
}
"""All families by their `model_type`."""


def by_model_type(model_type: str) -> Family:
    """Returns the family of that name.

    Args:
      model_type: as in config.json, such as "llama".

    Raises:
      ValueError: an unknown family; names those that are known, and the nearest of them.

    >>> by_model_type("qwen3").architecture
    'Qwen3ForCausalLM'
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    known, hint = ", ".join(map(repr, FAMILIES)), nearest(str(model_type), FAMILIES)
    raise ValueError(f"model_type={model_type!r} is not supported, only {known}{hint}")
