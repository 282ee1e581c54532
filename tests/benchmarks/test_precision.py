"""The benchmark of precision: what it measures is the library's, and what it counts is right."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from benchmarks import precision, precision_compare, precision_job, precision_measure
from benchmarks.precision_measure import EMULATED, EXACT, Effects, Scales
from jaxunlearn import effects
from jaxunlearn.models import decoder
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import GROUPING, Risk, SampleLogProbs
from tests.models.small_models import UNTIED, pack, random_params, random_sequences

OBJECTIVES = ("ga", "ceu")
SAMPLES = 3


@pytest.fixture(scope="module")
def job():
    return precision_job.make_job("tiny", None, SAMPLES, precision_job.Training(2, 2, 1e-2))


@pytest.fixture(scope="module")
def plain(job):
    """(effects, squared norms) in float32, and in float64."""
    return [precision_measure.measure(job, s, OBJECTIVES) for s in (EMULATED[0], EXACT)]


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_effects_are_measured_away_from_the_reference(job):
    assert np.linalg.norm(flat(job.params) - flat(job.reference)) > 0.01


@pytest.mark.slow
def test_float32_values_are_those_of_the_library(job, plain):
    values, squares = plain[0]
    risk, rows = Risk(job.model, "sequence_sum"), (job.packs.forget, job.packs.retain)
    along = [effects.dataset_gradient(risk, job.params, [Rows(r)]).gradient for r in rows]
    ascent = jax.tree.map(np.negative, along[0])
    for i, direction in enumerate(along):
        exact = effects.g_effect_between(direction, ascent, grouping=GROUPING)
        np.testing.assert_allclose(values.g[0, i], exact.value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.sqrt(squares[i]), exact.risk_norm, rtol=1e-5)
    pg = effects.pg_effect(
        SampleLogProbs(job.model),
        job.params,
        [Rows(job.packs.alone)],
        {"unlearn": along[0], "retain": along[1]},
        by="layer",
        method="gates",
        grouping=GROUPING,
    )
    scale = np.abs(values.pg).max()
    np.testing.assert_allclose(values.pg, np.stack(list(pg.values())), atol=1e-5 * scale)


@pytest.mark.slow
def test_norms_of_samples_are_those_of_their_gradients(job):
    logp = SampleLogProbs(job.model)
    rows = Rows(job.packs.alone)
    gradients = [jax.grad(lambda p, i=i: logp(p, rows)[i])(job.params) for i in range(SAMPLES)]
    expected = [np.linalg.norm(flat(gradient)) for gradient in gradients]
    norms = np.sqrt(precision_measure.sample_norms(job).sum(-1))
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


@pytest.mark.slow
def test_float32_is_exact_and_fewer_bits_are_not(job, plain):
    (single, _), (exact, squares) = plain
    assert (single.g.dtype, exact.g.dtype) == (np.float32, np.float64)
    scale = precision_measure.scales(squares, precision_measure.sample_norms(job))
    half, _ = precision_measure.measure(job, EMULATED[3], OBJECTIVES)
    errors = [precision_compare.compare(x, exact, scale, OBJECTIVES) for x in (single, half, exact)]
    for kind in ("g", "pg"):
        total = [error[kind]["total"]["largest_scaled"] for error in errors]
        assert total[0] < 1e-5 < 1e-4 < total[1] and total[2] == 0


@pytest.mark.slow
def test_rounded_parameters_are_rounded_no_further(job):
    """One pass of bfloat16 then differs by the activations' rounding alone."""
    rounded = precision_job.rounded(job)
    for tree in (rounded.params, rounded.reference):
        np.testing.assert_array_equal(
            flat(tree), flat(tree).astype(ml_dtypes.bfloat16).astype("f4")
        )
    assert np.any(flat(rounded.params) != flat(job.params))


@pytest.mark.parametrize("setting", (*precision_measure.MEASURED, *EMULATED), ids=lambda s: s.name)
def test_settings_ask_the_device_for_their_precision(setting):
    model = setting.model(UNTIED)
    batch = pack(random_sequences([7, 9], model.vocab_size))
    labels = lambda params: decoder.forward(params, batch, model).labels
    traced = jax.jit(labels).trace(random_params(model))
    program = str(traced.jaxpr)
    if setting.dtype == "bfloat16":
        # Which product is which is seen where the program is made for a device.
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
        products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
        assert len(products) > 5 and "HIGHEST" not in lowered
        for product in products:
            first, second = re.search(r": \(tensor<(.*?)>, tensor<(.*?)>\)", product).groups()
            assert first.endswith("xbf16") and second.endswith("xbf16"), product
    else:
        asked = set(re.findall(r"Precision\.(\w+)", program))
        assert asked == {setting.precision.upper()}


def test_an_accelerator_is_measured_and_not_emulated(monkeypatch):
    assert precision_measure.settings() == EMULATED
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not any(setting.products for setting in precision_measure.settings())


def test_changes_are_counted():
    """Two objectives, two risks, two layers; one sign, one order and one rank change."""
    exact = Effects(
        g=np.array([[[-1.0, -2.0], [1.0, 2.0]], [[-3.0, -4.0], [3.0, -1.0]]]),
        pg=np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]),
    )
    scale = Scales(np.full((2, 2, 2), 10.0), np.full((2, 2, 2), 10.0), *[np.full((2, 2), 20.0)] * 2)
    values = Effects(exact.g.copy(), exact.pg.copy())
    values.g[1, 1] = 3.0, 1.0
    values.pg[0] = [3.0, 4.0], [1.0, 2.0]
    result = precision_compare.compare(values, exact, scale, ("a", "b"))
    g, pg = result["g"], result["pg"]
    assert g["layers"]["signs"] == 1 and g["layers"]["count"] == 8
    assert g["layers"]["largest_changed"] == 0.1
    assert g["total"]["signs"] == 0
    assert g["total"]["largest_scaled"] == 2 / 20 and g["total"]["largest_relative"] == 1
    assert g["order_changes"] == {"unlearn": False, "retain": True}
    assert (
        g["objectives"]["b"] == {"unlearn": 0, "retain": 1} and g["objectives"]["a"]["retain"] == 0
    )
    np.testing.assert_allclose(pg["rank_correlation_of_samples"], -1)
    np.testing.assert_allclose(pg["rank_correlation_of_layers"], 1)


def test_rank_correlation():
    correlation = precision_compare.rank_correlation
    np.testing.assert_allclose(correlation([1, 2, 3], [10, 20, 90]), 1)
    np.testing.assert_allclose(correlation([1, 2, 3], [3, 2, 1]), -1)
    # Of 1, 2.5, 2.5, 4 with 1, 2, 3, 4.
    tied = correlation([0, 5, 5, 9], [1, 2, 3, 4])
    np.testing.assert_allclose(tied, np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = ["--model", "tiny", "--samples", "2", "--objectives", "ga", "--finetune", "0"]
    precision.main([*arguments, "--settings", "TF32", "--json", str(file)])
    printed, result = capsys.readouterr().out, json.loads(file.read_text())
    (row,) = result["settings"]
    assert row["setting"] == "TF32" and row["g"]["total"]["count"] == 2
    assert "| TF32 |" in printed and result["command"] in printed
    assert result["layers"] == ["block_0", "block_1", "embed", "lm_head", "norm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: neither one of tiny"),
        (["--model", "tiny", "--tofu", "."], "--model tiny has no tokenizer"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        precision.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "--samples 1: at least 2"),
        (["--steps", "-1"], "--steps -1: must not be negative"),
        (["--lr", "nan"], "--lr nan: must be positive"),
        (["--model", "nothing"], "--model nothing: neither one of"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        precision.main(arguments)
    assert message in capsys.readouterr().err
