"""The pure train step, its state, and the optimiser's schedule."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Tree = Any


class State(NamedTuple):
    """What a checkpoint holds."""

    step: jax.Array  # [] int32: updates applied so far
    params: Tree
    opt_state: Tree


def schedule(lr: float, steps: int, warmup: int) -> Callable[[Any], Any]:
    """Linear warm-up from 0 over `warmup` steps, then linear decay to 0 at `steps`."""
    up = optax.linear_schedule(0.0, lr, max(warmup, 1))
    down = optax.linear_schedule(lr, 0.0, max(steps - warmup, 1))
    return optax.join_schedules([up, down], [warmup]) if warmup else down


def optimizer(
    lr: Callable[[Any], Any], *, weight_decay: float = 0.0, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8), after clipping of the global norm where asked."""
    adamw = optax.adamw(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
    return adamw if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def init(params: Tree, tx: optax.GradientTransformation) -> State:
    """A fresh state; the moments are sharded as the parameters are."""
    like = abstract(params, tx)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    return State(jax.device_put(jnp.zeros((), jnp.int32), shardings.step), params, opt_state)


def abstract(params: Tree, tx: optax.GradientTransformation) -> Any:
    """Shapes, dtypes and shardings of a state, nothing allocated.

    Args:
      params: arrays or `jax.ShapeDtypeStruct` with shardings.
      tx: the optimiser.

    Returns:
      A State of `jax.ShapeDtypeStruct`.
    """
    shardings = jax.tree.map(lambda p: p.sharding, params)
    replicated = _replicated(jax.tree.leaves(shardings)[0])
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    opt_shapes = jax.eval_shape(tx.init, shapes)
    opt_shardings = optax.tree.map_params(
        tx, lambda _, s: s, opt_shapes, shardings, transform_non_params=lambda _: replicated
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return State(
        step,
        jax.tree.map(with_sharding, shapes, shardings),
        jax.tree.map(with_sharding, opt_shapes, opt_shardings),
    )


@partial(jax.jit, static_argnames=("loss", "tx"), donate_argnames="state")
def train_step(
    state: State, batch: Tree, *, loss: Callable, tx: optax.GradientTransformation
) -> tuple[State, dict[str, jax.Array]]:
    """One update.

    Args:
      state: donated.
      batch: see `losses`.
      loss: (params, batch) -> (scalar, {name: scalar}).
      tx: the optimiser.

    Returns:
      The new state, and {"loss", "grad_norm", the loss's own parts}: scalars on the device.
    """
    (value, parts), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), **parts}
    return State(state.step + 1, params, opt_state), metrics


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.NamedSharding):
        return jax.NamedSharding(sharding.mesh, jax.P())
    return sharding
