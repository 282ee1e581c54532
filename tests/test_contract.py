"""The contract: every objective x {padded, packed} x {1, 8 devices} x {jvp, vmap, gates}.

The derivative of each sample's loss along a direction, on a real (tiny) Llama, must not depend on
how it is laid out, placed or computed. The oracle is the definition (`vmap`) in float64 on padded
rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.core.trees import norm
from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import unpack
from jaxunlearn.models import decoder, sharding
from jaxunlearn.objectives import registry

MODEL = decoder.DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    context=32,
)
BLOCKS = effects.Grouping(stacked=decoder.STACKED)
pg_effect = functools.partial(effects.pg_effect, grouping=BLOCKS)
LOSSES = {name: registry.get(name) for name in registry.names()} | {
    name: registry.get_retain(name) for name in registry.retain_names()
}
NAMES = tuple(LOSSES)
LENGTHS = (9, 14, 5, 11, 7, 16, 8, 12)
SCALE_TOLERANCE = 1e-5  # of norm of direction x norm of gradient


@dataclasses.dataclass(frozen=True)
class SampleLosses:
    """(params, rows) -> [B, losses]: every loss of the catalogue on every sample."""

    model: decoder.DecoderConfig
    names: tuple[str, ...] = NAMES

    def __call__(self, params, rows, probe=None):
        packed = rows["packed"]
        names = [n for n in self.names if "logits" in LOSSES[n].arrays]
        reference = rows["constants"]

        def head(logits, labels, hidden):
            arrays = {"logits": logits, "labels": labels}
            arrays["ref_logits"] = decoder.head_logits(reference, hidden, self.model)
            wide = {n: self._apply(n, arrays) for n in names}
            return wide | {"logp": decoder.label_log_probs(logits, labels)}

        out = decoder.forward(
            params,
            packed,
            self.model,
            head=head,
            head_inputs=(rows["ref_hidden"],),
            tap=1,
            probe=probe,
        )
        mask = packed.mask.reshape(-1, packed.mask.shape[-1])
        logp = unpack(out.labels["logp"], packed)
        ref_logp = unpack(rows["ref_logp"], packed)
        arrays = {"logp": logp, "ref_logp": ref_logp, "mask": mask}
        arrays |= {f"substitute_{k}": v for k, v in arrays.items()}
        arrays["substitute_ref_logp"] = ref_logp - 1
        arrays |= {
            "hidden": out.hidden,
            "ref_hidden": rows["ref_hidden"],
            "target": reference["target"],
            "guide": jnp.exp(ref_logp),
        }
        return jnp.stack([self._of(n, arrays, out.labels, packed) for n in self.names], -1)

    def _apply(self, name, arrays):
        return LOSSES[name].loss(**{array: arrays[array] for array in LOSSES[name].arrays})

    def _of(self, name, arrays, labels, packed):
        if "logits" in LOSSES[name].arrays:
            return unpack(labels[name], packed).sum(-1)
        losses = self._apply(name, arrays)
        return unpack(losses, packed).sum(-1) if "hidden" in LOSSES[name].arrays else losses


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, MODEL.vocab_size, n).astype(np.int32) for n in LENGTHS]
    return [planning.Sample(t, 2 + i % 3) for i, t in enumerate(tokens)]


@pytest.fixture(scope="module")
def trees():
    keys = jax.random.split(jax.random.key(0), 4)
    params, reference = (decoder.init_params(key, MODEL) for key in keys[:2])
    noisy = lambda x: x + 0.2 * jax.random.normal(jax.random.fold_in(keys[3], x.size), x.shape)
    params, reference = jax.tree.map(noisy, (params, reference))
    direction = jax.tree.map(
        lambda p: jax.random.normal(jax.random.fold_in(keys[2], p.size), p.shape), params
    )
    constants = {"lm_head": reference["lm_head"], "target": jax.random.uniform(keys[3], (16,))}
    return params, reference, direction, constants


def layout(sequences, kind):
    if kind == "padded":
        return packing.padded(sequences)
    plan = planning.plan_dataset(sequences, rows=8, width=24, max_width=32)
    (packed,) = packing.dataset_batches(sequences, plan)
    return packed


def make_rows(packed, trees):
    """The rows with the reference's own values, which move with their samples."""
    _, reference, _, constants = trees
    out = decoder.forward(reference, packed, MODEL)
    rows = {"packed": jax.tree.map(jnp.asarray, packed), "ref_logp": out.labels}
    return rows | {"ref_hidden": out.final_hidden}, constants


def in_order(values, packed):
    """[K, B, ..] of slots -> of samples."""
    ids = np.asarray(packed.sample_ids).reshape(-1)
    out = np.zeros((values.shape[0], len(LENGTHS), *values.shape[2:]), values.dtype)
    out[:, ids[ids >= 0]] = values[:, ids >= 0]
    return out


def with_constants(fn, constants):
    """Constants are closed over: vmap maps the rows alone."""

    def losses(params, rows, probe=None):
        return fn(params, rows | {"constants": constants}, probe)

    return losses


@pytest.fixture(scope="module")
def oracle(sequences, trees):
    """float64: [samples, losses], and the scale: norm of direction x norm of gradient."""
    packed = layout(sequences, "padded")
    rows, constants = make_rows(packed, trees)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(
            lambda x: (
                jnp.asarray(np.asarray(x), jnp.float64)
                if jnp.issubdtype(x.dtype, jnp.floating)
                else jnp.asarray(np.asarray(x))
            ),
            tree,
        )
        params, direction, rows, constants = map(wide, (trees[0], trees[2], rows, constants))
        model = dataclasses.replace(MODEL, dtype="float64")
        fn = with_constants(SampleLosses(model), constants)
        exact = pg_effect(fn, params, [rows], {"v": direction}, by="token", method="vmap")["v"]

        def norms(example):
            row = jax.tree.map(lambda x: x[None], example)
            jacobian = jax.jacrev(lambda p: fn(p, row)[0])(params)
            square = lambda x: jnp.sum(x**2, axis=tuple(range(1, x.ndim)))
            return jnp.sqrt(sum(square(leaf) for leaf in jax.tree.leaves(jacobian)))

        gradient_norms = np.asarray(jax.jit(lambda rows: jax.lax.map(norms, rows))(rows))
        direction_norm = float(norm(direction))
    return np.asarray(exact), direction_norm * gradient_norms


def place(devices, trees, rows):
    params, _, direction, constants = trees
    if devices == 1:
        return None, params, direction, rows, constants
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = sharding.param_shardings(MODEL, mesh)
    everywhere = jax.NamedSharding(mesh, jax.P())
    return (
        mesh,
        jax.device_put(params, shardings),
        jax.device_put(direction, shardings),
        jax.device_put(rows, sharding.batch_sharding(mesh)),
        jax.device_put(constants, everywhere),
    )


def close(found, exact, scale):
    error = np.abs(found - exact) / np.where(scale > 0, scale, 1)
    worst = dict(zip(NAMES, error.max(0), strict=True))
    assert error.max() <= SCALE_TOLERANCE, worst


def agrees(sequences, trees, oracle, devices, kind, method):
    """Two directions: forward mode takes another way with several than with one."""
    exact, scale = oracle
    packed = layout(sequences, kind)
    rows, _ = make_rows(packed, trees)
    mesh, params, direction, rows, constants = place(devices, trees, rows)
    fn = with_constants(SampleLosses(MODEL), constants)
    double = {"v": direction, "w": jax.tree.map(lambda x: -2 * x, direction)}
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        both = pg_effect(fn, params, [rows], double, by="token", method=method)
        one = pg_effect(fn, params, [rows], {"v": direction}, by="token", method=method)
    for result in (both["v"], both["w"] / -2, one["v"]):
        close(in_order(result[None], packed)[0], exact, scale)


def agrees_by_gates(sequences, trees, oracle, devices, kind):
    """Gates give one number a sample: each loss in turn, in one compiled function."""
    exact, scale = oracle
    packed = layout(sequences, kind)
    rows, _ = make_rows(packed, trees)
    mesh, params, direction, rows, constants = place(devices, trees, rows)
    losses = with_constants(SampleLosses(MODEL), constants)

    def chosen(params, rows, probe=None):
        return losses(params, rows["rows"], probe) @ rows["choice"]

    by_loss = []
    with jax.set_mesh(mesh or sharding.make_mesh(devices=jax.devices()[:1])):
        for choice in np.eye(len(NAMES), dtype=np.float32):
            batch = {"rows": rows, "choice": choice}
            table = pg_effect(chosen, params, [batch], {"v": direction}, by="layer", method="gates")
            assert table["v"].shape[1] == len(effects.layer_names(params, grouping=BLOCKS))
            by_loss.append(table["v"].sum(-1))
    close(in_order(np.stack(by_loss, -1)[None], packed)[0], exact, scale)


WAYS = [
    *(("padded", "jvp", 1), ("padded", "jvp", 8), ("packed", "jvp", 1), ("packed", "jvp", 8)),
    ("padded", "vmap", 1),
    pytest.param("padded", "vmap", 8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "method", "devices"), WAYS)
def test_every_objective_by_jvp_and_by_definition(sequences, trees, oracle, kind, method, devices):
    agrees(sequences, trees, oracle, devices, kind, method)


@pytest.mark.parametrize(("kind", "devices"), [("padded", 1), ("packed", 1), ("packed", 8)])
def test_every_objective_by_gates(sequences, trees, oracle, kind, devices):
    agrees_by_gates(sequences, trees, oracle, devices, kind)


@pytest.mark.slow
@pytest.mark.cost  # with the compiler's optimisations
@pytest.mark.parametrize(
    ("kind", "method", "devices"),
    [
        ("padded", "jvp", 1),
        ("padded", "vmap", 1),  # needs one sequence a row, so there is no packed cell of it
        ("padded", "gates", 1),
        ("packed", "jvp", 1),
        ("packed", "gates", 1),
        ("packed", "jvp", 8),
    ],
)
def test_every_objective_by_the_optimising_compiler(
    sequences, trees, oracle, devices, kind, method
):
    """Users have its code, not that of the quick compilation of the other tests."""
    jax.clear_caches()
    if method == "gates":
        agrees_by_gates(sequences, trees, oracle, devices, kind)
    else:
        agrees(sequences, trees, oracle, devices, kind, method)
