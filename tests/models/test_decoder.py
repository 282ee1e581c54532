"""The model's identities: packing, gates, chunks, remat, taps, precision."""

import dataclasses
import doctest
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, sharding
from jaxunlearn.models.decoder import heads, modules, transformer
from tests.models.small_models import (
    TIED,
    UNTIED,
    by_id,
    layer_dots,
    layer_norms,
    pack,
    random_params,
    random_sequences,
    sample_log_probs,
)

LENGTHS = (7, 5, 9, 4, 6, 3)
each_config = pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])
log_probs = jax.jit(sample_log_probs, static_argnames="config")
forward = jax.jit(decoder.forward, static_argnames=("config", "head", "tap"))


@pytest.fixture(scope="module")
def sequences():
    return random_sequences(LENGTHS, 32)


# Packing


@hypothesis.given(
    lengths=st.lists(st.integers(2, 12), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_packed_is_one_per_row(lengths, seed):
    """The shapes are fixed so that two compilations serve every example."""
    sequences, params = random_sequences(lengths, 32, seed), random_params(UNTIED)
    plan = planning.Plan(rows=6, width=16, slots=8, labels=16, answer=12)
    (packed,) = packing.dataset_batches(sequences, plan)
    alone = packing.padded(sequences, width=12)
    alone = alone._replace(
        label_at=np.pad(alone.label_at, ((0, 0), (0, 12 - alone.label_at.shape[1]))),
        label_tokens=np.pad(alone.label_tokens, ((0, 0), (0, 12 - alone.label_tokens.shape[1]))),
        mask=np.pad(alone.mask, ((0, 0), (0, 0), (0, 12 - alone.mask.shape[2]))),
    )
    values = [by_id(log_probs(params, batch, UNTIED), batch) for batch in (packed, alone)]
    np.testing.assert_allclose(*values, atol=1e-5)


def test_padding_and_neighbours_change_nothing(sequences):
    """Other ids on padding and in other segments: bitwise the same; an empty row: finite."""
    plan = planning.Plan(rows=4, width=24, slots=4, labels=24, answer=8)
    (batch,) = packing.dataset_batches(sequences, plan)
    assert (batch.segments[-1] == -1).all()
    params = random_params(UNTIED)
    expected = np.asarray(log_probs(params, batch, UNTIED))
    assert np.isfinite(expected).all()
    other = np.where(batch.segments == 0, batch.tokens, (batch.tokens + 5) % 32)
    changed = np.asarray(log_probs(params, batch._replace(tokens=other), UNTIED))
    np.testing.assert_array_equal(changed.reshape(4, 4)[:, 0], expected.reshape(4, 4)[:, 0])
    assert (changed.reshape(4, 4)[:, 1] != expected.reshape(4, 4)[:, 1]).any()


def test_later_tokens_change_nothing(sequences):
    params, batch = random_params(UNTIED), packing.padded(sequences[:1])
    tokens = batch.tokens.copy()
    tokens[0, -2] = (tokens[0, -2] + 1) % 32
    other = batch._replace(tokens=tokens)
    first, second = (forward(params, b, UNTIED).labels[0] for b in (batch, other))
    np.testing.assert_array_equal(first[:-1], second[:-1])
    assert first[-1] != second[-1]


def pusher(batch, config):
    """(params, direction) -> log p of each slot and its derivative along the direction."""
    return jax.jit(lambda p, v: jax.jvp(lambda q: sample_log_probs(q, batch, config), (p,), (v,)))


# Gates


LEAN = {"remat": "full", "head_chunk": 4}


@pytest.fixture(
    scope="module",
    params=[UNTIED, dataclasses.replace(TIED, **LEAN)],
    ids=["untied", "tied, lean"],
)
def effects(request, sequences):
    """Layer-by-layer derivatives of each sample's log p along two directions, by definition."""
    config = request.param
    params, batch = random_params(config), packing.padded(sequences)
    directions = tuple(random_params(config, seed) for seed in (7, 8))

    def one(example):
        example = jax.tree.map(lambda x: x[None], example)
        return jax.grad(lambda p: sample_log_probs(p, example, config)[0])(params)

    gradients = jax.jit(jax.vmap(one))(batch)
    dots = jax.vmap(layer_dots, (0, None))
    scale = jnp.stack([jax.vmap(layer_norms)(gradients) * layer_norms(v) for v in directions])
    table = jnp.stack([dots(gradients, v) for v in directions])  # [K, sample, layer]
    return config, params, directions, table, scale


def gate_gradient(params, batch, directions, config, samples=None):
    """{layer: [K, B] or [L, K, B]}"""
    samples = samples or batch.mask.shape[0] * batch.mask.shape[1]
    shape = (len(directions), samples)
    gates = {k: jnp.zeros((config.num_layers, *shape) if k == "blocks" else shape) for k in params}

    def total(gates):
        probe = {"directions": directions, "gates": gates}
        return sample_log_probs(params, batch, config, probe=probe).sum()

    return jax.jit(jax.grad(total))(gates)


def rows(gates):
    """[layers, K, B], layers in the order of the sorted keys."""
    return jnp.concatenate([gates[k] if k == "blocks" else gates[k][None] for k in sorted(gates)])


def test_gates_are_per_layer_gradients(effects, sequences):
    config, params, directions, table, scale = effects
    batch = pack(sequences)
    assert batch.mask.shape[1] > 1
    gates = rows(gate_gradient(params, batch, directions, config))
    result = np.stack([by_id(gates[:, k].T, batch) for k in range(2)])
    assert (np.abs(result - table) / scale).max() < 1e-5
    assert ("lm_head" in params) == (not config.tied)


def test_jvp_is_the_sum_over_layers(effects, sequences):
    config, params, directions, table, scale = effects
    batch = pack(sequences)
    push = pusher(batch, config)
    for k, direction in enumerate(directions):
        error = by_id(push(params, direction)[1], batch) - table[k].sum(-1)
        assert (np.abs(error) / np.linalg.norm(scale[k], axis=-1)).max() < 1e-5


def test_one_gate_for_all_samples(effects, sequences):
    config, params, directions, table, scale = effects
    gates = rows(gate_gradient(params, pack(sequences), directions[:1], config, samples=1))
    assert gates.shape == (len(gates), 1, 1)
    error = gates[:, 0, 0] - table[0].sum(0)
    assert (np.abs(error) / scale[0].sum(0)).max() < 1e-5


@each_config
def test_a_probe_at_rest_changes_no_value(config, sequences):
    params, batch = random_params(config), pack(sequences)
    gates = {k: jnp.zeros((3, 1, 1) if k == "blocks" else (1, 1)) for k in params}
    probe = {"directions": (random_params(config, 7),), "gates": gates}
    with_probe, without = (
        forward(params, batch, config, probe=probe),
        forward(params, batch, config),
    )
    np.testing.assert_array_equal(with_probe.labels, without.labels)


# Head


def test_chunks_are_the_whole(sequences):
    """Values, gradients, the head's other outputs and its extra inputs."""
    config = TIED
    params, batch = random_params(config), pack(sequences)
    extra = jax.random.normal(jax.random.key(0), (*batch.label_tokens.shape, 2))

    def head(logits, labels, extra):
        statistics = decoder.label_statistics(logits, labels)
        return statistics | {"extra": extra * statistics["logp"][..., None]}

    def run(params, chunk):
        cut = dataclasses.replace(config, head_chunk=chunk)
        out = decoder.forward(params, batch, cut, head=head, head_inputs=(extra,)).labels
        return out["extra"].sum(), out

    results = [
        jax.jit(jax.value_and_grad(partial(run, chunk=chunk), has_aux=True))(params)
        for chunk in (100, 3)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), *results)
    assert results[0][0][1]["logp"].shape == batch.label_tokens.shape


@pytest.mark.cost
def test_large_vocabularies_are_chunked_unasked(sequences, monkeypatch):
    """Memory is far under that of all logits at once."""
    monkeypatch.setattr(transformer, "CHUNK_ENTRIES", 2**14)
    config = dataclasses.replace(UNTIED, vocab_size=2**13, num_layers=1)
    batch = packing.padded(random_sequences([200], 32))

    def memory(chunk):
        cut = dataclasses.replace(config, head_chunk=chunk)
        labels = lambda params: decoder.forward(params, batch, cut).labels
        lowered = jax.jit(labels).lower(decoder.abstract_params(cut))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(0) < memory(100) / 2


@each_config
def test_head_logits_and_no_head(config, sequences):
    params, batch = random_params(config), pack(sequences)
    out = forward(params, batch, config, head=lambda logits, labels: logits)
    bare = forward(params, batch, config, head=None)
    assert bare.labels is None and bare.hidden is None
    key = "embed" if config.tied else "lm_head"
    logits = decoder.head_logits({key: params[key]}, bare.final_hidden, config)
    np.testing.assert_allclose(logits, out.labels, atol=1e-5)


def test_label_log_probs():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 9)) * 30
    labels = jnp.arange(12).reshape(3, 4) % 9
    expected = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), np.asarray(labels)[..., None], -1
    )[..., 0]
    np.testing.assert_allclose(decoder.label_log_probs(logits, labels), expected, atol=1e-5)
    half = decoder.label_log_probs(logits.astype(jnp.bfloat16), labels)
    assert half.dtype == jnp.float32
    correct = decoder.label_statistics(logits, jnp.argmax(logits, -1))["correct"]
    assert correct.all() and correct.dtype == bool


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int64"])
def test_labels_of_any_width(dtype):
    logits = jax.random.normal(jax.random.key(0), (5, 600))
    labels = np.array([0, 7, 44, 100, 127])
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(5), labels]
    with jax.enable_x64(dtype == "int64"):
        narrow = jnp.asarray(labels, dtype)
        np.testing.assert_allclose(decoder.label_log_probs(logits, narrow), expected, atol=1e-5)


def test_labels_outside_the_vocabulary():
    """They are finite, so that a mask that multiplies leaves them out too, and never correct."""
    logits = jax.random.normal(jax.random.key(0), (4, 9))
    labels, inside = jnp.array([-100, 3, 9, -1]), np.array([False, True, False, False])
    values = decoder.label_statistics(logits, labels)
    assert not values["correct"][~inside].any()
    assert np.isfinite(values["logp"]).all()
    total = lambda z: jnp.where(inside, decoder.label_log_probs(z, labels), 0).sum()
    gradient = jax.grad(total)(logits)
    assert not gradient[~inside].any() and gradient[1].all()


def test_no_labels_and_no_rows(sequences):
    params, batch = random_params(UNTIED), packing.padded(sequences)
    bare = batch._replace(label_at=batch.label_at[:, :0], label_tokens=batch.label_tokens[:, :0])
    values = forward(params, bare, UNTIED, head=decoder.label_statistics).labels
    assert {value.shape for value in values.values()} == {(len(LENGTHS), 0)}
    empty = jax.tree.map(lambda x: x[:0], batch)
    with pytest.raises(ValueError, match=r"batch\.tokens \(0, 9\): expected a row and a token"):
        forward(params, empty, UNTIED)
    hidden = jnp.zeros((*empty.label_tokens.shape, UNTIED.hidden_size))
    logp = decoder.forward_head(params, hidden, empty, UNTIED)
    assert logp.shape == empty.label_tokens.shape


# Computation


def test_remat_changes_no_gradient(sequences):
    params, batch = random_params(UNTIED), pack(sequences)

    def gradient(remat):
        lean = dataclasses.replace(UNTIED, remat=remat)
        return jax.jit(jax.grad(lambda p: sample_log_probs(p, batch, lean).sum()))(params)

    plain = gradient("none")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    jax.tree.map(close, gradient("dots"), plain)
    assert all(jnp.abs(x).sum() > 0 for x in jax.tree.leaves(plain))  # no leaf is left out


def test_taps(sequences):
    """A tap is where it says: each tap continued by hand is the next one."""
    params, batch = random_params(UNTIED), packing.padded(sequences)
    every = batch._replace(  # every column
        label_at=np.broadcast_to(np.arange(batch.tokens.shape[1]), batch.tokens.shape),
        label_tokens=batch.tokens,
    )
    taps = [forward(params, every, UNTIED, tap=k, head=None) for k in range(4)]
    np.testing.assert_array_equal(taps[0].hidden, params["embed"]["embedding"][every.tokens])
    rope = modules.rope_tables(jnp.asarray(every.positions), UNTIED)
    attend = modules.causal_attention(UNTIED, modules.attention_mask(jnp.asarray(every.segments)))
    block = jax.jit(lambda p, x: modules.Block(UNTIED).apply({"params": p}, x, rope, attend))
    for k in range(2):
        after = block(jax.tree.map(lambda x, k=k: x[k], params["blocks"]), taps[k].hidden)
        np.testing.assert_allclose(after, taps[k + 1].hidden, atol=1e-5)
    np.testing.assert_array_equal(taps[3].hidden, taps[3].final_hidden)
    for k, out in enumerate(taps):
        np.testing.assert_allclose(out.final_hidden, taps[3].final_hidden, atol=1e-5)
        with_head = forward(params, every, UNTIED, tap=k)
        np.testing.assert_allclose(with_head.hidden, out.hidden, atol=1e-5)
        assert with_head.labels.shape == every.label_tokens.shape


@pytest.mark.cost
def test_a_tap_needs_no_later_block(sequences):
    """Without a head, the embedding's output costs no matrix product."""
    batch = packing.padded(sequences)
    hidden = lambda p: decoder.forward(p, batch, UNTIED, tap=0, head=None).hidden
    compiled = jax.jit(hidden).lower(decoder.abstract_params(UNTIED)).compile()
    assert " dot(" not in compiled.as_text() and " gather(" in compiled.as_text()


@pytest.mark.parametrize("tap", [-1, 4])
def test_bad_tap(tap, sequences):
    with pytest.raises(ValueError, match=rf"tap={tap} must be in 0..3"):
        decoder.forward(random_params(UNTIED), packing.padded(sequences), UNTIED, tap=tap)


def test_float64(sequences):
    """Float64 throughout: gates meet forward mode, and that central differences."""
    with jax.enable_x64(True):
        config = dataclasses.replace(TIED, dtype="float64", head_chunk=5)
        cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
        params, direction = cast(random_params(config)), cast(random_params(config, 7))
        batch = pack(sequences)
        push = pusher(batch, config)
        _, tangent = push(params, direction)
        gates = rows(gate_gradient(params, batch, (direction,), config))
        assert tangent.dtype == jnp.float64
        scale = np.abs(tangent).max()
        np.testing.assert_allclose(gates.sum(0)[0], tangent, atol=1e-12 * scale)
        moved = lambda step: jax.tree.map(lambda p, v: p + step * v, params, direction)
        ahead, behind = (push(moved(step), direction)[0] for step in (1e-5, -1e-5))
        np.testing.assert_allclose((ahead - behind) / 2e-5, tangent, atol=1e-8 * scale)


def test_bfloat16(sequences):
    """Half-precision computation on float32 parameters: float32 log-probs, close values."""
    half = dataclasses.replace(UNTIED, dtype="bfloat16")
    params, direction, batch = random_params(UNTIED), random_params(UNTIED, 7), pack(sequences)
    value, tangent = pusher(batch, half)(params, direction)
    assert value.dtype == jnp.float32
    exact, exact_tangent = pusher(batch, UNTIED)(params, direction)
    np.testing.assert_allclose(value, exact, atol=0.02 * np.abs(exact).max())
    gates = rows(gate_gradient(params, batch, (direction,), half)).sum(0)[0]
    for half_effect in (tangent, gates):
        scale = np.abs(exact_tangent).max()
        np.testing.assert_allclose(half_effect, exact_tangent, atol=0.03 * scale)


# Parameters


@each_config
def test_parameters(config):
    params, abstract = (
        decoder.init_params(jax.random.key(0), config),
        decoder.abstract_params(config),
    )
    shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shape(params) == shape(abstract)
    assert ("lm_head" in params) == (not config.tied)
    assert (params["norm"]["scale"] == 1).all() and (
        params["blocks"]["mlp_norm"]["scale"] == 1
    ).all()
    assert 0.018 < params["blocks"]["up"]["kernel"].std() < 0.022
    assert params["embed"]["embedding"].shape == (32, 16)
    assert params["blocks"]["k"]["kernel"].shape == (3, 16, 8)


def test_parameters_of_7b():
    config = decoder.DecoderConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096)
    sizes = (x.size for x in jax.tree.leaves(decoder.abstract_params(config)))
    assert sum(sizes) == 6_738_415_616


def test_rope_frequencies():
    np.testing.assert_allclose(modules.rope_frequencies(UNTIED), [1, 0.01])
    scaling = decoder.Llama3RopeScaling(8.0, 1.0, 4.0, 64)
    scaled = dataclasses.replace(UNTIED, head_dim=8, rope_scaling=scaling)
    # Turns in 64 tokens: 10.2 is kept; 1.02 is nearly all stretched; 0.1 and 0.01 are stretched.
    turns = 64 / (2 * np.pi) * 0.1
    kept = (turns - 1) / 3
    expected = [1, 0.1 * (kept + (1 - kept) / 8), 0.01 / 8, 0.001 / 8]
    np.testing.assert_allclose(modules.rope_frequencies(scaled), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "flash"}, "attention='flash' is not one of 'xla', 'cudnn'"),
        ({"remat": "all"}, "remat='all' is not one of"),
        ({"dtype": "bf16"}, "dtype='bf16' is not one of"),
        ({"num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"attention": "cudnn"}, "attention='cudnn' needs dtype='bfloat16'"),
        ({"qk_norm": "heads"}, "qk_norm='heads' is not one of 'none', 'head', 'projection'"),
        ({"norm_placement": "in"}, "norm_placement='in' is not one of 'pre', 'post', 'both'"),
        ({"activation": "gelu"}, "activation='gelu' is not one of 'silu', 'gelu_tanh'"),
        ({"sliding_window": 0}, "sliding_window=0 must be at least 1"),
        ({"full_layers": (1,)}, r"full_layers=\(1,\) needs a sliding_window"),
        ({"sliding_window": 4, "full_layers": (1, 3)}, "should be some of the 3 layers 0..2"),
        ({"sliding_window": 4, "full_layers": (1, 0)}, "should be some of the 3 layers 0..2"),
        ({"sliding_window": 4, "full_layers": (0, 1, 2)}, "for all of them leave it empty"),
        ({"logit_softcap": 0.0}, "logit_softcap=0.0 must be positive, or None"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 must be at least 1"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"head_chunk": -1}, "head_chunk=-1 must be at least 1, or 0 to choose"),
        ({"norm_eps": float("nan")}, "norm_eps=nan must be positive and finite"),
        ({"rope_theta": 0.0}, "rope_theta=0.0 must be positive and finite"),
        ({"dtype": "float64"}, r"dtype='float64': JAX would compute in float32.*jax_enable_x64"),
        (
            {"attention": "cudnn", "dtype": "bfloat16", "attention_softcap": 50.0},
            "attention='cudnn' cannot compute attention_softcap=50.0; use attention='xla'",
        ),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNTIED, **change)


@pytest.mark.parametrize("high", [1.0, 0.5])
def test_llama3_scaling_blends_between_two_factors(high):
    """transformers computes other frequencies than we do where the two are out of order."""
    with pytest.raises(ValueError, match=rf"high_freq_factor={high} must be above low_freq_fac"):
        decoder.Llama3RopeScaling(8.0, 1.0, high, 64)


@pytest.mark.parametrize("module", [heads, sharding])
def test_examples(module):
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
