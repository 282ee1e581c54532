"""Membership attacks against slow loops, and the AUC against scikit-learn's."""

import json
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import effects
from jaxunlearn.data import packing, planning
from jaxunlearn.metrics import membership, privacy
from jaxunlearn.models import decoder

TEXTS = st.lists(st.lists(st.floats(-9, 0), min_size=1, max_size=8), min_size=1, max_size=4)
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=9)


def padded(rows, noise=np.nan):
    """Rows of different lengths in one array; what is off the labels must not matter."""
    values = np.full((len(rows), 9), noise)
    mask = np.zeros((len(rows), 9), bool)
    for i, row in enumerate(rows):
        values[i, i % 2 : i % 2 + len(row)], mask[i, i % 2 : i % 2 + len(row)] = row, True
    return values, mask


def slow_min_k(values, k):
    lowest = sorted(values)[: max(1, int(len(values) * k))]
    return sum(lowest) / len(lowest)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.sampled_from([0.2, 0.4, 0.75, 1.0]))
def test_scores_equal_slow_loops(rows, k):
    logp, mask = padded(rows)
    texts = ["word " * len(row) for row in rows]
    mu, sigma = padded([[x / 2 - 1 for x in row] for row in rows])[0], np.abs(logp) / 3
    ref_logp = logp - 0.5
    norms = np.arange(1.0, len(rows) + 1)
    result = membership.scores(
        logp,
        mask,
        texts=texts,
        moments=(mu, sigma),
        ref_logp=ref_logp,
        norms=norms,
        tensor_norms=2 * norms,
    )
    assert list(result) == [
        "loss",
        "min_k",
        "min_k_no_eos",
        "zlib",
        "min_k_plus_plus",
        "min_k_plus_plus_no_eos",
        "reference",
        "gradient_norm",
        "gradient_norm_tensors",
    ]
    with_k = membership.min_k_score(logp, mask, k=k)
    for i, row in enumerate(rows):
        mean = sum(row) / len(row)
        assert result["loss"][i] == pytest.approx(mean)
        size = len(zlib.compress(texts[i].encode()))
        assert result["zlib"][i] == pytest.approx(mean / size)
        assert result["min_k"][i] == pytest.approx(slow_min_k(row, 0.4))
        assert with_k[i] == pytest.approx(slow_min_k(row, k))
        standard = [(x - (x / 2 - 1)) / max(abs(x) / 3, 1e-3) for x in row]
        assert result["min_k_plus_plus"][i] == pytest.approx(slow_min_k(standard, 0.4))
        assert result["reference"][i] == pytest.approx(0.5)
        assert result["gradient_norm"][i] == pytest.approx(-norms[i] / len(row))
        # Without the last label; a text that has no other one scores 0.
        others = len(row) - 1
        expected = {
            "min_k_no_eos": slow_min_k(row[:-1], 0.4) if others else 0,
            "min_k_plus_plus_no_eos": slow_min_k(standard[:-1], 0.4) if others else 0,
            "gradient_norm_tensors": -2 * norms[i] / others if others else 0,
        }
        assert {name: result[name][i] for name in expected} == pytest.approx(expected)


def test_every_score_is_larger_for_what_looks_like_a_member():
    """The first text is known by heart, the second is news; both are equally long."""
    logp, mask = np.array([[-0.1, -0.2, -0.1], [-3.0, -4.0, -2.0]]), np.ones((2, 3), bool)
    result = membership.scores(
        logp,
        mask,
        texts=["abc abc abc", "abd abd abd"],
        moments=(np.full((2, 3), -1.0), np.ones((2, 3))),
        ref_logp=np.full((2, 3), -3.0),
        norms=np.array([0.1, 5.0]),
    )
    assert all(member > other for member, other in result.values())
    for member, other in result.values():
        assert privacy.auc(np.array([member]), np.array([other])) == 1


def test_scores_are_of_one_text_each():
    logp, mask = np.full((3, 2), -1.0), np.ones((3, 2), bool)
    with pytest.raises(ValueError, match=r"norms \(3, 1\): expected one a text, \(3,\)"):
        membership.scores(logp, mask, norms=np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"logp \(3, 2\) and ref_logp \(2,\) differ"):
        membership.scores(logp, mask, ref_logp=np.full(2, -1.0))


def test_gradient_norms_of_parameters_that_are_not_all_trained():
    params = {"w": jnp.array([3.0]), "steps": jnp.array(7)}
    batch = {"x": jnp.array([[1.0], [2.0]])}
    logp = lambda p, b: -b["x"] * p["w"]
    np.testing.assert_allclose(membership.gradient_norms(logp, params, [batch]), [1, 2])
    with pytest.raises(TypeError, match="batches is one batch"):
        membership.gradient_norms(logp, params, batch)


def test_what_has_no_score_is_named():
    mask = np.array([[True, True], [False, False]])
    with pytest.raises(ValueError, match="text 1 has no labels, hence no score"):
        membership.loss_score(np.zeros((2, 2)), mask)
    with pytest.raises(ValueError, match="1 texts, but log-probabilities of 2"):
        membership.zlib_score(np.zeros((2, 2)), mask, ["a"])
    for k in (0, 1.5):
        with pytest.raises(ValueError, match=rf"k={k} must be in \(0, 1\]"):
            membership.min_k_score(np.zeros((1, 2)), mask[:1], k=k)


def slow_moments(logits, labels):
    """In float64, token by token."""
    rows = []
    for z, y in zip(np.asarray(logits, np.float64), labels, strict=True):
        finite = [v for v in z if v > -np.inf]
        top = max(finite)
        log_sum = top + math.log(sum(math.exp(v - top) for v in finite))
        logp = [v - log_sum for v in finite]
        mu = sum(math.exp(x) * x for x in logp)
        variance = sum(math.exp(x) * (x - mu) ** 2 for x in logp)
        rows.append((z[y] - log_sum, mu, math.sqrt(variance)))
    return np.array(rows).T


@pytest.mark.parametrize("scale", [0.01, 1, 30])
def test_moments_equal_a_float64_loop(scale):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(20, 11)) * scale).astype(np.float32)
    logits[:5, 3] = -np.inf
    labels = rng.integers(4, 11, 20)
    result = decoder.label_moments(jnp.asarray(logits), jnp.asarray(labels))
    for value, expected in zip(result.values(), slow_moments(logits, labels), strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=2e-6 * max(1, scale))


def test_moments_of_a_certain_and_of_a_uniform_prediction():
    logits = jnp.array([[0.0, 200.0, -jnp.inf, 0.0], [5.0, 5.0, 5.0, 5.0]], jnp.bfloat16)
    result = decoder.label_moments(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(result["mu"], [0, -math.log(4)], atol=1e-6)
    np.testing.assert_allclose(result["sigma"], [0, 0], atol=1e-6)
    np.testing.assert_allclose(result["logp"], [0, -math.log(4)], atol=1e-6)
    score = membership.min_k_plus_plus_score(
        *(np.asarray(result[name])[None] for name in ("logp", "mu", "sigma")), np.ones((1, 2), bool)
    )
    assert np.isfinite(score).all()


CONFIG = decoder.DecoderConfig(
    vocab_size=17,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    context=32,
    head_chunk=3,
)


@pytest.fixture(scope="module")
def small():
    """A small model, five sequences, and one row a sequence."""
    rng = np.random.default_rng(0)
    params: dict = {}
    for leaf in CONFIG.leaves():
        mean = float(leaf.init == "ones")
        leaf.put(params, jnp.asarray(rng.normal(mean, 0.4, leaf.shape), jnp.float32))
    sequences = [
        planning.Sample(rng.integers(0, 17, n).astype(np.int32), 2) for n in (5, 9, 7, 4, 6)
    ]
    return params, packing.padded(sequences)


def token_log_probs(params, packed):
    return packing.unpack(decoder.forward(params, packed, CONFIG).labels, packed)


def test_moments_as_a_head_of_the_model(small):
    params, packed = small
    result = decoder.forward(params, packed, CONFIG, head=decoder.label_moments).labels
    whole = decoder.forward(params, packed, CONFIG, head=lambda z, y: z).labels
    flat = np.asarray(whole).reshape(-1, CONFIG.vocab_size)
    expected = slow_moments(flat, np.asarray(packed.label_tokens).reshape(-1))
    for name, slow in zip(("logp", "mu", "sigma"), expected, strict=True):
        np.testing.assert_allclose(np.ravel(result[name]), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradient_norms_of_the_model(small):
    params, packed = small
    result = membership.gradient_norms(token_log_probs, params, [packed], microbatch=2)
    grad = jax.jit(jax.grad(lambda p, row: token_log_probs(p, row).sum()))
    for i, norm in enumerate(result):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], packed)
        assert norm == pytest.approx(slow_norm(grad(params, row)), rel=1e-5)


def slow_norm(tree):
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
    return math.sqrt(sum((leaf**2).sum() for leaf in leaves))


def toy_log_probs(params, batch):
    """Log-probabilities of labels [B, S] under one linear map, 0 off the labels."""
    logits = jax.nn.log_softmax(batch["x"] @ params["w"] + params["b"])
    picked = jnp.take_along_axis(logits, batch["y"][..., None], -1)[..., 0]
    return jnp.where(batch["mask"], picked, 0)


def toy(rows=5):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=4))}
    mask = np.arange(6) < rng.integers(1, 7, rows)[:, None]
    x, y = rng.normal(size=(rows, 6, 3)), rng.integers(0, 4, (rows, 6))
    return params, {"x": x.astype(np.float32), "y": y, "mask": mask}


@pytest.mark.parametrize("microbatch", [1, 2, 8])
def test_gradient_norms_and_their_score_are_those_of_single_gradients(microbatch):
    params, batch = toy()
    batches = [batch, batch]
    norms = membership.gradient_norms(toy_log_probs, params, batches, microbatch=microbatch)
    score = membership.gradient_norm_score(norms, np.tile(batch["mask"], (2, 1)))
    for i in range(10):
        row = {name: x[i % 5 : i % 5 + 1] for name, x in batch.items()}
        total = lambda p, row=row: toy_log_probs(p, row).sum()
        assert norms[i] == pytest.approx(slow_norm(jax.grad(total)(params)), rel=1e-5)
        mean_nll = lambda p, row=row: -toy_log_probs(p, row).sum() / row["mask"].sum()
        assert -score[i] == pytest.approx(slow_norm(jax.grad(mean_nll)(params)), rel=1e-5)


def test_norms_by_tensor_are_means_and_a_stack_has_one_a_layer():
    params = {"stack": jnp.array([[3.0, 4.0], [6.0, 8.0]]), "one": jnp.array([2.0])}
    # The gradient of this function is the parameters, scaled by the sample.
    fn = lambda p, batch: batch * sum(jnp.sum(x**2) for x in p.values()) / 2
    grouping = effects.Grouping(stacked={"stack": "layer"})
    batches = [jnp.array([1.0, 2.0])]
    norms = membership.gradient_norms(fn, params, batches, tensors=grouping)
    np.testing.assert_allclose(norms, [17 / 3, 34 / 3], rtol=1e-6)
    flat = membership.gradient_norms(fn, params, batches, tensors=effects.BY_PATH)
    np.testing.assert_allclose(flat, [(125**0.5 + 2) / 2, 125**0.5 + 2], rtol=1e-6)


def test_gradient_norms_need_one_sequence_a_row():
    fn = lambda params, batch: jnp.concatenate([params["w"] * batch, params["w"] * batch])
    with pytest.raises(ValueError, match="one sequence a row, but a row holds 2"):
        membership.gradient_norms(fn, {"w": jnp.ones(())}, [jnp.ones(3)])
    with pytest.raises(ValueError, match="at least one batch, got none"):
        membership.gradient_norms(fn, {"w": jnp.ones(())}, [])


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_auc_equals_all_pairs(members, others):
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    result = privacy.auc(np.array(members), np.array(others))
    assert result == pytest.approx(sum(pairs) / len(pairs))
    assert result == pytest.approx(1 - privacy.auc(np.array(others), np.array(members)))
    increasing = [np.exp(np.array(x)) for x in (members, others)]  # any increasing function
    assert privacy.auc(*increasing) == pytest.approx(result)


@settings(max_examples=50, deadline=None)
@given(SCORES, SCORES)
def test_auc_equals_scikit_learn(members, others):
    metrics = pytest.importorskip("sklearn.metrics")
    labels = [1] * len(members) + [0] * len(others)
    oracle = metrics.roc_auc_score(labels, members + others)
    assert privacy.auc(np.array(members), np.array(others)) == pytest.approx(oracle, abs=1e-12)


def test_the_interval_holds_the_auc_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 60), rng.normal(0, 1, 50)
    result = privacy.auc_interval(members, others, resamples=300, seed=1)
    assert result.low < result.value < result.high
    assert result.value == privacy.auc(members, others)
    assert result == privacy.auc_interval(members[::-1], others, resamples=300, seed=1)
    assert result != privacy.auc_interval(members, others, resamples=300, seed=2)
    wider = privacy.auc_interval(members, others, resamples=300, seed=1, confidence=0.99)
    assert wider.low < result.low and result.high < wider.high
    # Hanley and McNeil's standard error of an AUC.
    a, n, m = result.value, len(members), len(others)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a)) / (n * m))
    assert (result.high - result.low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    assert privacy.auc_interval(others + 99, others, resamples=5) == (1, 1, 1)


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0]])
def test_an_auc_needs_numbers(bad):
    with pytest.raises(ValueError, match=r"auc: others has (no scores|a NaN)"):
        privacy.auc(np.ones(2), np.array(bad))
    with pytest.raises(ValueError, match=r"confidence=2 must be in 0\.\.1"):
        privacy.auc_interval(np.ones(2), np.ones(2), confidence=2)


@pytest.mark.parametrize(
    ("auc", "retain", "expected"), [(0.5, 0.5, 0), (1, 0.5, -100), (0, 0.5, 100), (0.9, 0.6, -75)]
)
def test_privleak_is_0_at_the_retain_model_and_negative_where_too_little_is_forgotten(
    auc, retain, expected
):
    assert privacy.privleak(auc, retain) == pytest.approx(expected)
    # OpenUnlearning and MUSE compare 1 - AUC.
    assert privacy.privleak(auc, retain) == pytest.approx(
        ((1 - auc) - (1 - retain)) / (1 - retain) * 100
    )


def test_privleak_without_a_yardstick():
    with pytest.raises(ValueError, match=r"tells them apart with an AUC of 1\.0"):
        privacy.privleak(0.5, 1.0)


def test_the_table_names_definition_and_version():
    forget = {"loss": np.array([2.0, 3.0]), "min_k": np.array([1.0, 1.0])}
    holdout = {"loss": np.array([0.0, 1.0]), "min_k": np.array([1.0, 1.0])}
    rows = privacy.table(forget, holdout, retain_model=(holdout, holdout))
    assert {row["metric"]: row["value"] for row in rows} == {
        "mia_loss": 1.0,
        "privleak_loss": -100.0,
        "mia_min_k": 0.5,
        "privleak_min_k": 0.0,
    }
    assert [row["definition"] for row in rows[:2]] == ["mia.loss", "privleak"]
    assert rows[0]["low"] == rows[0]["high"] == 1 and rows[0]["version"] == 1
    assert len(privacy.table(forget, holdout)) == 2
    json.dumps(rows, allow_nan=False)
    with pytest.raises(ValueError, match=r"attacks differ: \['loss', 'min_k'\] and \['loss'\]"):
        privacy.table(forget, {"loss": holdout["loss"]})


def test_a_score_of_the_retain_model_that_is_no_number_leaves_the_auc():
    fine, broken = {"loss": np.array([1.0, 2.0])}, {"loss": np.array([1.0, np.nan])}
    auc, leak = privacy.table(fine, fine, retain_model=(fine, broken))
    assert auc["value"] == 0.5 and leak["value"] is None
    assert leak["reason"] == "the retain model's score of a text is not a number"


def test_a_score_that_is_no_number_is_null_with_a_reason():
    scores = {"loss": np.array([1.0, np.nan]), "min_k": np.array([1.0, 2.0])}
    fine = dict.fromkeys(scores, np.array([0.0, 1.0]))
    rows = {row["metric"]: row for row in privacy.table(scores, fine, retain_model=(fine, fine))}
    for metric in ("mia_loss", "privleak_loss"):
        assert rows[metric]["value"] is None
        assert rows[metric]["reason"] == "the score of a text is not a number"
    assert rows["mia_min_k"]["value"] == 0.875
    logp = np.array([[np.nan, -1, -2, -3], [-1, -2, -3, -4]])
    found = membership.min_k_score(logp, np.ones((2, 4), bool), k=0.5)
    np.testing.assert_array_equal(found, [np.nan, -3.5])


def test_every_attack_of_the_scores_has_a_definition():
    logp = np.full((1, 2), -1.0)
    mask = np.ones((1, 2), bool)
    result = membership.scores(
        logp,
        mask,
        texts=["a"],
        moments=(logp, -logp),
        ref_logp=logp,
        norms=np.ones(1),
        tensor_norms=np.ones(1),
    )
    assert {f"mia.{attack}" for attack in result} | {"privleak"} == privacy.DEFINITIONS.keys()


def test_gradient_norms_are_read_in_a_way_that_several_processes_can(monkeypatch):
    """Norms of sharded parameters may lie on devices of other processes, where numpy cannot read.

    `trees.on_host` gathers them; here it stands for any such array.
    """
    gathered = []
    monkeypatch.setattr(membership.trees, "on_host", lambda x: gathered.append(x) or np.asarray(x))
    params, batch = toy(3)
    norms = membership.gradient_norms(toy_log_probs, params, [batch, batch])
    assert len(gathered) == 2 and all(isinstance(x, jax.Array) for x in gathered)
    np.testing.assert_array_equal(norms, np.concatenate([np.asarray(x) for x in gathered]))
