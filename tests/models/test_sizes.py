"""Hub names and the published shapes they stand for."""

import pytest

from jaxunlearn.models import sizes


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("meta-llama/Meta-Llama-3-8B", 8192),
        ("someone/tofu_ft_llama3-8b", 8192),
        ("meta-llama/Llama-3.1-8B-Instruct", 131072),
        ("open-unlearning/tofu_Llama-3.1-8B-Instruct_full", 131072),
        ("Qwen/Qwen2.5-7B", 131072),
        ("Qwen/Qwen2.5-7B-Instruct", 32768),
        ("someone/qwen-3-8b-forget", 40960),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 8192),
    ],
)
def test_the_longest_size_in_a_name_counts(name, context):
    assert sizes.published_shape(name, {}).context == context


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-2-70b-hf",
        "meta-llama/Llama-3.2-11B-Vision",
        "someone/llama-3-8b.1",
        "someone/xllama-3-8b",
        "someone/Llama-3-8bit",
        "mistralai/Mistral-7B-v0.1",
        "Qwen/Qwen2.5-Coder-7B",
    ],
)
def test_other_sizes_are_not_taken_for_known_ones(name):
    with pytest.raises(ValueError, match="its size is not known here; known: llama-2-7b"):
        sizes.published_shape(name, {})
