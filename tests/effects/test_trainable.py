"""Frozen leaves: effects of a part of the parameters are those of that part, and cost no more."""

import re
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.effects import BY_PATH, programs

WIDTH, RANK, DEPTH, SAMPLES, TOKENS = 6, 2, 2, 4, 3
LORA = r"lora_[ab]$"


def logp(params, batch):
    """[B, TOKENS]: layers of a base matrix and a low-rank one, and a table that is not trained."""
    x = batch["x"] * params["scale"][None, None]
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["base"] + x @ layer["lora_a"] @ layer["lora_b"])
    x = x[..., params["order"]]
    return jnp.take_along_axis(jax.nn.log_softmax(x), batch["y"][..., None], -1)[..., 0]


def risk(params, batch):
    values = -logp(params, batch).sum(-1)
    return values.sum(), len(values)


def both(params, batch):
    return {"risk": risk(params, batch), "half": (0.5 * risk(params, batch)[0], 1)}


def draw(seed):
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    layer = lambda: {
        "base": normal(WIDTH, WIDTH),
        "lora_a": normal(WIDTH, RANK),
        "lora_b": normal(RANK, WIDTH),
    }
    return {"layers": [layer() for _ in range(DEPTH)], "scale": 1 + 0.1 * normal(WIDTH)}


PARAMS = {**draw(0), "order": jnp.arange(WIDTH)[::-1]}
FLOATS = draw(1)
BATCHES = [
    {
        "x": jax.random.normal(jax.random.key(seed), (SAMPLES, TOKENS, WIDTH)),
        "y": jax.random.randint(jax.random.key(seed), (SAMPLES, TOKENS), 0, WIDTH),
    }
    for seed in (2, 3)
]
AS_BOOLS = jax.tree_util.tree_map_with_path(
    lambda path, _: "lora" in jax.tree_util.keystr(path), PARAMS
)
WAYS = [
    pytest.param(LORA, id="text"),
    pytest.param(re.compile(LORA), id="pattern"),
    pytest.param(lambda path: ".lora_" in path, id="function"),
    pytest.param(AS_BOOLS, id="bools"),
]


def lora_of(tree):
    """The trainable leaves by hand."""
    return [{name: layer[name] for name in ("lora_a", "lora_b")} for layer in tree["layers"]]


class Wide(NamedTuple):
    """All of the above in float64.

    Attributes:
      params, batches: as above.
      direction: the LoRA leaves of `FLOATS`.
      dense: [n, TOKENS] of trees: the gradient of every token with respect to all floats.
    """

    params: object
    batches: list
    direction: object
    dense: object


@pytest.fixture(scope="module")
def in_float64():
    with jax.enable_x64(True):
        widen = lambda x: jnp.asarray(np.asarray(x), "float64") if x.dtype == "float32" else x
        params, batches, along = jax.tree.map(widen, (PARAMS, BATCHES, FLOATS))
        direction = effects.partition({**along, "order": PARAMS["order"]}, LORA)[0]
        floats, rest = effects.partition(params)
        fn = lambda p, batch: logp(effects.combine(p, rest), batch)
        parts = [jax.jacrev(lambda p, b=batch: fn(p, b))(floats) for batch in batches]
        dense = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        return Wide(params, batches, direction, dense)


@pytest.fixture
def wide(in_float64):
    with jax.enable_x64(True):
        yield in_float64


def dense_dots(wide, *, by):
    """The PG-effects of the LoRA leaves along `FLOATS`, from the dense gradients."""
    table = [
        {
            name: np.tensordot(g, np.asarray(v, np.float64), v.ndim)
            for (name, g), v in zip(sorted(gs.items()), [vs[k] for k in sorted(vs)], strict=True)
        }
        for gs, vs in zip(lora_of(wide.dense), lora_of(FLOATS), strict=True)
    ]
    rows = np.stack([sum(layer.values()) for layer in table], -1)  # [n, TOKENS, DEPTH]
    return {"layer": rows.sum(1), "token": rows.sum(2), "sample": rows.sum((1, 2))}[by]


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("trainable", WAYS)
def test_partition_and_back(trainable):
    chosen, frozen = effects.partition(PARAMS, trainable)
    assert chosen["layers"][0]["base"] is None and chosen["order"] is None
    assert frozen["layers"][0]["lora_a"] is None and frozen["order"] is PARAMS["order"]
    assert len(jax.tree.leaves(chosen)) == 2 * DEPTH
    back = effects.combine(chosen, frozen)
    assert jax.tree.structure(back) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (back, PARAMS)), strict=True))


def test_where_nothing_is_frozen_nothing_is_copied():
    for trainable in (None, ".", lambda path: True):
        assert effects.partition(FLOATS, trainable) == (FLOATS, None)
    assert effects.combine(FLOATS, None) is FLOATS


@pytest.mark.parametrize("trainable", WAYS)
def test_gradients_of_a_part(wide, trainable):
    result = effects.dataset_gradients(both, wide.params, wide.batches, trainable=trainable)
    assert result["risk"].gradient["scale"] is None
    for name, divisor in (("risk", 2 * SAMPLES), ("half", 4)):
        found = lora_of(result[name].gradient)
        for x, g in zip(*map(jax.tree.leaves, (found, lora_of(wide.dense))), strict=True):
            assert_close(x, -g.sum((0, 1)) / divisor)


@pytest.mark.parametrize(
    ("by", "method"),
    [("sample", "jvp"), ("token", "jvp"), ("sample", "vmap"), ("token", "vmap"), ("layer", "auto")],
)
def test_pg_effects_of_a_part(wide, by, method):
    along = {"v": wide.direction, "2v": jax.tree.map(lambda x: 2 * x, wide.direction)}
    options = dict(by=by, method=method, trainable=LORA)
    result = effects.pg_effect(logp, wide.params, wide.batches, along, **options)
    assert_close(result["v"], dense_dots(wide, by=by))
    assert_close(result["2v"], 2 * dense_dots(wide, by=by))


def test_g_effects_of_a_part(wide):
    rows = -dense_dots(wide, by="layer").sum(0) / (2 * SAMPLES)
    arguments = (wide.params, wide.batches, wide.direction)
    result = effects.g_effect(risk, *arguments, trainable=LORA)
    assert result.rows == ("layers.0", "layers.1")
    assert result.rows == tuple(effects.layer_names(PARAMS, trainable=LORA))
    assert_close(result.value, rows)
    found = effects.g_effects_of(both, *arguments, trainable=LORA)
    assert_close(found["risk"], rows.sum())


def test_rows_are_called_the_same_whatever_is_frozen():
    """One layer alone: without its frozen neighbours its own parts would be taken for layers."""
    first = r"layers\.1\.lora"
    assert effects.layer_names(PARAMS, trainable=first) == ["layers.1"]
    direction = effects.partition(PARAMS, first)[0]
    assert effects.g_effect_between(direction, direction).rows == ("layers.1",)
    names = ["layers.1.lora_a", "layers.1.lora_b"]
    assert effects.tensor_names(PARAMS, trainable=first) == names


def test_a_stack_that_is_frozen_has_no_rows():
    params = {"h": {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, "head": jnp.ones(3)}
    stacked = effects.Grouping(stacked={"h": "block"})
    names = lambda trainable: effects.layer_names(params, grouping=stacked, trainable=trainable)
    assert names("head") == ["head"] and names("w|head") == ["block_0", "block_1", "head"]


def test_integers_are_frozen_without_being_named():
    gradient = effects.dataset_gradient(risk, PARAMS, BATCHES).gradient
    assert gradient["order"] is None and len(jax.tree.leaves(gradient)) == 3 * DEPTH + 1
    assert "order" not in effects.layer_names(PARAMS)
    result = effects.pg_effect(logp, PARAMS, BATCHES, {"v": gradient}, method="jvp")["v"]
    np.testing.assert_allclose(result.mean(), -trees.dot(gradient, gradient), rtol=1e-5)


def test_equinox_modules_of_bools_are_trees():
    """They can be called, and are no functions of a path."""

    class Model(eqx.Module):
        a: jax.Array
        b: jax.Array

        def __call__(self, x):
            return x * self.a + self.b

    model, spec = Model(jnp.ones(2), jnp.ones(2)), Model(True, False)
    chosen, frozen = effects.partition(model, spec)
    assert (chosen.b, frozen.a) == (None, None) and chosen.a is model.a
    fn = lambda model, x: (jnp.sum(model(x)), 1)
    result = effects.dataset_gradient(fn, model, [jnp.full(2, 3.0)], trainable=spec)
    np.testing.assert_array_equal(result.gradient.a, 3.0)
    assert result.gradient.b is None


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "error", "words"),
    [
        ("order", TypeError, "the leaf order is of type int32, .* leave it out with trainable="),
        (lambda path: True, TypeError, "the leaf order is of type int32"),
        ("layers.0.lora_c", ValueError, r"selects no leaf; perhaps you meant 'layers\.0\.lora_"),
        (lambda path: False, ValueError, r"selects no leaf; the leaves are called layers\.0\.base"),
        ("lora_(", ValueError, r"trainable='lora_\(' is no regular expression: missing \)"),
        (3, TypeError, "trainable=3: expected a function of a leaf's path, a regular"),
        ({"scale": 1.0}, TypeError, "a pytree of bools like the parameters"),
        ({"scale": True}, ValueError, "trainable: has no bool for the leaf"),
        ({**AS_BOOLS, "more": True}, ValueError, "trainable: has a bool for the leaf more, but"),
    ],
)
def test_what_selects_no_parameters_is_refused(trainable, error, words):
    with pytest.raises(error, match=words):
        effects.dataset_gradient(risk, PARAMS, BATCHES, trainable=trainable)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"w": jnp.ones(2), "act": jax.nn.relu}, "the leaf act is no array but .*equinox"),
        ({"w": jnp.ones(2, "complex64")}, "the leaf w is of type complex64, which has no real"),
    ],
)
def test_leaves_that_cannot_be_differentiated_are_named(params, words):
    with pytest.raises(TypeError, match=words):
        effects.dataset_gradient(risk, params, BATCHES)


@pytest.mark.parametrize(
    ("params", "words"),
    [({}, "a tree without leaves"), ({"n": jnp.ones(2, int)}, "no leaf has a floating type.* n,")],
)
def test_parameters_without_anything_to_differentiate(params, words):
    with pytest.raises(ValueError, match=words):
        effects.layer_names(params)


def test_a_direction_along_a_frozen_leaf_is_refused():
    for direction, words in (
        (
            FLOATS,
            r"has a leaf .*\['base'\], which the trainable part of params has not; effects\.p",
        ),
        ({}, r"has no leaf .*\['lora_a'\], which the trainable part of params has"),
    ):
        with pytest.raises(ValueError, match=rf"^directions\['v'\]: {words}"):
            effects.pg_effect(logp, PARAMS, BATCHES, {"v": direction}, trainable=LORA)
        with pytest.raises(ValueError, match=rf"^direction: {words}"):
            effects.g_effect(risk, PARAMS, BATCHES, direction, trainable=LORA)
        with pytest.raises(ValueError, match=rf"^risk_gradient: {words}"):
            effects.g_effects_of(both, PARAMS, BATCHES, direction, trainable=LORA)


def gated_logp(params, batch, probe=None):
    """A model that reads its gates: frozen leaves have None for a direction, and no gate."""
    if probe is None:
        return logp(params, batch)
    ((layers, gates),) = probe["gates"].items()
    assert layers == "layers" and probe["directions"][0]["scale"] is None
    (along,) = probe["directions"]
    move = lambda a: jax.tree.map(lambda p, v: p if v is None else p + a * v, params, along)
    if gates.shape[1] == 1:
        return logp(move(gates[0, 0]), batch)
    one = lambda a, sample: logp(move(a), jax.tree.map(lambda x: x[None], sample))[0]
    return jax.vmap(one)(gates[0], batch)


def gated_risk(params, batch, probe=None):
    values = -gated_logp(params, batch, probe).sum(-1)
    return values.sum(), len(values)


def test_gates_leave_frozen_leaves_where_they_are():
    direction = effects.partition({**FLOATS, "order": PARAMS["order"]}, LORA)[0]
    by_key = effects.Grouping(rows=r"^\w+")
    options = dict(trainable=LORA, grouping=by_key)
    formed = effects.g_effect(risk, PARAMS, BATCHES, direction, **options)
    gates = effects.g_effect(gated_risk, PARAMS, BATCHES, direction, method="gates", **options)
    assert gates.rows == formed.rows == ("layers",)
    np.testing.assert_allclose(gates.value, formed.value, rtol=1e-5)
    along = {"v": direction}
    pushed = effects.pg_effect(logp, PARAMS, BATCHES, along, method="jvp", **options)["v"]
    options |= dict(by="layer", method="gates")
    table = effects.pg_effect(gated_logp, PARAMS, BATCHES, along, **options)["v"]
    np.testing.assert_allclose(table[:, 0], pushed, rtol=1e-4, atol=1e-6)


def test_what_not_every_model_can_gate_is_not_chosen_unasked():
    direction = effects.partition(PARAMS, LORA)[0]
    for by, method in (("layer", "vmap"), ("sample", "jvp")):
        options = dict(by=by, trainable=LORA, memory=2**30)
        along = {"v": direction, "w": direction}
        choice = effects.choose_pg_method(gated_logp, PARAMS, BATCHES[0], along, **options)
        assert choice.method == method


# ---- memory -------------------------------------------------------------------------------------


def lora_logp(params, x):
    for w in params["base"]:
        x = jnp.tanh(x @ w)
    x = x + x @ params["lora"]["a"] @ params["lora"]["b"]
    return jax.nn.log_softmax(x)[:, 0]


SIZE, MATRIX = 512, 4 * 512**2
of_shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
# Four matrices of a megabyte next to 16 KB of LoRA, and a batch of two rows.
LARGE = {
    "base": [of_shape(SIZE, SIZE)] * 4,
    "lora": {"a": of_shape(SIZE, 4), "b": of_shape(4, SIZE)},
}
ROWS = of_shape(2, SIZE)


@pytest.mark.cost
@pytest.mark.parametrize("program", ["gradient", "jvp", "vmap"])
def test_frozen_leaves_are_arguments_and_have_no_gradient(program):
    """Of their four megabytes no temporary, and no constant in what is compiled."""
    options = {"fn": lora_logp, "by": "sample", "grouping": BY_PATH}
    losses = lambda params, x: {"loss": (lora_logp(params, x).sum(), 2)}
    part, rest = effects.partition(LARGE, "^lora")
    if program == "gradient":
        shardings = trees.named_shardings(part)
        lowered = programs.gradient_sums.lower(
            part, ROWS, None, rest, losses_fn=losses, shardings=shardings
        )
    elif program == "jvp":
        lowered = programs.pg_by_jvp.lower(part, ROWS, (part,), rest, **options)
    else:
        lowered = programs.pg_by_vmap.lower(part, ROWS, (part,), rest, microbatch=2, **options)
    memory = lowered.compile().memory_analysis()
    assert memory.argument_size_in_bytes > 4 * MATRIX
    assert memory.temp_size_in_bytes < 0.25 * MATRIX
    assert memory.output_size_in_bytes < 0.1 * MATRIX
    assert len(lowered.as_text()) < 0.1 * MATRIX


@pytest.mark.cost
def test_without_trainable_they_have_one():
    """The test above would see it."""
    losses = lambda params, x: {"loss": (lora_logp(params, x).sum(), 2)}
    shardings = trees.named_shardings(LARGE)
    memory = (
        programs.gradient_sums.lower(LARGE, ROWS, losses_fn=losses, shardings=shardings)
        .compile()
        .memory_analysis()
    )
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes > 4 * MATRIX
