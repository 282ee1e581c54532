"""What the effects cost, by the compiler: FLOPs of the programs and bytes of their temporaries."""

import importlib

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from jaxunlearn.data import packing
from jaxunlearn.data.packing import unpack
from jaxunlearn.models import llama

pg_effect = importlib.import_module("jaxunlearn.effects.pg_effect")

pytestmark = pytest.mark.cost

MODEL = llama.LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=344,
    num_layers=6,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    context=64,
)
PARAMETERS = sum(x.size for x in jax.tree.leaves(llama.abstract_params(MODEL)))


def sample_logp(params, packed):
    return unpack(llama.forward(params, packed, MODEL).labels, packed).sum(-1)


def rows(samples, width=64):
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 512, (samples, width)).astype(np.int32)
    return packing.padded([packing.Sequence(t, width // 2) for t in tokens])


def flops(fn, *args) -> int:
    """2 x multiply-adds of every matrix product that the result needs, scans multiplied out."""
    closed = jax.make_jaxpr(fn)(*args)
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(live)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[d] for d in contracted])
            total += 2 * int(depth) * int(np.prod(equation.outvars[0].aval.shape))
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * _count(inner)
    return total


def of(method, samples, directions=1, by="sample"):
    """A function of the parameters, batch and directions, and abstract arguments for it."""
    params = llama.abstract_params(MODEL)
    options = dict(fn=sample_logp, by=by, stacked=("blocks",))
    if method == "vmap":
        options["microbatch"] = samples
    compute = {"jvp": pg_effect.by_jvp, "vmap": pg_effect.by_vmap}[method]
    return (lambda p, b, v: compute(p, b, v, **options)), (
        params,
        rows(samples),
        (params,) * directions,
    )


def batch_gradient(samples):
    loss = lambda params, packed: sample_logp(params, packed).mean()
    return jax.grad(loss), (llama.abstract_params(MODEL), rows(samples))


def temporary_bytes(fn, args) -> int:
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_a_forward_pass_has_the_textbook_flops():
    """2 N_matmul per token, and the attention products: the counter itself is right."""
    per_layer = 128 * 128 * 4 + 3 * 128 * 344
    tokens, labels = 4 * 64, 4 * 32
    expected = 2 * tokens * 6 * per_layer + 2 * labels * 128 * 512 + 6 * 4 * (2 * 2 * 64 * 64 * 128)
    assert flops(sample_logp, llama.abstract_params(MODEL), rows(4)) == expected


def test_pg_effects_of_200_samples_cost_one_gradient_a_direction():
    fn, args = of("jvp", 200)
    gradient, gradient_args = batch_gradient(200)
    assert flops(fn, *args) <= 1.02 * flops(gradient, *gradient_args)


def test_two_directions_share_the_forward_pass():
    fn, args = of("jvp", 8, directions=2)
    gradient, gradient_args = batch_gradient(8)
    assert flops(fn, *args) <= 1.70 * flops(gradient, *gradient_args)


def test_memory_does_not_grow_with_samples_times_parameters():
    """An extra sample costs jvp activations; it costs the definition a gradient."""
    growth = {
        method: (temporary_bytes(*of(method, 24)) - temporary_bytes(*of(method, 8))) / 16
        for method in ("jvp", "vmap")
    }
    gradient_bytes = 4 * PARAMETERS
    assert growth["vmap"] > gradient_bytes
    assert growth["jvp"] < 0.2 * gradient_bytes


def test_jvp_needs_less_memory_than_the_batch_gradient():
    assert temporary_bytes(*of("jvp", 24)) < 0.5 * temporary_bytes(*batch_gradient(24))


def test_one_compilation_serves_all_batches():
    params = llama.init_params(jax.random.key(0), MODEL)
    batches = [jax.tree.map(jnp.asarray, rows(2)) for _ in range(3)]
    fn = lambda params, packed: sample_logp(params, packed)
    before = pg_effect.by_jvp._cache_size()
    pg_effect.pg_effect(fn, params, batches, {"v": params}, method="jvp")
    pg_effect.pg_effect(fn, params, batches, {"w": params}, method="jvp")
    assert pg_effect.by_jvp._cache_size() == before + 1
