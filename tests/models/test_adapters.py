"""Real Linen and NNX models as pure functions of their parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models import adapters


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(8, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3, name="second")(nn.relu(x))


X = jnp.linspace(-1, 1, 12).reshape(3, 4)


def check_derivatives(apply, params):
    """Forward mode and vmap(grad) through the adapter agree."""
    direction = jax.tree.map(jnp.ones_like, params)
    value = lambda p: jnp.sin(apply(p, X)).sum(-1)
    tangent = jax.jit(lambda p: jax.jvp(value, (p,), (direction,))[1])(params)
    one = lambda x: jax.grad(lambda p: jnp.sin(apply(p, x[None])).sum())(params)
    gradients = jax.jit(jax.vmap(one))(X)
    sums = [g.reshape(len(X), -1).sum(-1) for g in jax.tree.leaves(gradients)]
    np.testing.assert_allclose(sum(sums), tangent, rtol=1e-5)
    assert np.abs(tangent).min() > 0


def test_linen():
    module = LinenModel()
    variables = jax.jit(module.init)(jax.random.key(0), X)
    variables = variables | {
        "batch_stats": jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    }
    apply, params = adapters.from_linen(module, variables)
    assert set(params) == {"first", "BatchNorm_0", "second"}
    np.testing.assert_array_equal(apply(params, X), module.apply(variables, X))
    check_derivatives(apply, params)
    assert apply(params, X, train=False).shape == (3, 3)


def test_linen_without_params():
    with pytest.raises(ValueError, match=r"no collection 'params', only \['kernel'\]"):
        adapters.from_linen(LinenModel(), {"kernel": 1})


def test_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class NnxModel(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](nnx.relu(self.norm(self.layers[0](x))))

    module = NnxModel(nnx.Rngs(0))
    apply, params = adapters.from_nnx(module)
    assert set(params) == {"layers", "norm"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(jax.jit(apply)(params, X), jax.jit(module)(X))
    check_derivatives(apply, params)
    changed = jax.tree.map(lambda p: p + 0.1, params)
    assert not np.allclose(apply(changed, X), module(X))


def test_not_nnx():
    with pytest.raises(TypeError, match=r"expected a flax\.nnx\.Module, got dict"):
        adapters.from_nnx({})
