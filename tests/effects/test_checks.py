"""What is passed wrongly is named: the direction, the leaf, the shape, the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.effects import programs

PARAMS = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}
BATCHES = [jnp.ones((4, 3)), jnp.zeros((4, 3))]


def sample_logp(params, batch):
    return jax.nn.log_softmax(batch @ params["w"] + params["b"][None])[:, 0]


def risk(params, batch):
    return -sample_logp(params, batch).sum(), len(batch)


def pg_effect(direction, logp=sample_logp, method="jvp"):
    return effects.pg_effect(logp, PARAMS, BATCHES, {"retain": direction}, method=method)


ANOTHER_SHAPE = {"b": jnp.ones(2), "w": jnp.ones((2, 3))}
BAD_TREES = [
    ({"b": jnp.ones(2)}, r"has no leaf \['w'\], which {} has"),
    (jnp.ones(2), r"has no leaf \['b'\], which {} has"),
    (ANOTHER_SHAPE, r"the leaf \['w'\] has the shape \(2, 3\), that of {} has \(3, 2\)"),
    (PARAMS | {"head": jnp.ones(1)}, r"has a leaf \['head'\], which {} has not"),
]


@pytest.mark.parametrize(("tree", "words"), BAD_TREES)
def test_a_direction_that_is_not_like_the_parameters(tree, words):
    where = r"^directions\['retain'\]: "
    with pytest.raises(ValueError, match=where + words.format("params")):
        pg_effect(tree)
    with pytest.raises(ValueError, match="^direction: " + words.format("params")):
        effects.g_effect(risk, PARAMS, BATCHES, tree)
    with pytest.raises(ValueError, match="^direction: " + words.format("risk_gradient")):
        effects.g_effect_between(PARAMS, tree)
    with pytest.raises(ValueError, match="^risk_gradient: " + words.format("update")):
        effects.spare_update(PARAMS, tree)
    with pytest.raises(ValueError, match="^risk_gradient: " + words.format("params")):
        losses = lambda params, batch: {"npo": risk(params, batch)}
        effects.g_effects_of(losses, PARAMS, BATCHES, tree)


def test_a_direction_may_be_of_another_type():
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    assert pg_effect(halves)["retain"].shape == (8,)
    assert effects.g_effect_between(PARAMS, halves).value.shape == (2,)


@pytest.mark.parametrize(
    ("returned", "shapes"),
    [
        (lambda total: total, r"\[\(\)\]"),
        (lambda total: (total, 4, 4), r"\[\(\), \(\), \(\)\]"),
        (lambda total: (jnp.full(4, total), 4), r"\[\(4,\), \(\)\]"),
    ],
)
def test_a_loss_of_a_dataset_is_a_sum_and_a_count(returned, shapes):
    loss = lambda params, batch: returned(risk(params, batch)[0])
    with pytest.raises(TypeError, match=rf"^loss: .* \(sum, count\).* the shapes {shapes}"):
        effects.dataset_gradient(loss, PARAMS, BATCHES)


@pytest.mark.parametrize("method", ["jvp", "vmap"])
@pytest.mark.parametrize(
    ("reduced", "shape"),
    [(lambda logp: logp.sum(), r"\(\)"), (lambda logp: logp[:, None, None], r"\(\d, 1, 1\)")],
)
def test_log_probabilities_have_one_or_two_axes(method, reduced, shape):
    logp = lambda params, batch: reduced(sample_logp(params, batch))
    with pytest.raises(ValueError, match=rf"\[B\], or \[B, S\] by token; got the shape {shape}"):
        pg_effect(PARAMS, logp, method)


def losses(params, batch):
    return {"npo": risk(params, batch)}


# ---- a Gradient is not its tree -----------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda g: pg_effect(g),
        lambda g: effects.choose_pg_method(sample_logp, PARAMS, BATCHES[0], {"retain": g}),
        lambda g: effects.g_effect(risk, PARAMS, BATCHES, g),
        lambda g: effects.g_effects_of(losses, PARAMS, BATCHES, g),
        lambda g: effects.g_effect_between(PARAMS, g),
        lambda g: effects.g_effect_between(g, PARAMS),
        lambda g: effects.g_effect_between(g, g),
        lambda g: effects.layer_dots(g, g),
        lambda g: effects.spare_update(PARAMS, g),
        lambda g: effects.spare_update(g, g),
    ],
)
def test_a_gradient_is_not_its_tree(call):
    with pytest.raises(TypeError, match=r"got a Gradient; pass the tree in it, its \.gradient"):
        call(effects.Gradient(jnp.zeros(()), PARAMS))


@pytest.mark.parametrize("method", ["jvp", "vmap"])
def test_a_loss_of_a_dataset_is_no_log_probability(method):
    pg = lambda fn: effects.pg_effect(fn, PARAMS, BATCHES, {"retain": PARAMS}, method=method)
    with pytest.raises(TypeError, match=r"got a tuple; a loss of \(sum, count\) is for dataset_gr"):
        pg(risk)
    with pytest.raises(TypeError, match="got a NoneType"):
        pg(lambda params, batch: None)


def test_whole_numbers_have_no_effects():
    whole = lambda params, batch: sample_logp(params, batch).astype(int)
    with pytest.raises(TypeError, match="sample_logp_fn returns whole numbers"):
        effects.pg_effect(whole, PARAMS, BATCHES, {"retain": PARAMS}, method="jvp")


def test_directions_are_a_mapping():
    for call in (effects.pg_effect, effects.choose_pg_method):
        with pytest.raises(TypeError, match=r"directions is a list; give a mapping of names"):
            call(sample_logp, PARAMS, BATCHES, [PARAMS])
    with pytest.raises(ValueError, match=r"looks like the parameters; give \{'retain': "):
        effects.pg_effect(sample_logp, PARAMS, BATCHES, PARAMS)
    for by in ("sample", "layer"):
        with pytest.raises(ValueError, match="choose_pg_method needs at least one direction"):
            effects.choose_pg_method(sample_logp, PARAMS, BATCHES[0], {}, by=by)


# ---- one batch is no list of batches ------------------------------------------------------------


class Pair(NamedTuple):
    x: jax.Array
    y: jax.Array


def by_batches(batches):
    """All functions that loop over batches, on what may be none."""
    return [
        lambda: effects.dataset_gradient(risk, PARAMS, batches),
        lambda: effects.dataset_gradients(losses, PARAMS, batches),
        lambda: effects.g_effect(risk, PARAMS, batches, PARAMS),
        lambda: effects.g_effects_of(losses, PARAMS, batches, PARAMS),
        lambda: effects.pg_effect(sample_logp, PARAMS, batches, {"v": PARAMS}),
    ]


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (BATCHES[0], "ArrayImpl"),
        (np.ones((4, 3), np.float32), "ndarray"),
        ({"x": BATCHES[0]}, "dict"),
        (Pair(BATCHES[0], BATCHES[1]), "Pair"),
        (3, "int"),
    ],
)
def test_one_batch_is_not_taken_apart(batch, kind):
    for call in by_batches(batch):
        with pytest.raises(TypeError, match=rf"batches is one {kind}, .* \[batch\] for a single"):
            call()


def test_a_bare_tuple_is_refused_where_its_members_differ():
    """Two arrays of one rank cannot be told from two batches."""
    for call in by_batches((BATCHES[0], jnp.zeros(4))):
        with pytest.raises(ValueError, match=r"batch 1 has leaves of .* \[\(x, y\)\]"):
            call()


# ---- shapes that broadcast ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["jvp", "vmap"])
def test_a_scalar_is_no_value_a_sample(method):
    total = lambda params, batch: sample_logp(params, batch).sum()
    with pytest.raises(ValueError, match=r"the shape \(\); a scalar is one value for all samples"):
        pg_effect(PARAMS, total, method)


def gated(params, batch, probe=None):
    return sample_logp(params, batch).sum(keepdims=True)


@pytest.mark.parametrize("method", ["jvp", "gates"])
def test_fewer_results_than_rows_are_refused(method):
    with pytest.raises(ValueError, match=r"returned the shape \(1,\) for a batch of 4 rows"):
        pg_effect(PARAMS, gated, method)


@pytest.mark.parametrize(
    "call",
    [
        lambda fn, v: effects.pg_effect(fn, PARAMS, BATCHES, v, method="gates"),
        lambda fn, v: effects.pg_effect(fn, PARAMS, BATCHES, v | {"w": PARAMS}, method="jvp"),
        lambda fn, v: effects.g_effect(
            lambda p, b, probe=None: (fn(p, b, probe).sum(), 4.0),
            PARAMS,
            BATCHES,
            PARAMS,
            method="gates",
        ),
    ],
)
def test_gates_that_are_not_read_are_no_effects_of_zero(call):
    ignores = lambda params, batch, probe=None: sample_logp(params, batch)
    with pytest.raises(ValueError, match=r"does not read the gates of .*; pass `probe` on to"):
        call(ignores, {"v": PARAMS})
    effects.pg_effect(ignores, PARAMS, BATCHES, {"v": PARAMS}, method="jvp")  # needs no gates


def test_a_parameter_that_nothing_reads_needs_no_gate():
    def logp(params, batch, probe=None):
        value = batch @ params["a"]["w"]
        if probe is not None:
            value = value + probe["gates"]["a"][0] * (batch @ probe["directions"][0]["a"]["w"])
        return value

    params = {"a": {"w": jnp.ones(3)}, "unused": {"w": jnp.ones(2)}}
    found = effects.pg_effect(logp, params, [jnp.ones((2, 3))], {"v": params}, method="gates")
    np.testing.assert_allclose(found["v"], [3, 3])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"microbatch": 0}, "microbatch=0 must be 1 or more"),
        ({"by": "token"}, "batches with 2 and 3 tokens a sample"),
    ],
)
def test_batches_that_have_no_table_in_common(options, words):
    logp = lambda params, batch: batch * params
    batches = [jnp.ones((1, 2)), jnp.ones((1, 3))]
    with pytest.raises(ValueError, match=words):
        effects.pg_effect(logp, jnp.ones(()), batches, {"v": jnp.ones(())}, **options)


def test_flags_of_numpy_and_leaves_without_elements():
    params = {"a": jnp.ones(3), "b": jnp.ones(3), "none": jnp.zeros((0,))}
    chosen = {"a": np.bool_(True), "b": np.bool_(False), "none": np.bool_(True)}
    logp = lambda p, batch: batch @ p["a"] + batch @ p["b"]
    along = {"v": {"a": jnp.ones(3), "b": None, "none": jnp.zeros((0,))}}
    found = effects.pg_effect(logp, params, [jnp.ones((2, 3))], along, trainable=chosen)
    np.testing.assert_allclose(found["v"], [3, 3])
    np.testing.assert_allclose(effects.g_effect_between(params, params).value.sum(), 6)


def test_vmap_wants_one_result_a_row():
    double = lambda params, batch: jnp.concatenate([sample_logp(params, batch)] * 2)
    with pytest.raises(ValueError, match="one sequence a row, but a row holds 2"):
        pg_effect(PARAMS, double, "vmap")


@pytest.mark.parametrize(
    ("mask", "shape"), [(jnp.ones((3, 2)), r"\(3, 2\)"), (jnp.ones(()), r"\(\)")]
)
def test_vmap_wants_one_leading_axis(mask, shape):
    """Against a mask of three rows a batch of one would be broadcast."""
    logp = lambda params, batch: sample_logp(params, batch["x"])
    batch = {"mask": mask, "x": jnp.ones((1, 3))}
    with pytest.raises(ValueError, match=rf"\['mask'\] .*{shape}.*|{shape}.*\['x'\]"):
        effects.pg_effect(logp, PARAMS, [batch], {"v": PARAMS}, method="vmap")


# ---- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda by: effects.g_effect(risk, PARAMS, BATCHES, PARAMS, by=by),
        lambda by: effects.g_effect_between(PARAMS, PARAMS, by=by),
        lambda by: effects.layer_dots(PARAMS, PARAMS, by=by),
        lambda by: effects.spare_update(PARAMS, PARAMS, by=by),
        lambda by: effects.pg_effect(sample_logp, PARAMS, BATCHES, {"v": PARAMS}, by=by),
        lambda by: effects.choose_pg_method(sample_logp, PARAMS, BATCHES[0], {"v": PARAMS}, by=by),
        lambda by: programs.make_probe(PARAMS, (PARAMS,), by=by),
        lambda by: programs.pg_by_gates(
            PARAMS, BATCHES[0], (PARAMS,), fn=gated, by=by, grouping=effects.BY_PATH
        ),
        lambda by: programs.pg_by_vmap(
            PARAMS,
            BATCHES[0],
            (PARAMS,),
            fn=sample_logp,
            by=by,
            grouping=effects.BY_PATH,
            microbatch=1,
        ),
        lambda by: programs.g_by_gates(
            PARAMS, BATCHES[0], PARAMS, risk_fn=gated, by=by, grouping=effects.BY_PATH
        ),
    ],
)
def test_a_misspelt_by_is_refused_with_the_nearest_word(call):
    with pytest.raises(ValueError, match=r"by='layers'; it is .*; perhaps you meant 'layer'"):
        call("layers")


def test_forward_mode_has_no_rows_by_layer():
    with pytest.raises(ValueError, match="by='layer'; it is 'sample' or 'token'"):
        programs.pg_by_jvp(
            PARAMS, BATCHES[0], (PARAMS,), fn=sample_logp, by="layer", grouping=effects.BY_PATH
        )


# ---- under jit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "program"),
    [
        (lambda p, b: effects.dataset_gradient(risk, p, [b]), "gradient_sums"),
        (lambda p, b: effects.dataset_gradients(losses, p, [b]), "gradient_sums"),
        (lambda p, b: effects.g_effect(risk, p, [b], p), "gradient_sums or g_by_gates"),
        (lambda p, b: effects.g_effects_of(losses, p, [b], p), "g_by_jvp"),
        (lambda p, b: effects.pg_effect(sample_logp, p, [b], {"v": p}), "pg_by_jvp, pg_by_gates"),
    ],
)
def test_loops_over_batches_do_not_run_under_jit(call, program):
    (name,) = (n for n in call.__code__.co_names if hasattr(effects, n))
    words = rf"^{name} loops over batches on the host .* one batch effects\.programs\.{program}"
    for traced in (
        lambda: jax.jit(call)(PARAMS, BATCHES[0]),
        lambda: jax.jit(lambda batch: call(PARAMS, batch))(BATCHES[0]),
        lambda: jax.grad(lambda p: call(p, BATCHES[0]))(PARAMS),
    ):
        with pytest.raises(TypeError, match=words):
            traced()


ONE = BATCHES[:1]
CLOSED_OVER = [
    ("dataset_gradient", lambda x: effects.dataset_gradient(scaled_risk(x), PARAMS, ONE).value),
    (
        "dataset_gradients",
        lambda x: effects.dataset_gradients(scaled_risks(x), PARAMS, ONE)["npo"].value,
    ),
    ("dataset_gradient", lambda x: effects.g_effect(scaled_risk(x), PARAMS, ONE, PARAMS).value),
    (
        "g_effect",
        lambda x: effects.g_effect(scaled_gates(x), PARAMS, ONE, PARAMS, method="gates")[0],
    ),
    (
        "g_effects_of",
        lambda x: effects.g_effects_of(scaled_risks(x), PARAMS, ONE, PARAMS)["npo"],
    ),
    *(
        (
            "pg_effect",
            lambda x, m=method: effects.pg_effect(
                lambda p, b: x * sample_logp(p, b), PARAMS, ONE, {"v": PARAMS}, method=m
            )["v"],
        )
        for method in ("auto", "jvp", "vmap")
    ),
]


def scaled_risk(scale):
    def of_batch(params, batch):
        total, count = risk(params, batch)
        return scale * total, count

    return of_batch


def scaled_risks(scale):
    return lambda params, batch: {"npo": scaled_risk(scale)(params, batch)}


def scaled_gates(scale):
    """A risk with a gate a layer, which reads the one of the bias."""

    def of_batch(params, batch, probe=None):
        total, count = scaled_risk(scale)(params, batch)
        if probe is not None:
            total = total * (1 + sum(gate.sum() for gate in jax.tree.leaves(probe["gates"])))
        return total, count

    return of_batch


@pytest.mark.parametrize(("name", "call"), CLOSED_OVER)
@pytest.mark.parametrize("transformation", [jax.jit, jax.grad, jax.vmap])
def test_a_function_that_closes_over_a_traced_value(name, call, transformation):
    value = jnp.ones(2) if transformation is jax.vmap else jnp.ones(())
    words = f"^{name}: its results are traced values.*put that value into params or the batch"
    with pytest.raises(TypeError, match=words):
        transformation(lambda x: call(x).sum())(value)


def test_a_call_under_jit_that_closes_over_all_it_needs():
    with pytest.raises(TypeError, match=r"^dataset_gradient: its results are traced values"):
        jax.jit(lambda x: x + effects.dataset_gradient(risk, PARAMS, BATCHES).value)(1.0)


def test_what_works_on_trees_alone_runs_under_jit():
    value = jax.jit(lambda a: effects.g_effect_between(a, a).value)(PARAMS)
    np.testing.assert_allclose(value, effects.layer_dots(PARAMS, PARAMS))
    assert jax.jit(effects.spare_update)(PARAMS, PARAMS)["w"].shape == (3, 2)
