"""Every family against transformers (PyTorch), through its files, both ways.

A configuration of each kind is drawn at random by transformers; biases and scales, which it sets to
0 and 1, are drawn too, so that every leaf matters.
"""

import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, families, hf
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
