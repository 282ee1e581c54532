"""Adapters in the decoder: their gradients in float64 by hand, probes, and the merged model."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.config import train
from jaxunlearn.models import decoder, sharding
from jaxunlearn.models.decoder import Lora, modules
from jaxunlearn.models.decoder.decode import generate
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import GROUPING, Risk, SampleLogProbs
from tests.models.small_models import GEMMA, UNTIED, pack, random_params, random_sequences

LORA = Lora(rank=3, alpha=6.0, targets=("q", "v", "o", "down"))
ADAPTED = dataclasses.replace(UNTIED, lora=LORA)
ADAPTERS = r"\.lora_[ab]$"
SEQUENCES = random_sequences((5, 9, 7, 4), UNTIED.vocab_size)


def plain(params):
    """The parameters without their adapters."""
    blocks = {
        name: {key: x for key, x in part.items() if not key.startswith("lora")}
        for name, part in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


def logp(params, config):
    return jax.jit(lambda p: decoder.forward(p, pack(SEQUENCES), config).labels)(params)


def test_configuration_and_decoder_name_the_same_matrices():
    names = get_args(train.Matrix)
    assert names == (*decoder.MATRICES, *(f"{name}_proj" for name in decoder.MATRICES))


def test_new_adapters_change_nothing_to_the_last_bit():
    params = random_params(UNTIED)
    own = decoder.init_adapters(jax.random.key(0), ADAPTED)
    both = decoder.add_adapters(params, own)
    assert jax.tree.structure(both) == jax.tree.structure(decoder.abstract_params(ADAPTED))
    np.testing.assert_array_equal(logp(both, ADAPTED), logp(params, UNTIED))


def test_new_adapters_are_drawn_as_peft_draws_them():
    wide = dataclasses.replace(UNTIED, intermediate_size=400, lora=Lora(64, 1.0, ("q", "down")))
    own = decoder.init_adapters(jax.random.key(1), wide)["blocks"]
    assert set(own) == {"q", "down"}
    for name, inputs in {"q": 16, "down": 400}.items():
        a, bound = np.asarray(own[name]["lora_a"]), 1 / np.sqrt(inputs)
        assert a.shape == (3, inputs, 64) and not own[name]["lora_b"].any()
        assert 0.95 * bound < np.abs(a).max() <= bound
        np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.05)  # uniform
        assert np.abs(np.corrcoef(a.reshape(3, -1))[0, 1]) < 0.15  # layers differ


@pytest.mark.parametrize("config", [UNTIED, GEMMA], ids=["llama", "gemma"])
def test_the_merged_model_computes_the_same(config):
    adapted = dataclasses.replace(config, lora=LORA)
    params = random_params(adapted)
    merged = decoder.merge_adapters(params, adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(decoder.abstract_params(config))
    values = logp(params, adapted)
    np.testing.assert_allclose(logp(merged, config), values, atol=2e-5)
    assert np.abs(values - logp(plain(params), config)).max() > 0.01
    # W + (alpha / rank) A B, one layer at a time, in float64.
    own = {key: np.asarray(x, np.float64) for key, x in params["blocks"]["down"].items()}
    expected = own["kernel"] + 2 * own["lora_a"] @ own["lora_b"]
    np.testing.assert_allclose(merged["blocks"]["down"]["kernel"], expected, atol=1e-6)
    # A frozen model in bfloat16 is widened before the sum, and a donated one is used up.
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain(params))
    half = decoder.add_adapters(frozen, jax.tree.map(jnp.copy, own_of(params)))
    rounded = decoder.merge_adapters(half, adapted, donate=True)
    assert {x.dtype.name for x in jax.tree.leaves(rounded)} == {"float32"}
    again = decoder.merge_adapters(jax.tree.map(jnp.copy, params), adapted, donate=True)
    jax.tree.map(np.testing.assert_array_equal, again, merged)


def own_of(params):
    """The adapters alone."""
    blocks = {
        name: {key: x for key, x in part.items() if key.startswith("lora")}
        for name, part in params["blocks"].items()
    }
    return {"blocks": {name: part for name, part in blocks.items() if part}}


def test_generation_reads_the_adapters():
    params = random_params(ADAPTED)
    prompts, lengths = jnp.asarray([[3, 5, 7]]), jnp.asarray([3])
    options = dict(max_new_tokens=6, eos_token_id=None)
    tokens, _ = generate(params, prompts, lengths, ADAPTED, **options)
    merged = decoder.merge_adapters(params, ADAPTED)
    expected, _ = generate(merged, prompts, lengths, UNTIED, **options)
    np.testing.assert_array_equal(tokens, expected)


# ---- gradients ----------------------------------------------------------------------------------


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def draw64(config, seed=0):
    rng = np.random.default_rng(seed)
    tree: dict = {}
    for leaf in config.leaves():
        leaf.put(tree, jnp.asarray(rng.normal(float(leaf.init == "ones"), 0.2, leaf.shape)))
    return tree


def test_gradients_of_one_matrix_by_hand(float64):
    """With y = x W + s (x A) B: dL/dA = s x^T (dL/dy) B^T and dL/dB = s (x A)^T dL/dy."""
    config = dataclasses.replace(ADAPTED, dtype="float64")
    rng = np.random.default_rng(0)
    x, w, a, b, c = (
        rng.normal(size=shape) for shape in ((2, 5, 16), (16, 16), (16, 3), (3, 16), (2, 5, 16))
    )
    layer = modules.Linear(config, name="q")

    def loss(own):
        y = layer.apply({"params": own}, jnp.asarray(x))
        return jnp.sum(jnp.sin(y) * c)

    own = {"kernel": jnp.asarray(w), "lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    gradient = jax.grad(loss)(own)
    s, flat = LORA.scale, x.reshape(-1, 16)
    dy = (np.cos(x @ w + s * (x @ a) @ b) * c).reshape(-1, 16)
    np.testing.assert_allclose(gradient["lora_a"], s * flat.T @ dy @ b.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient["lora_b"], s * (flat @ a).T @ dy, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_effects_on_adapters_follow_from_those_on_the_matrices(float64):
    """G-effect on A and B = sum of <dR/dA, dL/dA> + <dR/dB, dL/dB>, with dL/dA = s dL/dW B^T.

    The dense gradients are those of the merged model, whose program knows no adapters.
    """
    config = dataclasses.replace(ADAPTED, dtype="float64")
    dense = dataclasses.replace(UNTIED, dtype="float64")
    params = draw64(config)
    merged = decoder.merge_adapters(params, config)
    rows = [Rows(pack(SEQUENCES[:2])), Rows(pack(SEQUENCES[2:]))]
    options = dict(grouping=GROUPING)
    risks = {c: Risk(c, "sequence_sum") for c in (config, dense)}

    def gradient(config, params, rows, **options):
        return effects.dataset_gradient(risks[config], params, [rows], **options).gradient

    own = [gradient(config, params, row, trainable=ADAPTERS) for row in rows]
    effect = effects.g_effect_between(*own, **options)
    assert effect.rows == ("block_0", "block_1", "block_2")
    by_hand = np.zeros(3)
    whole = [gradient(dense, merged, row) for row in rows]
    for target in LORA.targets:
        a, b = (np.asarray(params["blocks"][target][key]) for key in ("lora_a", "lora_b"))
        first, second = (np.asarray(g["blocks"][target]["kernel"]) for g in whole)
        for_a = [LORA.scale * g @ b.swapaxes(1, 2) for g in (first, second)]
        for_b = [LORA.scale * a.swapaxes(1, 2) @ g for g in (first, second)]
        by_hand += sum((x * y).sum((1, 2)) for x, y in (for_a, for_b))
    np.testing.assert_allclose(effect.value, by_hand, rtol=1e-10)
    # Frozen leaves have no gradient, and the others are those of autodiff over all leaves.
    assert own[0]["embed"]["embedding"] is None and own[0]["blocks"]["q"]["kernel"] is None
    everything = gradient(config, params, rows[0])["blocks"]["o"]["lora_b"]
    np.testing.assert_allclose(own[0]["blocks"]["o"]["lora_b"], everything, rtol=1e-12)


@pytest.mark.nightly
@pytest.mark.parametrize("trainable", [ADAPTERS, r"down\.kernel|^norm|q\.lora_a"])
def test_gates_forward_mode_and_the_definition_agree(trainable):
    params = random_params(ADAPTED)
    frozen = effects.partition(params, trainable)[1]
    assert frozen is not None
    rng = np.random.default_rng(3)
    along = lambda: jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
        effects.partition(params, trainable)[0],
    )
    directions = {"one": along(), "two": along()}
    fn, packed = SampleLogProbs(ADAPTED), Rows(pack(SEQUENCES))
    alone = Rows(pack(SEQUENCES, width=9))
    options = dict(grouping=GROUPING, trainable=trainable)
    gates = effects.pg_effect(
        fn, params, [packed], directions, by="layer", method="gates", **options
    )
    jvp = effects.pg_effect(fn, params, [packed], directions, method="jvp", **options)
    names = effects.layer_names(params, **options)
    filled = np.flatnonzero(np.asarray(packed.mask).any(-1))
    for name, table in gates.items():
        assert table.shape[1] == len(names)
        scale = np.abs(table).max()
        np.testing.assert_allclose(table.sum(-1), jvp[name], atol=1e-5 * scale)
        slow = by_definition(params, alone, directions[name], trainable)
        np.testing.assert_allclose(table.sum(-1)[filled], slow, atol=1e-5 * scale)
    # The G-effect through gates is the dot of formed gradients.
    risk = Risk(ADAPTED, "sequence_sum")
    direction = directions["one"]
    formed = effects.g_effect(risk, params, [packed], direction, **options)
    gated = effects.g_effect(risk, params, [packed], direction, method="gates", **options)
    assert gated.rows == formed.rows
    scale = float(formed.total().risk_norm * formed.total().direction_norm)
    np.testing.assert_allclose(gated.value, formed.value, atol=1e-5 * scale)


def by_definition(params, rows, direction, trainable):
    """Sample by sample: a gradient, then a dot."""
    own, frozen = effects.partition(params, trainable)

    @jax.jit
    def dots(own):
        fn = lambda p: SampleLogProbs(ADAPTED)(effects.combine(p, frozen), rows)
        jacobian = jax.jacrev(fn)(own)
        parts = jax.tree.map(lambda j, v: (j * v).sum(range(1, j.ndim)), jacobian, direction)
        return sum(jax.tree.leaves(parts))

    return np.asarray(dots(own))[np.flatnonzero(np.asarray(rows.mask).any(-1))]


@pytest.mark.nightly
def test_effects_by_tensor_leave_out_frozen_ones():
    params = random_params(ADAPTED)
    direction = effects.partition(params, ADAPTERS)[0]
    options = dict(grouping=GROUPING, trainable=ADAPTERS, by="tensor", method="gates")
    rows = Rows(pack(SEQUENCES))
    table = effects.pg_effect(SampleLogProbs(ADAPTED), params, [rows], {"v": direction}, **options)
    names = effects.tensor_names(params, grouping=GROUPING, trainable=ADAPTERS)
    assert names[:2] == ["block_0.down.lora_a", "block_0.down.lora_b"] and len(names) == 3 * 8
    assert table["v"].shape[1] == len(names)


# ---- shapes, shardings, refusals ----------------------------------------------------------------


def test_adapters_are_split_as_their_matrices_are():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = sharding.param_shardings(ADAPTED, mesh)["blocks"]
    spec = lambda name, key: tuple(shardings[name][key].spec)
    assert spec("q", "lora_a") == (None, "fsdp")
    assert spec("q", "lora_b") == (None, None, "tensor")
    assert spec("down", "lora_a") == (None, ("tensor", "fsdp"))
    assert spec("down", "lora_b") == ()


@pytest.mark.nightly
def test_more_devices_give_the_same_numbers():
    params = random_params(ADAPTED)
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    rows = pack(random_sequences((9,) * 8, UNTIED.vocab_size))
    fn = jax.jit(lambda p: decoder.forward(p, rows, ADAPTED).labels)
    with jax.set_mesh(mesh):
        split = sharding.place(params, sharding.param_shardings(ADAPTED, mesh))
        values = fn(split)
        merged = decoder.merge_adapters(split, ADAPTED)
    np.testing.assert_allclose(values, fn(params), atol=1e-5)
    kernel = merged["blocks"]["o"]["kernel"]
    assert kernel.sharding == split["blocks"]["o"]["kernel"].sharding


def test_needed_flops_count_adapters_and_no_gradients_of_matrices():
    tokens, labels = np.array([7]), np.array([0])
    more = decoder.forward_flops(ADAPTED, tokens, labels) - decoder.forward_flops(
        UNTIED, tokens, labels
    )
    # q and o are 16 x 16, v is 16 x 8, down is 24 x 16.
    assert more == 2 * 3 * 7 * 3 * ((16 + 16) + (16 + 8) + (16 + 16) + (24 + 16))
    assert (decoder.gradient_passes(UNTIED), decoder.gradient_passes(ADAPTED)) == (3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, r"lora\.rank=0 must be at least 1"),
        ({"alpha": 0}, r"lora\.alpha=0 must be positive and finite"),
        ({"targets": ("q", "k", "q")}, r"lora\.targets=.* names a matrix twice"),
        ({"targets": ()}, r"lora\.targets is empty; name some of q, k"),
        ({"targets": ("q", "qq")}, r"lora\.targets='qq' is not one of 'q', 'k'"),
    ],
)
def test_bad_adapters(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LORA, **change)
