"""Guided weights in a run: what they are, that they are used, and that a resumed run has them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import Guide, Objective
from jaxunlearn.core.files import records
from jaxunlearn.data import packing
from jaxunlearn.data.packing import unpack
from jaxunlearn.measurement.guidance import guide_retain_samples, weigh
from jaxunlearn.models import decoder
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import tables
from jaxunlearn.training import step
from jaxunlearn.training.step import train_step
from tests.pipeline.tiny import replace, run

pytestmark = pytest.mark.slow

# Six steps: refreshes before 0, 2 and 4.
CONFIG = replace(
    data={"measured_retain": "holdout"},
    finetune={"epochs": 0},
    objectives={"guided": Objective(guide=Guide(every=2, penalty=0.5, power=1.0))},
    measure={"every": 0, "pg_steps": (), "token_steps": ()},
)
# A checkpoint between two refreshes.
MEASURED = replace(
    CONFIG,
    compute={"offload": True},
    measure={"every": 3, "pg_steps": (3,), "token_steps": (3,)},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "guided"
    run(CONFIG, out)
    return out


def weights(out, at):
    return np.load(out / "objectives" / "guided" / "guide" / f"{at:06d}.npy")


@partial(jax.jit, static_argnames="model")
def label_gradient(params, row, label, *, model):
    """grad log p_i of one label of one sequence."""
    logp = lambda p: unpack(decoder.forward(p, row, model).labels, row)[0, label]
    return jax.grad(logp)(params)


def label_gradients(params, sequences, model):
    """Of every label of every sequence, flat, one after the other, [S, P] float64 each."""
    packed = packing.padded(sequences)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for i in range(len(sequences)):
        row = jax.tree.map(lambda x, i=i: jnp.asarray(x[i : i + 1]), packed)
        labels = range(int(packed.mask[i].sum()))
        yield np.stack([flat(label_gradient(params, row, t, model=model)) for t in labels])


@pytest.fixture(scope="module")
def by_definition(finished):
    """Every label's gradient at theta_0: of D_u, and of the retain samples that define harm."""
    prepared = prepare(CONFIG, jax.devices()[:1])
    with jax.set_mesh(prepared.mesh):
        params = prepared.initial()
        params = jax.tree.map(np.asarray, params)
    pool, count = prepared.sets.retain, len(prepared.retain_eval)
    harmed = guide_retain_samples(pool, count, CONFIG.seed)
    measured = {tuple(sample.tokens.tolist()) for sample in prepared.retain_eval}
    assert not measured & {tuple(sample.tokens.tolist()) for sample in harmed}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        model = dataclasses.replace(prepared.model, dtype="float64")
        forget = prepared.sets.forget
        gradients = list(label_gradients(wide, [*forget, *harmed], model))
        return gradients[: len(forget)], gradients[len(forget) :]


def expected(by_definition, penalty):
    """The weights of the formula, from whole gradients in float64."""
    forget, retain = by_definition
    risk = lambda rows: -sum(gradients.sum(0) for gradients in rows) / len(rows)
    units = [g / np.linalg.norm(g) for g in (risk(forget), risk(retain))]
    removal, harm = ([np.maximum(-row @ unit, 0) for row in forget] for unit in units)
    scores = [np.maximum(u - penalty * r, 0) for u, r in zip(removal, harm, strict=True)]
    mean = np.concatenate(scores).mean()
    assert mean > 0
    return [score / mean for score in scores]


def test_weights_at_theta_0_are_those_of_the_definition(finished, by_definition):
    table = weights(finished, 0)
    assert table.dtype == np.float32 and len(np.unique(table)) > 5
    for result, target in zip(table, expected(by_definition, 0.5), strict=True):
        np.testing.assert_allclose(result[: len(target)], target, atol=2e-3)
        assert not result[len(target) :].any()


def test_weights_are_refreshed_and_kept(finished):
    files = sorted((finished / "objectives" / "guided" / "guide").iterdir())
    assert [file.name for file in files] == ["000000.npy", "000002.npy", "000004.npy"]
    assert (weights(finished, 0) != weights(finished, 4)).any()


def test_a_sample_has_one_weight_for_all_its_tokens():
    """Of three samples the first removes 1 + 2 and harms 4 / 2, the second removes 3."""
    mask = np.array([[True, True, False], [True, False, False], [True, True, True]])
    values = {
        "unlearn": np.float32([[-1, -2, 0], [-3, 0, 0], [-1, 0, 1]]),
        "retain": np.float32([[-4, 0, 0], [5, 0, 0], [0, 0, 0]]),
    }
    norms = {"unlearn": 1.0, "retain": 2.0}
    result = weigh(values, norms, mask, Guide(by="sample", penalty=1.0, power=1.0))
    np.testing.assert_allclose(result, np.array([[0.75], [2.25], [0.0]]) * mask, rtol=1e-6)
    assert result.dtype == np.float32


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Dies after five updates, goes on from step 3 with the weights of step 2."""
    out, calls, real = tmp_path_factory.mktemp("runs") / "resumed", [], train_step

    def crashing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5 + 1:
            raise RuntimeError("the end")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train_step", crashing)
        with pytest.raises(RuntimeError, match="the end"):
            run(MEASURED, out)
        # What came after the checkpoint of step 3 is computed again.
        (out / "objectives" / "guided" / "guide" / "000004.npy").unlink()
        run(MEASURED, out)
    assert len(calls) == 5 + 1 + 3
    return out


def test_a_resumed_and_measured_run_has_the_weights_of_the_other(finished, resumed):
    """Bit for bit, also where the moments wait on the host meanwhile."""
    for at in (2, 4):
        np.testing.assert_array_equal(weights(resumed, at), weights(finished, at))
    log = records(finished / "metrics.jsonl")
    assert records(resumed / "metrics.jsonl") == log


def test_the_newest_weights_explain_what_is_measured(resumed):
    """e_D = mean_s sum_i w_i PG_D(i) at step 3, with the weights of the refresh before it."""
    given, tokens = weights(resumed, 2), tables.read(resumed, "token_effect")
    places = tokens["sample"], tokens["position"]
    np.testing.assert_array_equal(np.float32(tokens["weight"]), given[places])
    samples, measured = tables.read(resumed, "samples"), tables.read(resumed, "g_effect")
    at_3 = zip(*(samples[k] for k in ("step", "split", "weight", "tokens")), strict=True)
    totals = [w * count for step, split, w, count in at_3 if (step, split) == (3, "forget")]
    np.testing.assert_allclose(totals, given.sum(-1), rtol=1e-5)
    for risk in ("unlearn", "retain"):
        parts = zip(tokens["risk"], tokens["weight"], tokens["value"], strict=True)
        total = sum(w * value for name, w, value in parts if name == risk) / len(given)
        keys = zip(*(measured[k] for k in ("step", "risk", "layer")), strict=True)
        at = list(keys).index((3, risk, "total"))
        scale = measured["risk_norm"][at] * measured["objective_norm"][at]
        assert scale > 0
        np.testing.assert_allclose(total, measured["value"][at], rtol=1e-4, atol=1e-5 * scale)
