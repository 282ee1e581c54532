"""Adapters of the real PEFT (PyTorch) against ours, through their files, both ways."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.decoder import Lora
from tests.models.small_models import random_params

TARGETS = ("q", "v", "o", "gate", "down")
A_OF_Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
TOKENS = np.array([5, 9, 2, 33, 7, 1, 60], np.int32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a small Llama, written by ourselves."""
    folder = tmp_path_factory.mktemp("hf") / "base"
    model = decoder.DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context=128,
    )
    hf.save_params(folder, random_params(model), model)
    return folder


@pytest.fixture(scope="module")
def written(base, tmp_path_factory):
    """An adapter that we wrote: (folder, parameters, model)."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    model = dataclasses.replace(hf.load_config(base), lora=Lora(4, 6.0, TARGETS))
    params: dict = {}
    plain, drawn = hf.load_params(base, hf.load_config(base)), random_params(model)
    for leaf in model.leaves():
        leaf.put(params, leaf.get(drawn if leaf.of_adapter else plain))
    hf.save_adapters(folder, params, model, base=str(base))
    return folder, params, model


def one_device(model):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: device, decoder.abstract_params(model))


def logits(params, model):
    batch = packing.padded([planning.Sample(np.append(TOKENS, 0).astype(np.int32), 1)])
    keep = lambda logits, labels: logits
    return jax.jit(lambda p: decoder.forward(p, batch, model, head=keep).labels)(params)[0]


def their_logits(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()


def peft_of(base):
    """PEFT and a model of transformers to put adapters on."""
    peft = pytest.importorskip("peft", reason="peft is in the extra `oracle`")
    import transformers

    return peft, transformers.AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_peft_computes_what_our_adapter_does(base, written):
    folder, params, model = written
    peft, theirs = peft_of(base)
    plain = their_logits(theirs)
    adapted = peft.PeftModel.from_pretrained(theirs, folder).eval()
    loaded = their_logits(adapted)
    np.testing.assert_allclose(logits(params, model), loaded, atol=1e-5)
    assert np.abs(loaded - plain).max() > 0.1
    merged = decoder.merge_adapters(params, model)
    theirs = adapted.merge_and_unload()
    np.testing.assert_allclose(
        merged["blocks"]["down"]["kernel"][1].T,
        theirs.model.layers[1].mlp.down_proj.weight.detach().numpy(),
        atol=1e-6,
    )


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_we_compute_what_their_adapter_does(base, tmp_path):
    torch = pytest.importorskip("torch")
    peft, theirs = peft_of(base)
    torch.manual_seed(0)
    targets = ["k_proj", "up_proj", "down_proj"]
    spec = peft.LoraConfig(r=5, lora_alpha=3, target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(theirs, spec).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "theirs")
    model = hf.load_config(base)
    lora = hf.load_lora(tmp_path / "theirs", model)
    assert lora == Lora(5, 3.0, ("k", "up", "down"))
    both = dataclasses.replace(model, lora=lora)
    own = hf.load_adapters(tmp_path / "theirs", both, one_device(both))
    params = decoder.add_adapters(hf.load_params(base, model), own)
    np.testing.assert_allclose(logits(params, both), their_logits(adapted), atol=1e-5)


def test_files_are_read_as_they_were_written(written):
    folder, params, model = written
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_{}.weight"
    assert tensors[name.format("A")].shape == (4, 32) and len(tensors) == 3 * 2 * len(TARGETS)
    assert tensors[name.format("B")].shape == (16, 4)
    raw = json.loads((folder / "adapter_config.json").read_text())
    assert raw["target_modules"] == [f"{target}_proj" for target in TARGETS]
    plain = dataclasses.replace(model, lora=None)
    assert hf.load_lora(folder, plain) == model.lora
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    shardings = sharding.param_shardings(model, mesh)
    own = hf.load_adapters(folder, model, shardings)
    for leaf in decoder.adapter_leaves(model):
        np.testing.assert_array_equal(leaf.get(own), leaf.get(params))
        assert leaf.get(own).sharding == leaf.get(shardings)


def test_a_model_is_read_in_the_types_that_are_asked_for(base):
    model = hf.load_config(base)
    whole = hf.load_params(base, model)
    dtypes = jax.tree.map(lambda x: "bfloat16" if x.ndim > 1 else "float32", whole)
    mixed = hf.load_params(base, model, dtype=dtypes)
    assert mixed["norm"]["scale"].dtype == "float32"
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)), mixed, whole)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.fixture
def copy(written, tmp_path):
    """A function that writes the adapter with other settings or tensors."""

    def write(settings=None, tensors=None, without=()):
        folder = tmp_path / "copy"
        folder.mkdir()
        raw = json.loads((written[0] / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(raw | (settings or {})))
        own = load_file(written[0] / "adapter_model.safetensors") | (tensors or {})
        own = {name: x for name, x in own.items() if not name.endswith(tuple(without) or ("\0",))}
        save_file(own, folder / "adapter_model.safetensors")
        return folder

    return write


def test_settings_that_are_not_understood_are_named_together(copy, base):
    settings = dict(
        use_dora=True,
        rank_pattern={"q_proj": 8},
        alpha_pattern={},
        modules_to_save=["lm_head"],
        bias="all",
        fan_in_fan_out=True,
        init_lora_weights="pissa",
        use_rslora=True,
        lora_dropout=0.1,
        lora_bias=False,
    )
    with pytest.raises(ValueError) as error:
        hf.load_lora(copy(settings), hf.load_config(base))
    text = str(error.value)
    assert "adapter_config.json: " in text
    for key in ("use_dora", "rank_pattern", "modules_to_save", "fan_in_fan_out", "use_rslora"):
        assert f"{key}={settings[key]!r} is not supported: only plain LoRA is" in text
    assert "bias='all' is not supported, only 'none'" in text
    assert "init_lora_weights='pissa' is not supported, only True" in text
    for key in ("alpha_pattern", "lora_dropout", "lora_bias"):
        assert key not in text


def test_how_an_adapter_was_begun_changes_nothing(copy, base, written):
    """PEFT writes the settings of the way to begin, also where it did not follow it."""
    ways = {
        "eva": {"rho": 2.0},
        "corda": {"rho": 2},
        "loftq": {"loftq_bits": 4},
        "lora_ga": {"x": 1},
    }
    settings = {f"{way}_config": values for way, values in ways.items()}
    folder = copy(settings | {"init_lora_weights": "eva"})
    assert hf.load_lora(folder, hf.load_config(base)) == written[2].lora


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"r": "four"}}, r"r should be a positive number, found 'four'"),
        ({"settings": {"lora_alpha": 0}}, r"lora_alpha should be a positive number, found 0"),
        (
            {"settings": {"lora_alpha": float("inf")}},
            r"adapter_config\.json: lora_alpha should be a positive number, found inf",
        ),
        ({"tensors": {A_OF_Q: np.ones((4, 32), np.int8)}}, rf"{A_OF_Q} is of type I8, expected"),
        ({"settings": {"r": 3}}, r"layers\.0\.self_attn\.q_proj\.lora_A\.weight should have shape"),
        (
            {"without": ["layers.1.mlp.down_proj.lora_B.weight"]},
            r"down_proj\.lora_B\.weight of shape .* is missing",
        ),
        ({"tensors": {"lm_head.weight": np.ones(2)}}, r"lm_head\.weight is no part of an adapter"),
        ({"without": ["weight"]}, r"holds no adapter of q, k, v"),
    ],
)
def test_files_that_do_not_fit(copy, base, change, message):
    with pytest.raises(ValueError, match=message):
        hf.load_lora(copy(**change), hf.load_config(base))


def test_files_that_are_missing_or_damaged(copy, base, tmp_path):
    model = hf.load_config(base)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: no such file"):
        hf.load_lora(tmp_path, model)
    folder = copy()
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: cannot be read"):
        hf.load_lora(folder, model)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: no such file"):
        hf.load_lora(folder, model)


def test_an_adapter_is_no_model(written, base):
    with pytest.raises(ValueError) as error:
        hf.resolve(written[0])
    expected = (
        f"{written[0]}: is a PEFT adapter of {base} and no model; name a folder of the whole model:"
        " `jaxunlearn export` without --adapter writes one, and so does PEFT, by"
        " PeftModel.merge_and_unload and save_pretrained"
    )
    assert str(error.value) == expected
    # A run may begin with it.
    start = f"no model; write model: {base} and train: {{lora: {{start: {written[0]}}}}}, or name a"
    with pytest.raises(ValueError, match=re.escape(start)):
        hf.resolve(written[0], trains=True)
    assert hf.resolve_adapter(written[0]) == written[0]


def test_a_folder_with_something_in_it_is_kept(written, tmp_path):
    folder, params, model = written
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: choose a new folder"):
        hf.save_adapters(tmp_path, params, model, base="base")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_several_matrices_in_one_tensor_have_one_adapter(written, tmp_path):
    folder, params, model = written
    fused = dataclasses.replace(model, family="phi3")
    with pytest.raises(ValueError, match=r"'phi3' hold q and others in one tensor .*qkv_proj"):
        hf.save_adapters(tmp_path / "phi3", params, fused, base="phi3")
    assert not (tmp_path / "phi3").exists()
