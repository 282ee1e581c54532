"""Models of other libraries, whose parameters are called otherwise: Linen, NNX and Equinox.

By layer, by sample and by token, every result is held to gradients and dots made by hand.
"""

from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import effects

WIDTH, HIDDEN, CLASSES, SAMPLES, TOKENS = 3, 4, 5, 6, 2


class Foreign(NamedTuple):
    """A model as a function of its parameters.

    Attributes:
      params: pytree of arrays.
      apply: (params, x [B, S, WIDTH]) -> logits [B, S, CLASSES].
      rows: {name of a row: a part of the paths of its leaves, as Python would write them}.
    """

    params: object
    apply: object
    rows: dict[str, str]


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(HIDDEN)(x))
        x = nn.LayerNorm(name="final_norm")(nn.tanh(nn.Dense(HIDDEN)(x)))
        return nn.Dense(CLASSES, name="head")(x)


def linen():
    model = LinenModel()
    params = model.init(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    rows = {
        "params.Dense_0": "['Dense_0']",
        "params.Dense_1": "['Dense_1']",
        "params.final_norm": "['final_norm']",
        "params.head": "['head']",
    }
    return Foreign(params, model.apply, rows)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.attn = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.mlp = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)

    def __call__(self, x):
        return x + self.mlp(jnp.tanh(self.attn(x)))


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def nnx_model():
    graph, state = nnx.split(NnxModel(nnx.Rngs(0)))
    apply = lambda params, x: nnx.merge(graph, nnx.State(params))(x)
    rows = {"embed": "['embed']", "head": "['head']"}
    rows |= {f"layers.{i}": f"['layers'][{i}]" for i in range(2)}
    return Foreign(nnx.to_pure_dict(state), apply, rows)


def nnx_state():
    """The same model, its state as NNX gives it: every leaf's path ends in `.value`."""
    pure = nnx_model()
    return pure._replace(params=nnx.split(NnxModel(nnx.Rngs(0)))[1])


class EquinoxModel(eqx.Module):
    stem: eqx.nn.Linear
    layers: list[eqx.nn.Linear]
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Linear(WIDTH, HIDDEN, key=keys[0])
        self.layers = [eqx.nn.Linear(HIDDEN, HIDDEN, key=k) for k in keys[1:3]]
        self.head = eqx.nn.Linear(HIDDEN, CLASSES, key=keys[3])

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


def equinox():
    params, static = eqx.partition(EquinoxModel(jax.random.key(0)), eqx.is_array)
    apply = lambda params, x: jax.vmap(jax.vmap(eqx.combine(params, static)))(x)
    # Rows come in the order in which the module declares its fields.
    rows = {"stem": ".stem", "layers.0": ".layers[0]", "layers.1": ".layers[1]", "head": ".head"}
    return Foreign(params, apply, rows)


class Case(NamedTuple):
    """A model with a log-likelihood, a batch, two directions, and gradients by hand.

    Attributes:
      logp: (params, batch) -> [B, S].
      directions: {name: tree like the parameters}.
      dots: {name: [B, S, rows]}: a gradient of every token, times the direction, summed by row.
    """

    model: Foreign
    logp: object
    batch: dict[str, jax.Array]
    directions: dict[str, object]
    dots: dict[str, np.ndarray]


@pytest.fixture(
    scope="module", params=[linen, nnx_model, nnx_state, equinox], ids=lambda make: make.__name__
)
def case(request):
    model = request.param()
    first, second, *keys = jax.random.split(jax.random.key(1), 4)
    batch = {
        "x": jax.random.normal(first, (SAMPLES, TOKENS, WIDTH)),
        "y": jax.random.randint(second, (SAMPLES, TOKENS), 0, CLASSES),
    }

    def logp(params, batch):
        logits = jax.nn.log_softmax(model.apply(params, batch["x"]))
        return jnp.take_along_axis(logits, batch["y"][..., None], -1)[..., 0]

    draw = lambda key: jax.tree.map(
        lambda x: jax.random.normal(jax.random.fold_in(key, x.size), x.shape), model.params
    )
    directions = {"unlearn": draw(keys[0]), "retain": draw(keys[1])}
    jacobian = jax.jacrev(lambda p: logp(p, batch))(model.params)
    dots = {name: by_hand(model, jacobian, v) for name, v in directions.items()}
    return Case(model, logp, batch, directions, dots)


def by_hand(model, jacobian, direction):
    """[B, S, rows]: the leaves of a row are found by their paths, written as Python writes them."""
    table = np.zeros((SAMPLES, TOKENS, len(model.rows)))
    leaves = jax.tree_util.tree_flatten_with_path(jacobian)[0]
    for (path, gradients), v in zip(leaves, jax.tree.leaves(direction), strict=True):
        text = jax.tree_util.keystr(path)
        (row,) = [i for i, part in enumerate(model.rows.values()) if part in text]
        table[..., row] += np.tensordot(np.asarray(gradients), np.asarray(v), axes=v.ndim)
    return table


def risk_of(case):
    def risk(params, batch):
        return -case.logp(params, batch).sum(), jnp.asarray(float(SAMPLES))

    return risk


def test_rows_are_the_layers(case):
    assert effects.layer_names(case.model.params) == list(case.model.rows)
    tensors = effects.tensor_names(case.model.params)
    assert len(set(tensors)) == len(jax.tree.leaves(case.model.params))
    assert [t for row in case.model.rows for t in tensors if t.startswith(f"{row}.")] == tensors


def test_g_effect_by_layer_and_total(case):
    # By hand: the gradient of the risk is minus the mean over sequences of that of log p.
    expected = -case.dots["unlearn"].sum((0, 1)) / SAMPLES
    arguments = (risk_of(case), case.model.params, [case.batch], case.directions["unlearn"])
    by_layer = effects.g_effect(*arguments)
    total = effects.g_effect(*arguments, by="total")
    assert by_layer.rows == tuple(case.model.rows)
    np.testing.assert_allclose(by_layer.value, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total.value, expected.sum(), rtol=1e-4, atol=1e-5)
    tensors = effects.g_effect(*arguments, by="tensor")
    np.testing.assert_allclose(tensors.value.sum(), expected.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("by", "method"), [("layer", "vmap"), ("sample", "jvp"), ("token", "jvp")])
def test_pg_effects(case, by, method):
    result = effects.pg_effect(
        case.logp, case.model.params, [case.batch], case.directions, by=by, method=method
    )
    for name, dots in case.dots.items():
        expected = {"layer": dots.sum(1), "sample": dots.sum((1, 2)), "token": dots.sum(2)}[by]
        np.testing.assert_allclose(result[name], expected, rtol=1e-4, atol=1e-5)


def test_pg_effects_by_layer_sum_to_those_by_sample(case):
    values_of = lambda by: effects.pg_effect(
        case.logp, case.model.params, [case.batch], case.directions, by=by, method="vmap"
    )
    by_layer, by_sample = values_of("layer"), values_of("sample")
    for name in case.directions:
        np.testing.assert_allclose(by_layer[name].sum(1), by_sample[name], rtol=1e-4, atol=1e-5)


def test_projected_updates_by_layer(case):
    """No row's own dot with the risk gradient stays positive."""
    gradient = effects.dataset_gradient(risk_of(case), case.model.params, [case.batch]).gradient
    moved = effects.spare_update(case.directions["retain"], gradient, by="layer")
    before = effects.layer_dots(gradient, case.directions["retain"])
    after = effects.layer_dots(gradient, moved)
    np.testing.assert_allclose(after, jnp.minimum(before, 0), atol=1e-5)
