"""Extreme values, masks, dtypes and transformations, with implicit promotion forbidden."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxunlearn import objectives
from jaxunlearn.objectives import registry

ALL = (*registry.names(), *registry.retain_names())
SHAPES = ((1, 1), (2, 3), (4, 2))
LOGPS = (0.0, 1e-7, -1e-7, -1e-3, -0.7, -30.0, -1e4)
MASKED = (0.0, -np.inf, np.inf, np.nan)

property_test = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def get(name, **hyper):
    return registry.get(name, **hyper) if name in registry.names() else registry.get_retain(name)


TOKEN_OBJECTIVES = {n: get(n) for n in ALL if not {"logits", "hidden"} & get(n).needs} | {
    "npo beta 2": get("npo", beta=2.0),
    "dpo beta 2": get("dpo", beta=2.0),
    "satimp with roots": get("satimp", beta1=0.5, beta2=0.5),
}
MOVING = ("logp", "substitute_logp")


@functools.cache
def compiled(shape):
    """Losses, gradients and weights of all token objectives in one program a shape."""

    def evaluate(arrays):
        result = {}
        for name, objective in TOKEN_OBJECTIVES.items():
            inputs = {n: arrays[n] for n in objective.arrays}
            moving = {n: x for n, x in inputs.items() if n in MOVING}
            total = lambda moving, o=objective, c=inputs: o.loss(**c | moving).sum()
            result[name] = {
                "loss": objective.loss(**inputs),
                "gradient": jax.grad(total)(moving),
                "weight": objective.weight(**inputs) if objective.weight else None,
            }
        return result

    return jax.jit(evaluate)


@st.composite
def token_arrays(draw):
    shape = draw(st.sampled_from(SHAPES))

    def values(*choices):
        return draw(st.lists(st.sampled_from(choices), min_size=size, max_size=size))

    size = int(np.prod(shape))
    arrays = {}
    for prefix in ("", "substitute_"):
        mask = np.array(values(True, True, False))
        hidden = np.array(values(*MASKED))
        for name, choices in (("logp", LOGPS), ("ref_logp", (*LOGPS, -np.inf))):
            x = np.where(mask, np.array(values(*choices)), hidden)
            arrays[prefix + name] = x.astype(np.float32).reshape(shape)
        arrays[prefix + "mask"] = mask.reshape(shape)
    guide = np.where(arrays["mask"].ravel(), np.array(values(0.0, 0.5, 30.0)), values(*MASKED))
    return arrays | {"guide": guide.astype(np.float32).reshape(shape)}


@property_test
@given(token_arrays())
def test_extreme_log_probs_and_garbage_under_the_mask_give_finite_losses_and_gradients(arrays):
    result = compiled(arrays["mask"].shape)(arrays)
    for name, values in result.items():
        for value in jax.tree.leaves(values):
            assert value.dtype == np.float32, name
            assert np.isfinite(value).all(), name
        for moving, gradient in values["gradient"].items():
            mask = arrays[moving.replace("logp", "mask")]
            assert not np.asarray(gradient)[~mask].any(), name
    for name in ("npo", "tnpo", "npo beta 2"):
        weight = np.asarray(result[name]["weight"])
        assert ((weight >= 0) & (weight <= 2)).all(), name


@property_test
@given(token_arrays())
def test_the_gradient_is_the_weight(arrays):
    mask = arrays["mask"]
    for name, values in compiled(mask.shape)(arrays).items():
        if values["weight"] is not None:
            weight = np.asarray(values["weight"])
            weight = np.where(mask, weight if weight.ndim == 2 else weight[:, None], 0)
            result = values["gradient"]["logp"]
            np.testing.assert_allclose(result, weight, rtol=1e-5, atol=1e-7, err_msg=name)


@property_test
@given(token_arrays())
def test_sequences_without_labels_have_loss_and_weight_0(arrays):
    arrays["mask"][0] = arrays["substitute_mask"][0] = False
    for name, values in compiled(arrays["mask"].shape)(arrays).items():
        for value in jax.tree.leaves(values):
            assert not np.asarray(value)[0].any(), name


@property_test
@given(token_arrays(), st.randoms(use_true_random=False))
def test_values_under_the_mask_and_the_order_of_sequences_do_not_matter(arrays, random):
    order = list(range(arrays["mask"].shape[0]))
    random.shuffle(order)
    permuted = {n: x[order] for n, x in arrays.items()}
    for name in ("logp", "ref_logp", "guide", "substitute_logp", "substitute_ref_logp"):
        mask = permuted["substitute_mask" if "substitute" in name else "mask"]
        permuted[name] = np.where(mask, permuted[name], np.float32(-5.0))
    function = compiled(arrays["mask"].shape)
    before, after = function(arrays), function(permuted)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(np.asarray(a)[order], b, rtol=1e-6)


def random_arrays(name, dtype=jnp.float32, lead=(2, 3)):
    """Plausible arrays for one objective."""
    rng = np.random.default_rng(0)
    arrays = {}
    for array in get(name).arrays:
        if array.endswith("mask"):
            arrays[array] = jnp.asarray(rng.random(lead) < 0.7).at[..., -1].set(True)
        elif array == "labels":
            arrays[array] = jnp.asarray(rng.integers(0, 5, lead), jnp.int32)
        else:
            by_token = array.endswith("logp") or array == "guide"
            shape = lead if by_token else (5,) if array == "target" else (*lead, 5)
            arrays[array] = jnp.asarray(-rng.exponential(size=shape), dtype)
    return arrays


def moving_of(arrays):
    return {n: arrays[n] for n in (*MOVING, "logits", "hidden") if n in arrays}


@pytest.mark.parametrize("name", ALL)
def test_jit_vmap_jvp_and_grad_agree(name):
    loss, arrays = get(name).loss, random_arrays(name)
    expected = loss(**arrays)
    np.testing.assert_allclose(jax.jit(loss)(**arrays), expected, rtol=1e-6)
    axes = {n: None if n == "target" else 0 for n in arrays}
    one_by_one = jax.vmap(lambda given: loss(**given), in_axes=(axes,))(arrays)
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-6)

    moving = moving_of(arrays)
    total = lambda moving: loss(**arrays | moving).sum()
    tangent = jax.tree.map(jnp.cos, moving)
    value, pushed = jax.jvp(total, (moving,), (tangent,))
    gradient = jax.grad(total)(moving)
    pulled = sum(jnp.sum(gradient[n] * tangent[n]) for n in moving)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(pushed, pulled, rtol=2e-5, atol=1e-6)
    assert all(np.any(g) for g in gradient.values())


@pytest.mark.parametrize("name", ALL)
def test_references_and_targets_are_constants(name):
    loss, arrays = get(name).loss, random_arrays(name)
    is_fixed = lambda n: "ref" in n.split("_") or n in ("target", "guide")
    fixed = {n: x for n, x in arrays.items() if is_fixed(n)}
    gradient = jax.grad(lambda fixed: loss(**arrays | fixed).sum())(fixed)
    assert not any(np.any(g) for g in gradient.values())
    assert set(fixed) or "ref" not in get(name).needs


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_computed_in_float32(name):
    arrays = random_arrays(name, jnp.bfloat16)
    single = {n: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for n, x in arrays.items()}
    result, expected = get(name).loss(**arrays), get(name).loss(**single)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", [n for n in ALL if "logits" in get(n).needs])
def test_extreme_logits_and_a_padded_vocabulary_are_finite(name):
    z = jnp.array([[1e4, -1e4, 0.0, 3.0, -jnp.inf], [-1e4, -1e4, -1e4, 1e4, -jnp.inf]])
    given = {"logits": z, "ref_logits": z[::-1], "labels": jnp.array([0, 2], jnp.int32)}
    objective = get(name)
    arrays = {n: given[n] for n in objective.arrays}
    losses = objective.loss(**arrays)
    gradient = jax.grad(lambda z: objective.loss(**arrays | {"logits": z}).sum())(z)
    assert np.isfinite(losses).all() and (np.asarray(losses) >= 0).all()
    assert np.isfinite(gradient).all()


GRADIENT_TOLERANCE = 1e-5  # of the norm of the float64 gradient, position by position
LOGIT_LOSSES = {n: get(n) for n in ALL if "logits" in get(n).needs}
ODDS = {"benign": None, "rare": 1e-6, "impossible": 1e-20, "sure": 1e3, "certain": 1e6}


def float32_and_float64(function, *arrays):
    """A function of arrays in float32, and of the same numbers in float64."""
    single = [jnp.asarray(x, None if x.dtype.kind in "bi" else jnp.float32) for x in arrays]
    result = function(*single)
    with jax.enable_x64(True):
        double = [
            jnp.asarray(np.asarray(x), None if x.dtype.kind in "bi" else jnp.float64)
            for x in single
        ]
        expected = function(*double)
    assert (result.dtype, expected.dtype) == (np.float32, np.float64)
    return np.asarray(result), np.asarray(expected)


def logits_of_odds(odds, vocabulary=300, positions=32):
    """Logits in which every label has the given odds p / (1 - p); None leaves them random."""
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(positions, vocabulary))
    labels = rng.integers(0, vocabulary, positions).astype(np.int32)
    if odds is not None:
        at_label = np.arange(vocabulary) == labels[:, None]
        others = np.log(np.sum(np.where(at_label, 0, np.exp(z)), -1, keepdims=True))
        z = np.where(at_label, others + np.log(odds), z)
    return z, labels, rng.normal(size=z.shape)


def assert_same_rows(result, expected):
    apart = np.linalg.norm(result - expected, axis=-1)
    assert (apart <= GRADIENT_TOLERANCE * np.linalg.norm(expected, axis=-1)).all(), apart.max()


@pytest.mark.parametrize("odds", ODDS.values(), ids=ODDS)
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_gradients_of_logits_keep_their_digits(name, distance, odds):
    """p - q must not be the difference of two rounded numbers where it is nearly 0."""
    z, labels, noise = logits_of_odds(odds)
    objective = LOGIT_LOSSES[name]

    def gradient(logits, ref_logits, labels):
        arrays = {"ref_logits": ref_logits, "labels": labels}
        inputs = {n: arrays[n] for n in objective.arrays if n != "logits"}
        return jax.grad(lambda z: objective.loss(logits=z, **inputs).sum())(logits)

    assert_same_rows(*float32_and_float64(gradient, z, z + distance * noise, labels))


@pytest.mark.parametrize("odds", ODDS.values(), ids=ODDS)
def test_the_gradient_of_log_p_keeps_its_digits(odds):
    """1 - p must not be the difference of two rounded numbers where p is nearly 1."""
    z, labels, _ = logits_of_odds(odds)
    tokens = np.stack([labels, labels], axis=1)

    def gradient(z, tokens):
        return jax.grad(lambda z: objectives.token_log_probs(z, tokens).sum())(z)

    result, expected = float32_and_float64(gradient, np.stack([z, z], axis=1), tokens)
    assert_same_rows(result[:, 0], expected[:, 0])


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
@pytest.mark.parametrize("typical", [1e-6, 1e-3, 1.0, 5.0])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1.0])
def test_gradients_of_log_probs_keep_their_digits(name, typical, distance):
    """p near 1, p small, and p = q."""
    rng, shape = np.random.default_rng(0), (8, 5)
    arrays = {"guide": rng.exponential(size=shape)}
    for prefix in ("", "substitute_"):
        logp = -typical * rng.exponential(size=shape)
        arrays[prefix + "logp"] = logp
        arrays[prefix + "ref_logp"] = logp * (1 + distance * rng.random(shape))
        arrays[prefix + "mask"] = rng.random(shape) < 0.8
    objective = TOKEN_OBJECTIVES[name]
    moving = next(n for n in objective.arrays if n in MOVING)

    def gradient(*values):
        inputs = dict(zip(objective.arrays, values, strict=True))
        return jax.grad(lambda x: objective.loss(**inputs | {moving: x}).sum())(inputs[moving])

    assert_same_rows(*float32_and_float64(gradient, *(arrays[n] for n in objective.arrays)))


def test_divergence_counts_tokens_that_the_reference_rules_out():
    """All of p may lie where q is 0; and a token that is impossible under both adds nothing."""
    ref_logits = jnp.log(jnp.array([0.5, 0.5, 0.0, 0.0]))
    p = jnp.array([1e-6, 1e-6, 1 - 2e-6, 0.0])
    np.testing.assert_allclose(objectives.kl(jnp.log(p), ref_logits), np.log(0.5e6), rtol=1e-6)
    gradient = jax.grad(objectives.kl)(jnp.log(p), ref_logits)
    np.testing.assert_allclose(gradient, [-0.499999, -0.499999, 0.999998, 0], rtol=1e-6)


def test_extreme_log_ratios_saturate():
    mask = jnp.array([[True]])
    low, high = jnp.array([[-1e4]]), jnp.array([[-1e-4]])
    for logp, ref_logp, weight in ((low, high, 0.0), (high, low, 2.0)):
        assert objectives.npo_weight(logp, ref_logp, mask, beta=1.0)[0] == weight
        assert objectives.tnpo_weight(logp, ref_logp, mask)[0, 0] == weight
    assert objectives.npo(low, high, mask, beta=1.0)[0] == 0
    np.testing.assert_allclose(objectives.npo(high, low, mask, beta=1.0), 2e4, rtol=1e-6)


def test_two_references_of_probability_zero_cancel_in_dpo():
    zero, mask = jnp.array([[-jnp.inf]]), jnp.array([[True]])
    logp = jnp.array([[-1.0]])
    result = objectives.dpo(logp, zero, mask, logp, zero, mask)
    np.testing.assert_allclose(result, np.log(2), rtol=1e-6)


TOKEN_NAMES = [n for n in ALL if not {"logits", "hidden"} & get(n).needs]


@pytest.mark.parametrize("name", TOKEN_NAMES)
def test_arrays_that_would_broadcast_are_refused(name):
    arrays = random_arrays(name)
    for array in [n for n in arrays if n.endswith("logp") or n == "guide"]:
        for wrong in (arrays[array][:, :1], arrays[array][0], arrays[array][:1]):
            with pytest.raises(ValueError, match=rf"{array} \(.*mask \(2, 3\)"):
                get(name).loss(**arrays | {array: wrong})


@pytest.mark.parametrize("name", TOKEN_NAMES)
def test_masks_are_boolean(name):
    arrays = random_arrays(name)
    for mask in [n for n in arrays if n.endswith("mask")]:
        with pytest.raises(ValueError, match=r"mask is bool.*int32"):
            get(name).loss(**arrays | {mask: arrays[mask].astype(jnp.int32)})


def test_answers_of_different_batches_are_refused_by_dpo():
    arrays = random_arrays("dpo")
    one = {n: x[:1] for n, x in arrays.items() if n.startswith("substitute_")}
    with pytest.raises(ValueError, match=r"mask \(2, 3\) and substitute_mask \(1, 3\)"):
        objectives.dpo(**arrays | one)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("undial", "labels"),
        ("undial", "ref_logits"),
        ("ceu", "labels"),
        ("kl", "ref_logits"),
        ("rmu", "target"),
        ("rr", "ref_hidden"),
    ],
)
def test_wide_arrays_that_would_broadcast_are_refused(name, array):
    arrays = random_arrays(name)
    with pytest.raises(ValueError, match=array):
        get(name).loss(**arrays | {array: arrays[array][:1]})


@pytest.mark.parametrize("name", ["npo", "simnpo"])
def test_beta_divides_and_so_is_positive(name):
    arrays = random_arrays(name)
    with pytest.raises(ValueError, match="beta must be positive and finite, got 0"):
        getattr(objectives, name)(**arrays, beta=0)


@pytest.mark.parametrize("name", ["npo", "simnpo", "wga", "tnpo", "wtnpo", "satimp", "undial"])
def test_a_hyper_parameter_is_one_number(name):
    """An array would be spread over sequences or tokens, whichever fits."""
    arrays, loss = random_arrays(name), getattr(objectives, name)
    for key in dict(get(name).hyper):
        with pytest.raises(ValueError, match=rf"{key} has the shape \(3,\), expected one number"):
            loss(**arrays, **{key: jnp.ones(3)})


@pytest.mark.parametrize("name", ["npo", "simnpo"])
def test_what_is_refused_does_not_depend_on_the_type(name):
    arrays = random_arrays(name)
    for function in (getattr(objectives, name), getattr(objectives, f"{name}_weight")):
        for beta in (0, np.float32(-1), jnp.float32(0)):
            with pytest.raises(ValueError, match="beta must be positive and finite"):
                function(**arrays, beta=beta)
            with pytest.raises(ValueError, match="beta must be positive and finite"):
                jax.jit(lambda **x: function(**x, beta=beta))(**arrays)  # noqa: B023
        half = jnp.float32(0.5)
        traced = jax.jit(lambda **x: function(**x, beta=half))(**arrays)  # noqa: B023
        np.testing.assert_allclose(traced, function(**arrays, beta=0.5), rtol=1e-6)


@pytest.mark.parametrize("name", ["kl", "ceu", "undial"])
def test_second_derivatives_are_those_of_the_plain_formulas(name):
    """Of a gradient penalty, reverse over reverse; an impossible token in the reference too."""
    logits, ref = (jax.random.normal(jax.random.key(i), (2, 5)) for i in range(2))
    ref, labels = ref.at[0, 1].set(-jnp.inf), jnp.array([3, 1])
    arrays = {"kl": (ref,), "ceu": (labels,), "undial": (ref, labels)}[name]

    def plain(z, *rest):
        target = z if name == "ceu" else rest[0]
        target = jax.lax.stop_gradient(target)
        at_label = jax.nn.one_hot(labels, 5) == 1
        if name == "ceu":
            target = jnp.where(at_label, -jnp.inf, target)
        if name == "undial":
            target = target - jnp.where(at_label, 10.0, 0.0)
        q, logp = jax.nn.softmax(target), jax.nn.log_softmax(z)
        logq = jax.nn.log_softmax(target)
        entropy = jnp.where(q > 0, q * jnp.where(q > 0, logq, 0), 0) if name == "kl" else 0
        return jnp.sum(entropy - q * logp)

    penalised = lambda loss: lambda z: jnp.sum(jax.grad(lambda x: loss(x, *arrays).sum())(z) ** 2)
    expected = jax.grad(penalised(plain))(logits)
    np.testing.assert_allclose(
        jax.grad(penalised(getattr(objectives, name)))(logits), expected, rtol=1e-4, atol=1e-6
    )


def test_impossible_tokens_have_the_limits_of_the_formulas():
    """p = 0 at a label, under the model and under the reference."""
    zero, mask = jnp.full((1, 1), -jnp.inf), jnp.ones((1, 1), bool)
    for name, hyper in (("wga", {}), ("satimp", {}), ("wtnpo", {})):
        objective = registry.get(name, **hyper)
        arrays = {"logp": zero, "ref_logp": zero, "mask": mask}
        inputs = {n: arrays[n] for n in objective.arrays}
        assert float(objective.loss(**inputs)[0]) == 0.0  # p^a log p
        assert float(objective.weight(**inputs)[0, 0]) == 0.0
        gradient = jax.grad(lambda p, o=objective, c=inputs: o.loss(**c | {"logp": p}).sum())(zero)
        assert float(gradient[0, 0]) == 0.0
    assert float(objectives.wga_weight(zero, mask, alpha=0.0)[0, 0]) == 1.0  # `ga`
    assert float(objectives.satimp_weight(zero, mask, beta1=0.0, beta2=0.0)[0, 0]) == 1.0
    # p = q: the weights are 1, as at any other value.
    assert float(objectives.tnpo_weight(zero, zero, mask)[0, 0]) == 1.0
    assert float(objectives.npo_weight(zero, zero, mask)[0]) == 1.0
    np.testing.assert_allclose(objectives.npo(zero, zero, mask, beta=0.5), 4 * np.log(2), rtol=1e-6)


def test_a_certain_token_has_no_gradient():
    """p = 1, as all others are impossible."""
    logits = jnp.array([[[0.5, -jnp.inf, -jnp.inf], [0.0, 0.0, 0.0]]])
    total = lambda z: objectives.token_log_probs(z, jnp.zeros((1, 2), int)).sum()
    assert float(total(logits)) == 0.0
    np.testing.assert_array_equal(jax.grad(total)(logits), jnp.zeros_like(logits))


def test_importance_is_not_negative():
    one = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="beta2 must not be negative, got -1"):
        objectives.satimp(one, one == 0, beta2=-1)


def test_log_probabilities_of_one_sequence_are_those_of_a_batch():
    logits, tokens = (
        jax.random.normal(jax.random.key(0), (3, 5, 7)),
        jnp.arange(15).reshape(3, 5) % 7,
    )
    one_by_one = jax.vmap(objectives.token_log_probs)(logits, tokens)
    np.testing.assert_array_equal(one_by_one, objectives.token_log_probs(logits, tokens))
