"""Data: rows of splits, their tokens and labels, packed batches, and the order of data."""

from jaxunlearn.data.encoder import Encoder, Items
from jaxunlearn.data.encoding import (
    Encoded,
    encode,
    encode_documents,
    encode_prompt,
    encode_rows,
    load_tokenizer,
)
from jaxunlearn.data.fictional import generate, train_tokenizer
from jaxunlearn.data.order import attack_ids, batch_ids, num_steps, retain_ids, subset_ids
from jaxunlearn.data.packing import (
    Packed,
    dataset_batches,
    pack_step,
    padded,
    real_token_share,
    unpack,
)
from jaxunlearn.data.planning import Plan, Sample, plan_dataset, plan_steps
from jaxunlearn.data.prompts import Prompt
from jaxunlearn.data.refusals import Refusals, load_refusals, refusal_index
from jaxunlearn.data.rows import Columns, DataRows, row_key
from jaxunlearn.data.sources import SourceError, Sources, SplitNotFoundError, load_split

__all__ = [
    "Columns",
    "DataRows",
    "Encoded",
    "Encoder",
    "Items",
    "Packed",
    "Plan",
    "Prompt",
    "Refusals",
    "Sample",
    "SourceError",
    "Sources",
    "SplitNotFoundError",
    "attack_ids",
    "batch_ids",
    "dataset_batches",
    "encode",
    "encode_documents",
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
    "row_key",
    "subset_ids",
    "train_tokenizer",
    "unpack",
]
