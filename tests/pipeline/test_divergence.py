"""Where a model broke: the layer and the samples that are named are those that were broken."""

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn.measurement.statistics import statistics
from jaxunlearn.pipeline.divergence import diagnose
from jaxunlearn.pipeline.prepare import prepare
from tests.pipeline.tiny import TINY, replace


@pytest.fixture(scope="module")
def whole():
    run = prepare(TINY, jax.devices()[:1])
    return run, run.initial(), run.layout.split(run.sets.forget)


def diagnosis(run, params, forget):
    stats = statistics(params, forget, run.model)
    return diagnose(7, params, stats, forget, run.model)


@pytest.mark.parametrize(
    ("key", "index", "layer"),
    [
        (("embed", "embedding"), (), "embed"),
        (("blocks", "down", "kernel"), (0,), "block_0"),
        (("blocks", "down", "kernel"), (1,), "block_1 or norm"),
        (("norm", "scale"), (), "block_1 or norm"),
        (("lm_head", "kernel"), (), "lm_head"),
    ],
)
def test_the_layer_is_the_one_with_broken_weights(whole, key, index, layer):
    run, params, forget = whole
    found = diagnosis(run, poisoned(params, key, index), forget)
    assert (found.step, found.layer) == (7, layer)
    assert (found.sample, found.samples) == (0, forget.samples)
    assert layer in found.sentence()


def poisoned(params, keys, index=()):
    """Parameters with NaN at an index of one leaf."""
    key, *rest = keys
    if rest:
        return params | {key: poisoned(params[key], rest, index)}
    return params | {key: jnp.asarray(params[key]).at[index or ...].set(jnp.nan)}


def test_the_sample_is_the_one_with_the_broken_token(whole):
    run, params, forget = whole
    *others, last = (set(sample.tokens.tolist()) for sample in run.sets.forget)
    token = min(last.difference(*others))
    found = diagnosis(run, poisoned(params, ("embed", "embedding"), (token,)), forget)
    assert (found.layer, found.sample, found.samples) == ("embed", forget.samples - 1, 1)


def test_tied_logits_are_named_as_what_they_are():
    run = prepare(replace(new_model={"tied": True}), jax.devices()[:1])
    params, forget = run.initial(), run.layout.split(run.sets.forget)
    used = {int(token) for sample in run.sets.forget for token in sample.tokens}
    unused = max(set(range(run.model.vocab_size)) - used)
    found = diagnosis(run, poisoned(params, ("embed", "embedding"), (unused,)), forget)
    assert found.layer == "the logits of embed"


def test_a_whole_model_has_no_broken_layer(whole):
    run, params, forget = whole
    found = diagnosis(run, params, forget)
    assert found[1:] == (None, None, 0, None) and "step 7" in found.sentence()
