"""Objectives by name: defaults, needs, equality, errors, functions of one's own."""

import functools
import importlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import objectives
from jaxunlearn.objectives import registry, signature

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
CASES = [(registry.get, n, *row) for n, row in UNLEARN.items()] + [
    (registry.get_retain, n, *row) for n, row in RETAIN.items()
]


def test_names():
    assert set(registry.names()) == set(UNLEARN)
    assert set(registry.retain_names()) == set(RETAIN)


@pytest.mark.parametrize(("get", "name", "defaults", "needs", "additive"), CASES)
def test_defaults_needs_and_additivity(get, name, defaults, needs, additive):
    objective = get(name)
    assert objective.name == name
    assert dict(objective.hyper) == defaults
    assert objective.needs == needs
    assert objective.per_token is additive


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
        registry.get("ga").check_reduction("token-mean")


@pytest.mark.parametrize("name", [n for n, row in UNLEARN.items() if row[2]])
def test_losses_called_additive_add_over_tokens(name):
    """Splitting every sequence into one per token leaves the total as it is; and vice versa."""
    if "logits" in registry.get(name).needs:
        return  # one loss per position by construction
    rng = np.random.default_rng(0)
    arrays = {
        n: jnp.ones((2, 3), bool)
        if n.endswith("mask")
        else -jnp.asarray(rng.exponential(size=(2, 3)))
        for n in registry.get(name).arrays
    }
    loss = registry.get(name).loss
    split = {n: x.reshape(6, 1) for n, x in arrays.items()}
    np.testing.assert_allclose(loss(**split).sum(), loss(**arrays).sum(), rtol=1e-5)


def test_hyper_parameters_reach_loss_and_weight():
    logp, mask = jnp.log(jnp.array([[0.5, 0.2]])), jnp.array([[True, True]])
    objective = registry.get("wga", alpha=2)
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
    for objective in (registry.get("wga"), registry.get("wga", alpha=1), registry.get("ga")):
        loss(logp, mask, objective)
    assert traces == ["wga", "ga"]
    assert registry.get("wga") != registry.get("wga", alpha=2)
    assert registry.get("tnpo") != registry.get("npo", beta=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: registry.get("tnop"),
            "unknown objective 'tnop'; perhaps you meant 'tnpo'; known",
        ),
        (lambda: registry.get("kl"), "unknown objective 'kl'"),
        (lambda: registry.get_retain("gb"), "unknown retain term 'gb'; perhaps you meant 'gd'"),
        (lambda: registry.get("zzz"), "known: ga, wga, npo, tnpo, wtnpo, po, rmu"),
        (
            lambda: registry.get("npo", betta=1.0),
            "unknown hyper-parameter of npo 'betta'; perhaps you meant 'beta'; known: beta",
        ),
        (
            lambda: registry.get("ga", beta=1.0),
            "unknown hyper-parameter of ga 'beta'; known: none",
        ),
        (lambda: registry.get("npo", beta="1e-1"), "npo: beta: expected a number, got '1e-1'"),
        (lambda: registry.get("npo", beta=True), "npo: beta: expected a number, got True"),
        (lambda: registry.get("npo", beta=None), "npo: beta: expected a number, got None"),
        (lambda: registry.get("npo", beta=float("nan")), "npo: beta: expected a finite number"),
        (lambda: registry.get("npo", beta=10**400), "npo: beta: expected a finite number, got inf"),
        (lambda: registry.get("npo", beta=1e39), "npo: beta: 1e+39 must be 0, or of a size from"),
        (lambda: registry.get("npo", beta=1e-46), "npo: beta: 1e-46 must be 0, or of a size from"),
        (lambda: registry.get("npo", beta=0), "npo: beta must be positive and finite, got 0.0"),
        (
            lambda: registry.get("simnpo", beta=-1),
            "simnpo: beta must be positive and finite, got -1.0",
        ),
        (lambda: registry.get("dpo", beta=-1), "dpo: beta must be positive and finite, got -1.0"),
        (
            lambda: registry.get("dpo", beta=0, two_over_beta=True),
            "dpo: beta must be positive and finite, got 0.0",
        ),
        (lambda: registry.get("rmu", per_dim=1), "rmu: per_dim: expected true or false, got 1"),
    ],
)
def test_errors_name_the_key_and_the_nearest(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


OWN = """
import jax.numpy as jnp
from jaxunlearn.objectives import Definition

PI = 3.14

def scaled_npo(logp, ref_logp, mask, *, alpha, beta=1.0):
    return alpha * beta * jnp.where(mask, logp - ref_logp, 0).sum(-1)

def scaled_weight(logp, ref_logp, mask, *, alpha, beta=1.0):
    return jnp.where(mask, alpha * beta, 0.0)

SCALED = Definition(scaled_npo, weight=scaled_weight, per_token=True)

def other_arrays(logp, mask, *, alpha, beta=1.0):
    return jnp.where(mask, alpha * beta, 0.0)

def other_hyper(logp, ref_logp, mask, *, alpha):
    return jnp.where(mask, alpha, 0.0)

def scalar(logp, ref_logp, mask, *, alpha, beta=1.0):
    return logp.sum()

def broken(logp, ref_logp, mask, *, alpha, beta=1.0):
    return logp @ mask

OTHER_ARRAYS = Definition(scaled_npo, other_arrays)
OTHER_HYPER = Definition(scaled_npo, other_hyper)
SCALAR = Definition(scaled_npo, scalar)
BROKEN = Definition(scaled_npo, broken)

def half(logp, mask, *, alpha=0.5):
    return -alpha * jnp.where(mask, logp, 0).sum(-1)

def distance(hidden, ref_hidden, *, power=2):
    return (jnp.abs(hidden - ref_hidden) ** power).sum(-1)

NO_LOG_PROBS = Definition(distance, distance)

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
    objective = registry.get("own_losses:scaled_npo", alpha=2)
    assert objective.needs == {"ref"} and objective.arrays == ("logp", "ref_logp", "mask")
    assert objective.hyper == (("alpha", 2), ("beta", 1.0))
    assert objective.weight is None and not objective.per_token
    assert objective == registry.get("own_losses:scaled_npo", alpha=2, beta=1)
    assert hash(objective) == hash(registry.get("own_losses:scaled_npo", alpha=2))
    logp, mask = jnp.full((1, 2), -1.0), jnp.array([[True, False]])
    np.testing.assert_array_equal(
        objective.loss(logp=logp, ref_logp=jnp.zeros((1, 2)), mask=mask), [-2.0]
    )
    with pytest.raises(ValueError, match=r"own_losses:scaled_npo .* got 'token_mean'"):
        objective.check_reduction("token_mean")


@pytest.mark.usefixtures("own")
def test_a_function_of_ones_own_on_hidden_states():
    assert registry.get("own_losses:distance").needs == {"ref", "hidden"}


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
        ("own_losses:scaled_nop", "own_losses 'scaled_nop'; perhaps you meant 'scaled_npo'"),
        ("own_losses:", "unknown function of own_losses ''"),
        (
            "own_losses:PI",
            "own_losses:PI: expected a function or an objectives.Definition, got float",
        ),
        ("own_losses:scaled_npo", "own_losses:scaled_npo: missing hyper-parameter alpha"),
        ("own_losses:unknown_array", "'maks'; perhaps you meant 'mask'; known: logp, ref_logp"),
        ("own_losses:unknown_array", "a hyper-parameter is keyword-only: write `*, maks=..`"),
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
        registry.get(name)


SCALE = np.array([[1.0, 2.0, 3.0]], np.float32)


def scaled(logp, mask):
    return jnp.where(mask, logp * SCALE, 0).sum(-1)


def scaled_inside(logp, mask):
    return jax.jit(lambda x: jnp.where(mask, x * SCALE, 0).sum(-1))(logp)


def branching(logp, mask, *, alpha: float = 1.0):
    """A loss that a number decides the course of: it cannot be traced."""
    return objectives.ga(logp, mask) if alpha > 0.5 else 2 * objectives.ga(logp, mask)


@pytest.mark.parametrize(
    ("name", "get"),
    [(n, registry.get) for n in registry.names()]
    + [(n, registry.get_retain) for n in registry.retain_names()],
)
def test_numbers_that_are_left_open_give_the_loss_they_were_bound_to(name, get):
    bound = get(name)
    opened, key = bound.opened(), jax.random.key(0)
    assert set(opened.open) == {k for k, v in bound.hyper if isinstance(v, float)}
    assert dict(opened.hyper) | bound.numbers == dict(bound.hyper)
    sizes = {"B": 2, "S": 3, "V": 5, "D": 5}
    arrays = {}
    for i, array in enumerate(bound.arrays):
        spec, each = signature.ARRAYS[array], jax.random.fold_in(key, i)
        shape = tuple(sizes[d] for d in spec.dims)
        if spec.dtype == jnp.float32:
            arrays[array] = -jnp.abs(jax.random.normal(each, shape))
        else:
            arrays[array] = jnp.ones(shape, spec.dtype)
    traced = jax.jit(opened.loss)(**arrays, **bound.numbers)
    np.testing.assert_allclose(traced, bound.loss(**arrays), rtol=2e-6)
    if bound.weight is not None:
        weights = jax.jit(opened.weight)(**arrays, **bound.numbers)
        np.testing.assert_allclose(weights, bound.weight(**arrays), rtol=2e-6)


def test_a_number_that_is_left_open_must_be_given():
    """The default of the function is not what was bound."""
    opened = registry.get("npo", beta=4.0).opened()
    zeros = jnp.zeros((1, 2))
    arrays = {"logp": zeros, "ref_logp": zeros, "mask": zeros == 0}
    for function in (opened.loss, opened.weight):
        with pytest.raises(TypeError, match="missing beta: this objective leaves its numbers open"):
            function(**arrays)
    with pytest.raises(ValueError, match="npo leaves beta open"):
        objectives.BatchLoss(opened, lambda params, batch: params)


def test_numbers_may_be_arrays_of_one_but_not_traced():
    assert registry.get("npo", beta=jnp.float32(0.5)) == registry.get("npo", beta=np.array(0.5))
    with pytest.raises(ValueError, match=r"npo: beta: is traced; .* opened"):
        jax.jit(lambda beta: registry.get("npo", beta=beta).numbers["beta"])(0.5)


def test_the_program_of_a_function_tells_what_it_computes(monkeypatch):
    """Also where its own text is the same: a constant of its module was changed."""
    scale, own = SCALE.copy(), registry.get(f"{__name__}:scaled").programs()
    assert own == registry.get(f"{__name__}:scaled").programs()
    inner = registry.get(f"{__name__}:scaled_inside").programs()
    monkeypatch.setitem(globals(), "SCALE", scale * 2)
    jax.clear_caches()
    assert registry.get(f"{__name__}:scaled").programs() != own
    assert registry.get(f"{__name__}:scaled_inside").programs() != inner


def test_the_program_of_a_function_does_not_depend_on_the_terminal(monkeypatch):
    plain = registry.get("ga").programs()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert registry.get("ga").programs() == plain


def test_a_number_that_decides_the_course_of_a_loss_stays_bound():
    own = registry.get(f"{__name__}:branching", alpha=0.1)
    assert own.opened() is own and own.numbers == {"alpha": 0.1}


@pytest.mark.usefixtures("own")
def test_an_unhashable_hyper_parameter_is_refused():
    with pytest.raises(
        ValueError, match=r"scaled_npo: alpha: expected a hashable value, got \[1\]"
    ):
        registry.get("own_losses:scaled_npo", alpha=[1])


@pytest.mark.usefixtures("own")
class TestDefinitionsOfOnesOwn:
    def test_weight_and_reductions_come_along(self):
        objective = objectives.get("own_losses:SCALED", alpha=2.0)
        assert objective.per_token and not objective.ascent
        objective.check_reduction("token_mean")
        arrays = {"logp": jnp.zeros((1, 2)), "ref_logp": jnp.zeros((1, 2))}
        weight = objective.weight(**arrays, mask=jnp.array([[True, False]]))
        np.testing.assert_array_equal(weight, [[2.0, 0.0]])

    def test_the_weight_is_that_of_the_gradient(self):
        objective = objectives.get("own_losses:SCALED", alpha=2.0, beta=3.0)
        arrays = {"ref_logp": jnp.zeros((1, 2)), "mask": jnp.array([[True, False]])}
        logp = jnp.array([[-1.0, -2.0]])
        gradient = jax.grad(lambda x: objective.loss(logp=x, **arrays).sum())(logp)
        np.testing.assert_array_equal(objective.weight(logp=logp, **arrays), gradient)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "OTHER_ARRAYS",
                "takes the arrays (logp, mask), expected those of the loss: (logp, ref",
            ),
            (
                "OTHER_HYPER",
                "takes the hyper-parameters (alpha), expected those of the loss: (alpha",
            ),
            ("SCALAR", "weight of own_losses:SCALAR: returns ShapeDtypeStruct(shape=(), "),
            ("SCALAR", "expected floats of shape (2,) or (2, 3)"),
            ("BROKEN", "weight of own_losses:BROKEN: "),
        ],
    )
    def test_a_weight_must_belong_to_its_loss(self, name, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            objectives.get(f"own_losses:{name}", alpha=1.0)

    def test_a_weight_is_of_log_probabilities(self):
        with pytest.raises(ValueError, match=r"has a weight, but .* takes \(hidden, ref_hidden\)"):
            objectives.get("own_losses:NO_LOG_PROBS")

    def test_retain_terms(self):
        objective = objectives.get_retain("own_losses:half", alpha=1)
        assert objective.hyper == (("alpha", 1.0),) and objective.needs == set()
        assert objectives.get_retain("own_losses:SCALED", alpha=2.0).per_token
        with pytest.raises(ValueError, match="hyper-parameter of gd 'alpha'"):
            objectives.get_retain("gd", alpha=1.0)

    def test_a_function_that_was_changed_and_loaded_again_is_another_objective(self, tmp_path):
        @functools.partial(jax.jit, static_argnames="objective")
        def loss(logp, mask, objective):
            return objective.loss(logp=logp, mask=mask)

        logp, mask = jnp.full((1, 2), -1.0), jnp.ones((1, 2), bool)
        before = objectives.get("own_losses:half")
        assert before == objectives.get("own_losses:half")
        assert loss(logp, mask, before) == 1.0
        (tmp_path / "own_losses.py").write_text(OWN.replace("-alpha *", "-10 * alpha *"))
        importlib.invalidate_caches()
        importlib.reload(sys.modules["own_losses"])
        after = objectives.get("own_losses:half")
        assert after != before and loss(logp, mask, after) == 10.0


@pytest.mark.parametrize(
    ("get", "name", "kind"),
    [
        (objectives.get, "npo", "log_probs"),
        (objectives.get, "po", "log_probs"),
        (objectives.get, "ceu", "logits"),
        (objectives.get, "rmu", "hidden"),
        (objectives.get_retain, "kl", "logits"),
        (objectives.get_retain, "rr", "hidden"),
    ],
)
def test_kinds(get, name, kind):
    assert get(name).kind == kind


def test_only_gradient_ascent_is_ascent():
    """Its gradient is that of the risk with the sign changed, whatever the data."""
    assert [name for name in objectives.names() if objectives.get(name).ascent] == ["ga"]
    logp, mask = jnp.array([[-1.0, -2.0]]), jnp.array([[True, True]])
    assert objectives.ga(logp, mask) == -objectives.gd(logp, mask)


def test_every_declared_array_is_used_and_every_used_one_declared():
    everything = [objectives.get(n) for n in objectives.names()]
    everything += [objectives.get_retain(n) for n in objectives.retain_names()]
    assert {array for o in everything for array in o.arrays} == set(signature.ARRAYS)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), 1, np.int64(1)])
def test_numbers_of_numpy_are_numbers(value):
    assert registry.get("npo", beta=value).hyper == (("beta", float(value)),)


def test_whole_numbers_may_come_as_floats():
    """A configuration knows floats alone."""
    found = signature._checked("times", 3.0, 2)
    assert found == 3 and isinstance(found, int)
    with pytest.raises(ValueError, match=r"times: expected a whole number, got 2\.5"):
        signature._checked("times", 2.5, 2)


def counted(logp, mask, *, times: int = 2, mode: str = "sum"):
    return times * jnp.sum(jnp.where(mask, logp, 0), axis=-1)


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"times": "three"}, "times: expected a whole number, got 'three'"),
        ({"times": True}, "times: expected a whole number, got True"),
        ({"times": float("nan")}, "times: expected a whole number, got nan"),
        ({"mode": 3}, "mode: expected text, got 3"),
    ],
)
def test_a_hyper_parameter_has_the_kind_of_its_default(hyper, words):
    assert registry.get(f"{__name__}:counted", times=3, mode="mean").hyper[1] == ("times", 3)
    with pytest.raises(ValueError, match=re.escape(words)):
        registry.get(f"{__name__}:counted", **hyper)


def answered(substitute_logp, substitute_mask):
    return -jnp.sum(jnp.where(substitute_mask, substitute_logp, 0), axis=-1)


def answered_weight(substitute_logp, substitute_mask):
    return -substitute_mask.astype(substitute_logp.dtype)


ANSWERED = objectives.Definition(answered, weight=answered_weight, per_token=True)


def test_a_weight_of_what_no_measurement_knows_is_refused():
    words = "which is computed from logp, ref_logp, mask, guide, and the loss takes substitute_logp"
    with pytest.raises(ValueError, match=words):
        registry.get(f"{__name__}:ANSWERED")
