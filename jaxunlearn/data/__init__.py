"""Data: question-answer splits, prompts and labels, packed batches, the order they come in."""

from jaxunlearn.data.fictional import generate, train_tokenizer
from jaxunlearn.data.order import batch_ids, num_steps, retain_ids
from jaxunlearn.data.packing import (
    Packed,
    Plan,
    Sequence,
    dataset_batches,
    pack_step,
    padded,
    plan_dataset,
    plan_steps,
    real_token_share,
    unpack,
)
from jaxunlearn.data.prompts import Encoded, encode, encode_prompt, encode_rows, load_tokenizer
from jaxunlearn.data.tofu import load_refusals, load_split, refusal_index

__all__ = [
    "Encoded",
    "Packed",
    "Plan",
    "Sequence",
    "batch_ids",
    "dataset_batches",
    "encode",
    "encode_prompt",
    "encode_rows",
    "generate",
    "load_refusals",
    "load_split",
    "load_tokenizer",
    "num_steps",
    "pack_step",
    "padded",
    "plan_dataset",
    "plan_steps",
    "real_token_share",
    "refusal_index",
    "retain_ids",
    "train_tokenizer",
    "unpack",
]
