"""By token, the definition must hold whatever is computed at a time, as compiled for a real run."""

import jax
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import unpack
from jaxunlearn.models import decoder

MODEL = decoder.DecoderConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    context=384,
)
BLOCKS = effects.Grouping(stacked=decoder.STACKED)


def token_logp(params, packed):
    return unpack(decoder.forward(params, packed, MODEL).labels, packed)


@pytest.mark.slow
@pytest.mark.cost  # with the compiler's optimisations, which are what went wrong
@pytest.mark.parametrize("microbatch", [1, 2])
def test_vmap_by_token_is_jvp_by_token(microbatch):
    """A reverse pass vmapped over tokens came out 2 % off on CPU, one sample at a time."""
    key, other = jax.random.split(jax.random.key(0))
    params, direction = decoder.init_params(key, MODEL), decoder.init_params(other, MODEL)
    texts = np.random.default_rng(0).integers(3, 64, (2, 376)).astype(np.int32)
    packed = packing.padded([planning.Sample(text, 300) for text in texts])
    values_of = lambda **options: effects.pg_effect(
        token_logp, params, [packed], {"v": direction}, by="token", grouping=BLOCKS, **options
    )["v"]
    expected = values_of(method="jvp")
    result = values_of(method="vmap", microbatch=microbatch)
    np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())
