"""Hub names and the published shapes they stand for."""

import math

import pytest

from jaxunlearn.models import hf, sizes


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
        ("Qwen/Qwen2.5-0.5B-Instruct", 32768),
        ("Qwen/Qwen2.5-1.5B", 131072),
        ("Qwen/Qwen2.5-1.5B-Instruct", 32768),
        ("Qwen/Qwen3-0.6B-Base", 32768),
        ("Qwen/Qwen3-1.7B", 40960),
        ("Qwen/Qwen3-4B-Instruct-2507", 262144),
        ("Qwen/Qwen3-8B-Base", 32768),
        ("allenai/OLMo-2-0425-1B-Instruct", 4096),
        ("someone/tofu_olmo2-7b", 4096),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 8192),
        ("google/gemma-2-9b-it", 8192),
        ("someone/tofu_gemma3-1b", 32768),
        ("microsoft/Phi-3-mini-4k-instruct", 4096),
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
        "Qwen/Qwen2.5-Math-1.5B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "allenai/OLMo-2-0325-32B",
        "allenai/OLMo-7B",
        "google/gemma-2b",
        "microsoft/Phi-3-mini-128k-instruct",
    ],
)
def test_other_sizes_are_not_taken_for_known_ones(name):
    with pytest.raises(ValueError, match="its size is not known here; known: llama-2-7b"):
        sizes.published_shape(name, {})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-2-27b", 27_227_128_320),
        ("gemma-3-270m", 268_098_176),
        ("gemma-3-1b", 999_885_952),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        # The files of these two hold the tied head a second time: the hub counts 751,632,384 and
        # 2,031,739,904.
        ("qwen3-0.6b", 751_632_384 - 151_936 * 1024),
        ("qwen3-1.7b", 2_031_739_904 - 151_936 * 2048),
        ("qwen3-4b", 4_022_468_096),
        ("olmo-2-1b", 1_484_916_736),
        ("olmo-2-7b", 7_298_617_344),
        ("olmo-2-13b", 13_716_198_400),
        ("phi-3-mini-4k", 3_821_079_552),
        ("phi-3-medium-4k", 13_960_238_080),
    ],
)
def test_published_numbers_of_parameters(name, parameters):
    """The sum over the files of the hub; and a config.json of the family can say it all."""
    config = sizes.published_shape(name, {})
    assert sum(math.prod(leaf.shape) for leaf in config.leaves()) == parameters
    hf.config_json(config, "bfloat16", {})
