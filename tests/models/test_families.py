"""Every family against transformers (PyTorch), through its files, both ways.

A configuration of each kind is drawn at random by transformers; biases and scales, which it sets to
0 and 1, are drawn too, so that every leaf matters.
"""

import dataclasses
import json
import math
import re
import tracemalloc
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, families, hf, sharding, sizes
from jaxunlearn.models.hf import weights
from jaxunlearn.models.hf.defaults import DEFAULTS, UNREAD
from tests.models.small_models import UNTIED, random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 700.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
GEMMA = {
    "norm_placement": "both",
    "norm_offset": True,
    "scaled_embedding": True,
    "activation": "gelu_tanh",
    "tied": True,
}
# Name -> (model_type, keys of config.json, fields of `DecoderConfig` that differ from Llama's).
KINDS = {
    "llama, biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    ),
    "qwen2": ("qwen2", {}, {"qkv_bias": True}),
    "qwen2, tied, window": (
        "qwen2",
        {"tie_word_embeddings": True, **WINDOW},
        {"qkv_bias": True, "tied": True, "sliding_window": 7},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}, {"qk_norm": "head"}),
    "qwen3, biases, window": (
        "qwen3",
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True, **WINDOW},
        {"qk_norm": "head", "qkv_bias": True, "o_bias": True, "tied": True, "sliding_window": 7},
    ),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "mistral, window": ("mistral", {"sliding_window": 9}, {"sliding_window": 9}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "sliding_window": 7,
        },
        GEMMA
        | {
            "query_scalar": 24,
            "attention_softcap": 1.5,
            "logit_softcap": 2.0,
            "sliding_window": 7,
            "full_layers": (1,),
        },
    ),
    "gemma2, no caps, biases": (
        "gemma2",
        {
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] * 3,
        },
        GEMMA | {"query_scalar": 256, "qkv_bias": True, "o_bias": True, "tied": False},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 7,
            "sliding_window_pattern": 2,
            "rope_parameters": GEMMA3_ROPE,
        },
        GEMMA
        | {
            "qk_norm": "head",
            "query_scalar": 24,
            "rope_theta": 700.0,
            "local_rope_theta": 50.0,
            "sliding_window": 7,
            "full_layers": (1,),
        },
    ),
    "gemma3, scaled, capped": (
        "gemma3_text",
        {
            "head_dim": 16,
            "final_logit_softcapping": 2.0,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
        GEMMA
        | {
            "qk_norm": "head",
            "query_scalar": 256,
            "logit_softcap": 2.0,
            "rope_theta": 700.0,
            "rope_scaling": decoder.LinearRopeScaling(8.0),
            "local_rope_theta": 50.0,
            "sliding_window": 4096,
            "full_layers": (0, 1),
        },
    ),
    "phi3": ("phi3", {}, {}),
    "phi3, tied, window": (
        "phi3",
        {"tie_word_embeddings": True, "sliding_window": 9, "num_key_value_heads": None},
        {"tied": True, "sliding_window": 9, "num_kv_heads": 4},
    ),
    "qwen2, windows in some layers": (
        "qwen2",
        WINDOW | {"max_window_layers": 1},
        {"qkv_bias": True, "sliding_window": 7, "full_layers": (0,)},
    ),
    "olmo2": ("olmo2", {}, {"qk_norm": "projection", "norm_placement": "post"}),
    "olmo2, biases": (
        "olmo2",
        {"attention_bias": True, "rms_norm_eps": 1e-3},
        {"qk_norm": "projection", "norm_placement": "post", "qkv_bias": True, "o_bias": True},
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A transformers model, its folder, and the fields that its configuration should have."""
    model_type, keys, fields = KINDS[request.param]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(BASE | keys))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                value.add_(0.2 * torch.randn_like(value))
    folder = tmp_path_factory.mktemp("families") / request.param.replace(", ", "_")
    model.save_pretrained(folder, max_shard_size="20KB")
    return model, folder, fields | {"family": model_type}


def test_every_family_is_tested():
    assert {model_type for model_type, *_ in KINDS.values()} == families.FAMILIES.keys()


def test_fields(pair):
    _, folder, fields = pair
    config = hf.load_config(folder)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    differ = {name for name, default in defaults.items() if getattr(config, name) != default}
    sizes = {name for name, default in defaults.items() if default is dataclasses.MISSING}
    assert differ - sizes - {"norm_eps"} <= fields.keys()
    for name, value in fields.items():
        assert getattr(config, name) == value, name


def loaded(folder, dtype="float32"):
    config = hf.load_config(folder, dtype=dtype)
    return config, hf.load_params(folder, config, dtype=dtype)


def test_logits(pair):
    """100 tokens: more than a block of attention's queries."""
    model, folder, _ = pair
    config, params = loaded(folder)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 100)).astype(np.int32)
    batch = packing.padded(
        [planning.Sample(np.append(row, 0).astype(np.int32), 1) for row in tokens]
    )
    keep = lambda logits, labels: logits
    logits = jax.jit(lambda p: decoder.forward(p, batch, config, head=keep).labels)(params)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def in_float64(model):
    """transformers computes norms and rotary angles in float32 whatever the dtype: not here."""

    def normalise(self, x):
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        scale = self.weight + 1 if "Gemma" in type(self).__name__ else self.weight
        return scale * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))

    def angles(self, x, position_ids, layer_type=None):
        powers = torch.arange(0, model.config.head_dim, 2, dtype=torch.float64)
        rope = model.config.rope_parameters
        rope = rope if layer_type is None else rope[layer_type]
        frequency = rope["rope_theta"] ** -(powers / model.config.head_dim)
        angle = position_ids[..., None] * frequency / rope.get("factor", 1)
        return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

    if getattr(model.config, "head_dim", None) is None:
        model.config.head_dim = model.config.hidden_size // model.config.num_attention_heads
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(normalise, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(angles, module)
        if hasattr(module, "embed_scale"):
            module.embed_scale = torch.tensor(model.config.hidden_size**0.5, dtype=torch.float64)
    return model


def test_gradients(pair, monkeypatch):
    """The gradient of a sequence's log-likelihood in float64, tensor by tensor."""
    # Gemma 2's attention casts its scores to float32.
    softmax = lambda x, dim, dtype=None: x.softmax(dim)
    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)
    _, folder, _ = pair
    tokens = np.random.default_rng(1).integers(0, 64, 40).astype(np.int32)
    batch = packing.padded([planning.Sample(tokens, 10)])
    with jax.enable_x64(True):
        config, params = loaded(folder, "float64")
        total = lambda params: decoder.forward(params, batch, config).labels.sum()
        gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(total))(params))
    load = transformers.AutoModelForCausalLM.from_pretrained
    exact = in_float64(load(folder, dtype=torch.float64))
    ids = torch.from_numpy(tokens).long()[None]
    logp = exact(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[9:].sum()
    logp.backward()
    grads = {name: value.grad.numpy() for name, value in exact.named_parameters()}
    table = hf.tensor_table(config)
    assert table.keys() == grads.keys()
    for name, (leaves, layer, _) in table.items():
        parts = [(leaf, leaf.get(gradient)) for leaf in leaves]
        parts = [(leaf, part[layer] if leaf.stacked else part) for leaf, part in parts]
        value = np.concatenate([part.T if leaf.transposed else part for leaf, part in parts])
        assert np.linalg.norm(value - grads[name]) < 1e-8 * np.linalg.norm(grads[name]), name


def test_export(pair, tmp_path):
    """Their files -> our parameters -> our files: transformers loads them and computes the same."""
    model, folder, _ = pair
    config, params = loaded(folder)
    hf.save_params(tmp_path / "export", params, config, source=folder)
    assert hf.load_config(tmp_path / "export") == config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert type(again) is type(model)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.eos_token_id == 2


def test_keys_of_another_family_are_refused(pair, tmp_path):
    _, folder, fields = pair
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"logits_scaling": 30.0}))
    with pytest.raises(ValueError, match=r"config\.json: unknown key 'logits_scaling'"):
        hf.load_config(tmp_path)


def test_tensors_on_a_mesh(pair, monkeypatch):
    """Read slice by slice onto eight devices: tensors that hold several parameters too."""
    monkeypatch.setattr(weights, "_FEW", 0)
    _, folder, _ = pair
    config, params = loaded(folder)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    placed = hf.load_params(folder, config, shardings=sharding.param_shardings(config, mesh))
    jax.tree.map(np.testing.assert_array_equal, placed, params)


def test_a_tensor_that_holds_too_little(tmp_path):
    config = dataclasses.replace(UNTIED, family="phi3")
    hf.save_params(tmp_path / "model", random_params(config), config)
    file = tmp_path / "model" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.1.self_attn.qkv_proj.weight"
    save_file(tensors | {name: tensors[name][:-1]}, file)
    with pytest.raises(ValueError, match=rf"{name} should have shape \(32, 16\), found \(31, 16"):
        hf.load_params(tmp_path / "model", config)


# Files that hold more than the family's own keys

# What PretrainedConfig of transformers 4 wrote into every config.json, or some version of it did.
OLDER = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "bfloat16",
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
    "use_sdpa": False,
    "xla_device": None,
}


def test_a_dump_of_all_defaults_is_read(pair, tmp_path):
    _, folder, _ = pair
    own = transformers.AutoConfig.from_pretrained(folder).to_dict()
    full = OLDER | transformers.PretrainedConfig().to_dict() | own
    (tmp_path / "config.json").write_text(json.dumps(full))
    assert hf.load_config(tmp_path) == hf.load_config(folder)


def test_settings_of_sampling_change_nothing(pair, tmp_path):
    """Text is written greedily, whatever a model's authors recommend."""
    _, folder, _ = pair
    own = json.loads((folder / "config.json").read_text())
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 7, "max_length": 4096}
    (tmp_path / "config.json").write_text(json.dumps(own | sampling | {"model_name": "mine"}))
    assert hf.load_config(tmp_path) == hf.load_config(folder)


def test_other_values_than_the_defaults_are_refused_at_once(tmp_path):
    changes = {"repetition_penalty": 1.2, "num_beams": 4, "pruned_heads": {"0": [1]}}
    changes["use_bfloat16"] = True
    message = refused(tmp_path, model_type="qwen2", prefix="Once ", **changes)
    for name, value in changes.items():
        assert f"{name}={value!r} is not supported, only {OLDER[name]!r}; remove it" in message
    assert "prefix='Once '" in message


def test_every_key_with_a_default_is_refused_with_another_value(tmp_path):
    message = refused(tmp_path, model_type="qwen2", **dict.fromkeys(DEFAULTS, "another"))
    assert all(f"{name}='another' is not supported" in message for name in DEFAULTS)
    assert OLDER.keys() <= DEFAULTS.keys() | UNREAD


def test_a_model_of_texts_and_images_says_how_to_save_its_language_model(tmp_path):
    """And what it says works: transformers computes the same logits, and so do we."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = BASE | {"head_dim": 16, "model_type": "gemma3_text", "sliding_window": 7}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision | {"model_type": "siglip_vision_model"},
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    whole = transformers.AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"config\.json: model_type='gemma3' holds") as error:
        hf.load_config(tmp_path / "whole")
    advice = re.search(r"Gemma3ForCausalLM.*$", str(error.value))[0]
    names = {"SOURCE": tmp_path / "whole", "FOLDER": tmp_path / "text"}
    eval(f"transformers.{advice}", {"transformers": transformers, **names})
    config, params = loaded(tmp_path / "text")
    tokens = np.random.default_rng(0).integers(0, 60, 30).astype(np.int32)
    batch = packing.padded([planning.Sample(tokens, 1)])
    logp = decoder.forward(params, batch, config).labels[0]
    ids = torch.from_numpy(tokens).long()[None]
    with torch.no_grad():
        expected = whole(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    np.testing.assert_allclose(logp, expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("text", [{"model_type": "mistral"}, {}])
def test_other_models_of_texts_and_images_are_refused(tmp_path, text):
    message = refused(tmp_path, model_type="mistral3", text_config=text)
    assert "only a language model by itself is supported" in message


def refused(tmp_path, **changes):
    raw = {key: value for key, value in (BASE | changes).items() if value != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        hf.load_config(tmp_path)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2", "num_key_value_heads": "absent"}, "num_key_value_heads should be"),
        ({"model_type": "qwen3"}, "head_dim should be of type int, and is missing"),
        ({"model_type": "qwen2", "use_mrope": True}, "use_mrope=True is not supported"),
        ({"model_type": "qwen2", "attention_bias": False}, "unknown key 'attention_bias'"),
        ({"model_type": "mistral", "sliding_window": "4k"}, "sliding_window should be of type int"),
        ({"model_type": "qwen2", "use_sliding_window": 1}, "use_sliding_window should be of type"),
        (
            {"model_type": "qwen2", **WINDOW, "max_window_layers": "2"},
            "max_window_layers should be of type int",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3},
            "layer_types names layers with 'sliding_attention', but there is no window",
        ),
        (
            {"model_type": "gemma2", "sliding_window": None},
            "layer_types names layers with 'sliding_attention', but there is no window",
        ),
        (
            {"model_type": "gemma2", "layer_types": ["chunked_attention"] * 3},
            "layer_types: 'chunked_attention' is not supported, only 'full_attention'",
        ),
        ({"model_type": "gemma2", "layer_types": "full"}, "layer_types should be a list"),
        (
            {"model_type": "gemma2", "num_hidden_layers": 10**11},
            "num_hidden_layers should be positive and at most 10000, found 100000000000",
        ),
        (
            {"model_type": "gemma2", "hidden_size": 10**11},
            "hidden_size should be positive and at most 1048576, found 1000",
        ),
        (
            {"model_type": "gemma2", "max_position_embeddings": 10**18},
            "max_position_embeddings should be positive and at",
        ),
        (
            {"model_type": "gemma2", "vocab_size": 10**30},
            "vocab_size should be positive and at most 16777216",
        ),
        ({"model_type": "gemma2", "hidden_activation": "gelu"}, "only 'gelu_pytorch_tanh'"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "only None"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": None}, "should be of type int"),
        (
            {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
            "attn_logit_softcapping=50.0 is not supported, only None",
        ),
        (
            {"model_type": "gemma3_text", "sliding_window_pattern": 0},
            "sliding_window_pattern should be a positive int, found 0",
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e6}},
            "rope_parameters should have the keys ['full_attention', 'sliding_attention']",
        ),
        (
            {"model_type": "gemma3_text", "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_scaling: rope_type='yarn' is not supported, only 'default' or 'linear'",
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_local_base_freq": 1e3,
                "rope_parameters": GEMMA3_ROPE,
            },
            "rope_local_base_freq=1000.0 contradicts rope_parameters.sliding_attention's 50.0",
        ),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
            "rope_type='longrope' is not supported, only 'default'",
        ),
        (
            {"model_type": "phi3", "rope_parameters": {"partial_rotary_factor": 0.75}},
            "rope_parameters: partial_rotary_factor=0.75 is not supported, only 1",
        ),
        ({"model_type": "phi3", "resid_pdrop": 0.1}, "resid_pdrop=0.1 is not supported, only 0.0"),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention"] * 2},
            "layer_types names 2 layers, but there are 3",
        ),
    ],
)
def test_refused_settings(tmp_path, changes, message):
    assert message in refused(tmp_path, **changes)


# config.json of Qwen/Qwen2.5-0.5B, as published: a size of the window, and the window switched off.
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


# config.json of google/gemma-2-2b and google/gemma-3-1b-it, which say nothing of the layers' kinds,
# and of microsoft/Phi-3-mini-4k-instruct, as published.
GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}
PHI3_MINI = {
    "_name_or_path": "Phi-3-mini-4k-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2",
    "use_cache": True,
    "vocab_size": 32064,
}


@pytest.mark.parametrize(
    ("raw", "name"),
    [(GEMMA2_2B, "gemma-2-2b"), (GEMMA3_1B, "gemma-3-1b"), (PHI3_MINI, "phi-3-mini-4k")],
)
def test_published_files_are_the_sizes_of_forecasts(tmp_path, raw, name):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert hf.load_config(tmp_path) == sizes.published_shape(name, {})


def test_a_published_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN25))
    config = hf.load_config(tmp_path)
    assert config.sliding_window is None and config.rope_theta == 1e6
    assert sum(math.prod(leaf.shape) for leaf in config.leaves()) == 494_032_768


@pytest.mark.parametrize(
    "fields",
    [{"qk_norm": "head"}, {"sliding_window": 4}, {"qkv_bias": True}, {"norm_placement": "post"}],
)
def test_a_model_that_its_family_cannot_describe_is_not_written(tmp_path, fields):
    config = dataclasses.replace(UNTIED, **fields)
    (name,) = fields
    with pytest.raises(ValueError, match=f"family 'llama' cannot describe .* {name}="):
        hf.save_params(tmp_path / "model", random_params(config), config)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_a_family_does_not_have(tmp_path):
    hf.save_params(tmp_path / "model", random_params(UNTIED), UNTIED)
    config = dataclasses.replace(UNTIED, qk_norm="head")
    with pytest.raises(ValueError, match="blocks/q_norm/scale: models of the family 'llama'"):
        hf.load_params(tmp_path / "model", config)


def test_the_number_of_layers_costs_nothing():
    """A configuration with equal layers holds nothing for each of them."""
    tracemalloc.start()
    dataclasses.replace(UNTIED, num_layers=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
