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
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pretraining_tp",  # only reorders sums
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_flash_attn",
        "use_return_dict",
        "use_sdpa",
    }
)
"""Keys that change no number that is computed here, whatever they say."""

DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    # ---- Other kinds of models ----
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "decoder_start_token_id": (None,),
    "is_decoder": (False, True),  # a decoder without cross attention computes the same
    "is_encoder_decoder": (False,),
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
    "do_sample": (False,),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "length_penalty": (1.0,),
    "max_length": (20,),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "output_scores": (False,),
    "remove_invalid_values": (False,),
    "repetition_penalty": (1.0,),
    "return_dict_in_generate": (False,),
    "suppress_tokens": (None,),
    "temperature": (1.0,),
    "top_k": (50,),
    "top_p": (1.0,),
    "typical_p": (1.0,),
}
"""{key: the values, transformers' default first, under which it changes nothing}."""
