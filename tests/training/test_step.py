"""The train step, its schedule, its optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.training import schedule, sparing, step


def test_the_schedule_is_the_papers():
    """62 steps, warm-up from 0 over the first epoch of 12, then linear to 0."""
    rates = schedule.learning_rates(1e-5, 62, 12)
    found = [rates[i] for i in (0, 6, 12, 37, 61)]
    np.testing.assert_allclose(found, [0, 5e-6, 1e-5, 5e-6, 2e-7], rtol=1e-5)
    assert len(rates) == 62 and schedule.learning_rates(1.0, 10, 0)[0] == 1.0


def test_adamw_is_the_textbook_update():
    """First step: -lr (sign-like m/sqrt(v)) - lr * decay * theta."""
    params = {"w": jnp.array([1.0, -2.0])}
    tx = step.optimizer(weight_decay=0.5)
    loss = lambda p, batch: (jnp.sum(p["w"] * batch), {})
    new, metrics = step.train_step(
        step.init_state(params, tx), jnp.array([3.0, 4.0]), 0.1, loss=loss, tx=tx
    )
    np.testing.assert_allclose(new.params["w"], [1 - 0.1 - 0.05, -2 - 0.1 + 0.1], rtol=1e-6)
    assert metrics["grad_norm"] == 5.0 and int(new.step) == 1


def test_clipping_bounds_the_gradient():
    params = {"w": jnp.zeros(2)}
    tx = step.optimizer(clip_norm=1.0)
    loss = lambda p, batch: (jnp.sum(p["w"] * batch), {})
    batch = jnp.array([3.0, 4.0])
    new, _ = step.train_step(step.init_state(params, tx), batch, 0.1, loss=loss, tx=tx)
    (mu,) = [x for x in jax.tree.leaves(optax.tree.get(new.opt_state, "mu"))]
    np.testing.assert_allclose(mu, 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


@pytest.mark.parametrize("by", ["total", "layer"])
def test_sparing_bends_updates_against_the_running_retain_gradient(by):
    """Plain descent: the part of the step along grad R is gone where it would raise R."""
    params = {"w": jnp.array([1.0, 1.0]), "v": jnp.array([2.0])}
    tx = optax.chain(optax.sgd(1.0), sparing.sparing(by, decay=0.5))
    state = tx.init(params)
    descent = {"w": jnp.array([-1.0, 3.0]), "v": jnp.array([0.5])}
    retain = {"w": jnp.array([2.0, 0.0]), "v": jnp.array([1.0])}
    projected, state = tx.update(descent, state, params, retain_gradient=retain)
    # u = (1, -3), (-0.5): R rises by 2 along w, falls by 0.5 along v, rises by 1.5 in all.
    rises = [float(jnp.sum(projected[key] * retain[key])) for key in ("w", "v")]
    if by == "layer":
        np.testing.assert_allclose(rises, [0.0, -0.5], atol=1e-6)
    else:
        np.testing.assert_allclose(sum(rises), 0.0, atol=1e-6)
    assert projected["w"][1] == -3.0
    np.testing.assert_allclose(state[1].running["w"], [1.0, 0.0])
    back = jax.tree.map(lambda g: -10.0 * g, retain)
    _, state = tx.update(descent, state, params, retain_gradient=back)
    np.testing.assert_allclose(state[1].running["w"], [0.5 - 10.0, 0.0])


def test_moments_are_sharded_as_parameters_are():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("fsdp"))
    params = {"w": jax.device_put(jnp.ones((16, 2)), split)}
    tx = step.optimizer()
    state = step.init_state(params, tx)
    moments = optax.tree.get(state.opt_state, "mu")["w"]
    assert moments.sharding.is_equivalent_to(split, 2)
