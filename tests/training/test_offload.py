"""Parked trees come back as they were, and a trainer's moments are away only meanwhile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.training.offload import Offload
from jaxunlearn.training.step import Trainer, init_state

TREE = {"w": np.arange(4.0, dtype=np.float32)}


def tree():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.device_put(x, device), TREE)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_parked_tree_comes_back(enabled):
    offload = Offload(enabled)
    parked = offload.away(tree())
    kind = parked["w"].sharding.memory_kind
    assert kind == ("pinned_host" if enabled else jax.devices()[0].default_memory().kind)
    np.testing.assert_array_equal(offload.back(parked)["w"], TREE["w"])


@pytest.mark.parametrize("enabled", [False, True])
def test_copies_survive_the_donation_of_the_original(enabled):
    offload, donate = Offload(enabled), jax.jit(lambda x: x + 1, donate_argnums=0)
    original = tree()
    copy = offload.copied(original)
    donate(original["w"])
    np.testing.assert_array_equal(offload.back(copy)["w"], TREE["w"])
    fresh = offload.fresh(copy)
    donate(fresh["w"])
    np.testing.assert_array_equal(offload.back(copy)["w"], TREE["w"])


@pytest.mark.parametrize("enabled", [False, True])
def test_moments_are_parked_meanwhile(enabled):
    tx = optax.adam(0.1)
    trainer = Trainer(init_state(tree(), tx), lambda p, batch: (jnp.sum(p["w"] * batch), {}), tx)
    trainer.update(jnp.ones(4), 1.0)
    before = jax.tree.map(np.asarray, trainer.state.opt_state)
    with trainer.parked_moments(Offload(enabled)):
        assert trainer.state.opt_state is None
        assert trainer.params["w"].shape == (4,)
    jax.tree.map(np.testing.assert_array_equal, trainer.state.opt_state, before)
    trainer.update(jnp.ones(4), 1.0)
    assert int(trainer.state.step) == 2
