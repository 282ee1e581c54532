"""Embedded data: fictional authors, questions about them, and a tokenizer trained on the texts."""

from jaxunlearn.data.fictional.attributes import ATTRIBUTES, REFUSALS, Attribute
from jaxunlearn.data.fictional.generator import generate, train_tokenizer

__all__ = ["ATTRIBUTES", "REFUSALS", "Attribute", "generate", "train_tokenizer"]
