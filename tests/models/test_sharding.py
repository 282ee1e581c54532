"""The mesh changes where, never what."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, sharding
from tests.models.small_models import TIED, UNTIED, layer_dots, random_params, random_sequences

CONFIG = dataclasses.replace(UNTIED, hidden_size=32, head_chunk=5, remat="full")
MESHES = {"8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}


@pytest.fixture(scope="module")
def batch():
    sequences = random_sequences([5, 9, 4, 7, 8, 6, 3, 9, 5, 4, 8, 7, 6, 9, 5], 32)
    plan = planning.plan_dataset(sequences, rows=8, width=16, max_width=16, row_multiple=8)
    (batch,) = packing.dataset_batches(sequences, plan)
    return batch


def quantities(params, direction, batch, config):
    """All that is computed from the model: values, gradient, forward mode, gates."""
    samples = batch.mask.shape[0] * batch.mask.shape[1]
    gates = {k: jnp.zeros((3, 1, samples) if k == "blocks" else (1, samples)) for k in params}

    def logp(params, gates=None):
        probe = None if gates is None else {"directions": (direction,), "gates": gates}
        out = decoder.forward(params, batch, config, probe=probe)
        return packing.unpack(out.labels, batch).sum(-1)

    values, tangents = jax.jvp(logp, (params,), (direction,))
    gradient = jax.grad(lambda p: logp(p).sum())(params)
    table = jax.grad(lambda g: logp(params, g).sum())(gates)
    return {
        "values": values,
        "jvp": tangents,
        "gradient": gradient,
        "gates": table,
    }


@pytest.fixture(scope="module")
def on_one_device(batch):
    params, direction = random_params(CONFIG), random_params(CONFIG, 7)
    return jax.jit(quantities, static_argnames="config")(params, direction, batch, CONFIG)


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_eight_devices_are_one(shape, batch, on_one_device, capfd):
    mesh = sharding.make_mesh(*shape)
    shardings = sharding.param_shardings(CONFIG, mesh)
    params = sharding.place(random_params(CONFIG), shardings)
    direction = sharding.place(random_params(CONFIG, 7), shardings)
    placed = sharding.place(batch, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        result = jax.jit(quantities, static_argnames="config")(params, direction, placed, CONFIG)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())

    jax.tree.map(close, result, on_one_device)
    # The compiler says so where it has to copy an array whole to every device.
    assert "rematerialization" not in capfd.readouterr().err


def test_shards_hold_their_share():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    params = sharding.place(random_params(CONFIG), sharding.param_shardings(CONFIG, mesh))
    share = lambda x: x.size // x.addressable_shards[0].data.size
    shares = jax.tree.map(share, params)
    norms = {"attn_norm": {"scale": 1}, "mlp_norm": {"scale": 1}}
    kernels = {k: {"kernel": 8} for k in ("q", "k", "v", "o", "gate", "up", "down")}
    assert shares == {
        "embed": {"embedding": 8},
        "blocks": norms | kernels,
        "norm": {"scale": 1},
        "lm_head": {"kernel": 8},
    }
    assert "lm_head" not in sharding.param_shardings(TIED, mesh)


def test_fsdp_splits_the_first_dimension_of_every_matrix():
    """Gathered along another one, the matrices of all blocks are first copied, 1.9 GiB at 7B."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    specs = sharding.param_shardings(UNTIED, mesh)
    for leaf in UNTIED.leaves():
        spec = leaf.get(specs).spec
        first = len(leaf.shape) - 2 if leaf.path[-1] != "scale" else None
        split = [i for i, axis in enumerate(spec) if "fsdp" in (axis or ())]
        assert split == ([] if first is None else [first]), leaf.path


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_results_of_a_program_are_placed_as_its_parameters(shape):
    # A program is compiled once more for arguments whose sharding is written in another way.
    mesh = sharding.make_mesh(*shape, jax.devices()[: np.prod(shape)])
    shardings = sharding.param_shardings(CONFIG, mesh)
    params = sharding.place(random_params(CONFIG), shardings)
    program = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree))
    assert jax.tree.map(lambda x: x.sharding, program(params)) == shardings
    program(program(params))
    assert program._cache_size() == 1


def test_mesh():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert sharding.make_mesh(fsdp=2, devices=jax.devices()[:2]).size == 2
    with pytest.raises(ValueError, match="data=3 x fsdp=1 x tensor=2 needs 6 devices, but 8"):
        sharding.make_mesh(data=3, tensor=2)
    with pytest.raises(ValueError, match="fsdp=0"):
        sharding.make_mesh(data=8, fsdp=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 33},
            "embed/embedding: .* 'table' of size 33 .* 8 devices of mesh axis fsdp x tensor;",
        ),
        (
            {"intermediate_size": 25},
            "blocks/gate/kernel: dimension 'mlp' of size 25 .* 2 devices of mesh axis tensor;",
        ),
        (
            {"intermediate_size": 28},
            "blocks/down/kernel: .* 'mlp_in' of size 28 .* 8 devices of mesh axis tensor x fsdp;",
        ),
        (
            {"hidden_size": 18},
            "blocks/q/kernel: dimension 'embed' of size 18 .* 4 devices of mesh axis fsdp;",
        ),
    ],
)
def test_indivisible(change, message):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    with pytest.raises(ValueError, match=message):
        sharding.param_shardings(dataclasses.replace(CONFIG, **change), mesh)


def test_constrain():
    x = jnp.ones((4, 6))
    assert sharding.constrain(x, sharding.ROWS, "tensor") is x
    assert sharding.row_shards() == 1
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        assert sharding.row_shards() == 4
        pinned = jax.jit(lambda x: sharding.constrain(x, sharding.ROWS, "tensor"))(x)
        assert pinned.sharding.spec == jax.P(sharding.ROWS, "tensor")
        odd = jax.jit(lambda x: sharding.constrain(x, sharding.ROWS, "tensor"))(x[:3, :5])
        np.testing.assert_array_equal(odd, x[:3, :5])


def test_vmapped_gradients_on_a_mesh(batch):
    """A gradient per row, each row a batch of one: constraints that do not divide are dropped."""
    config = dataclasses.replace(CONFIG, remat="none", head_chunk=0)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    params, direction = random_params(config), random_params(config, 7)

    def one(params, example):
        example = jax.tree.map(lambda x: x[None], example)
        loss = lambda p: packing.unpack(decoder.forward(p, example, config).labels, example).sum()
        return layer_dots(jax.grad(loss)(params), direction)

    table = lambda params, batch: jax.vmap(partial(one, params))(batch)
    expected = jax.jit(table)(params, batch)
    placed = sharding.place(batch, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        shards = sharding.place(params, sharding.param_shardings(config, mesh))
        result = jax.jit(table)(shards, placed)
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())
