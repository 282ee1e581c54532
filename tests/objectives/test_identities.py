"""Identities between objectives, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import objectives
from jaxunlearn.objectives import registry

BETAS = (0.05, 0.1, 1.0, 2.0)
WEIGHTED = ("ga", "wga", "npo", "tnpo", "wtnpo", "simnpo", "satimp", "guided")
TOKEN_WEIGHTED = ("ga", "wga", "tnpo", "wtnpo", "satimp", "guided")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def given():
    rng = np.random.default_rng(1)
    mask = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], bool)
    return {
        "logp": jnp.asarray(np.log(rng.uniform(0.01, 0.99, mask.shape))),
        "ref_logp": jnp.asarray(np.log(rng.uniform(0.01, 0.99, mask.shape))),
        "mask": jnp.asarray(mask),
    }


@pytest.fixture
def weighed(given):
    guide = np.random.default_rng(3).exponential(size=given["mask"].shape)
    return given | {"guide": jnp.asarray(guide)}


@pytest.fixture
def at_start(given):
    return given | {"ref_logp": given["logp"]}


def loss_and_gradient(name, given, **hyper):
    objective = registry.get(name, **hyper)
    arrays = {n: given[n] for n in objective.arrays}

    def total(logp):
        losses = objective.loss(**arrays | {"logp": logp})
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(given["logp"])
    return losses, gradient


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("beta", BETAS)
def test_npo_starts_at_2_ln_2_over_beta_with_weight_1_and_the_gradient_of_ga(at_start, beta):
    losses, gradient = loss_and_gradient("npo", at_start, beta=beta)
    has_labels = np.array([1, 1, 0, 1])
    np.testing.assert_allclose(losses, 2 / beta * np.log(2) * has_labels, rtol=1e-12)
    np.testing.assert_array_equal(objectives.npo_weight(**at_start, beta=beta), has_labels)
    np.testing.assert_allclose(gradient, loss_and_gradient("ga", at_start)[1], rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_tnpo_starts_as_ga(at_start, beta):
    expected = loss_and_gradient("ga", at_start)
    assert_same(loss_and_gradient("tnpo", at_start, beta=beta), expected)


@pytest.mark.parametrize(
    ("name", "hyper", "other", "other_hyper"),
    [
        ("wga", {"alpha": 0}, "ga", {}),
        ("tnpo", {"beta": 0}, "ga", {}),
        ("satimp", {"beta1": 0, "beta2": 0}, "ga", {}),
        ("satimp", {"beta1": 0.7, "beta2": 0}, "wga", {"alpha": 0.7}),
        ("wtnpo", {"alpha": 0, "beta": 3}, "tnpo", {"beta": 3}),
        ("wtnpo", {"alpha": 0.5, "beta": 0}, "wga", {"alpha": 0.5}),
    ],
)
def test_special_cases(given, name, hyper, other, other_hyper):
    result, expected = (
        loss_and_gradient(name, given, **hyper),
        loss_and_gradient(other, given, **other_hyper),
    )
    assert_same(result, expected)


def test_a_guide_of_1_is_ga_and_that_of_confidence_is_wga(given):
    ones = given | {"guide": jnp.ones(given["mask"].shape)}
    assert_same(loss_and_gradient("guided", ones), loss_and_gradient("ga", given))
    confident = given | {"guide": jnp.exp(0.7 * given["logp"])}
    expected = loss_and_gradient("wga", given, alpha=0.7)
    assert_same(loss_and_gradient("guided", confident), expected)


def test_npo_tends_to_ga_plus_a_constant_as_beta_vanishes(given):
    ga, ga_gradient = loss_and_gradient("ga", given)
    constant = objectives.ga(given["ref_logp"], given["mask"])
    has_labels = given["mask"].any(-1)
    gaps = []
    for beta in (1e-3, 1e-4):
        npo, gradient = loss_and_gradient("npo", given, beta=beta)
        rest = npo - jnp.where(has_labels, 2 / beta * jnp.log(2.0), 0) - (ga - constant)
        gaps.append((float(jnp.abs(rest).max()), float(jnp.abs(gradient - ga_gradient).max())))
    assert gaps[0][0] > 1e-6  # the limit is not reached for free
    np.testing.assert_allclose(np.divide(gaps[0], gaps[1]), 10, rtol=1e-2)  # both are O(beta)


@pytest.mark.parametrize("name", WEIGHTED)
def test_gradient_is_the_mean_over_sequences_of_weighted_log_likelihood_gradients(weighed, name):
    objective = registry.get(name)
    arrays = {n: weighed[n] for n in objective.arrays}

    def mean(logp):
        total, count = objectives.reduce_losses(
            objective.loss(**arrays | {"logp": logp}), weighed["mask"]
        )
        return total / count

    weight = np.asarray(objective.weight(**arrays))
    weight = weight if weight.ndim == 2 else weight[:, None] * np.ones((1, 4))
    expected = np.where(weighed["mask"], weight, 0) / 3  # three sequences have labels
    np.testing.assert_allclose(jax.grad(mean)(weighed["logp"]), expected, rtol=1e-12)


@pytest.mark.parametrize("name", TOKEN_WEIGHTED)
def test_token_weights_give_the_loss_too(weighed, name):
    objective = registry.get(name)
    arrays = {n: weighed[n] for n in objective.arrays}
    expected = jnp.where(weighed["mask"], objective.weight(**arrays) * weighed["logp"], 0).sum(-1)
    np.testing.assert_allclose(objective.loss(**arrays), expected, rtol=1e-12)


def test_only_weighted_likelihoods_have_weights():
    assert {n for n in registry.names() if registry.get(n).weight is not None} == set(WEIGHTED)


def test_closed_forms_of_the_weights():
    p, q = 0.2, 0.6
    logp, ref_logp = jnp.log(jnp.array([[p, p]])), jnp.log(jnp.array([[q, q]]))
    mask = jnp.array([[True, True]])
    ref = (logp, ref_logp, mask)
    tnpo = 2 * p**3 / (p**3 + q**3)
    expected = {
        "wga": p**0.5,
        "tnpo": tnpo,
        "wtnpo": p**0.5 * tnpo,
        "npo": 2 * p**6 / (p**6 + q**6),  # of both tokens together
        "satimp": p**2 * (1 - p) ** 3,
        "simnpo": (2 / 2) / (1 + np.exp(2.0 * (-np.log(p) - 0.5))),
    }
    result = {
        "wga": objectives.wga_weight(logp, mask, alpha=0.5),
        "tnpo": objectives.tnpo_weight(*ref, beta=3.0),
        "wtnpo": objectives.wtnpo_weight(*ref, alpha=0.5, beta=3.0),
        "npo": objectives.npo_weight(*ref, beta=3.0),
        "satimp": objectives.satimp_weight(logp, mask, beta1=2.0, beta2=3.0),
        "simnpo": objectives.simnpo_weight(logp, mask, beta=2.0, delta=0.5),
    }
    for name, weight in result.items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-12, err_msg=name)


def test_gd_is_minus_ga_and_po_is_gd_of_the_substitute(given):
    logp, mask = given["logp"], given["mask"]
    np.testing.assert_array_equal(objectives.gd(logp, mask), -objectives.ga(logp, mask))
    np.testing.assert_array_equal(objectives.po(logp, mask), objectives.gd(logp, mask))


def test_dpo_starts_at_ln_2(at_start):
    logp, mask = at_start["logp"], at_start["mask"]
    result = objectives.dpo(logp, logp, mask, logp, logp, mask)
    np.testing.assert_allclose(result, np.log(2) * np.array([1, 1, 0, 1]), rtol=1e-12)


def test_dpo_is_0_where_either_answer_has_no_labels(given):
    arrays, other = tuple(given.values()), jnp.zeros((4, 4), bool).at[1:].set(True)
    result = objectives.dpo(*arrays, given["logp"] - 1, given["ref_logp"], other)
    assert (np.asarray(result) != 0).tolist() == [False, True, False, True]


def test_dpo_with_an_unmoved_substitute_is_npo(given):
    unmoved = (given["logp"], given["logp"], given["mask"])
    arrays = (given["logp"], given["ref_logp"], given["mask"], *unmoved)
    result = objectives.dpo(*arrays, beta=0.7, two_over_beta=True)
    np.testing.assert_allclose(result, objectives.npo(**given, beta=0.7), rtol=1e-12)
    plain = objectives.dpo(*arrays, beta=0.7)
    np.testing.assert_allclose(result, plain * 2 / 0.7, rtol=1e-12)


def test_unit_confidence_moves_simnpo_to_its_largest_weight():
    mask = jnp.ones((1, 4), bool)
    certain, doubtful = jnp.zeros((1, 4)), jnp.full((1, 4), -3.0)
    np.testing.assert_allclose(objectives.simnpo_weight(certain, mask), 2 / 4 * 0.5, rtol=1e-12)
    assert objectives.simnpo_weight(doubtful, mask) < 1e-5


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(2).normal(size=(3, 6)))


def test_kl_is_zero_at_the_reference_with_zero_gradient_and_positive_elsewhere(logits):
    shifted = logits + 3.0  # the same distribution
    np.testing.assert_allclose(objectives.kl(logits, shifted), 0, atol=1e-14)
    gradient = jax.grad(lambda z: objectives.kl(z, shifted).sum())(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-14)
    assert (objectives.kl(logits[:, ::-1], logits) > 1e-3).all()


def test_kl_is_not_symmetric_and_weighs_by_the_reference():
    logits, ref_logits = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.4, 0.6]))
    expected = 0.4 * np.log(0.4 / 0.9) + 0.6 * np.log(0.6 / 0.1)
    np.testing.assert_allclose(objectives.kl(logits, ref_logits), expected, rtol=1e-12)


def test_undial_with_beta_0_is_stationary_at_the_reference(logits):
    labels = jnp.array([0, 3, 5])
    loss = lambda z, beta: objectives.undial(z, logits, labels, beta=beta).sum()
    np.testing.assert_allclose(jax.grad(loss)(logits, 0.0), 0, atol=1e-14)
    gradient = jax.grad(loss)(logits, 10.0)
    assert (gradient[jnp.arange(3), labels] > 0).all()  # descent lowers the label's logit


def test_undial_with_a_large_beta_is_ceu_at_the_reference(logits):
    labels = jnp.array([0, 3, 5])
    result = objectives.undial(logits, logits, labels, beta=1e3)
    np.testing.assert_allclose(result, objectives.ceu(logits, labels), rtol=1e-12)


def test_gradient_of_ceu_moves_the_labels_mass_to_the_others_in_proportion(logits):
    labels = jnp.array([0, 3, 5])
    p = np.asarray(jax.nn.softmax(logits, -1))
    p_label = p[np.arange(3), labels][:, None]
    expected = -p * p_label / (1 - p_label)
    expected[np.arange(3), labels] = p_label[:, 0]
    result = jax.grad(lambda z: objectives.ceu(z, labels).sum())(logits)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_rmu_pulls_each_position_to_the_target(logits):
    target = jnp.arange(6.0)
    gradient = jax.grad(lambda h: objectives.rmu(h, target).sum())(logits)
    np.testing.assert_allclose(gradient, 2 * (logits - target[None]), rtol=1e-12)
    per_dim = objectives.rmu(logits, target, per_dim=True)
    np.testing.assert_allclose(per_dim * 6, objectives.rmu(logits, target), rtol=1e-12)


def test_rr_is_rmu_with_the_reference_as_target_and_stationary_there(logits):
    rows = [objectives.rmu(h[None], r)[0] for h, r in zip(logits, logits[::-1], strict=True)]
    np.testing.assert_allclose(objectives.rr(logits, logits[::-1]), jnp.stack(rows), rtol=1e-12)
    gradient = jax.grad(lambda h: objectives.rr(h, logits).sum())(logits)
    np.testing.assert_array_equal(gradient, 0)


def test_rmu_target_is_scaled_uniform_and_drawn_from_its_key():
    key = jax.random.key(3)
    target = objectives.rmu_target(key, 1000, scale=2.0)
    assert 0 <= target.min() < 0.02 and 1.98 < target.max() < 2
    assert target.dtype == np.float32
    np.testing.assert_array_equal(target, objectives.rmu_target(key, 1000, scale=2.0))
    assert (target != objectives.rmu_target(jax.random.key(4), 1000, scale=2.0)).any()
    unit = objectives.rmu_target(key, 1000, scale=2.0, unit_norm=True)
    np.testing.assert_allclose(jnp.linalg.norm(unit), 2.0, rtol=1e-6)
    np.testing.assert_allclose(unit / jnp.linalg.norm(unit), target / jnp.linalg.norm(target), 1e-5)


# A model: sequence b has logits x[b] @ theta.
X = np.random.default_rng(5).normal(size=(4, 5, 3))
TOKENS = np.random.default_rng(6).integers(0, 7, (4, 5))


def model_logp(theta):
    return objectives.token_log_probs(jnp.asarray(X) @ theta, jnp.asarray(TOKENS))


@pytest.fixture
def theta():
    return jnp.asarray(np.random.default_rng(7).normal(size=(3, 7)))


@pytest.mark.parametrize("how", objectives.REDUCTIONS)
def test_g_effect_of_ga_on_its_own_data_is_minus_the_squared_gradient_of_the_risk(
    given, theta, how
):
    def mean(loss, theta):
        total, count = objectives.reduce_losses(
            loss(model_logp(theta), given["mask"]), given["mask"], how
        )
        return total / count

    risk_grad = jax.grad(lambda t: mean(objectives.gd, t))(theta)
    ga_grad = jax.grad(lambda t: mean(objectives.ga, t))(theta)
    effect = jnp.sum(risk_grad * ga_grad)
    np.testing.assert_allclose(effect, -jnp.sum(risk_grad**2), rtol=1e-12)


@pytest.mark.parametrize("name", WEIGHTED)
def test_g_effect_is_the_mean_of_weighted_pg_effects(weighed, theta, name):
    objective, mask, direction = registry.get(name), weighed["mask"], jnp.cos(theta)

    def mean(theta):
        values = weighed | {"logp": model_logp(theta)}
        losses = objective.loss(**{n: values[n] for n in objective.arrays})
        total, count = objectives.reduce_losses(losses, mask)
        return total / count

    logp, pushed = jax.jvp(model_logp, (theta,), (direction,))  # PG-effects by token
    pg_effects = jnp.where(mask, pushed, 0)
    values = weighed | {"logp": logp}
    weight = objective.weight(**{n: values[n] for n in objective.arrays})
    by_sequence = weight * pg_effects.sum(-1) if weight.ndim == 1 else (weight * pg_effects).sum(-1)
    effect = jnp.sum(jax.grad(mean)(theta) * direction)
    np.testing.assert_allclose(effect, by_sequence.sum() / 3, rtol=1e-11)
