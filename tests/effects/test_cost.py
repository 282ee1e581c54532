"""What the effects cost, by the compiler: FLOPs of the programs and bytes of their temporaries."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import unpack
from jaxunlearn.effects import count_flops, estimate_cost, programs
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import modules

pytestmark = pytest.mark.cost

MODEL = decoder.DecoderConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=344,
    num_layers=6,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    context=64,
)
MEDIUM = decoder.DecoderConfig(
    vocab_size=4096,
    hidden_size=384,
    intermediate_size=1024,
    num_layers=8,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
    context=256,
)
BLOCKS = effects.Grouping(stacked=decoder.STACKED)
PARAMETERS = sum(x.size for x in jax.tree.leaves(decoder.abstract_params(MODEL)))


def sample_logp(params, packed):
    return unpack(decoder.forward(params, packed, MODEL).labels, packed).sum(-1)


def rows(samples, width=64):
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 512, (samples, width)).astype(np.int32)
    return packing.padded([planning.Sample(t, width // 2) for t in tokens])


def of(method, samples, directions=1, by="sample"):
    """A function of the parameters, batch and directions, and abstract arguments for it."""
    params = decoder.abstract_params(MODEL)
    options = dict(fn=sample_logp, by=by, grouping=BLOCKS)
    if method == "vmap":
        options["microbatch"] = samples
    compute = {"jvp": programs.pg_by_jvp, "vmap": programs.pg_by_vmap}[method]
    return (lambda p, b, v: compute(p, b, v, **options)), (
        params,
        rows(samples),
        (params,) * directions,
    )


def batch_gradient(samples):
    loss = lambda params, packed: sample_logp(params, packed).mean()
    return jax.grad(loss), (decoder.abstract_params(MODEL), rows(samples))


def temporary_bytes(fn, args) -> int:
    return estimate_cost(fn, *args).temp


def test_a_forward_pass_has_the_textbook_flops():
    """2 N_matmul per token, and the attention products: the counter itself is right."""
    per_layer = 128 * 128 * 4 + 3 * 128 * 344
    tokens, labels = 4 * 64, 4 * 32
    expected = 2 * tokens * 6 * per_layer + 2 * labels * 128 * 512 + 6 * 4 * (2 * 2 * 64 * 64 * 128)
    assert count_flops(sample_logp, decoder.abstract_params(MODEL), rows(4)) == expected


def test_pg_effects_of_200_samples_cost_one_gradient_a_direction():
    fn, args = of("jvp", 200)
    gradient, gradient_args = batch_gradient(200)
    assert count_flops(fn, *args) <= 1.02 * count_flops(gradient, *gradient_args)


def test_two_directions_share_the_forward_pass():
    fn, args = of("jvp", 8, directions=2)
    gradient, gradient_args = batch_gradient(8)
    assert count_flops(fn, *args) <= 1.70 * count_flops(gradient, *gradient_args)


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
    params = decoder.init_params(jax.random.key(0), MODEL)
    batches = [jax.tree.map(jnp.asarray, rows(2)) for _ in range(3)]
    fn = lambda params, packed: sample_logp(params, packed)
    before = programs.pg_by_jvp._cache_size()
    effects.pg_effect(fn, params, batches, {"v": params}, method="jvp")
    effects.pg_effect(fn, params, batches, {"w": params}, method="jvp")
    assert programs.pg_by_jvp._cache_size() == before + 1


@dataclasses.dataclass(frozen=True)
class SampleLogProbs:
    model: decoder.DecoderConfig

    def __call__(self, params, packed, probe=None):
        return unpack(decoder.forward(params, packed, self.model, probe=probe).labels, packed).sum(
            -1
        )


def abstract_rows(samples, width, vocab_size):
    tokens = np.zeros((samples, width), np.int32)
    packed = packing.padded([planning.Sample(t, 1) for t in tokens])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), packed)


class TestClosedForms:
    """FLOPs of the whole model in terms of its sizes, equal to the last unit."""

    tall = decoder.DecoderConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=80,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context=256,
        remat="full",
    )

    def sizes(self, samples=2, width=96):
        """Tokens, labels, FLOPs per token of a forward pass in the layers, head, attention."""
        m = self.tall
        kv = m.num_kv_heads * m.head_dim
        layer = 2 * m.hidden_size**2 + 2 * m.hidden_size * kv
        layer += 3 * m.hidden_size * m.intermediate_size
        # Blocks of queries, each with the keys up to its own end: q k and the mix, 2 FLOPs each.
        block = max(modules.QUERY_BLOCK, -(-width // modules.MAX_QUERY_BLOCKS))
        ends = [min(first + block, width) for first in range(0, width, block)]
        scores = sum(e * (e - f) for e, f in zip(ends, range(0, width, block), strict=True))
        tokens, labels = samples * width, samples * (width - 1)
        stack = 2 * tokens * m.num_layers * layer
        attention = samples * m.num_layers * 4 * m.hidden_size * scores
        return stack, 2 * labels * m.hidden_size * m.vocab_size, attention, tokens

    def arguments(self):
        return decoder.abstract_params(self.tall), abstract_rows(2, 96, 96)

    def test_forward(self):
        stack, head, attention, _ = self.sizes()
        assert count_flops(SampleLogProbs(self.tall), *self.arguments()) == stack + head + attention

    @pytest.mark.parametrize("directions", [1, 2])
    def test_pg_effects_by_jvp(self, directions):
        params, packed = self.arguments()
        result = count_flops(
            programs.pg_by_jvp,
            params,
            packed,
            (params,) * directions,
            fn=SampleLogProbs(self.tall),
            by="sample",
            grouping=BLOCKS,
        )
        stack, head, attention, _ = self.sizes()
        assert result == (1 + 2 * directions) * (stack + head + attention)

    def test_training_with_full_remat(self):
        """6 N + 2 (N_layers - L D F) + 4 A: a block is computed again but for its last map."""
        loss = lambda params, packed: SampleLogProbs(self.tall)(params, packed).mean()
        stack, head, attention, tokens = self.sizes()
        m = self.tall
        last = 2 * tokens * m.num_layers * m.hidden_size * m.intermediate_size
        expected = 3 * (stack + head) + stack - last + 4 * attention
        assert count_flops(jax.grad(loss), *self.arguments()) == expected


@pytest.fixture(scope="module")
def costs():
    """17 M parameters, 32 x 128 tokens: what each way to two directions' effects needs."""
    params, packed = decoder.abstract_params(MEDIUM), abstract_rows(32, 128, 4096)
    plain = SampleLogProbs(MEDIUM)
    lean = SampleLogProbs(dataclasses.replace(MEDIUM, remat="full"))
    loss = lambda params, packed: plain(params, packed).mean()
    two = (params, params)
    of = lambda way, fn, along, **options: estimate_cost(
        way, params, packed, along, fn=fn, grouping=BLOCKS, **options
    )
    jax.config.update("jax_disable_most_optimizations", False)
    return {
        "gradient": estimate_cost(jax.grad(loss), params, packed),
        "jvp": of(programs.pg_by_jvp, plain, two, by="sample"),
        "jvp, one": of(programs.pg_by_jvp, plain, two[:1], by="sample"),
        "gates": of(programs.pg_by_gates, plain, two, by="layer"),
        "gates, one": of(programs.pg_by_gates, plain, two[:1], by="layer"),
        "gates, remat": of(programs.pg_by_gates, lean, two, by="layer"),
        "vmap": of(programs.pg_by_vmap, plain, two, by="sample", microbatch=32),
    }


@pytest.mark.slow
class TestBars:
    @pytest.mark.parametrize(
        ("way", "most"),
        [
            ("jvp, one", 1.02),
            ("gates, one", 1.02),
            ("gates", 1.35),
            ("gates, remat", 1.60),
            ("jvp", 1.70),
        ],
    )
    def test_flops_in_batch_gradients(self, costs, way, most):
        assert costs[way].flops <= most * costs["gradient"].flops

    @pytest.mark.parametrize("way", ["jvp", "gates, remat"])
    def test_an_eighth_of_the_memory_of_a_gradient_a_sample(self, costs, way):
        assert costs[way].temp <= 0.12 * costs["vmap"].temp

    def test_gates_keep_no_more_than_a_gradient_does(self, costs):
        assert costs["gates"].temp <= 1.15 * costs["gradient"].temp


@pytest.mark.slow
def test_jvp_keeps_nothing_per_layer():
    """An extra sample costs the same temporaries in a model twice as deep."""

    def growth(depth):
        model = dataclasses.replace(MODEL, num_layers=depth)
        params = decoder.abstract_params(model)
        temps = [
            estimate_cost(
                programs.pg_by_jvp,
                params,
                abstract_rows(samples, 64, 512),
                (params, params),
                fn=SampleLogProbs(model),
                by="sample",
                grouping=BLOCKS,
            ).temp
            for samples in (8, 24)
        ]
        return (temps[1] - temps[0]) / 16

    assert abs(growth(12) / growth(6) - 1) < 0.05


@pytest.mark.slow
def test_a_chunked_head_never_holds_a_vocabulary_of_logits():
    """32000 tokens, 4 x 128: temporaries of two tangents, in chunks and whole."""
    model = dataclasses.replace(MODEL, vocab_size=32000, context=128, num_layers=2)

    def temp(chunk):
        chunked = dataclasses.replace(model, head_chunk=chunk)
        params = decoder.abstract_params(chunked)
        return estimate_cost(
            programs.pg_by_jvp,
            params,
            abstract_rows(4, 128, 32000),
            (params, params),
            fn=SampleLogProbs(chunked),
            by="sample",
            grouping=BLOCKS,
        ).temp

    assert temp(8) <= 0.2 * temp(127)


def gradient_program(losses, samples, *, batches):
    """Cost of the program behind `dataset_gradients`, for one batch or with sums over several."""
    params, packed = decoder.abstract_params(MODEL), abstract_rows(samples, 64, 512)
    options = {"losses_fn": losses, "shardings": trees.named_shardings(params)}
    sums = ()
    if batches > 1:
        sums = (jax.eval_shape(partial(programs.zero_sums, **options), params, packed),)
    return estimate_cost(programs.gradient_sums, params, packed, *sums, **options)


def two_losses(params, packed):
    """Two losses of one forward pass whose gradients have no common part."""
    logp = sample_logp(params, packed)
    return {"risk": (-logp.sum(), len(logp)), "squares": ((logp**2).sum(), len(logp))}


@pytest.mark.parametrize("samples", [4, 24])
def test_running_sums_take_the_place_of_the_gradients(samples):
    """A further batch adds in place: of its own two gradients less than one is ever in memory."""
    size = 4 * PARAMETERS
    alone = gradient_program(two_losses, samples, batches=1)
    running = gradient_program(two_losses, samples, batches=2)
    scalars = 1024
    assert 2 * size <= running.alias <= running.output <= 2 * size + scalars
    assert running.arguments - alone.arguments == running.alias
    assert running.flops == alone.flops
    # Next to a program that returns its batch's gradients, the sums so far would be kept as well.
    separate = alone.peak + 2 * size
    assert running.peak < separate - 1.5 * size


def test_flops_of_groups_branches_and_devices():
    """A group's matrix meets its own rows alone, one branch runs, and a shard is one of several."""
    x, w = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    sizes = jax.ShapeDtypeStruct((2,), jnp.int32)
    of_groups = jax.ShapeDtypeStruct((2, 16, 4), jnp.float32)
    dense = 2 * 8 * 16 * 4
    grouped = lambda x, w, n: jax.lax.ragged_dot(x, w, n).sum()
    assert count_flops(grouped, x, of_groups, sizes) == dense
    # Of the gradient with respect to the matrices the groups share the rows, too.
    assert count_flops(jax.grad(grouped, argnums=1), x, of_groups, sizes) == dense
    either = lambda yes, x, w: jax.lax.cond(yes, lambda: x @ w, lambda: 2 * (x @ w) @ w.T @ w)
    flag = jax.ShapeDtypeStruct((), bool)
    assert count_flops(either, flag, x, w) == 3 * dense
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P("d")
    )
    assert count_flops(spread, x, w) == dense
