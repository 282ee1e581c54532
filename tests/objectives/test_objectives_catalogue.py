"""Objectives by name: defaults, needs, equality, errors, functions of one's own."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import objectives
from jaxunlearn.objectives import catalogue

# name: (defaults, needs, token additive)
UNLEARN = {
    "ga": ({}, set(), True),
    "wga": ({"alpha": 1}, set(), True),
    "npo": ({"beta": 0.1}, {"ref"}, False),
    "tnpo": ({"beta": 1}, {"ref"}, True),
    "wtnpo": ({"alpha": 1, "beta": 1}, {"ref"}, True),
    "po": ({}, {"substitute"}, True),
    "rmu": ({"per_dim": False}, {"hidden"}, False),
    "dpo": ({"beta": 0.1, "two_over_beta": False}, {"ref", "substitute"}, False),
    "simnpo": ({"beta": 4.5, "delta": 0}, set(), False),
    "satimp": ({"beta1": 5, "beta2": 1}, set(), True),
    "undial": ({"beta": 10}, {"ref", "logits"}, True),
    "ceu": ({}, {"logits"}, True),
    "guided": ({}, {"guide"}, True),
}
RETAIN = {
    "gd": ({}, set(), True),
    "kl": ({}, {"ref", "logits"}, True),
    "rr": ({}, {"ref", "hidden"}, False),
}
CASES = [(catalogue.get, n, *row) for n, row in UNLEARN.items()] + [
    (catalogue.get_retain, n, *row) for n, row in RETAIN.items()
]


def test_names():
    assert set(catalogue.NAMES) == set(UNLEARN)
    assert set(catalogue.RETAIN_NAMES) == set(RETAIN)


@pytest.mark.parametrize(("get", "name", "defaults", "needs", "additive"), CASES)
def test_defaults_needs_and_additivity(get, name, defaults, needs, additive):
    objective = get(name)
    assert objective.name == name
    assert dict(objective.hyper) == defaults
    assert objective.needs == needs
    assert objective.token_additive is additive


@pytest.mark.parametrize(("get", "name", "defaults", "needs", "additive"), CASES)
@pytest.mark.parametrize("how", objectives.REDUCTIONS)
def test_only_sums_over_tokens_are_averaged_over_tokens(get, name, defaults, needs, additive, how):
    if additive or how == "sequence_sum":
        get(name).check_reduction(how)
        return
    with pytest.raises(ValueError, match=f"^{name} .*'sequence_sum'.* got '{how}'"):
        get(name).check_reduction(how)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="perhaps you meant 'token_mean'"):
        catalogue.get("ga").check_reduction("token-mean")


@pytest.mark.parametrize("name", [n for n, row in UNLEARN.items() if row[2]])
def test_losses_called_additive_add_over_tokens(name):
    """Splitting every sequence into one per token leaves the total as it is; and vice versa."""
    if "logits" in catalogue.get(name).needs:
        return  # one loss per position by construction
    rng = np.random.default_rng(0)
    arrays = {
        n: jnp.ones((2, 3), bool)
        if n.endswith("mask")
        else -jnp.asarray(rng.exponential(size=(2, 3)))
        for n in catalogue.get(name).arrays
    }
    loss = catalogue.get(name).loss
    split = {n: x.reshape(6, 1) for n, x in arrays.items()}
    np.testing.assert_allclose(loss(**split).sum(), loss(**arrays).sum(), rtol=1e-5)


def test_hyper_parameters_reach_loss_and_weight():
    logp, mask = jnp.log(jnp.array([[0.5, 0.2]])), jnp.array([[True, True]])
    objective = catalogue.get("wga", alpha=2)
    expected = objectives.wga(logp, mask, alpha=2.0)
    np.testing.assert_array_equal(objective.loss(logp=logp, mask=mask), expected)
    np.testing.assert_allclose(objective.weight(logp=logp, mask=mask), [[0.25, 0.04]], rtol=1e-6)
    assert objective.hyper == (("alpha", 2.0),)


def test_equal_settings_are_one_static_argument():
    traces = []

    @functools.partial(jax.jit, static_argnames="objective")
    def loss(logp, mask, objective):
        traces.append(objective.name)
        return objective.loss(logp=logp, mask=mask)

    logp, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    for objective in (catalogue.get("wga"), catalogue.get("wga", alpha=1), catalogue.get("ga")):
        loss(logp, mask, objective)
    assert traces == ["wga", "ga"]
    assert catalogue.get("wga") != catalogue.get("wga", alpha=2)
    assert catalogue.get("tnpo") != catalogue.get("npo", beta=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: catalogue.get("tnop"),
            "unknown objective 'tnop' (perhaps you meant 'tnpo'?); known",
        ),
        (lambda: catalogue.get("kl"), "unknown objective 'kl'"),
        (lambda: catalogue.get_retain("gb"), "unknown retain term 'gb' (perhaps you meant 'gd'?)"),
        (lambda: catalogue.get("zzz"), "known: ga, wga, npo, tnpo, wtnpo, po, rmu"),
        (
            lambda: catalogue.get("npo", betta=1.0),
            "unknown hyper-parameter of npo 'betta' (perhaps you meant 'beta'?); known: beta",
        ),
        (
            lambda: catalogue.get("ga", beta=1.0),
            "unknown hyper-parameter of ga 'beta'; known: none",
        ),
        (lambda: catalogue.get("npo", beta="1e-1"), "npo: beta: expected a number, got '1e-1'"),
        (lambda: catalogue.get("npo", beta=True), "npo: beta: expected a number, got True"),
        (lambda: catalogue.get("npo", beta=None), "npo: beta: expected a number, got None"),
        (lambda: catalogue.get("npo", beta=float("nan")), "npo: beta: expected a finite number"),
        (lambda: catalogue.get("npo", beta=0), "npo: beta must be positive, got 0.0"),
        (lambda: catalogue.get("simnpo", beta=-1), "simnpo: beta must be positive, got -1.0"),
        (
            lambda: catalogue.get("dpo", beta=0, two_over_beta=True),
            "dpo: beta must be positive with two_over_beta, got 0.0",
        ),
        (lambda: catalogue.get("rmu", per_dim=1), "rmu: per_dim: expected true or false, got 1"),
    ],
)
def test_errors_name_the_key_and_the_nearest(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


OWN = """
import jax.numpy as jnp

PI = 3.14

def scaled_npo(logp, ref_logp, mask, *, alpha, beta=1.0):
    return alpha * beta * jnp.where(mask, logp - ref_logp, 0).sum(-1)

def distance(hidden, ref_hidden, *, power=2):
    return (jnp.abs(hidden - ref_hidden) ** power).sum(-1)

def unknown_array(logp, maks):
    return logp.sum(-1)

def two_kinds(logits, mask):
    return logits.sum((-1, -2))

def no_mask(logp):
    return logp.sum(-1)

def nothing_computed(labels):
    return labels

def reduced(logp, mask):
    return logp.sum()

def integers(logp, mask):
    return mask.sum(-1)

def pair(logp, mask):
    return logp.sum(-1), mask

def branches(logp, mask):
    return logp.sum(-1) if logp.sum() > 0 else logp.sum(-1)

def packed(*arrays):
    return arrays[0]

def positional(logp, mask, /):
    return logp.sum(-1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Imports of one's own, from a folder on the path."""
    (tmp_path / "own_losses.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import no_such_package_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_losses", None)


@pytest.mark.usefixtures("own")
def test_a_function_of_ones_own():
    objective = catalogue.get("own_losses:scaled_npo", alpha=2)
    assert objective.needs == {"ref"} and objective.arrays == ("logp", "ref_logp", "mask")
    assert objective.hyper == (("alpha", 2), ("beta", 1.0))
    assert objective.weight is None and not objective.token_additive
    assert objective == catalogue.get("own_losses:scaled_npo", alpha=2, beta=1)
    assert hash(objective) == hash(catalogue.get("own_losses:scaled_npo", alpha=2))
    logp, mask = jnp.full((1, 2), -1.0), jnp.array([[True, False]])
    np.testing.assert_array_equal(
        objective.loss(logp=logp, ref_logp=jnp.zeros((1, 2)), mask=mask), [-2.0]
    )
    with pytest.raises(ValueError, match=r"own_losses:scaled_npo .* got 'token_mean'"):
        objective.check_reduction("token_mean")


@pytest.mark.usefixtures("own")
def test_a_function_of_ones_own_on_hidden_states():
    assert catalogue.get("own_losses:distance").needs == {"ref", "hidden"}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_x:loss", "no_such_module_x:loss: cannot import 'no_such_module_x'"),
        (
            "own_broken:loss",
            "cannot import 'own_broken': No module named 'no_such_package_anywhere'",
        ),
        (":loss", ":loss: cannot import ''"),
        ("own_losses:scaled_nop", "own_losses 'scaled_nop' (perhaps you meant 'scaled_npo'?)"),
        ("own_losses:", "unknown function of own_losses ''"),
        ("own_losses:PI", "unknown function of own_losses 'PI'"),
        ("own_losses:scaled_npo", "own_losses:scaled_npo: missing hyper-parameter alpha"),
        ("own_losses:unknown_array", "'maks' (perhaps you meant 'mask'?); known: logp, ref_logp"),
        ("own_losses:two_kinds", "takes (logits, mask), expected arrays of one kind"),
        ("own_losses:no_mask", "takes 'logp' without 'mask'"),
        ("own_losses:nothing_computed", "takes (labels), nothing that the model computes"),
        ("own_losses:reduced", "expected floats of shape (2,)"),
        ("own_losses:integers", "expected floats of shape (2,)"),
        ("own_losses:pair", "expected floats of shape (2,)"),
        ("own_losses:branches", "own_losses:branches: Attempted boolean conversion"),
        ("own_losses:packed", "argument '*arrays' cannot be passed by its name"),
        ("own_losses:positional", "argument 'logp' cannot be passed by its name"),
    ],
)
def test_errors_about_functions_of_ones_own(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        catalogue.get(name)


@pytest.mark.usefixtures("own")
def test_an_unhashable_hyper_parameter_is_refused():
    with pytest.raises(
        ValueError, match=r"scaled_npo: alpha: expected a hashable value, got \[1\]"
    ):
        catalogue.get("own_losses:scaled_npo", alpha=[1])
