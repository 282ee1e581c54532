"""The functions of (params, batch) that losses and logits become."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects, objectives
from jaxunlearn.effects import programs

PARAMS = jax.random.normal(jax.random.key(0), (5, 5))
BATCH = {
    "tokens": jnp.array([[0, 1, 2, 3], [4, 3, 1, 0], [2, 2, 2, 2]]),
    "mask": jnp.array([[False, True, True], [True, True, False], [False, False, False]]),
}


def logits(params, batch):
    return params[batch["tokens"]]


LOGP = objectives.LabelLogProbs(logits)
LOSSES = [
    name
    for name in objectives.names()
    if objectives.get(name).kind == "log_probs" and "substitute" not in objectives.get(name).needs
]


def test_log_probs_are_those_of_labels_and_0_elsewhere():
    tokens, mask = BATCH["tokens"], BATCH["mask"]
    expected = objectives.token_log_probs(logits(PARAMS, BATCH), tokens)
    np.testing.assert_array_equal(LOGP(PARAMS, BATCH), jnp.where(mask, expected, 0))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reads_its_arrays_from_the_batch(name):
    objective = objectives.get(name)
    others = {"ref_logp": LOGP(2 * PARAMS, BATCH), "guide": jnp.full((3, 3), 0.5)}
    batch = BATCH | others
    total, count = objectives.BatchLoss(objective, LOGP)(PARAMS, batch)
    arrays = {"logp": LOGP(PARAMS, BATCH)} | batch
    losses = objective.loss(**{array: arrays[array] for array in objective.arrays})
    np.testing.assert_allclose(total, losses[:2].sum(), rtol=1e-6)
    assert count == 2  # a row without labels does not count


def test_a_reduction_is_that_of_reduce_losses():
    risk = objectives.get_retain("gd")
    total, count = objectives.BatchLoss(risk, LOGP, "token_mean")(PARAMS, BATCH)
    np.testing.assert_allclose(total, -LOGP(PARAMS, BATCH).sum(), rtol=1e-6)
    assert count == 4


def test_equal_functions_are_compiled_once():
    make = lambda: objectives.BatchLoss(
        objectives.get("wga", alpha=2), objectives.LabelLogProbs(logits)
    )
    assert make() == make() and hash(make()) == hash(make())
    compiled = programs.gradient_sums
    effects.dataset_gradient(make(), PARAMS, [BATCH])
    before = compiled._cache_size()
    effects.dataset_gradient(make(), PARAMS, [BATCH])
    assert compiled._cache_size() == before


@pytest.mark.parametrize("name", ["rmu", "ceu", "po", "dpo"])
def test_a_loss_of_something_else_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is a loss of .*; BatchLoss computes"):
        objectives.BatchLoss(objectives.get(name), LOGP)


@pytest.mark.parametrize("objective", ["ga", objectives.ga])
def test_a_name_or_a_function_is_no_objective(objective):
    with pytest.raises(TypeError, match=r"BatchLoss: objective is a (str|function); expected an"):
        objectives.BatchLoss(objective, LOGP)
    with pytest.raises(TypeError, match="objective: expected a name, got None"):
        objectives.get(None)


def test_a_reduction_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="npo is one loss a sequence"):
        objectives.BatchLoss(objectives.get("npo"), LOGP, "token_mean")


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"tokens": BATCH["tokens"]}, ValueError, "has no 'mask', only"),
        ({"token": BATCH["tokens"]}, ValueError, "has no 'tokens'.*perhaps you meant 'token'"),
        (BATCH | {"mask": BATCH["tokens"]}, ValueError, "a mask is bool"),
        (BATCH | {"mask": jnp.ones((3, 4), bool)}, ValueError, r"mask \(3, 4\), expected \(3, 3\)"),
        (
            (BATCH["tokens"], BATCH["mask"]),
            TypeError,
            "expected a mapping with 'tokens', got tuple",
        ),
    ],
)
def test_a_batch_of_another_form_is_refused(batch, error, message):
    with pytest.raises(error, match=message):
        LOGP(PARAMS, batch)


def test_a_reference_that_is_missing_is_named():
    loss = objectives.BatchLoss(objectives.get("npo"), LOGP)
    with pytest.raises(ValueError, match="batch: has no 'ref_logp', only"):
        effects.dataset_gradient(loss, PARAMS, [BATCH])
    partial = functools.partial(loss, PARAMS)
    assert np.isfinite(partial(BATCH | {"ref_logp": LOGP(PARAMS, BATCH)})[0])
