"""What is passed wrongly is named: the direction, the leaf, the shape, the loss."""

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn import effects

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
