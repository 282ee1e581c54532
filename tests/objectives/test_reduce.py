"""Log-probabilities of tokens, and reductions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import objectives
from jaxunlearn.objectives import reduce_losses, token_log_probs

MASK = jnp.array([[True, True, False], [False, True, False], [False, False, False]])
LOSSES = jnp.array([6.0, -1.0, 0.0])


@pytest.mark.parametrize(
    ("how", "total", "count"),
    [("sequence_sum", 5, 2), ("sequence_mean", 6 / 2 - 1, 2), ("token_mean", 5, 3)],
)
def test_reductions(how, total, count):
    result = reduce_losses(LOSSES, MASK, how)
    np.testing.assert_array_equal(result, (total, count))
    assert all(x.dtype == np.float32 and x.shape == () for x in result)


def test_the_default_is_the_papers_sum_over_tokens_and_mean_over_sequences():
    np.testing.assert_array_equal(
        reduce_losses(LOSSES, MASK), reduce_losses(LOSSES, MASK, "sequence_sum")
    )


def test_a_sequence_without_labels_counts_nowhere_whatever_its_loss():
    losses = LOSSES.at[2].set(jnp.nan)
    for how in objectives.REDUCTIONS:
        np.testing.assert_array_equal(
            reduce_losses(losses, MASK, how), reduce_losses(LOSSES, MASK, how)
        )
        gradient = jax.grad(lambda x, how=how: reduce_losses(x, MASK, how)[0])(losses)
        assert np.isfinite(gradient).all() and gradient[2] == 0


def test_nothing_to_count_is_zero_and_zero():
    for how in objectives.REDUCTIONS:
        result = reduce_losses(jnp.zeros(2), jnp.zeros((2, 3), bool), how)
        np.testing.assert_array_equal(result, (0, 0))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(0, 1000))
def test_sums_and_counts_add_over_batches(cut, seed):
    rng = np.random.default_rng(seed)
    losses, mask = rng.normal(size=4).astype(np.float32), rng.random((4, 3)) < 0.5
    for how in objectives.REDUCTIONS:
        whole = reduce_losses(losses, mask, how)
        parts = [reduce_losses(losses[i], mask[i], how) for i in (slice(cut), slice(cut, None))]
        np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5, atol=1e-6)


def test_an_unknown_reduction_names_the_nearest():
    with pytest.raises(ValueError, match=r"'tokens_mean'; perhaps you meant 'token_mean'"):
        reduce_losses(LOSSES, MASK, "tokens_mean")


@pytest.mark.parametrize("losses", [LOSSES[:, None], LOSSES[:1], MASK.astype(jnp.float32)])
def test_losses_of_another_shape_are_refused(losses):
    with pytest.raises(ValueError, match=r"losses .*mask \(3, 3\)"):
        reduce_losses(losses, MASK)


def test_token_log_probs_read_the_logits_before_each_token():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)), jnp.float32)
    tokens = jnp.array([[0, 4, 2, 1], [3, 3, 0, 2]])
    result = token_log_probs(logits, tokens)
    assert result.shape == (2, 3)
    for b in range(2):
        for s in range(3):
            p = np.exp(logits[b, s]) / np.exp(logits[b, s]).sum()
            np.testing.assert_allclose(result[b, s], np.log(p[tokens[b, s + 1]]), rtol=1e-5)


def test_neither_the_first_token_nor_the_last_logits_are_read():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5)), jnp.float32)
    tokens = jnp.array([[0, 4, 2, 1]])
    expected = token_log_probs(logits, tokens)
    moved = token_log_probs(logits.at[:, -1].set(jnp.nan), tokens.at[:, 0].set(3))
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("label", [-100, -1, 5, 1000])
def test_labels_outside_the_vocabulary_pick_no_logit(label):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5)), jnp.float32)
    result = token_log_probs(logits, jnp.array([[0, label]]))
    expected = -jnp.log1p(jnp.sum(jnp.exp(logits[0, 0])))  # as beside a logit of 0
    np.testing.assert_allclose(result, [[expected]], rtol=1e-6)


def test_extreme_and_infinite_logits_are_finite_with_finite_gradients():
    logits = jnp.array([[[1e4, -1e4, -jnp.inf], [0.0, 0.0, 0.0]]])
    tokens = jnp.array([[0, 1]])
    value, gradient = jax.value_and_grad(lambda z: token_log_probs(z, tokens).sum())(logits)
    assert value == -2e4 and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 0], [-1, 1, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_are_normalised_in_float32(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 300)), dtype)
    tokens = jnp.array([[0, 299, 5], [1, 2, 200]], jnp.int32)
    result = token_log_probs(logits, tokens)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, token_log_probs(logits.astype(jnp.float32), tokens))


def test_narrow_token_types_do_not_wrap_around_the_vocabulary():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 300)), jnp.float32)
    narrow = token_log_probs(logits, jnp.array([[0, 7]], jnp.int8))
    np.testing.assert_array_equal(narrow, token_log_probs(logits, jnp.array([[0, 7]])))


@pytest.mark.parametrize(
    "tokens", [np.zeros((2, 2), int), np.zeros((2,), int), np.zeros((1, 3), int)]
)
def test_tokens_of_another_shape_are_refused(tokens):
    with pytest.raises(ValueError, match=r"tokens .*logits \(2, 3, 4\)"):
        token_log_probs(jnp.zeros((2, 3, 4)), tokens)


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match="tokens are integers, got float32"):
        token_log_probs(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)))
