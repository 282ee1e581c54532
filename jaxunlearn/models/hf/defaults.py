"""Keys that transformers wrote into config.json of every model, and what they must say there.

Up to version 4 `PretrainedConfig` had settings of text generation, of encoders and of tasks for
every model, and some tools write all of them.
"""

from collections.abc import Mapping
from typing import Any

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

UNREAD = frozenset(
    {
        *TOKEN_IDS,
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "cache_implementation",
        "chunk_size_feed_forward",
        "do_sample",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "max_length",
        "model_name",
        "model_type",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "pretraining_tp",  # only reorders sums
        "return_dict",
        "return_dict_in_generate",
        "task_specific_params",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_flash_attn",
        "use_return_dict",
        "use_sdpa",
    }
)
"""Keys that change no number that is computed here, whatever they say: text is written greedily, up
to a length of its own, so that settings of sampling are among them."""

DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    # ---- Other kinds of models ----
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "decoder_start_token_id": (None,),
    "is_decoder": (False, True),  # a decoder without cross attention computes the same
    "is_encoder_decoder": (False,),
    "max_sequence_length": (2048,),  # that of the first Llama, as max_position_embeddings says too
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
    # ---- Tasks, and frameworks other than PyTorch ----
    "finetuning_task": (None,),
    "prefix": (None, ""),
    "problem_type": (None,),
    "sep_token_id": (None,),
    "tf_legacy_loss": (False,),
    "use_bfloat16": (False,),
    "xla_device": (None,),
    # ---- Generation ----
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "diversity_penalty": (0.0,),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "length_penalty": (1.0,),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "remove_invalid_values": (False,),
    "repetition_penalty": (1.0,),
    "suppress_tokens": (None,),
}
"""{key: the values, transformers' default first, under which it changes nothing}."""
