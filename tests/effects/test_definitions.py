"""The three evaluators against their definition, on a small model that is no language model."""

import ast
import functools
import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.effects import programs

WIDTH, DEPTH, SAMPLES, TOKENS = 5, 3, 8, 4
# The model's blocks are stacked; nothing in `effects` knows that.
BLOCKS = effects.Grouping(stacked={"blocks": "block"})
pg_effect = functools.partial(effects.pg_effect, grouping=BLOCKS)
g_effect = functools.partial(effects.g_effect, grouping=BLOCKS)
g_effect_between = functools.partial(effects.g_effect_between, grouping=BLOCKS)


def make_params(key, scale=0.5):
    first, second, third = jax.random.split(key, 3)
    return {
        "embed": {"kernel": scale * jax.random.normal(first, (WIDTH, WIDTH))},
        "blocks": {"kernel": scale * jax.random.normal(second, (DEPTH, WIDTH, WIDTH))},
        "norm": {"scale": 1 + 0.1 * jax.random.normal(third, (WIDTH,))},
    }


def make_batch(key, samples=SAMPLES):
    first, second = jax.random.split(key)
    return {
        "x": jax.random.normal(first, (samples, TOKENS, WIDTH)),
        "y": jax.random.randint(second, (samples, TOKENS), 0, WIDTH),
    }


def logp(params, batch, probe=None):
    """[B, TOKENS]: a deep network that reads its gates as the model does."""

    def use(key, x, kernel, directions, gates):
        y = x @ kernel.astype(x.dtype)
        if gates is None:
            return y
        fixed = jax.lax.stop_gradient(x)
        for k, direction in enumerate(directions):
            y += gates[k][:, None, None] * (fixed @ direction)
        return y

    directions = probe["directions"] if probe else ()
    gates = probe["gates"] if probe else {}
    trees_of = lambda key, leaf: [d[key][leaf] for d in directions]
    x = use(
        "embed",
        batch["x"],
        params["embed"]["kernel"],
        trees_of("embed", "kernel"),
        gates.get("embed"),
    )

    def block(x, layer):
        kernel, directions, gates = layer
        return jnp.tanh(x + use("blocks", x, kernel, directions, gates)), None

    stack = (params["blocks"]["kernel"], trees_of("blocks", "kernel"), gates.get("blocks"))
    x, _ = jax.lax.scan(block, x, stack)
    scale = params["norm"]["scale"]
    y = x * scale[None, None].astype(x.dtype)
    if probe:
        for k, direction in enumerate(trees_of("norm", "scale")):
            y += gates["norm"][k][:, None, None] * jax.lax.stop_gradient(x) * direction[None, None]
    return jnp.take_along_axis(jax.nn.log_softmax(y), batch["y"][..., None], -1)[..., 0]


def no_probe(params, batch):
    return logp(params, batch)


def risk(params, batch, probe=None):
    values = -logp(params, batch, probe).sum(-1)
    return values.sum(), jnp.asarray(values.size, jnp.float32)


def squares(params, batch):
    values = logp(params, batch)
    return (values**2).sum(), jnp.asarray(len(values), jnp.float32)


def both(params, batch):
    return {"risk": risk(params, batch), "squares": squares(params, batch)}


@pytest.fixture(scope="module")
def setting():
    keys = jax.random.split(jax.random.key(0), 5)
    params = make_params(keys[0])
    batches = [make_batch(key) for key in keys[1:3]]
    directions = {"unlearn": make_params(keys[3]), "retain": make_params(keys[4])}
    return params, batches, directions


def whole(batches):
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *batches)


def test_dataset_gradient_is_that_of_one_huge_batch(setting):
    params, batches, _ = setting
    result = effects.dataset_gradient(risk, params, batches)
    mean = lambda p: risk(p, whole(batches))[0] / risk(p, whole(batches))[1]
    value, gradient = jax.value_and_grad(mean)(params)
    chex.assert_trees_all_close(result.gradient, gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.value, value, rtol=1e-6)


def test_unequal_counts_are_divided_once(setting):
    params, batches, _ = setting
    short = jax.tree.map(lambda x: x[:3], batches[1])
    result = effects.dataset_gradient(risk, params, [batches[0], short])
    joined = whole([batches[0], short])
    mean = lambda p: risk(p, joined)[0] / 11
    chex.assert_trees_all_close(result.gradient, jax.grad(mean)(params), rtol=1e-5, atol=1e-6)


def test_several_losses_share_a_pass(setting):
    params, batches, _ = setting
    result = effects.dataset_gradients(both, params, batches)
    for name, loss in (("risk", risk), ("squares", squares)):
        alone = effects.dataset_gradient(loss, params, batches)
        chex.assert_trees_all_close(result[name], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.cost
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_running_sums_are_those_of_separate_programs_but_for_the_last_rounding(setting, dtype):
    """The table is read by index: each read adds to its running sum by itself."""
    params, batches, _ = setting
    params = {"table": jnp.ones((9, WIDTH)), **params}
    params = jax.tree.map(lambda x: x.astype(dtype), params)

    def losses(params, batch):
        table = params["table"][batch["y"].reshape(-1) % 3].reshape(batch["x"].shape)
        return both(params, batch | {"x": batch["x"] * table.astype(jnp.float32)})

    options = {"losses_fn": losses, "shardings": trees.named_shardings(params)}
    separate = [programs.gradient_sums(params, batch, **options) for batch in batches]
    values, counts, gradients = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), separate)
    results = effects.dataset_gradients(losses, params, iter(batches))
    for name, result in results.items():
        assert result.value == values[name] / counts[name]
        expected = jax.tree.map(lambda x, n=name: x / counts[n], gradients[name])
        for leaf, wanted in zip(*map(jax.tree.leaves, (result.gradient, expected)), strict=True):
            assert trees.norm(leaf - wanted) <= 2e-7 * trees.norm(wanted)


def test_one_compilation_serves_all_batches_of_a_gradient(setting):
    params, batches, _ = setting
    mine = lambda params, batch: both(params, batch)
    before = programs.gradient_sums._cache_size()
    effects.dataset_gradients(mine, params, [*batches, *batches])
    effects.dataset_gradients(mine, params, batches)
    assert programs.gradient_sums._cache_size() == before + 1


def test_gradients_accumulate_in_float32_for_bfloat16_parameters(setting):
    params, batches, _ = setting
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    result = effects.dataset_gradient(risk, low, batches)
    assert {x.dtype for x in jax.tree.leaves(result.gradient)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("by", ["sample", "layer", "token"])
def test_ways_agree_with_the_definition(setting, by):
    params, batches, directions = setting
    exact = pg_effect(logp, params, batches, directions, by=by, method="vmap", microbatch=3)
    scale = trees.norm(directions["unlearn"]) * 10
    for method in {"sample": ("jvp", "gates"), "token": ("jvp",), "layer": ("gates",)}[by]:
        result = pg_effect(logp, params, batches, directions, by=by, method=method)
        for name in directions:
            np.testing.assert_allclose(result[name], exact[name], atol=float(1e-6 * scale))


def test_vmap_is_the_gradient_of_each_sample_times_the_direction(setting):
    params, batches, directions = setting
    result = pg_effect(no_probe, params, batches, directions, method="vmap")
    for i in range(SAMPLES):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], batches[0])
        gradient = jax.grad(lambda p, one=one: logp(p, one).sum())(params)
        for name, direction in directions.items():
            np.testing.assert_allclose(
                result[name][i], trees.dot(gradient, direction), rtol=2e-5, atol=1e-6
            )


def test_pg_effects_are_the_change_of_log_p_by_finite_differences(setting):
    params, batches, directions = setting
    result = pg_effect(logp, params, batches[:1], directions)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64), (params, directions["unlearn"])
        )
        batch = jax.tree.map(jnp.asarray, batches[0])
        batch["x"] = batch["x"].astype(jnp.float64)
        at = lambda a: logp(jax.tree.map(lambda p, v: p + a * v, *wide), batch).sum(-1)
        slope = (at(1e-6) - at(-1e-6)) / 2e-6
    np.testing.assert_allclose(result["unlearn"], slope, rtol=1e-4, atol=1e-5)


def test_a_batch_gradient_is_the_mean_of_its_samples(setting):
    """sum_s PG_D(s) / n = -grad R(D) . grad R(D_u): samples average to the G-effect of ascent."""
    params, batches, _ = setting
    gradient = effects.dataset_gradient(risk, params, batches).gradient
    pg = pg_effect(logp, params, batches, {"u": gradient})["u"]
    np.testing.assert_allclose(pg.mean(), -trees.dot(gradient, gradient), rtol=1e-5)


@pytest.mark.parametrize("method", ["full", "gates"])
def test_g_effect_layers_sum_to_the_total(setting, method):
    params, batches, directions = setting
    direction = directions["unlearn"]
    by_layer = g_effect(risk, params, batches, direction, by="layer", method=method)
    total = g_effect(risk, params, batches, direction, by="total", method=method)
    gradient = effects.dataset_gradient(risk, params, batches).gradient
    np.testing.assert_allclose(total.value, trees.dot(gradient, direction), rtol=2e-5)
    np.testing.assert_allclose(by_layer.value.sum(), total.value, rtol=2e-5)
    assert by_layer.rows == ("block_0", "block_1", "block_2", "embed", "norm")
    assert (total.cosine is None) == (method == "gates")


def test_gates_give_the_layers_of_the_full_gradient(setting):
    params, batches, directions = setting
    full = g_effect(risk, params, batches, directions["retain"], method="full")
    gates = g_effect(risk, params, batches, directions["retain"], method="gates")
    np.testing.assert_allclose(gates.value, full.value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gates.direction_norm, full.direction_norm, rtol=1e-6)


def test_cosine_and_norms(setting):
    params, batches, _ = setting
    gradient = effects.dataset_gradient(risk, params, batches).gradient
    ascent = jax.tree.map(jnp.negative, gradient)
    result = g_effect_between(gradient, ascent, by="total")
    np.testing.assert_allclose(result.cosine, -1, rtol=1e-5)
    np.testing.assert_allclose(result.value, -(result.risk_norm**2), rtol=1e-5)
    nothing = g_effect_between(gradient, jax.tree.map(jnp.zeros_like, gradient), by="total")
    assert nothing.cosine == 0 and nothing.value == 0


@pytest.mark.parametrize("size", [1e-24, 1e24])
def test_tiny_and_huge_gradients_have_norms_and_cosines(setting, size):
    """Squares of converged or diverged gradients leave float32; their norms do not."""
    params, _, directions = setting
    ones = jax.tree.map(lambda x: jnp.full_like(x, size), params)
    for by in ("total", "layer"):
        result = g_effect_between(directions["unlearn"], ones, by=by)
        plain = g_effect_between(directions["unlearn"], jax.tree.map(jnp.ones_like, params), by=by)
        np.testing.assert_allclose(result.cosine, plain.cosine, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result.direction_norm / size, plain.direction_norm, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_cosines_of_products_that_vanish_or_overflow(setting, size):
    """Both factors are tiny, or huge: their product is no float32, the angle between them is."""
    params, _, directions = setting
    small = jax.tree.map(lambda x: x * size, directions["unlearn"])
    for by in ("total", "layer", "tensor"):
        result = g_effect_between(small, jax.tree.map(jnp.negative, small), by=by)
        np.testing.assert_allclose(result.cosine, -1, rtol=1e-5)
        np.testing.assert_allclose(result.total().cosine, -1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_counts_are_added_up_in_a_type_that_holds_the_sum(setting, dtype):
    params, batches, directions = setting

    def counted(params, batch, probe=None):
        total, _ = risk(params, batch, probe)
        return total, jnp.asarray(1, dtype)

    many = [batches[0]] * 300
    found = {
        method: effects.g_effect(counted, params, many, directions["unlearn"], method=method,
                                 grouping=BLOCKS).value
        for method in ("full", "gates")
    }  # fmt: skip
    np.testing.assert_allclose(found["gates"], found["full"], rtol=1e-4, atol=1e-5)


def test_what_is_not_a_number_stays_so(setting):
    params, _, directions = setting
    broken = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), directions["unlearn"])
    result = g_effect_between(params, broken, by="total")
    assert jnp.isnan(result.value) and jnp.isnan(result.cosine) and jnp.isnan(result.direction_norm)


def test_an_unknown_method_is_refused(setting):
    params, batches, directions = setting
    with pytest.raises(ValueError, match="'full' or 'gates'; perhaps you meant 'gates'"):
        g_effect(risk, params, batches, directions["unlearn"], method="gate")


def test_k_objectives_at_one_theta_in_one_pass(setting):
    params, batches, _ = setting
    gradient = effects.dataset_gradient(risk, params, batches).gradient
    together = effects.g_effects_of(both, params, batches, gradient)
    for name, loss in (("risk", risk), ("squares", squares)):
        alone = g_effect(loss, params, batches, gradient, by="total")
        np.testing.assert_allclose(together[name], alone.value, rtol=1e-5)


def test_a_small_step_changes_the_risk_by_minus_eta_e(setting):
    params, batches, _ = setting
    direction = effects.dataset_gradient(squares, params, batches).gradient
    e = g_effect(risk, params, batches, direction, by="total").value
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: np.asarray(x, np.float64), (params, direction, whole(batches)["x"])
        )
        batch = {"x": wide[2], "y": np.asarray(whole(batches)["y"])}
        at = lambda eta: risk(jax.tree.map(lambda p, g: jnp.asarray(p - eta * g), *wide[:2]), batch)
        eta = 1e-7
        change = (float(at(eta)[0]) - float(at(0.0)[0])) / float(at(0.0)[1])
    np.testing.assert_allclose(change / -eta, e, rtol=1e-4)


def test_same_numbers_sharded_over_eight_devices(setting):
    params, batches, directions = setting
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("fsdp"))
    placed = [jax.device_put(batch, rows) for batch in batches]
    whole_copy = lambda tree: jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))
    for method, by in (("jvp", "sample"), ("gates", "layer"), ("vmap", "layer")):
        alone = pg_effect(logp, params, batches, directions, by=by, method=method)
        result = pg_effect(
            logp, whole_copy(params), placed, whole_copy(directions), by=by, method=method
        )
        for name in directions:
            np.testing.assert_allclose(result[name], alone[name], rtol=2e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(SAMPLES)))
def test_values_follow_their_samples(order):
    keys = jax.random.split(jax.random.key(1), 3)
    params, batch, direction = make_params(keys[0]), make_batch(keys[1]), make_params(keys[2])
    shuffled = jax.tree.map(lambda x: x[np.array(order)], batch)
    plain = pg_effect(logp, params, [batch], {"v": direction})["v"]
    shuffled_values = pg_effect(logp, params, [shuffled], {"v": direction})["v"]
    np.testing.assert_allclose(shuffled_values, plain[np.array(order)], rtol=1e-5, atol=1e-6)


def test_any_pytree_by_sample(setting):
    _, batches, _ = setting
    kernel = jnp.ones((WIDTH, WIDTH))
    fn = lambda w, batch: jax.nn.log_softmax(batch["x"] @ w)[..., 0]
    result = effects.pg_effect(fn, kernel, batches, {"v": kernel})["v"]
    assert result.shape == (2 * SAMPLES,)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "gates"}, TypeError, ["probe", "jvp", "vmap"]),
        ({"method": "gates", "by": "token"}, ValueError, ["token", "jvp or vmap"]),
        ({"method": "jvp", "by": "layer"}, ValueError, ["layer", "gates or vmap"]),
        ({"method": "fwd"}, ValueError, ["fwd", "'auto', 'jvp', 'gates' or 'vmap'"]),
        ({"directions": {}}, ValueError, ["direction"]),
        ({"batches": []}, ValueError, ["batch"]),
    ],
)
def test_errors_name_what_works(setting, options, error, words):
    params, batches, directions = setting
    arguments = {"batches": batches, "directions": directions} | options
    with pytest.raises(error) as raised:
        pg_effect(
            no_probe, params, arguments.pop("batches"), arguments.pop("directions"), **arguments
        )
    assert all(word in str(raised.value) for word in words)


def test_no_batches_is_an_error(setting):
    with pytest.raises(ValueError, match="at least one batch"):
        effects.dataset_gradient(risk, setting[0], [])
    nothing = lambda params, batch: (jnp.zeros(()), jnp.zeros(()))
    with pytest.raises(ValueError, match="nothing to average"):
        effects.dataset_gradient(nothing, setting[0], setting[1])


@pytest.mark.parametrize("package", ["effects", "objectives"])
def test_the_core_imports_jax_alone(package):
    """Anyone can point it at their own model: no flax, no optax, of the project `core` alone."""
    folder = pathlib.Path(effects.__file__).parents[1] / package
    allowed = {"jax", "numpy", "jaxunlearn"}
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                top = module.split(".")[0]
                own = top != "jaxunlearn" or module.startswith(
                    (f"jaxunlearn.{package}", "jaxunlearn.core")
                )
                assert own and (top in allowed or top in sys.stdlib_module_names), (
                    f"{file}: {module}"
                )
