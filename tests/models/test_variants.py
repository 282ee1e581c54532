"""The fields in which model families differ: their leaves under a probe, on meshes, and windows."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import trees
from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, sharding
from jaxunlearn.models.decoder import decode, modules
from tests.models.small_models import (
    GEMMA,
    UNTIED,
    by_id,
    pack,
    random_params,
    random_sequences,
    sample_log_probs,
)

DECODERS = {
    "biases": dataclasses.replace(UNTIED, qkv_bias=True, o_bias=True, mlp_bias=True),
    "qk-norm of heads, window": dataclasses.replace(UNTIED, qk_norm="head", sliding_window=3),
    "qk-norm of projections, post": dataclasses.replace(
        UNTIED, qk_norm="projection", norm_placement="post", qkv_bias=True
    ),
    "gemma": GEMMA,
}
each_decoder = pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)


def by_night(*names):
    """All decoders, those of some names in the nightly suite alone."""
    marks = {name: pytest.mark.nightly for name in names}
    return pytest.mark.parametrize(
        "config",
        [pytest.param(DECODERS[name], id=name, marks=marks.get(name, ())) for name in DECODERS],
    )


# The new leaves under a probe


def leaf_gates(params, batch, config):
    """Zero gates of every sample, one a tensor."""
    samples = batch.mask.shape[0] * batch.mask.shape[1]
    shape = lambda key: (config.num_layers, 1, samples) if key == "blocks" else (1, samples)
    return {key: jax.tree.map(lambda _, k=key: jnp.zeros(shape(k)), params[key]) for key in params}


@each_decoder
def test_gates_and_jvp_are_the_gradient(config):
    """Tensor by tensor: d log p / d gate is <gradient, direction>, and their sum the jvp."""
    params, direction = random_params(config), random_params(config, 7)
    sequences = random_sequences((7, 5, 9, 4, 6, 3), 32)
    alone, batch = packing.padded(sequences), pack(sequences)

    def one(example):
        example = jax.tree.map(lambda x: x[None], example)
        return jax.grad(lambda p: sample_log_probs(p, example, config)[0])(params)

    gradients = jax.jit(jax.vmap(one))(alone)
    probe = lambda gates: {"directions": (direction,), "gates": gates}
    total = lambda gates: sample_log_probs(params, batch, config, probe=probe(gates)).sum()
    gates = jax.jit(jax.grad(total))(leaf_gates(params, batch, config))
    value = lambda p: sample_log_probs(p, batch, config)
    tangents = jax.jit(lambda p, v: jax.jvp(value, (p,), (v,))[1])(params, direction)
    sums = np.zeros(len(sequences))
    for leaf in config.leaves():
        gradient, along = np.asarray(leaf.get(gradients)), np.asarray(leaf.get(direction))
        axes = tuple(range(2 if leaf.stacked else 1, gradient.ndim))
        expected = np.sum(gradient * along, axis=axes)  # [sample] or [sample, layer]
        result = by_id(np.moveaxis(np.asarray(leaf.get(gates))[..., 0, :], -1, 0), batch)
        scale = np.sqrt(np.sum(gradient**2, axes).max() * np.sum(along**2))
        assert np.abs(result - expected).max() < 1e-5 * scale, leaf.path
        sums += expected.reshape(len(sequences), -1).sum(1)
    np.testing.assert_allclose(by_id(tangents, batch), sums, atol=2e-5 * np.abs(sums).max())


@each_decoder
def test_a_resting_probe_changes_no_value(config):
    params, batch = random_params(config), pack(random_sequences((7, 5, 9), 32))
    gates = {k: jnp.zeros((3, 1, 1) if k == "blocks" else (1, 1)) for k in params}
    probe = {"directions": (random_params(config, 7),), "gates": gates}
    values = jax.jit(sample_log_probs, static_argnames="config")
    np.testing.assert_array_equal(
        values(params, batch, config, probe=probe), values(params, batch, config)
    )


# Meshes


@by_night("qk-norm of heads, window")  # which adds nothing that is split
@pytest.mark.parametrize(
    "shape", [(2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.nightly)], ids=str
)
def test_eight_devices_are_one(config, shape, capfd):
    config = dataclasses.replace(config, hidden_size=32)
    sequences = random_sequences([5, 9, 4, 7, 8, 6, 3, 9, 5, 4, 8, 7, 6, 9, 5], 32)
    plan = planning.plan_dataset(sequences, rows=8, width=16, max_width=16, row_multiple=8)
    (batch,) = packing.dataset_batches(sequences, plan)
    direction = random_params(config, 7)

    def quantities(params, direction, batch):
        gates = {k: jnp.zeros((3, 1, 1) if k == "blocks" else (1, 1)) for k in params}
        probe = lambda gates: {"directions": (direction,), "gates": gates}
        logp = lambda p: sample_log_probs(p, batch, config)
        gated = lambda g: sample_log_probs(params, batch, config, probe=probe(g)).sum()
        return (
            jax.jvp(logp, (params,), (direction,)),
            jax.grad(lambda p: logp(p).sum())(params),
            jax.grad(gated)(gates),
        )

    expected = jax.jit(quantities)(random_params(config), direction, batch)
    mesh = sharding.make_mesh(*shape)
    shardings = sharding.param_shardings(config, mesh)
    placed = (
        sharding.place(random_params(config), shardings),
        sharding.place(direction, shardings),
        sharding.place(batch, sharding.batch_sharding(mesh)),
    )
    with jax.set_mesh(mesh):
        result = jax.jit(quantities)(*placed)
    (logp, tangents), gradient, gated = result
    (exact_logp, exact_tangents), exact_gradient, exact_gated = expected
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 0.1))
    jax.tree.map(close, (logp, gradient), (exact_logp, exact_gradient))
    # A dot of two long vectors may be small by cancellation: its error is one of their norms.
    scale = float(trees.norm(direction) * trees.norm(exact_gradient))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale)
    jax.tree.map(close, (tangents, gated), (exact_tangents, exact_gated))
    assert "rematerialization" not in capfd.readouterr().err


def test_shardings_of_the_new_leaves():
    """Biases and norms live where the outputs that they act on do."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    everything = {"o_bias": True, "mlp_bias": True, "qkv_bias": True, "qk_norm": "projection"}
    specs = sharding.param_shardings(dataclasses.replace(UNTIED, **everything), mesh)["blocks"]
    for name in ("q", "k", "v", "gate", "up"):
        assert specs[name]["bias"].spec == jax.P(None, "tensor")
    for name in ("q_norm", "k_norm"):
        assert specs[name]["scale"].spec == jax.P(None, "tensor")
    for name in ("o", "down"):
        assert specs[name]["bias"].spec == jax.P()
    heads = sharding.param_shardings(dataclasses.replace(UNTIED, qk_norm="head"), mesh)["blocks"]
    assert heads["q_norm"]["scale"].spec == jax.P()


# Sliding windows


def test_a_window_counts_positions_inside_a_segment():
    """By hand: of two packed sequences, each query sees its own last three tokens."""
    segments = jnp.array([[0, 0, 0, 0, 0, 1, 1, 1, 1, -1]])
    mask = np.asarray(modules.attention_mask(segments, window=3))[0, 0]
    columns = [np.flatnonzero(row).tolist() for row in mask]
    first = [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert columns == [*first, [5], [5, 6], [5, 6, 7], [6, 7, 8], [9]]


def test_packed_rows_with_a_window():
    config = dataclasses.replace(UNTIED, sliding_window=3)
    params, sequences = random_params(config), random_sequences((7, 5, 9, 4, 6, 3), 32)
    values = jax.jit(sample_log_probs, static_argnames="config")
    packed, alone = pack(sequences, width=24), packing.padded(sequences)
    assert packed.mask.shape[1] > 1
    result, expected = (by_id(values(params, b, config), b) for b in (packed, alone))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    without = by_id(values(params, alone, UNTIED), alone)
    lengths = np.array([len(sequence.tokens) for sequence in sequences])
    np.testing.assert_array_equal(np.abs(without - expected) > 1e-4, lengths > 4)


@pytest.mark.parametrize("window", [1, 5, 64, 70, 200])
def test_blocks_of_queries_with_a_window(window):
    """Keys that no query of a block can see are left out, and change nothing."""
    rng = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(rng.normal(size=(2, 170, n, 4)), jnp.float32) for n in (4, 2, 2)
    )
    segments = jnp.asarray(np.repeat([[0, 1, 2, -1], [0, 0, 1, 1]], [40, 60, 50, 20], axis=1))
    mask = modules.attention_mask(segments, window)
    config = dataclasses.replace(UNTIED, sliding_window=window)
    result = modules.causal_attention(config, mask)(query, key, value)
    np.testing.assert_allclose(result, modules.attend(query, key, value, mask, config), atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 6, 100])
@each_decoder
def test_decoding_is_recomputing_the_prefix(config, window):
    """Every greedy token is the best after its prefix by the whole model: the cache is right."""
    config = dataclasses.replace(config, sliding_window=window)
    params, rng = random_params(config), np.random.default_rng(3)
    prompts = [rng.integers(0, 32, n).astype(np.int32) for n in (5, 1, 9, 7)]
    lengths = jnp.array([len(prompt) for prompt in prompts], jnp.int32)
    padded = jnp.asarray(np.stack([np.pad(prompt, (9 - len(prompt), 0)) for prompt in prompts]))
    options = {"max_new_tokens": 8, "eos_token_id": None}
    tokens, _ = decode.generate(params, padded, lengths, config, **options)
    texts = [np.append(p, row).astype(np.int32) for p, row in zip(prompts, tokens, strict=True)]
    sequences = [planning.Sample(text, len(p)) for text, p in zip(texts, prompts, strict=True)]
    batch = packing.padded(sequences)
    head = decoder.label_statistics
    best = jax.jit(partial(decoder.forward, batch=batch, config=config, head=head))
    correct = packing.unpack(best(params).labels["correct"], batch)
    np.testing.assert_array_equal(correct, batch.mask.reshape(4, -1))


# Computation


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("biases", marks=pytest.mark.nightly),
        "qk-norm of heads, window",
        "qk-norm of projections, post",
    ],
)
def test_remat_and_half_precision(name):
    """The same gradients under remat, and close values and gates in bfloat16.

    Of a Gemma, whose dots of this size are smaller: test_gemma.py.
    """
    config = DECODERS[name]
    params, direction = random_params(config), random_params(config, 7)
    batch = pack(random_sequences((7, 5, 9), 32))

    def quantities(config):
        gates = {k: jnp.zeros((3, 1, 1) if k == "blocks" else (1, 1)) for k in params}
        probe = lambda gates: {"directions": (direction,), "gates": gates}
        total = lambda g: sample_log_probs(params, batch, config, probe=probe(g)).sum()
        logp = lambda p: sample_log_probs(p, batch, config).sum()
        return jax.jit(lambda p: (jax.value_and_grad(logp)(p), jax.grad(total)(gates)))(params)

    plain = quantities(config)
    lean = quantities(dataclasses.replace(config, remat="full"))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    jax.tree.map(close, lean, plain)
    half = quantities(dataclasses.replace(config, dtype="bfloat16"))
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
    difference = jax.tree.map(lambda a, b: a - b, half, plain)
    for part, whole in zip(difference, plain, strict=True):
        assert norm(part) < 0.05 * norm(whole)
