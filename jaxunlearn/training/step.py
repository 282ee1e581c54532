"""The train step, the state it advances, and the optimiser."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.training import nonfinite
from jaxunlearn.training.losses import GROUPING, Loss, Metrics, RetainLoss
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.sparing import sparing


class TrainState(NamedTuple):
    """The state of a training; a checkpoint holds one.

    Attributes:
      step: [] int32, the updates applied so far.
      params: the parameters that train, None in the places of frozen ones.
      opt_state: the optimiser's state, which includes both moments of Adam.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree


@functools.cache
def optimizer(
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    spare: Literal["total", "layer"] | None = None,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8), after clipping the global norm, before `sparing` if asked for.

    Its updates are those of a learning rate of 1, which `train_step` scales. Equal settings give
    one object, which is a static argument of compiled functions: objectives, seeds and learning
    rates share what is compiled.
    """
    adamw = optax.adamw(1.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
    parts = [
        *([] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]),
        adamw,
        *([] if spare is None else [sparing(spare, grouping=GROUPING)]),
    ]
    return optax.chain(*parts) if len(parts) > 1 else adamw


def init_state(params: Tree, tx: optax.GradientTransformation) -> TrainState:
    """A fresh state; the moments are sharded as the parameters are."""
    like = abstract_state(params, tx)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
    return TrainState(step, params, opt_state)


def abstract_state(params: Tree, tx: optax.GradientTransformation) -> Any:
    """Shapes, dtypes and shardings of a state, nothing allocated.

    Args:
      params: arrays or `jax.ShapeDtypeStruct` with shardings.
      tx: the optimiser.

    Returns:
      A TrainState of `jax.ShapeDtypeStruct`.
    """
    shardings = jax.tree.map(lambda p: p.sharding, params)
    replicated = _replicated(jax.tree.leaves(shardings)[0])
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    opt_shapes = jax.eval_shape(tx.init, shapes)
    opt_shardings = optax.tree.map_params(
        tx, lambda _, s: s, opt_shapes, shardings, transform_non_params=lambda _: replicated
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(
        step,
        trees.with_shardings(shapes, shardings),
        trees.with_shardings(opt_shapes, opt_shardings),
    )


@functools.partial(
    jax.jit, static_argnames=("loss", "tx", "accumulate", "guard"), donate_argnames="state"
)
def train_step(
    state: TrainState,
    batch: Tree,
    lr: jax.Array | float,
    frozen: Tree = None,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    guard: RetainLoss | None = None,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      state: donated.
      batch: the input of the loss; where gradients are accumulated, a `Batch` whose rows have a
        leading axis over the parts.
      lr: [], the learning rate, by which the optimiser's updates are scaled.
      frozen: the parameters that `state` lacks, see `effects.partition`; None where it has all. No
        gradient of theirs is formed, and they are not donated.
      loss: (params, batch) -> (scalar, {name: scalar}). To be accumulated it also takes `counts`
        and has a method of that name, as `losses.UnlearnLoss`.
      tx: the optimiser, at a learning rate of 1.
      accumulate: parts whose gradients are added up one after the other. The update is that of the
        whole batch, because every part is divided by the whole batch's counts.
      guard: the loss that the update must not raise to first order; its gradient goes to the
        optimiser's `sparing`.

    Returns:
      The new state, and {"loss", "grad_norm", the loss's own parts}: scalars on the device.
    """
    gradient_of = _accumulated_gradient if accumulate > 1 else _gradient
    (value, parts), gradient = gradient_of(loss, state.params, frozen, batch)
    extra = {}
    if guard is not None:
        (_, guard_parts), extra["retain_gradient"] = gradient_of(guard, state.params, frozen, batch)
        parts = parts | guard_parts
    updates, opt_state = tx.update(gradient, state.opt_state, state.params, **extra)
    updates = jax.tree.map(lambda update: jnp.asarray(lr, update.dtype) * update, updates)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), **parts}
    return TrainState(state.step + 1, params, opt_state), metrics


class Trainer:
    """The state of a training, and the update that a batch makes to it.

    Only this object may hold the state: `train_step` donates it, and any other reference would keep
    its memory from being used again.
    """

    def __init__(
        self,
        state: TrainState,
        loss: Loss,
        tx: optax.GradientTransformation,
        *,
        frozen: Tree = None,
        accumulate: int = 1,
        guard: RetainLoss | None = None,
    ):
        self.state, self._frozen = state, frozen
        self._options: dict[str, Any] = {
            "loss": loss,
            "tx": tx,
            "accumulate": accumulate,
            "guard": guard,
        }

    @property
    def params(self) -> Tree:
        """All parameters as they are now, frozen ones included."""
        return effects.combine(self.state.params, self._frozen)

    def update(self, batch: Tree, lr: float) -> Metrics:
        """Applies one update and returns its metrics, scalars on the device."""
        rate = np.float32(lr)
        self.state, metrics = train_step(self.state, batch, rate, self._frozen, **self._options)
        return metrics

    def blame(self, updates: Iterable[tuple[Tree, float]]) -> str:
        """Names the operation that makes one of some updates not finite, see `nonfinite`.

        Args:
          updates: (batch, learning rate) each; those before the one to blame are applied.
        """

        def results(state: TrainState, batch: Tree, rate: jax.Array, frozen: Tree) -> Tree:
            state, metrics = train_step(state, batch, rate, frozen, **self._options)
            return metrics["loss"], metrics, state

        for batch, lr in updates:
            args = (self.state, batch, np.float32(lr), self._frozen)
            if (operation := nonfinite.first_operation(results, *args)) is not None:
                return operation
            self.update(batch, lr)
        return "operation by operation all values are finite"

    @contextlib.contextmanager
    def parked_moments(self, offload: Offload) -> Iterator[None]:
        """Keeps the optimiser's moments in host memory inside the block, if the run offloads.

        Measurements and evaluations read only the parameters, and need the memory that both moments
        take.
        """
        moments = offload.away(self.state.opt_state)
        self.state = self.state._replace(opt_state=None)
        yield
        self.state = self.state._replace(opt_state=offload.back(moments))


def _gradient(loss: Any, params: Tree, frozen: Tree, batch: Tree) -> Tree:
    """((loss, parts), gradient) of a whole batch."""
    of_trainable = lambda p: loss(effects.combine(p, frozen), batch)
    return jax.value_and_grad(of_trainable, has_aux=True)(params)


def _accumulated_gradient(loss: Any, params: Tree, frozen: Tree, batch: Any) -> Tree:
    """((loss, parts), gradient) of a batch whose rows come in parts along the leading axis."""
    # The constants have no axis of parts: they are put back into each part.
    parts, constants = batch._replace(constants=None), batch.constants
    counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(loss.counts)(parts))

    def part_gradient(part: Any) -> Tree:
        whole = part._replace(constants=constants)
        of_trainable = lambda p: loss(effects.combine(p, frozen), whole, counts)
        return jax.value_and_grad(of_trainable, has_aux=True)(params)

    first, rest = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
    add = lambda total, part: (jax.tree.map(jnp.add, total, part_gradient(part)), None)
    return jax.lax.scan(add, part_gradient(first), rest)[0]


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.NamedSharding):
        return jax.NamedSharding(sharding.mesh, jax.P())
    return sharding
