"""Model folders that are understood, and those that are refused with a clear message."""

import dataclasses
import json
import types

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file

from jaxunlearn.data import load_tokenizer
from jaxunlearn.models import decoder, hf
from jaxunlearn.models.decoder.modules import rope_frequencies
from jaxunlearn.models.hf import weights
from jaxunlearn.models.hf.weights import HEAD
from tests.models.small_models import TIED, UNTIED, random_params

# Llama-2-7b's config.json as transformers 4 wrote it, and Llama-3.2's scaling.
LLAMA2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def write_config(folder, **changes):
    raw = {k: v for k, v in (LLAMA2 | changes).items() if v != "absent"}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_llama2(tmp_path):
    config = hf.load_config(write_config(tmp_path), dtype="bfloat16", remat="full")
    assert config == decoder.DecoderConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        context=4096,
        norm_eps=1e-5,
        dtype="bfloat16",
        remat="full",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": SCALING, "rope_theta": 5e5},
        {"rope_parameters": SCALING | {"rope_theta": 5e5}},
        {
            "rope_parameters": SCALING | {"rope_theta": 5e5},
            "rope_scaling": SCALING,
            "rope_theta": 5e5,
        },
    ],
    ids=["transformers 4", "transformers 5", "both"],
)
def test_rope_scaling(tmp_path, changes):
    config = hf.load_config(write_config(tmp_path, **changes))
    assert config.rope_scaling == decoder.Llama3RopeScaling(32.0, 1.0, 4.0, 8192)
    assert config.rope_theta == 5e5


def test_defaults(tmp_path):
    """What is left out has the value that transformers gives it."""
    keys = ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings")
    config = hf.load_config(write_config(tmp_path, **dict.fromkeys(keys, "absent")))
    assert (config.num_kv_heads, config.norm_eps, config.tied, config.context) == (
        32,
        1e-6,
        False,
        2048,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "phi2"},
            "model_type='phi2' is not .* only 'gemma2', 'gemma3_text', 'll",
        ),
        ({"model_type": "qwen"}, "model_type='qwen' is not .*; perhaps you meant 'qwen[23]'"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\] is not supported"),
        ({"model_type": "absent"}, "model_type='missing' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"attention_bias": 1}, "attention_bias should be of type bool, found 1"),
        ({"mlp_bias": None}, "mlp_bias should be of type bool, found None"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"sliding_window": 4096}, "sliding_window=4096 is not supported"),
        ({"quantization_config": {"bits": 4}}, "unknown key 'quantization_config'"),
        (
            {"rms_norm_epsilon": 1e-3},
            "unknown key 'rms_norm_epsilon'.*perhaps you meant 'rms_norm_eps'",
        ),
        ({"hidden_size": "absent"}, "hidden_size should be of type int, and is missing"),
        ({"vocab_size": "32k"}, "vocab_size should be of type int, found '32k'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings should be of type bool, found 1"),
        ({"hidden_size": 4100}, "hidden_size=4100 is not a multiple of 32 heads"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type='linear' is not supported",
        ),
        ({"rope_theta": "1e6"}, "rope_theta should be a number, found '1e6'"),
        ({"rope_scaling": SCALING | {"factor": "8"}}, "factor should be a number, found '8'"),
        (
            {"rope_scaling": SCALING | {"high_freq_factor": 1.0}},
            "high_freq_factor=1.0 must be above low_freq_factor=1.0",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling should be an object, found 'yarn'"),
        ({"rope_scaling": SCALING | {"beta": 1}}, "'llama3' takes .*found .*'beta'"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "takes no further keys"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta=10000.0 contradicts rope_parameters's 500000.0",
        ),
        (
            {"rope_parameters": SCALING, "rope_scaling": SCALING | {"factor": 8.0}},
            "rope_parameters and rope_scaling contradict each other",
        ),
    ],
)
def test_refused_configs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        hf.load_config(write_config(tmp_path, **changes))


def test_all_refused_keys_are_named_at_once(tmp_path):
    changes = {"hidden_act": "gelu", "hiden_size": 1, "logit_scale": 2.0, "vocab_size": "32k"}
    changes |= {"rope_scaling": {"type": "linear", "factor": 2.0}, "sliding_window": 4096}
    with pytest.raises(ValueError) as error:
        hf.load_config(write_config(tmp_path, **changes))
    names = ("hidden_act='gelu'", "'hidden_size'", "'logit_scale'", "vocab_size should be")
    for part in (*names, "rope_type='linear'", "sliding_window=4096"):
        assert part in str(error.value)


def test_unreadable_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        hf.load_config(tmp_path)
    (tmp_path / "config.json").write_text('{\n"vocab_size": }')
    with pytest.raises(ValueError, match=r"config\.json: not JSON: .*line 2"):
        hf.load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected an object, found list"):
        hf.load_config(tmp_path)
    with pytest.raises(ValueError, match=r"takes dtype, .*not 'accuracy'"):
        hf.load_config(write_config(tmp_path), accuracy="bfloat16")


@pytest.fixture
def model(tmp_path):
    hf.save_params(tmp_path / "model", random_params(UNTIED), UNTIED)
    return tmp_path / "model"


def edit(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("kind", [np.uint8, np.bool_, np.int32])
def test_weights_are_floats(model, kind):
    """Quantised weights would be read as large numbers, and a model computed with them."""
    name = "model.layers.1.mlp.up_proj.weight"
    edit(model, lambda t: t.update({name: np.zeros(t[name].shape, kind)}))
    with pytest.raises(ValueError, match=rf"safetensors: tensor {name} is of type \w+, expected"):
        hf.load_params(model, hf.load_config(model))


def test_tensors_that_do_not_fit(model):
    name = "model.layers.1.mlp.up_proj.weight"
    edit(model, lambda t: t.update({name: np.zeros((24, 17), np.float32)}))
    message = rf"model\.safetensors: tensor {name} should have shape \(24, 16\), found \(24, 17\)"
    with pytest.raises(ValueError, match=message):
        hf.load_params(model, UNTIED)
    edit(model, lambda t: t.pop(name))
    with pytest.raises(ValueError, match=rf"tensor {name} of shape \(24, 16\) is missing"):
        hf.load_params(model, UNTIED)


def test_tensors_too_many(model):
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit(model, lambda t: t.update({bias: np.zeros(16, np.float32)}))
    with pytest.raises(
        ValueError, match=rf"safetensors: tensor {bias} has no place in the model of config.json"
    ):
        hf.load_params(model, UNTIED)


def test_tensors_that_do_no_harm(model):
    """Old files carry rotary frequencies, and some tied ones the unembedding again."""
    rotary = "model.layers.0.self_attn.rotary_emb.inv_freq"
    frequencies = rope_frequencies(UNTIED).astype(np.float16)
    edit(model, lambda t: t.update({rotary: frequencies}))
    assert "lm_head" in hf.load_params(model, UNTIED)
    edit(model, lambda t: t.update({HEAD: t["model.embed_tokens.weight"].copy()}))
    assert "lm_head" not in hf.load_params(model, TIED)


@pytest.mark.parametrize("wrong", [np.zeros(2), np.ones(3), rope_frequencies(UNTIED) * 0.9])
def test_other_rotary_frequencies_than_the_configurations(model, wrong):
    """They would be ignored, and the model would answer otherwise than the one that was saved."""
    rotary = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(model, lambda t: t.update({rotary: wrong.astype(np.float32)}))
    with pytest.raises(ValueError, match=r"inv_freq: is not what config\.json's rope_theta"):
        hf.check_params(model, UNTIED)


STAND_INS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
    "a page in HTML": b"<!DOCTYPE html>\n<html><body>404</body></html>",
}


@pytest.mark.parametrize("what", STAND_INS)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
def test_what_stands_in_for_a_file_is_recognised(model, name, what):
    if "index" in name:
        (model / "model.safetensors").unlink()  # which has no need of an index
    (model / name).write_bytes(STAND_INS[what])
    read = {
        "config.json": lambda: hf.load_config(model),
        "tokenizer.json": lambda: load_tokenizer(str(model)),
    }
    with pytest.raises(ValueError, match=rf"{name}: expected \w+, found {what}; ") as error:
        read.get(name, lambda: hf.load_params(model, UNTIED))()
    assert ("git lfs pull" in str(error.value)) == ("LFS" in what)


@pytest.mark.parametrize("name", ["config.json", "special_tokens_map.json"])
def test_a_tokenizer_next_to_what_stands_in_is_not_missing(model, name):
    """transformers reads these too, and the error once said that there is no tokenizer."""
    (model / name).write_bytes(STAND_INS["a Git LFS pointer"])
    with pytest.raises(ValueError, match=rf"{name}: expected JSON, found a Git LFS pointer"):
        load_tokenizer(str(model))


@pytest.mark.parametrize("row", [0, -1])
def test_a_tied_model_with_another_output_layer(model, row, monkeypatch):
    """It would answer otherwise than the model that was saved."""
    monkeypatch.setattr(weights, "_ROWS", 5)

    def differ(tensors):
        tensors[HEAD] = tensors["model.embed_tokens.weight"].copy()
        tensors[HEAD][row, 0] += 1

    edit(model, differ)
    with pytest.raises(ValueError, match=rf"tensor {HEAD} differs from .*tie_word_embeddings"):
        hf.load_params(model, TIED)
    assert "lm_head" in hf.load_params(model, UNTIED)


def test_no_safetensors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights; convert it once with transformers"):
        hf.load_params(tmp_path, UNTIED)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin; convert it once"):
        hf.load_params(tmp_path, UNTIED)


def test_damaged_file(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read .*download it again"):
        hf.load_params(model, UNTIED)


def test_missing_shard(tmp_path):
    folder = tmp_path / "model"
    hf.save_params(folder, random_params(UNTIED), UNTIED, max_shard_bytes=8000)
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-\d+\.safetensors: cannot be read"):
        hf.load_params(folder, UNTIED)


def test_save_and_load(tmp_path):
    params = random_params(TIED)
    hf.save_params(tmp_path / "model", params, TIED)
    assert hf.load_config(tmp_path / "model") == TIED
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", TIED), params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hf.save_params(tmp_path / "half", half, TIED)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = hf.load_params(tmp_path / "half", TIED, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, loaded, half)


def test_the_type_of_a_folder_is_the_widest_of_its_tensors(tmp_path):
    """transformers computes in that type alone, and would round all wider tensors to it."""
    params = random_params(UNTIED)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["embed"])
    hf.save_params(tmp_path / "model", params | {"embed": half}, UNTIED)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"


ADAPTED = dataclasses.replace(UNTIED, lora=decoder.Lora(2, 4.0, ("q",)))
DEEPER = dataclasses.replace(UNTIED, num_layers=4)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ADAPTED, r"blocks/q/lora_a has no place in the model .* by decoder\.merge_adapters"),
        (dataclasses.replace(UNTIED, qkv_bias=True), r"blocks/k/bias has no place in the model"),
        (TIED, r"lm_head/kernel of shape \(16, 32\) is missing"),
        (DEEPER, r"should have shape \(3, \d+\), found \(4, \d+\)"),
    ],
)
def test_parameters_of_another_model_are_not_written(tmp_path, other, message):
    """Those that the configuration lacks would be missing from the files."""
    with pytest.raises(ValueError, match=f"params: .*{message}"):
        hf.save_params(tmp_path / "model", random_params(other), UNTIED)
    assert not (tmp_path / "model").exists()


def test_float64_needs_x64(model):
    with pytest.raises(ValueError, match="dtype='float64': JAX would compute in float32"):
        hf.load_params(model, UNTIED, dtype="float64")
    with jax.enable_x64(True):
        params = hf.load_params(model, UNTIED, dtype="float64")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float64"}


def test_save_is_whole_or_nothing(tmp_path, monkeypatch):
    params = random_params(UNTIED)

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            hf.save_params(tmp_path / "model", params, UNTIED)
    assert list(tmp_path.iterdir()) == []
    hf.save_params(tmp_path / "model", params, UNTIED)
    with pytest.raises(FileExistsError, match="model is not empty: choose a new folder"):
        hf.save_params(tmp_path / "model", params, UNTIED)


def test_companions(tmp_path):
    source = tmp_path / "source"
    hf.save_params(source, random_params(UNTIED), UNTIED)
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (source / "tokenizer.json").write_text("{}")
    raw = json.loads((source / "config.json").read_text()) | {
        "eos_token_id": [1, 2],
        "bos_token_id": 1,
    }
    (source / "config.json").write_text(json.dumps(raw))
    hf.save_params(tmp_path / "copy", random_params(UNTIED), UNTIED, source=source)
    content = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert content["eos_token_id"] == [1, 2] and "pad_token_id" not in content
    for name in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_text() == (source / name).read_text()


def test_a_source_without_config_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "save_file", None)
    (tmp_path / "source").mkdir()
    with pytest.raises(FileNotFoundError, match=r"source/config\.json: no such file"):
        hf.save_params(tmp_path / "copy", random_params(UNTIED), UNTIED, source=tmp_path / "source")


def test_a_token_that_the_source_does_not_name_is_the_tokenizers(model, tmp_path):
    file = model / "config.json"
    given = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": None}
    file.write_text(json.dumps(json.loads(file.read_text()) | given))
    own = types.SimpleNamespace(
        bos_token_id=5, eos_token_id=6, pad_token_id=None, save_pretrained=lambda folder: None
    )
    hf.save_params(tmp_path / "copy", random_params(UNTIED), UNTIED, tokenizer=own, source=model)
    content = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert {key: content[key] for key in given} == given | {"eos_token_id": 6}


def test_tokenizer_is_written(tmp_path, shared_data):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "models" / "stories260k")
    hf.save_params(tmp_path / "model", random_params(TIED), TIED, tokenizer=tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("Once upon a time")["input_ids"] == tokenizer("Once upon a time")["input_ids"]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == 2


def test_resolve_folder(tmp_path):
    assert hf.resolve(tmp_path) == tmp_path
    for name in ("./nowhere", str(tmp_path / "nowhere"), "nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            hf.resolve(name)


def hub_error(kind):
    def download(*args, **kwargs):
        if not issubclass(kind, errors.HfHubHTTPError):
            raise kind("offline")
        raise kind("no", response=types.SimpleNamespace(headers={}, request=None))

    return download


@pytest.mark.parametrize(
    ("kind", "raised", "message"),
    [
        (
            errors.GatedRepoError,
            PermissionError,
            "owner/name is gated: accept its licence .*HF_TOKEN",
        ),
        (errors.RepositoryNotFoundError, FileNotFoundError, "no such model on the hub"),
        (errors.LocalEntryNotFoundError, FileNotFoundError, "the hub is out of reach; check"),
        (RuntimeError, FileNotFoundError, r"broke off \(RuntimeError: offline\)"),
        (errors.HfHubHTTPError, FileNotFoundError, r"broke off \(HfHubHTTPError: no\)"),
        (OSError, FileNotFoundError, r"broke off \(OSError: offline\); the same command"),
    ],
)
def test_resolve_hub_errors(monkeypatch, kind, raised, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub_error(kind))
    with pytest.raises(raised, match=message):
        hf.resolve("owner/name")


# The files of hub models, in several formats.
OURS = [
    "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "merges.txt", "vocab.json", "chat_template.jinja",
    "adapter_config.json", "adapter_model.safetensors",
]  # fmt: skip
NOT_OURS = [
    "README.md", "modeling_own.py", "tokenization_own.py", "tokenizer_own.py", "tokenizer.pkl",
    "pytorch_model.bin", "training_args.bin", "model.gguf", "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors", "original/consolidated.00.pth",
    "original/params.json", "onnx/config.json", "fp32/model.safetensors",
]  # fmt: skip


def test_an_index_that_was_left_behind_is_not_read(tmp_path):
    """transformers leaves the index of shards that one file replaces, and reads the file."""
    params = random_params(TIED)
    hf.save_params(tmp_path / "model", params, TIED)
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", TIED), params)


def test_resolve_downloads(monkeypatch, tmp_path):
    """Weights as safetensors, settings and tokenizer; no code, nothing pickled, nothing twice."""
    taken = []

    def download(name, **patterns):
        assert name == "owner/name"
        taken.extend(huggingface_hub.utils.filter_repo_objects(OURS + NOT_OURS, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf.resolve("owner/name") == tmp_path
    assert taken == OURS
