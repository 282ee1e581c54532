"""The train step, its schedule, and the batches and references that a run feeds it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import replace

from jaxunlearn import config as config_lib
from jaxunlearn import effects
from jaxunlearn.config import Objective
from jaxunlearn.data.packing import unpack
from jaxunlearn.models import llama
from jaxunlearn.objectives import catalogue
from jaxunlearn.run import feed, losses, measure, step
from jaxunlearn.run.prepare import measured_steps, prepare, steps_of


def test_the_schedule_is_the_papers():
    """62 steps, warm-up from 0 over the first epoch of 12, then linear to 0."""
    lr = step.schedule(1e-5, 62, 12)
    np.testing.assert_allclose([lr(0), lr(6), lr(12), lr(37), lr(62)], [0, 5e-6, 1e-5, 5e-6, 0])
    assert step.schedule(1.0, 10, 0)(0) == 1.0


def test_adamw_is_the_textbook_update():
    """First step: -lr (sign-like m/sqrt(v)) - lr * decay * theta."""
    params = {"w": jnp.array([1.0, -2.0])}
    tx = step.optimizer(lambda _: 0.1, weight_decay=0.5)
    loss = lambda p, batch: (jnp.sum(p["w"] * batch), {})
    new, metrics = step.train_step(step.init(params, tx), jnp.array([3.0, 4.0]), loss=loss, tx=tx)
    np.testing.assert_allclose(new.params["w"], [1 - 0.1 - 0.05, -2 - 0.1 + 0.1], rtol=1e-6)
    assert metrics["grad_norm"] == 5.0 and int(new.step) == 1


def test_clipping_bounds_the_gradient():
    params = {"w": jnp.zeros(2)}
    tx = step.optimizer(lambda _: 0.1, clip_norm=1.0)
    loss = lambda p, batch: (jnp.sum(p["w"] * batch), {})
    new, _ = step.train_step(step.init(params, tx), jnp.array([3.0, 4.0]), loss=loss, tx=tx)
    (mu,) = [x for x in jax.tree.leaves(optax.tree.get(new.opt_state, "mu"))]
    np.testing.assert_allclose(mu, 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


@pytest.mark.parametrize("by", ["total", "layer"])
def test_sparing_bends_updates_against_the_running_retain_gradient(by):
    """Plain descent: the part of the step along grad R is gone where it would raise R."""
    params = {"w": jnp.array([1.0, 1.0]), "v": jnp.array([2.0])}
    tx = optax.chain(optax.sgd(1.0), step.sparing(by, decay=0.5))
    state = tx.init(params)
    descent = {"w": jnp.array([-1.0, 3.0]), "v": jnp.array([0.5])}
    retain = {"w": jnp.array([2.0, 0.0]), "v": jnp.array([1.0])}
    moved, state = tx.update(descent, state, params, retain_gradient=retain)
    # u = (1, -3), (-0.5): R rises by 2 along w, falls by 0.5 along v, rises by 1.5 in all.
    rises = [float(jnp.sum(moved[key] * retain[key])) for key in ("w", "v")]
    if by == "layer":
        np.testing.assert_allclose(rises, [0.0, -0.5], atol=1e-6)
    else:
        np.testing.assert_allclose(sum(rises), 0.0, atol=1e-6)
    assert moved["w"][1] == -3.0
    np.testing.assert_allclose(state[1].running["w"], [1.0, 0.0])
    back = jax.tree.map(lambda g: -10.0 * g, retain)
    _, state = tx.update(descent, state, params, retain_gradient=back)
    np.testing.assert_allclose(state[1].running["w"], [0.5 - 10.0, 0.0])


def test_moments_are_sharded_as_parameters_are():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("fsdp"))
    params = {"w": jax.device_put(jnp.ones((16, 2)), split)}
    tx = step.optimizer(lambda _: 0.1)
    state = step.init(params, tx)
    moments = optax.tree.get(state.opt_state, "mu")["w"]
    assert moments.sharding.is_equivalent_to(split, 2)


EVERYTHING = {name: Objective() for name in catalogue.NAMES} | {
    "gd": Objective(loss="ga", retain="gd"),
    "kl": Objective(loss="ga", retain="kl"),
    "rr": Objective(loss="ga", retain="rr"),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Everything the catalogue can need, on a tiny model at theta_0."""
    config = replace(
        objectives=EVERYTHING, finetune={"epochs": 0}, data={"measured_retain": "holdout"}
    )
    prepared = prepare(config, jax.devices()[:1])
    params = jax.tree.map(lambda x: 5 * x, prepared.initial())
    with jax.set_mesh(prepared.mesh):
        found = feed.reference_pass(prepared, params, tmp_path_factory.mktemp("reference"))
        forget = feed.make_split(prepared, prepared.forget, found.forget)
    return prepared, params, found, forget


def task_feed(setting, name):
    prepared, _, references, _ = setting
    (task,) = (t for t in prepared.tasks if t.name == name)
    return task, feed.Feed(prepared, task, references)


def test_references_are_the_models_own_at_theta_0(setting):
    prepared, params, references, forget = setting
    for rows in forget.placed:
        out = llama.forward(params, rows["packed"], prepared.model)
        real = unpack(jnp.ones_like(out.labels), rows["packed"]) > 0
        cached = unpack(rows["ref_logp"], rows["packed"])
        np.testing.assert_allclose(cached, unpack(out.labels, rows["packed"]), atol=1e-6)
        assert bool(real.any())


def test_cached_references_read_back(setting, tmp_path):
    prepared, params, _, _ = setting
    with jax.set_mesh(prepared.mesh):
        first = feed.reference_pass(prepared, params, tmp_path)
        worse = jax.tree.map(jnp.zeros_like, params)
        again = feed.reference_pass(prepared, worse, tmp_path)  # read, not computed
    for key, cache in first.forget.items():
        np.testing.assert_array_equal(cache.values, again.forget[key].values)


@pytest.mark.parametrize("name", ["npo", "tnpo", "dpo"])
def test_train_batches_carry_their_references(setting, name):
    """At theta_0 every ratio is 1, whatever the packing: losses are their constants."""
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, name)
    with jax.set_mesh(prepared.mesh):
        batch, _, _ = batches.step(3)
        total, count = task.loss.term(params, batch)
    beta = dict(task.loss.term.loss.hyper)["beta"]
    if name == "npo":
        np.testing.assert_allclose(total / count, 2 / beta * np.log(2), rtol=1e-5)
    if name == "dpo":
        np.testing.assert_allclose(total / count, np.log(2), rtol=1e-5)
    if name == "tnpo":
        ascent, _ = task_feed(setting, "ga")
        expected, _ = ascent.loss.term(params, batch)
        np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == prepared.config.unlearn.batch_size


@pytest.mark.parametrize("name", ["kl", "rr"])
def test_retain_terms_are_zero_at_the_reference(setting, name):
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, name)
    with jax.set_mesh(prepared.mesh):
        batch, _, _ = batches.step(0)
        total, count = task.loss.retain(params, batch)
        moved = jax.tree.map(lambda x: 1.1 * x, params)
        away, _ = task.loss.retain(moved, batch)
    assert abs(float(total)) < 1e-4 * float(away) and away > 0
    assert count == prepared.config.unlearn.batch_size


@pytest.mark.parametrize(
    "name",
    [
        "npo",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("kl", "undial")),
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("ga", "dpo", "gd")),
    ],
)
def test_accumulated_parts_are_one_batch(setting, name):
    """One step of plain descent: the gradient of the whole batch, and its loss."""
    prepared, params, references, _ = setting
    params = jax.tree.map(lambda x: 0.3 * x, params)  # near where models start: well conditioned
    tx, found = optax.sgd(1.0), []
    for parts in (1, 2):
        config = replace(prepared.config, unlearn={"batch_size": 2, "accumulate": parts})
        cut = dataclasses.replace(prepared, config=config)
        (task,) = (t for t in prepared.tasks if t.name == name)
        with jax.set_mesh(prepared.mesh):
            batch, tokens, _ = feed.Feed(cut, task, references).step(1)
            state = step.init(jax.tree.map(jnp.copy, params), tx)
            state, metrics = step.train_step(state, batch, loss=task.loss, tx=tx, accumulate=parts)
        moved = effects.trees.subtract(state.params, params)
        found.append((tokens, metrics, moved))
    (tokens, whole, one), (again, parted, two) = found
    assert tokens == again
    for key in whole:
        np.testing.assert_allclose(parted[key], whole[key], rtol=1e-5)
    apart = effects.trees.norm(effects.trees.subtract(one, two))
    assert apart < 1e-6 * effects.trees.norm(one) and effects.trees.norm(one) > 0


def test_every_shard_draws_its_own_retain_samples():
    """Eight devices share a batch of eight: no sample is seen twice, none is left out."""
    config = replace(
        compute={"data": 2, "fsdp": 4},
        data={
            "fictional": config_lib.Fictional(authors=8, questions=4, forget_share=0.25),
            "measured_retain": "holdout",
        },
        unlearn={"batch_size": 8},
        finetune={"epochs": 0},
        objectives={"ga": Objective(retain="gd")},
    )
    prepared = prepare(config)
    with jax.set_mesh(prepared.mesh):
        batches = feed.Feed(prepared, prepared.tasks[0], feed.References(None, {}, {}, None, {}))
        batch, _, _ = batches.step(0)
    rows = batch["retain"]["packed"]
    shards = [np.asarray(shard.data) for shard in rows.tokens.addressable_shards]
    assert len(shards) == 8 and len({shard.tobytes() for shard in shards}) == 8
    seen = [np.asarray(shard.data).ravel() for shard in rows.sample_ids.addressable_shards]
    assert sorted(i for ids in seen for i in ids if i >= 0) == list(range(8))
    assert all((ids >= 0).any() for ids in seen)


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_every_leaf_that_the_loss_depends_on_gets_a_gradient(setting, name):
    """No layer silently untrained; rmu stops at its layer, retain terms reach further."""
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, name)
    with jax.set_mesh(prepared.mesh):
        batch, tokens, share = batches.step(1)
        away = jax.tree.map(lambda x: 1.2 * x, params)
        gradient = jax.jit(jax.grad(lambda p: task.loss(p, batch)[0]))(away)
    assert tokens > 0 and 0 < share <= 1
    sizes = {
        (path[0].key, jax.tree_util.keystr(path), layer): float(jnp.abs(part).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        for layer, part in enumerate(leaf if path[0].key == "blocks" else leaf[None])
    }
    reached = {"embed", "blocks"} if name == "rmu" else set(gradient)
    for (key, path, layer), size in sizes.items():
        beyond = name == "rmu" and (
            key not in reached
            or layer >= task.loss.term.layer * (key == "blocks") + (key == "embed")
        )
        assert (size == 0) if beyond else (size > 0), (path, layer)


def test_dataset_batches_and_steps_cover_every_sample(setting):
    prepared, _, _, forget = setting
    ids = np.concatenate([p.sample_ids.ravel() for p in forget.packed])
    assert sorted(ids[ids >= 0]) == list(range(len(prepared.forget)))
    _, batches = task_feed(setting, "po")
    paired = batches.measured(forget)
    seen = sum(int((np.asarray(b["substitute"]["packed"].sample_ids) >= 0).sum()) for b in paired)
    assert seen == len(prepared.forget)


def test_one_static_shape_for_all_steps(setting):
    prepared, _, _, _ = setting
    for name in ("po", "kl", "dpo"):
        _, batches = task_feed(setting, name)
        shapes = {str(jax.tree.map(jnp.shape, batches.step(i)[0])) for i in range(batches.steps)}
        assert len(shapes) == 1


def test_steps_to_run_and_to_measure(setting):
    config = setting[0].config
    assert steps_of(config, 200) == 400
    at = lambda **measure: measured_steps(replace(config, measure={"pg_steps": ()} | measure), 8)
    assert at(every=3) == (0, 3, 6)
    assert at(every=3, pg_steps=(4, 99)) == (0, 3, 4, 6)  # a PG-effect is measured where asked
    assert at(steps=(7, 0)) == (0, 7)
    assert at(every=0, pg_steps=(4,)) == ()


def test_losses_are_equal_by_value_so_that_compilations_are_shared():
    model = llama.LlamaConfig(8, 8, 8, 1, 1, 1, 8, 8)
    make = lambda beta: losses.Term(
        catalogue.get("npo", beta=beta), model, "sequence_sum", 1, "forget"
    )
    assert make(0.1) == make(0.1) and hash(make(0.1)) == hash(make(0.1))
    assert make(0.1) != make(0.2)


def test_gradients_do_not_depend_on_batches_or_packing(setting):
    """Small batches of narrow rows or one batch: the same exact gradient."""
    prepared, params, _, _ = setting
    risk = losses.Risk(prepared.model, "sequence_sum")
    gradients = []
    for tokens in (100, 10_000):
        cut = dataclasses.replace(
            prepared, config=replace(prepared.config, compute={"batch_tokens": tokens})
        )
        with jax.set_mesh(prepared.mesh):
            split = feed.make_split(cut, prepared.measured, {})
            gradients.append((len(split.packed), measure.retain_gradient(params, split, risk)))
    (many, small), (one, large) = gradients
    assert many > one == 1
    np.testing.assert_allclose(small.value, large.value, rtol=1e-6)
    apart = effects.trees.norm(effects.trees.subtract(small.direction, large.direction))
    assert apart < 1e-5 * effects.trees.norm(large.direction)
