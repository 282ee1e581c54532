"""Random Llamas of transformers (PyTorch) against ours, through their files, both ways."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.hf import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.15,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
SHAPES = {
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "ungrouped": {"num_key_value_heads": 4, "rms_norm_eps": 1e-2},
    "llama3": {"rope_parameters": LLAMA3, "head_dim": 16},
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """A transformers model and its folder, several files."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(BASE | SHAPES[request.param]))
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("hf") / request.param
    model.save_pretrained(folder, max_shard_size="20KB")
    return model, folder


def test_logits(pair):
    model, folder = pair
    config = hf.load_config(folder)
    params = hf.load_params(folder, config)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 100)).astype(np.int32)
    batch = packing.padded(
        [planning.Sample(np.append(row, 0).astype(np.int32), 1) for row in tokens]
    )
    keep = lambda logits, labels: logits
    logits = jax.jit(lambda p: decoder.forward(p, batch, config, head=keep).labels)(params)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(
        jax.nn.log_softmax(logits), jax.nn.log_softmax(jnp.asarray(expected)), atol=1e-5
    )
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_hidden_states(pair):
    """A tap of k is transformers' hidden_states[k]: the last after the final norm."""
    model, folder = pair
    config = hf.load_config(folder)
    params = hf.load_params(folder, config)
    tokens = np.arange(12, dtype=np.int32)
    batch = packing.padded([planning.Sample(np.append(tokens, 0).astype(np.int32), 1)])
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)[None].long(), output_hidden_states=True)
    taps = lambda params: [decoder.forward(params, batch, config, tap=k).hidden for k in range(4)]
    for result, hidden in zip(jax.jit(taps)(params), expected.hidden_states, strict=True):
        np.testing.assert_allclose(result, hidden, atol=1e-5)


def test_gradients(pair):
    """The gradient of a sequence's log-likelihood, tensor by tensor."""
    model, folder = pair
    config = hf.load_config(folder)
    params = hf.load_params(folder, config)
    tokens = np.random.default_rng(1).integers(0, 64, 40).astype(np.int32)
    batch = packing.padded([planning.Sample(tokens, 10)])
    total = lambda params: decoder.forward(params, batch, config).labels.sum()
    gradient = jax.jit(jax.grad(total))(params)
    ids = torch.from_numpy(tokens).long()[None]
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[9:].sum()
    model.zero_grad()
    logp.backward()
    names = dict(model.named_parameters())
    for name, ((leaf,), layer, _) in hf.tensor_table(config).items():
        value, grad = np.asarray(leaf.get(gradient)), names[name].grad.numpy()
        part = value[layer] if leaf.stacked else value
        part = part.T if leaf.transposed else part
        assert np.linalg.norm(part - grad) < 1e-5 * np.linalg.norm(grad)


def tensors_of(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def same_bytes(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


def test_round_trip(pair, tmp_path):
    """Their files -> our parameters -> our files: the same bytes, and transformers loads them."""
    model, folder = pair
    config = hf.load_config(folder)
    out = tmp_path / "deep" / "export"
    hf.save_params(out, hf.load_params(folder, config), config, source=folder)
    assert [file.name for file in out.glob("*.safetensors")] == ["model.safetensors"]
    same_bytes(tensors_of(folder), tensors_of(out))
    generation = (folder / "generation_config.json").read_text()
    assert (out / "generation_config.json").read_text() == generation
    assert hf.load_config(out) == config
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokens = torch.arange(60)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.config.eos_token_id == 2


def test_several_files(pair, tmp_path):
    _, folder = pair
    config = hf.load_config(folder)
    params = hf.load_params(folder, config)
    hf.save_params(tmp_path / "export", params, config, max_shard_bytes=30_000)
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    files = {file.name: file.stat().st_size for file in (tmp_path / "export").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files.keys() and len(files) > 2
    assert max(files.values()) <= 30_000  # headers and all
    tensors = tensors_of(tmp_path / "export")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    same_bytes(tensors, tensors_of(folder))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")


def test_bfloat16_on_a_mesh(pair, tmp_path):
    """Half-precision files, read slice by slice onto eight devices, and back."""
    model, _ = pair
    source = tmp_path / "bf16"
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(source, max_shard_size="20KB")
    config = hf.load_config(source)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    shardings = sharding.param_shardings(config, mesh)
    params = hf.load_params(source, config, shardings=shardings, dtype=jnp.bfloat16)
    assert jax.tree.all(jax.tree.map(lambda p, s: p.sharding == s, params, shardings))
    hf.save_params(tmp_path / "export", params, config)
    same_bytes(tensors_of(source), tensors_of(tmp_path / "export"))
    wide = hf.load_params(source, config)
    for leaf in config.leaves():
        assert leaf.get(wide).dtype == jnp.float32
        np.testing.assert_array_equal(leaf.get(wide), np.asarray(leaf.get(params), np.float32))


@pytest.mark.parametrize(
    "mesh", [(2, 2, 2), *(pytest.param(m, marks=pytest.mark.slow) for m in [(1, 8, 1), (1, 2, 4)])]
)
def test_meshes(pair, tmp_path, monkeypatch, mesh):
    """Several files, onto eight devices in pieces, and back: transformers computes the same."""
    monkeypatch.setattr(weights, "_FEW", 0)
    model, folder = pair
    config, mesh = hf.load_config(folder), sharding.make_mesh(*mesh)
    tokens = np.random.default_rng(2).integers(0, 64, (8, 50)).astype(np.int32)
    batch = packing.padded([planning.Sample(row, 1) for row in tokens])
    with jax.set_mesh(mesh):
        shardings = sharding.param_shardings(config, mesh)
        params = hf.load_params(folder, config, shardings=shardings)
        logp = jax.jit(lambda p: decoder.forward(p, batch, config).labels)(params)
        hf.save_params(tmp_path / "export", params, config, source=folder, max_shard_bytes=20_000)
    ids = torch.from_numpy(tokens).long()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
    expected = expected[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].numpy()
    np.testing.assert_allclose(packing.unpack(logp, batch), expected, atol=1e-5)
    same_bytes(tensors_of(folder), tensors_of(tmp_path / "export"))


def test_float16(pair, tmp_path):
    """What Llama-2 was published in."""
    model, folder = pair
    copy.deepcopy(model).half().save_pretrained(tmp_path / "half", max_shard_size="20KB")
    config = hf.load_config(tmp_path / "half")
    params, whole = hf.load_params(tmp_path / "half", config), hf.load_params(folder, config)
    for leaf in config.leaves():
        assert leaf.get(params).dtype == jnp.float32
        near = np.asarray(leaf.get(whole)).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(leaf.get(params), near)
