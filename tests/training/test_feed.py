"""The batches of a run, the references they carry, and the losses that read them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import config as config_lib
from jaxunlearn import effects, objectives
from jaxunlearn.config import Objective
from jaxunlearn.core import trees
from jaxunlearn.data.order import retain_ids
from jaxunlearn.data.packing import unpack
from jaxunlearn.models import decoder
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.training import losses, step
from jaxunlearn.training.feed import StepBatches
from jaxunlearn.training.references import References, reference_pass
from jaxunlearn.training.schedule import measured_steps, unlearning_steps
from jaxunlearn.training.tasks import make_task
from tests.pipeline.tiny import replace

EVERYTHING = {name: Objective() for name in objectives.names()} | {
    "gd": Objective(loss="ga", retain="gd"),
    "kl": Objective(loss="ga", retain="kl"),
    "rr": Objective(loss="ga", retain="rr"),
    "npo_gd": Objective(loss="npo", retain="gd"),
    "rmu_gd": Objective(loss="rmu", retain="gd"),
    "po_gd": Objective(loss="po", retain="gd"),
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
        references = references_of(prepared, params, tmp_path_factory.mktemp("reference"))
        forget = prepared.layout.split(prepared.sets.forget, references.forget)
    return prepared, params, references, forget


def references_of(prepared, params, folder):
    return reference_pass(
        params,
        prepared.tasks,
        prepared.sets,
        layout=prepared.layout,
        model=prepared.model,
        unlearn=prepared.config.unlearn,
        folder=RunFolder(folder),
    )


def batches_of(prepared, task, references):
    config = prepared.config
    options = {"layout": prepared.layout, "unlearn": config.unlearn, "seed": config.seed}
    return StepBatches(task, prepared.sets, references, **options)


def task_feed(setting, name):
    prepared, _, references, _ = setting
    (task,) = (t for t in prepared.tasks if t.name == name)
    return task, batches_of(prepared, task, references)


def test_references_are_the_models_own_at_theta_0(setting):
    prepared, params, references, forget = setting
    for rows in forget.batches:
        out = decoder.forward(params, rows.packed, prepared.model)
        is_label = unpack(jnp.ones_like(out.labels), rows.packed) > 0
        cached = unpack(rows.values["ref_logp"], rows.packed)
        np.testing.assert_allclose(cached, unpack(out.labels, rows.packed), atol=1e-6)
        assert bool(is_label.any())


def test_cached_references_read_back(setting, tmp_path):
    prepared, params, _, _ = setting
    with jax.set_mesh(prepared.mesh):
        first = references_of(prepared, params, tmp_path)
        worse = jax.tree.map(jnp.zeros_like, params)
        again = references_of(prepared, worse, tmp_path)  # read, not computed
    for key, cache in first.forget.items():
        np.testing.assert_array_equal(cache.values, again.forget[key].values)


def test_cached_references_of_a_bfloat16_model_read_back(setting, tmp_path):
    """Numpy's files keep them as bytes, with which a run that went on once could not compute."""
    prepared, params, _, _ = setting
    config = replace(prepared.config, compute={"dtype": "bfloat16"})
    rounded = prepare(config, jax.devices()[:1])
    with jax.set_mesh(prepared.mesh):
        first, again = (references_of(rounded, params, tmp_path) for _ in range(2))
        kinds = set()
        for mine, theirs in ((first.forget, again.forget), (first.retain, again.retain)):
            for key, cache in mine.items():
                kinds.add(cache.values.dtype)
                assert theirs[key].values.dtype == cache.values.dtype
                np.testing.assert_array_equal(cache.values, theirs[key].values)
        assert np.dtype(jnp.bfloat16) in kinds
        for name in ("kl", "rr"):
            (task,) = (t for t in rounded.tasks if t.name == name)
            assert batches_of(rounded, task, again).step(0).tokens


def weighted_po(substitute_logp, substitute_mask, ref_logp, mask):
    """PO times the reference's NLL of the original answer, which needs pairs of answers."""
    return objectives.po(substitute_logp, substitute_mask) * -jnp.where(mask, ref_logp, 0).sum(-1)


def weighted_po_of_logp(logp, substitute_logp, substitute_mask, ref_logp, mask):
    extra = 0 * jnp.where(mask, logp, 0).sum(-1)
    return weighted_po(substitute_logp, substitute_mask, ref_logp, mask) + extra


def test_substitutes_stand_by_their_samples_for_every_loss_of_both(setting):
    """They once did only where the loss read log p of the original answer."""
    prepared, params, references, _ = setting
    names = ("weighted_po", "weighted_po_of_logp")
    own = {name: Objective(loss=f"{__name__}:{name}") for name in names}
    config = dataclasses.replace(prepared.config, objectives=own)
    mine = prepare(config, jax.devices()[:1])
    losses_of_step = []
    with jax.set_mesh(prepared.mesh):
        for task in mine.tasks:
            batch, _, _ = batches_of(mine, task, references).step(3)
            assert not task.loss.unlearn.substitutes_alone and batch.partner is not None
            losses_of_step.append(task.loss.unlearn(params, batch))
    np.testing.assert_allclose(*losses_of_step, rtol=1e-6)


def test_a_part_without_labels_counts_nothing(setting):
    """The counts of parts add up to the batch's, also where one of them is 0."""
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, "npo")
    with jax.set_mesh(prepared.mesh):
        batch, _, _ = batches.step(0)
        packed = batch.forget.packed
        empty = packed._replace(mask=np.zeros_like(packed.mask))
        nothing = batch._replace(forget=batch.forget._replace(packed=empty))
        parts = [task.loss.counts(part).unlearn for part in (batch, nothing)]
        assert float(sum(parts)) == float(parts[0]) > 0
        value, _ = task.loss(params, nothing)
    assert float(value) == 0


@pytest.mark.parametrize("name", ["npo", "tnpo", "dpo"])
def test_train_batches_carry_their_references(setting, name):
    """At theta_0 every ratio is 1, whatever the packing: losses are their constants."""
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, name)
    with jax.set_mesh(prepared.mesh):
        batch, _, _ = batches.step(3)
        total, count = task.loss.unlearn(params, batch)
    beta = task.objective.numbers["beta"]
    if name == "npo":
        np.testing.assert_allclose(total / count, 2 / beta * np.log(2), rtol=1e-5)
    if name == "dpo":
        np.testing.assert_allclose(total / count, np.log(2), rtol=1e-5)
    if name == "tnpo":
        ascent, _ = task_feed(setting, "ga")
        expected, _ = ascent.loss.unlearn(params, batch)
        np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == prepared.config.unlearn.batch_size


@pytest.mark.parametrize("name", ["kl", "rr"])
def test_retain_terms_are_zero_at_the_reference(setting, name):
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, name)
    with jax.set_mesh(prepared.mesh):
        batch, _, _ = batches.step(0)
        total, count = task.loss.retain(params, batch)
        changed = jax.tree.map(lambda x: 1.1 * x, params)
        away, _ = task.loss.retain(changed, batch)
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
    tx, results = optax.sgd(1.0), []
    for parts in (1, 2):
        config = replace(prepared.config, unlearn={"batch_size": 2, "accumulate": parts})
        cut = dataclasses.replace(prepared, config=config)
        (task,) = (t for t in prepared.tasks if t.name == name)
        with jax.set_mesh(prepared.mesh):
            batch, tokens, _ = batches_of(cut, task, references).step(1)
            state = step.init_state(jax.tree.map(jnp.copy, params), tx)
            state, metrics = step.train_step(
                state, batch, 1.0, loss=task.loss, tx=tx, accumulate=parts
            )
        changed = trees.subtract(state.params, params)
        results.append((tokens, metrics, changed))
    (tokens, whole, one), (again, parted, two) = results
    assert tokens == again
    for key in whole:
        np.testing.assert_allclose(parted[key], whole[key], rtol=1e-5)
    apart = trees.norm(trees.subtract(one, two))
    assert apart < 1e-6 * trees.norm(one) and trees.norm(one) > 0


@pytest.mark.parametrize("name", ["gd", "kl", "npo_gd"])
def test_one_pass_over_forget_and_retain_rows_is_two_passes(setting, name):
    prepared, params, _, _ = setting
    task, batches = task_feed(setting, name)
    with jax.set_mesh(prepared.mesh):
        batch, _, _ = batches.step(3)
        shapes = [jax.tree.map(jnp.shape, rows.packed) for rows in (batch.forget, batch.retain)]
        assert shapes[0] == shapes[1]
        passes = lambda params: task.loss(params, batch)[0]

        def one_by_one(params):
            terms = (task.loss.unlearn, task.loss.retain)
            of_forget, of_retain = (term(params, batch) for term in terms)
            return of_forget[0] / of_forget[1] + of_retain[0] / of_retain[1]

        np.testing.assert_allclose(passes(params), one_by_one(params), rtol=1e-5)
        together, apart = jax.grad(passes)(params), jax.grad(one_by_one)(params)
        distance = optax.tree.norm(optax.tree.sub(together, apart))
        assert distance < 1e-5 * optax.tree.norm(apart)
        # Half as many products of blocks, of twice the size.
        count = lambda loss: str(jax.make_jaxpr(loss)(params)).count("scan[")
        assert count(passes) == count(one_by_one) - 1


@pytest.mark.parametrize("name", ["rr", "rmu_gd", "po_gd"])
def test_a_term_of_tapped_states_or_substitutes_has_its_own_pass(setting, name):
    task, _ = task_feed(setting, name)
    assert not task.loss.shares_a_pass


def test_rows_share_a_shape_only_where_that_adds_few_tokens():
    """Retain rows of another length than forget rows would be padded, or pad those."""
    config = replace(objectives={"ga": Objective(retain="gd")}, finetune={"epochs": 0})
    prepared = prepare(config, jax.devices()[:1])
    (task,), pool = prepared.tasks, prepared.sets.retain
    references = References(None, {}, {}, None, {})
    shorter = [sample._replace(tokens=sample.tokens[: sample.first_label + 1]) for sample in pool]
    for retain, same in ((pool, True), (shorter, False)):
        changed = dataclasses.replace(prepared, sets=prepared.sets._replace(retain=retain))
        batch, _, _ = batches_of(changed, task, references).step(0)
        shapes = [jax.tree.map(jnp.shape, rows.packed) for rows in (batch.forget, batch.retain)]
        assert (shapes[0] == shapes[1]) == same
        assert jnp.isfinite(task.loss(prepared.initial(), batch)[0])


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
        batches = batches_of(prepared, prepared.tasks[0], References(None, {}, {}, None, {}))
        # Draws are with replacement: take a step whose eight draws are of different samples.
        pool = len(prepared.sets.retain)
        draws = (set(retain_ids(prepared.config.seed, s, pool, 8)) for s in range(batches.steps))
        batch, _, _ = batches.step([len(ids) for ids in draws].index(8))
    rows = batch.retain.packed
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
            or layer >= task.loss.unlearn.layer * (key == "blocks") + (key == "embed")
        )
        assert (size == 0) if beyond else (size > 0), (path, layer)


def test_dataset_batches_and_steps_cover_every_sample(setting):
    prepared, _, _, forget = setting
    ids = np.concatenate([p.sample_ids.ravel() for p in forget.packed])
    assert sorted(ids[ids >= 0]) == list(range(len(prepared.sets.forget)))
    _, batches = task_feed(setting, "po")
    paired = batches.measured(forget)
    seen = sum(int((np.asarray(b.substitute.packed.sample_ids) >= 0).sum()) for b in paired)
    assert seen == len(prepared.sets.forget)


def test_one_static_shape_for_all_steps(setting):
    prepared, _, _, _ = setting
    for name in ("po", "kl", "dpo"):
        _, batches = task_feed(setting, name)
        shapes = {str(jax.tree.map(jnp.shape, batches.step(i)[0])) for i in range(batches.steps)}
        assert len(shapes) == 1


def test_steps_to_run_and_to_measure(setting):
    config = setting[0].config
    assert unlearning_steps(config, 200) == 400
    at = lambda **measure: measured_steps(replace(config, measure={"pg_steps": ()} | measure), 8)
    assert at(every=3) == (0, 3, 6)
    assert at(every=3, pg_steps=(4, 99)) == (0, 3, 4, 6)  # a PG-effect is measured where asked
    assert at(steps=(7, 0)) == (0, 7)
    assert at(every=0, pg_steps=(4,)) == ()


def test_losses_are_equal_by_value_so_that_compilations_are_shared():
    model = decoder.DecoderConfig(8, 8, 8, 1, 1, 1, 8, 8)
    make = lambda beta: losses.Term(
        objectives.get("npo", beta=beta), model, "sequence_sum", 1, "forget"
    )
    assert make(0.1) == make(0.1) and hash(make(0.1)) == hash(make(0.1))
    assert make(0.1) != make(0.2)


def test_numbers_of_an_objective_are_arguments_of_one_compiled_step(setting):
    """Of each of two tasks that differ in numbers alone, what its bound loss gives."""
    prepared, params, references, _ = setting
    numbers = [
        {"hyper": {"beta": 0.1}, "gamma": 1.0, "retain_weight": 0.5, "lr": 1e-3},
        {"hyper": {"beta": 2.0}, "gamma": 0.3, "retain_weight": 2.0, "lr": 1e-4},
    ]
    specs = [Objective(loss="npo", retain="kl", **values) for values in numbers]
    tasks = [make_task("it", spec, prepared.model, prepared.config) for spec in specs]
    assert tasks[0].loss == tasks[1].loss
    compiled, updates, tx = step.train_step._cache_size(), [], optax.sgd(1.0)
    with jax.set_mesh(prepared.mesh):
        for task, values in zip(tasks, numbers, strict=True):
            batch = batches_of(prepared, task, references).step(1).batch
            state = step.init_state(jax.tree.map(jnp.copy, params), tx)
            state, metrics = step.train_step(state, batch, task.lr, loss=task.loss, tx=tx)
            updates.append(trees.norm(trees.subtract(state.params, params)))
            npo, kl = objectives.get("npo", beta=values["hyper"]["beta"]), task.loss.retain
            bound = dataclasses.replace(task.loss.unlearn, objective=npo)
            of_forget, count = bound(params, batch)
            of_retain, others = kl(params, batch)
            expected = values["gamma"] * of_forget / count
            expected += values["retain_weight"] * of_retain / others
            np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-5)
            terms = (task.loss.unlearn, bound)
            open_, fixed = (effects.dataset_gradient(t, params, [batch]).gradient for t in terms)
            assert trees.norm(trees.subtract(open_, fixed)) < 1e-5 * trees.norm(fixed)
    assert updates[0] > 2 * updates[1] > 0
    assert step.train_step._cache_size() == compiled + 1


def test_equal_optimisers_are_one_object():
    assert step.optimizer(weight_decay=0.1) is step.optimizer(weight_decay=0.1)
    assert step.optimizer(weight_decay=0.1) is not step.optimizer(weight_decay=0.2)


def test_gradients_do_not_depend_on_batches_or_packing(setting):
    """Small batches of narrow rows or one batch: the same exact gradient."""
    prepared, params, _, _ = setting
    risk = losses.Risk(prepared.model, "sequence_sum")
    gradients = []
    for tokens in (100, 10_000):
        layout = dataclasses.replace(prepared.layout, batch_tokens=tokens)
        with jax.set_mesh(prepared.mesh):
            split = layout.split(prepared.retain_eval)
            gradient = effects.dataset_gradient(risk, params, split.batches)
            gradients.append((len(split.packed), gradient))
    (many, small), (one, large) = gradients
    assert many > one == 1
    np.testing.assert_allclose(small.value, large.value, rtol=1e-6)
    apart = trees.norm(trees.subtract(small.gradient, large.gradient))
    assert apart < 1e-5 * trees.norm(large.gradient)
