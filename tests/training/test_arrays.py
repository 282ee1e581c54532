"""Every array that a loss may name has a source, and label values carry what theta_0 says."""

import jax.numpy as jnp
import pytest

from jaxunlearn import objectives
from jaxunlearn.config import Config, Objective
from jaxunlearn.models import decoder
from jaxunlearn.objectives import signature
from jaxunlearn.training import arrays
from jaxunlearn.training.arrays import label_values, substitute_values
from jaxunlearn.training.losses import Term
from jaxunlearn.training.tasks import make_task

MODEL = decoder.DecoderConfig(8, 8, 8, 2, 1, 1, 8, 8)


def term(name, layer=1, retain=False):
    get = objectives.get_retain if retain else objectives.get
    return Term(get(name), MODEL, "sequence_sum", layer, "retain" if retain else "forget")


def test_the_two_tables_name_the_same_arrays():
    assert set(arrays.SOURCES) == set(signature.ARRAYS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ga", []),
        ("npo", ["ref_logp"]),
        ("undial", ["ref_hidden"]),
        ("guided", ["guide"]),
        ("rmu", []),
        ("po", []),
    ],
)
def test_rows_carry_what_the_objective_reads(name, values):
    assert [value.name for value in label_values([term(name)])] == values


def test_hidden_references_are_of_the_terms_own_layer():
    terms = [term("rr", layer, retain=True) for layer in (2, 1, 2)]
    assert [(v.name, v.tap) for v in label_values(terms)] == [("ref_tap_1", 1), ("ref_tap_2", 2)]


def test_substitute_rows_carry_references_only_where_ratios_are_compared():
    assert [value.name for value in substitute_values([term("dpo")])] == ["ref_logp"]
    assert not substitute_values([term("po")])


def test_values_are_read_off_the_right_part_of_a_forward_pass():
    outputs = decoder.Outputs(jnp.zeros(1), jnp.ones(1), jnp.full(1, 2.0))
    reads = {v.name: v.of_reference(outputs) for v in (arrays.REF_LOGP, arrays.REF_FINAL_HIDDEN)}
    reads["tap"] = arrays.ref_tap(1).of_reference(outputs)
    assert {name: float(x[0]) for name, x in reads.items()} == {
        "ref_logp": 0.0,
        "ref_hidden": 2.0,
        "tap": 1.0,
    }


def polite(substitute_logp, substitute_mask):
    return -jnp.sum(jnp.where(substitute_mask, substitute_logp, 0), axis=-1)


def guided(logp, mask, guide):
    return jnp.sum(jnp.where(mask, guide * logp, 0), axis=-1)


@pytest.mark.parametrize(
    ("term", "words"),
    [("polite", "substitute answers"), ("guided", "weights that guide it")],
)
def test_a_retain_term_reads_nothing_of_the_samples_to_forget(term, words):
    spec = Objective(loss="ga", retain=f"{__name__}:{term}")
    with pytest.raises(ValueError, match=rf"objectives\.mine\.retain: .*:{term} reads {words}"):
        make_task("mine", spec, MODEL, Config())
