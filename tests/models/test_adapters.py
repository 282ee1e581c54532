"""Real Linen and NNX models as pure functions of their parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import effects
from jaxunlearn.effects import BY_PATH, programs
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
    class NnxModel(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](nnx.relu(self.norm(self.layers[0](x))))

    module = NnxModel(nnx.Rngs(0))
    apply, params, trainable = adapters.from_nnx(module)
    assert set(params) == {"layers", "norm"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(jax.jit(apply)(params, X), jax.jit(module)(X))
    chosen, frozen = effects.partition(params, trainable)
    # The running statistics are no parameters.
    assert chosen["norm"]["mean"] is None and frozen["norm"]["scale"] is None
    check_derivatives(lambda p, x: apply(effects.combine(p, frozen), x), chosen)
    changed = jax.tree.map(lambda p: p + 0.1, params)
    assert not np.allclose(apply(changed, X), module(X))


class LoRA(nnx.Module):
    """A large matrix with a small one next to it, and what else a module's state may hold."""

    def __init__(self, size, rngs):
        self.base = nnx.LoRALinear(size, size, lora_rank=2, rngs=rngs)
        self.base.lora.lora_b[...] += 0.5
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.base(x), deterministic=True)


def test_nnx_lora_is_the_gradient_of_its_variables_alone():
    module = LoRA(4, nnx.Rngs(0))
    apply, params, trainable = adapters.from_nnx(module, wrt=nnx.LoRAParam)
    logp = lambda params, x: jax.nn.log_softmax(apply(params, x))[:, 0]
    risk = lambda params, x: (-logp(params, x).sum(), len(x))
    result = effects.dataset_gradient(risk, params, [X], trainable=trainable).gradient
    loss = lambda m: -jax.nn.log_softmax(m(X))[:, 0].mean()
    own = nnx.to_pure_dict(nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(module))
    assert len(jax.tree.leaves(result)) == 2 and result["base"]["kernel"] is None
    for name, gradient in own["base"]["lora"].items():
        np.testing.assert_allclose(result["base"]["lora"][name], gradient, rtol=1e-5, atol=1e-7)
    assert effects.tensor_names(params, trainable=trainable) == [
        "base.lora.lora_a",
        "base.lora.lora_b",
    ]


def test_what_nnx_freezes_is_no_constant_of_what_is_compiled():
    size = 256
    apply, params, trainable = adapters.from_nnx(LoRA(size, nnx.Rngs(0)), wrt=nnx.LoRAParam)
    logp = lambda params, x: jax.nn.log_softmax(apply(params, x))[:, 0]
    chosen, frozen = effects.partition(params, trainable)
    lowered = programs.pg_by_jvp.lower(
        chosen, jnp.ones((2, size)), (chosen,), frozen, fn=logp, by="sample", grouping=BY_PATH
    )
    assert len(lowered.as_text()) < 4 * size * size  # bytes of the matrix, twice that in the text


def test_not_nnx():
    with pytest.raises(TypeError, match=r"expected a flax\.nnx\.Module, got dict"):
        adapters.from_nnx({})


def test_nnx_without_such_variables():
    with pytest.raises(
        ValueError, match=r"no variable passes; the module has LoRAParam, Param, Rng"
    ):
        adapters.from_nnx(LoRA(4, nnx.Rngs(0)), wrt=nnx.Cache)
