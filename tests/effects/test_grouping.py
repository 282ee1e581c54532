"""Rows by layer: which leaves share one, what it is called, and in which order rows come."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects

W = np.ones((2, 3), np.float32)
H = effects.Grouping(stacked={"h": "layer"})


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"embed": {"w": W}, "norm": {"scale": W}}, ["embed", "norm"]),
        ({"w": W, "b": W}, ["b", "w"]),
        (W, ["params"]),
        ([{"w": W, "b": W}, {"w": W}], ["0", "1"]),
        ({"weights": [W, W], "biases": [W]}, ["biases.0", "weights.0", "weights.1"]),
        ({"fc1": {"w": W}, "fc2": {"w": W}}, ["fc1", "fc2"]),
        ({"layers": {0: {"attn": {"q": W, "k": W}, "mlp1": W}}, "out": W}, ["layers.0", "out"]),
        # Without a number, the path without its last component.
        ({"attn": {"q": {"kernel": W}, "k": {"kernel": W}}}, ["attn.k", "attn.q"]),
        # One key that holds a whole path, as in files of weights.
        ({"h.0.q.weight": W, "h.0.k.weight": W, "h.1.q.weight": W, "wte": W}, None),
        # A wrapper that all leaves share tells no layers apart, whatever its number.
        ({"T_0": {"Dense_0": {"w": W}, "Dense_1": {"w": W}}}, ["T_0.Dense_0", "T_0.Dense_1"]),
    ],
)
def test_rows_by_path(params, names):
    assert effects.layer_names(params) == (names or ["h.0", "h.1", "wte"])
    tensors = effects.tensor_names(params)
    assert len(tensors) == len(set(tensors)) == len(jax.tree.leaves(params))


def test_numbered_layers_follow_their_numbers():
    params = {f"layers_{i}": {"w": W} for i in range(12)} | {"zz": W, "a": W}
    assert effects.layer_names(params) == ["a", *(f"layers_{i}" for i in range(12)), "zz"]
    values = {f"layers_{i}": {"w": jnp.full((2,), float(i))} for i in range(12)}
    ones = jax.tree.map(jnp.ones_like, values)
    np.testing.assert_array_equal(effects.layer_dots(values, ones), 2.0 * np.arange(12))


@pytest.mark.parametrize(
    ("params", "stacked", "layers", "tensors"),
    [
        (
            {"h": {"w": W, "b": W}, "ln": {"scale": W}},
            {"h": "layer"},
            ["layer_0", "layer_1", "ln"],
            ["layer_0.b", "layer_0.w", "layer_1.b", "layer_1.w", "ln.scale"],
        ),
        ({"h": W, "ln": W}, {"h": "h"}, ["h_0", "h_1", "ln"], ["h_0", "h_1", "ln"]),
        (
            {"params": {"scan": {"mlp": {"w": W}}, "ln": {"scale": W}}},
            {"params.scan": "block"},
            ["params.ln", "block_0", "block_1"],
            ["params.ln.scale", "block_0.mlp.w", "block_1.mlp.w"],
        ),
    ],
)
def test_stacked_layers_are_named(params, stacked, layers, tensors):
    grouping = effects.Grouping(stacked=stacked)
    assert effects.layer_names(params, grouping=grouping) == layers
    assert effects.tensor_names(params, grouping=grouping) == tensors
    draw = np.random.default_rng(0)
    a, b = (
        jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), params)
        for _ in range(2)
    )
    rows = effects.layer_dots(a, b, grouping=grouping)
    assert rows.shape == (len(layers),)
    total = sum(float((x * y).sum()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    np.testing.assert_allclose(rows.sum(), total, rtol=1e-5)
    by_tensor = effects.layer_dots(a, b, by="tensor", grouping=grouping)
    members_of = [
        [i for i, tensor in enumerate(tensors) if f"{tensor}.".startswith(f"{name}.")]
        for name in layers
    ]
    np.testing.assert_allclose([by_tensor[np.array(i)].sum() for i in members_of], rows, rtol=1e-5)


def test_equal_groupings_are_one_static_argument():
    traces = []

    @functools.partial(jax.jit, static_argnames="grouping")
    def rows(a, grouping):
        traces.append(grouping)
        return effects.layer_dots(a, a, grouping=grouping)

    params, mapping = {"h": jnp.ones((2, 3))}, {"h": "layer"}
    for grouping in (H, effects.Grouping(stacked=mapping), effects.Grouping()):
        rows(params, grouping)
    assert len(traces) == 2 and effects.Grouping() != H
    changeable = effects.Grouping(stacked=mapping)
    mapping["other"] = "x"
    assert changeable == H


@pytest.mark.parametrize(
    ("params", "stacked", "message"),
    [
        ({"blocks": W}, {"block": "block"}, "no 'block'; perhaps you meant 'blocks'"),
        ({"h": {"a": W, "b": W[0]}}, {"h": "layer"}, r"shapes are \(2, 3\), \(3,\)"),
        ({"h": {"a": np.float32(1)}}, {"h": "layer"}, r"shapes are \(\)"),
        ({"h": W, "layer_0": W}, {"h": "layer"}, "two layers are called 'layer_0'"),
    ],
)
def test_a_grouping_that_does_not_fit_is_refused(params, stacked, message):
    with pytest.raises(ValueError, match=message):
        effects.layer_names(params, grouping=effects.Grouping(stacked=stacked))


@pytest.mark.parametrize("stacked", [("blocks",), "blocks", {"blocks": 1}, {"": "block"}])
def test_stacked_is_a_mapping(stacked):
    with pytest.raises(TypeError, match=r"such as \{'blocks': 'block'\}"):
        effects.Grouping(stacked=stacked)


# ---- rows by a rule of the caller ---------------------------------------------------------------

BLOCKS = {
    "h": [{"attn": {"q": W, "k": W}, "mlp": {"up": W}} for _ in range(11)],
    "head": {"w": W},
    "embed": W,
}


def last_part(path):
    return path.split(".")[-1] if path.startswith("h.") else None


@pytest.mark.parametrize(
    ("rows", "other", "names"),
    [
        # The whole match, in the order of the numbers.
        (r"h\.\d+|head|embed", None, ["embed", *(f"h.{i}" for i in range(11)), "head"]),
        # The first group that matched.
        (r"\.(attn|mlp)\.|^(head|embed)", None, ["embed", "attn", "mlp", "head"]),
        (re.compile(r"\.(?:attn|mlp)\.(\w+)"), "rest", ["rest", "k", "q", "up"]),
        (r"h\.(\d+)", "rest", ["rest", *map(str, range(11))]),
        (last_part, "rest", ["rest", "k", "q", "up"]),
        (lambda path: path[0], None, ["e", "h"]),
    ],
)
def test_rows_by_a_rule(rows, other, names):
    grouping = effects.Grouping(rows=rows, other=other)
    assert effects.layer_names(BLOCKS, grouping=grouping) == names
    # Whatever the rows, every leaf is in one of them.
    dots = effects.layer_dots(BLOCKS, BLOCKS, grouping=grouping)
    assert dots.shape == (len(names),) and dots.sum() == W.size * len(jax.tree.leaves(BLOCKS))


def test_rows_by_leaf_are_those_by_tensor():
    tensors = effects.tensor_names(BLOCKS)
    assert sorted(effects.layer_names(BLOCKS, grouping=effects.BY_LEAF)) == sorted(tensors)
    assert effects.layer_names({"b": W, "a": [W]}, grouping=effects.BY_LEAF) == ["a.0", "b"]


def test_a_rule_is_for_what_is_not_stacked():
    params = {"h": {"q": W, "k": W}, "norm": {"a": W}, "head": W}
    grouping = effects.Grouping(stacked={"h": "layer"}, rows=r"^\w+")
    assert effects.layer_names(params, grouping=grouping) == ["layer_0", "layer_1", "head", "norm"]


def test_a_rule_is_a_static_argument():
    same = effects.Grouping(rows="h", other="rest")
    assert same == effects.Grouping(rows="h", other="rest") != effects.Grouping(rows="h")
    assert hash(same) == hash(effects.Grouping(rows="h", other="rest"))
    assert effects.Grouping(rows=last_part, other="rest") == effects.Grouping(
        rows=last_part, other="rest"
    )


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_effects_by_a_rule(by):
    """The rows of every function are those of the same rule."""
    grouping = effects.Grouping(rows=r"(up|down)")
    keys = jax.random.split(jax.random.key(0), 3)
    up, down, batch = (jax.random.normal(key, (3, 3)) for key in keys)
    params = {"mlp": {"up": {"w": up}, "down": {"w": down}}}
    logp = lambda params, batch: flat_logp(params, batch)
    risk = lambda params, batch: (-logp(params, batch).sum(), len(batch))
    options = dict(by=by, grouping=grouping)
    table = effects.pg_effect(logp, params, [batch], {"v": params}, **options)["v"]
    effect = effects.g_effect(risk, params, [batch], params, **options)
    names = {"layer": ("down", "up"), "tensor": ("mlp.down.w", "mlp.up.w")}[by]
    assert effect.rows == names
    np.testing.assert_allclose(effect.value, -table.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rows": r"^h\."}, ValueError, "gives the leaf embed no row; other='NAME' makes one"),
        ({"rows": last_part}, ValueError, "gives the leaf embed no row"),
        ({"rows": lambda path: 3}, TypeError, "returned 3 for the leaf embed; expected the name"),
        ({"rows": "h("}, ValueError, r"Grouping: rows='h\(' is no regular expression: missing"),
        ({"rows": 3}, TypeError, r"Grouping\(rows=3\): expected a regular expression, such as"),
        ({"rows": "h", "other": ""}, TypeError, "expected the name of a row"),
        ({"other": "rest"}, TypeError, "`other` goes with `rows`"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        effects.layer_names(BLOCKS, grouping=effects.Grouping(**options))


# ---- gates: the model reads them itself, so rows must be the keys of its parameters -------------


def scan_logp(params, batch, probe=None):
    """[B]: a scan over two stacked matrices called `h`, and a matrix `out`, with gates."""
    directions, gates = (probe["directions"], probe["gates"]) if probe else ((), {})

    def use(x, w, along, gate):
        y = x @ w
        for k, v in enumerate(along):
            y += gate[k][:, None] * (jax.lax.stop_gradient(x) @ v)
        return y

    def block(x, layer):
        return jnp.tanh(use(x, *layer)), None

    stack = (params["h"]["w"], [d["h"]["w"] for d in directions], gates.get("h"))
    x, _ = jax.lax.scan(block, batch, stack)
    along = [d["out"]["w"] for d in directions]
    return jax.nn.log_softmax(use(x, params["out"]["w"], along, gates.get("out")))[:, 0]


@pytest.fixture
def scan():
    keys = iter(jax.random.split(jax.random.key(0), 9))
    draw = lambda: {
        "h": {"w": jax.random.normal(next(keys), (2, 3, 3))},
        "out": {"w": jax.random.normal(next(keys), (3, 3))},
    }
    return draw(), jax.random.normal(next(keys), (4, 3)), {"u": draw(), "r": draw()}


@pytest.mark.parametrize(
    ("by", "method"), [("sample", "jvp"), ("sample", "gates"), ("layer", "gates")]
)
def test_gates_of_another_stack(scan, by, method):
    params, batch, directions = scan
    values_of = lambda method: effects.pg_effect(
        scan_logp, params, [batch], directions, by=by, method=method, grouping=H
    )
    result, exact = values_of(method), values_of("vmap")
    for name in directions:
        np.testing.assert_allclose(result[name], exact[name], rtol=1e-4, atol=1e-5)
    if by == "layer":
        assert effects.layer_names(params, grouping=H) == ["layer_0", "layer_1", "out"]


def flat_logp(params, batch, probe=None):
    """[B]: two matrices under one key, a gate for both by layer."""
    return jax.nn.log_softmax(batch @ params["mlp"]["up"]["w"] @ params["mlp"]["down"]["w"])[:, 0]


def test_gates_refuse_rows_that_are_not_keys():
    w = jnp.eye(3)
    params = {"mlp": {"up": {"w": w}, "down": {"w": w}}}
    options = dict(by="layer", method="gates")
    with pytest.raises(ValueError, match=r"top-level key of the parameters \(mlp\).*method='vmap'"):
        effects.pg_effect(flat_logp, params, [w], {"v": params}, **options)
    choice = effects.choose_pg_method(flat_logp, params, w, {"v": params}, by="layer")
    assert choice.method == "vmap" and "not the keys" in choice.reason


def test_gates_refuse_parameters_that_are_no_mapping():
    logp = lambda params, batch, probe=None: jax.nn.log_softmax(batch @ params[0])[:, 0]
    w = jnp.eye(3)
    with pytest.raises(TypeError, match="mapping of layers, got list"):
        effects.pg_effect(logp, [w], [w], {"v": [w]}, method="gates")


def test_gates_refuse_a_stack_inside_a_key():
    params = {"net": {"h": {"w": jnp.ones((2, 3, 3))}, "out": {"w": jnp.eye(3)}}}
    grouping = effects.Grouping(stacked={"net.h": "layer"})
    with pytest.raises(ValueError, match="'layer_0' is a part of 'net'"):
        effects.pg_effect(
            lambda params, batch, probe=None: batch[:, 0] * params["net"]["out"]["w"][0, 0],
            params,
            [jnp.eye(3)],
            {"v": params},
            method="gates",
            grouping=grouping,
        )


# ---- the total, from rows -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e-24, 1e24, 0.0])
def test_the_total_of_rows_is_the_total_to_the_last_bit(scan, size):
    _, _, directions = scan
    a, b = directions["u"], jax.tree.map(lambda x: size * x, directions["r"])
    total = effects.g_effect_between(a, b, by="total", grouping=H)
    result = effects.g_effect_between(a, b, grouping=H).total()
    assert result.rows is None and result.total() is result
    for x, y in zip(result[:4], total[:4], strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    value = sum(float((x * y).sum()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    np.testing.assert_allclose(result.value, value, rtol=1e-4)
