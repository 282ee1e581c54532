"""The same numbers on eight devices, whether the mesh shards on its own or by explicit types."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxunlearn import effects
from jaxunlearn.core import trees

SAMPLES, TOKENS, WIDTH, HIDDEN, CLASSES = 8, 3, 8, 16, 4
SPECS = {"v": jax.P(), "w": jax.P("fsdp", None)}


def logp(params, batch):
    """[B, TOKENS]; a class by a product, since a gather would have to name its sharding."""
    x = jnp.tanh(batch["x"] @ params["w"]) @ params["v"]
    return (jax.nn.log_softmax(x) * batch["y"]).sum(-1)


def risk(params, batch):
    return -logp(params, batch).sum(), len(batch["x"])


def both(params, batch):
    return {"risk": risk(params, batch), "half": (0.5 * risk(params, batch)[0], 1)}


def all_effects(params, batches, direction):
    """Every function of the package that takes sharded arrays, results on the host."""
    along = {"u": direction, "r": jax.tree.map(lambda x: 2 * x, direction)}
    pg = lambda **options: effects.pg_effect(logp, params, batches, along, **options)
    gradient = effects.dataset_gradient(risk, params, batches)
    for leaf, like in zip(*map(jax.tree.leaves, (gradient.gradient, params)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    return jax.tree.map(
        trees.on_host,
        {
            "gradient": gradient,
            "one batch": effects.dataset_gradient(risk, params, batches[:1]),
            "g": effects.g_effect(risk, params, batches, direction)[:4],
            "g of": effects.g_effects_of(both, params, batches, direction),
            "spared": effects.spare_update(params, direction, by="layer"),
            "jvp": pg(method="jvp", by="token"),
            "vmap": pg(method="vmap", by="layer", microbatch=3),
            "part": effects.g_effect(
                risk, params, batches, {**direction, "v": None}, trainable="w"
            ).value,
        },
    )


@pytest.fixture(scope="module")
def setting():
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda first, second: {
        "v": jax.random.normal(first, (HIDDEN, CLASSES)),
        "w": jax.random.normal(second, (WIDTH, HIDDEN)),
    }
    batches = [
        {
            "x": jax.random.normal(key, (SAMPLES, TOKENS, WIDTH)),
            "y": jax.nn.one_hot(jax.random.randint(key, (SAMPLES, TOKENS), 0, CLASSES), CLASSES),
        }
        for key in keys[4:]
    ]
    return draw(*keys[:2]), batches, draw(*keys[2:4])


@pytest.fixture(scope="module")
def expected(setting):
    return all_effects(*setting)


@pytest.mark.parametrize("within", [False, True], ids=["arrays alone", "set_mesh"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_effects_on_a_mesh(setting, expected, kind, within):
    params, batches, direction = setting
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(kind,) * 2)
    like_params = {name: jax.NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    with jax.set_mesh(mesh) if within else contextlib.nullcontext():
        found = all_effects(
            jax.device_put(params, like_params),
            jax.device_put(batches, jax.NamedSharding(mesh, jax.P("data"))),
            jax.device_put(direction, like_params),
        )
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_the_mesh_that_jax_makes_by_default(setting, expected):
    """Whatever its axes are: parameters on all devices, samples on each their own."""
    params, batches, direction = setting
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = lambda tree: jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))
    placed = jax.device_put(batches, jax.NamedSharding(mesh, jax.P("data")))
    along = {"u": everywhere(direction)}
    found = effects.pg_effect(logp, everywhere(params), placed, along, method="jvp", by="token")
    np.testing.assert_allclose(found["u"], expected["jvp"]["u"], rtol=1e-4, atol=1e-5)
