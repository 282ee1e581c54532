"""The pure train step, its state, and the optimiser's schedule."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import effects
from jaxunlearn.run.losses import Guard

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
    lr: Callable[[Any], Any],
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    spare: Literal["total", "layer"] | None = None,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8), after clipping of the global norm, before `sparing` where asked."""
    adamw = optax.adamw(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
    parts = [
        *([] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]),
        adamw,
        *([] if spare is None else [sparing(spare)]),
    ]
    return optax.chain(*parts) if len(parts) > 1 else adamw


class Sparing(NamedTuple):
    """The state of `sparing`."""

    running: Tree  # mean of the retain gradients so far, the newest weighing most


def sparing(
    by: Literal["total", "layer"], *, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Bends updates so that, to first order, they do not raise the retain risk.

    It comes last of a chain. `update` takes the keyword `retain_gradient`, the risk's gradient on
    fresh retain samples; updates are bent (`effects.spare`) against its running mean.

    Args:
      by: the update as a "total", or each "layer" by itself.
      decay: of the running mean, in [0, 1); 0 takes the newest gradient alone.
    """

    def init(params: Tree) -> Sparing:
        return Sparing(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra: Any) -> Any:
        mean = lambda old, new: decay * old + (1 - decay) * new
        running = jax.tree.map(mean, state.running, extra["retain_gradient"])
        return effects.spare(updates, running, by=by), Sparing(running)

    return optax.GradientTransformationExtraArgs(init, update)


def init(params: Tree, tx: optax.GradientTransformation) -> State:
    """A fresh state; the moments are sharded as the parameters are."""
    like = abstract(params, tx)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
    return State(step, params, opt_state)


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


@partial(jax.jit, static_argnames=("loss", "tx", "accumulate"), donate_argnames="state")
def train_step(
    state: State,
    batch: Tree,
    *,
    loss: Any,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
    """One update.

    Args:
      state: donated.
      batch: see `losses`; where it is accumulated, everything but "constants" has a leading axis of
        so many parts.
      loss: (params, batch) -> (scalar, {name: scalar}); to be accumulated it also takes `counts`
        and has a method `counts`, as `losses.Unlearning`.
      tx: the optimiser.
      accumulate: parts whose gradients are added up, one after the other: the update is that of the
        whole batch.

    Returns:
      The new state, and {"loss", "grad_norm", the loss's own parts}: scalars on the device.
    """
    of = _accumulated if accumulate > 1 else _plain
    (value, parts), gradient = of(loss, state.params, batch)
    extra = {}
    if getattr(loss, "guards", False):
        (_, kept), extra["retain_gradient"] = of(Guard(loss), state.params, batch)
        parts = parts | kept
    updates, opt_state = tx.update(gradient, state.opt_state, state.params, **extra)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), **parts}
    return State(state.step + 1, params, opt_state), metrics


def _plain(loss: Any, params: Tree, batch: Tree) -> Tree:
    """((loss, parts), gradient)."""
    return jax.value_and_grad(loss, has_aux=True)(params, batch)


def _accumulated(loss: Any, params: Tree, batch: Tree) -> Tree:
    """((loss, parts), gradient) of a batch in parts along the leading axis."""
    constants = batch["constants"]
    parts = {key: value for key, value in batch.items() if key != "constants"}
    counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(loss.counts)(parts))

    def of(part: Tree) -> Tree:
        whole = part | {"constants": constants}
        return jax.value_and_grad(loss, has_aux=True)(params, whole, counts)

    first, rest = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
    add = lambda total, part: (jax.tree.map(jnp.add, total, of(part)), None)
    return jax.lax.scan(add, of(first), rest)[0]


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.NamedSharding):
        return jax.NamedSharding(sharding.mesh, jax.P())
    return sharding
