"""Gradients of an objective and of both risks at one theta, and the effects computed from them."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.batch import Batch, Split
from jaxunlearn.training.losses import (
    GROUPING,
    Risk,
    RiskAndObjective,
    SampleLogProbs,
    Term,
    TokenLogProbs,
)
from jaxunlearn.training.offload import Offload


class UnlearnGradients(NamedTuple):
    """The gradients of a pass over D_u.

    Attributes:
      risk: R(D_u) and its gradient.
      objective: L_u(D_u) and its gradient.
    """

    risk: effects.Gradient
    objective: effects.Gradient


@dataclasses.dataclass(frozen=True)
class MeasuredRisk:
    """A risk R(D) at one theta, and the effects of directions on it.

    Attributes:
      risk: R.
      split: D.
      gradient: R(D) and its gradient, parked; None where effects are read through gates, which
        takes a pass over D for each direction but keeps no gradient in memory.
      trainable: which parameters take part.
    """

    risk: Risk
    split: Split
    gradient: effects.Gradient | None
    trainable: effects.Trainable = None

    def effect(self, params: Tree, direction: Tree, offload: Offload) -> effects.GEffect:
        """The G-effect of a direction on the risk, by layer.

        Args:
          params: theta.
          direction: the gradient of an objective, None at frozen parameters.
          offload: how gradients are parked.
        """
        if self.gradient is None:
            return self._gated(params, direction)
        return effects.g_effect_between(
            offload.back(self.gradient.gradient), direction, grouping=GROUPING
        )

    def predicted_change(self, old: Tree, new: Tree, offload: Offload) -> np.ndarray:
        """grad R(old) . (new - old) by layer: the change of the risk to first order.

        Args:
          old: theta's parameters that train, parked.
          new: later parameters, all of them.
          offload: how `old` and the gradient are parked.

        Returns:
          [layers], in the order of `effects.layer_names`.
        """
        new, frozen = effects.partition(new, self.trainable)
        if self.gradient is None:
            own = offload.back(old)
            params = effects.combine(own, frozen)
            return trees.on_host(self._gated(params, difference(new, own)).value)
        return trees.on_host(_moved_dots(self.gradient.gradient, new, old, offload))

    def _gated(self, params: Tree, direction: Tree) -> effects.GEffect:
        """The effect of a direction at theta, read through gates."""
        return effects.g_effect(
            self.risk,
            params,
            self.split.batches,
            direction,
            method="gates",
            grouping=GROUPING,
            trainable=self.trainable,
        )


@jax.jit
def difference(new: Tree, old: Tree) -> Tree:
    """`new - old`, leaf by leaf, in float32, sharded as they are."""
    return trees.subtract(new, old)


def unlearn_gradients(
    params: Tree, term: Term, batches: Sequence[Batch], trainable: effects.Trainable = None
) -> UnlearnGradients:
    """grad R(D_u) and grad L_u(D_u) from one forward pass.

    Args:
      params: theta.
      term: the objective.
      batches: all of D_u, from `StepBatches.measured`.
      trainable: which parameters have a gradient.
    """
    losses = RiskAndObjective(term)
    gradients = effects.dataset_gradients(losses, params, batches, trainable=trainable)
    risk = gradients["risk"]
    # Plain ascent minimises -R: its gradient is known without a backward pass of its own.
    objective = gradients["objective"] if "objective" in gradients else _negative(risk)
    return UnlearnGradients(risk, objective)


def objective_gradient(
    params: Tree, term: Term, batches: Sequence[Batch], trainable: effects.Trainable = None
) -> effects.Gradient:
    """grad L_u(D_u) alone, see `unlearn_gradients`."""
    return effects.dataset_gradient(term, params, batches, trainable=trainable)


def token_effects(
    params: Tree,
    model: DecoderConfig,
    forget: Split,
    directions: Mapping[str, Tree],
    trainable: effects.Trainable = None,
) -> dict[str, np.ndarray]:
    """PG-effects of every label token of D_u.

    Args:
      params: theta.
      model: its configuration.
      forget: D_u.
      directions: {risk: its gradient}.
      trainable: which parameters take part.

    Returns:
      {risk: [n, S]}, 0 off the labels.
    """
    # Forward mode gives all tokens in one pass, and fused attention has no forward mode.
    logp = TokenLogProbs(model.with_forward_mode())
    options: dict[str, Any] = {"by": "token", "method": "jvp", "grouping": GROUPING}
    options["trainable"] = trainable
    values = effects.pg_effect(logp, params, forget.batches, directions, **options)
    return {risk: _by_sample(forget, value) for risk, value in values.items()}


def row_effects(
    params: Tree,
    model: DecoderConfig,
    forget: Split,
    directions: Mapping[str, Tree],
    by: str,
    trainable: effects.Trainable = None,
) -> dict[str, np.ndarray]:
    """PG-effects of every sample of D_u by layer or tensor, from one reverse pass through gates.

    Args:
      params, model, forget, directions: as in `token_effects`.
      by: "layer" or "tensor": the columns are `effects.layer_names` or `effects.tensor_names`.
      trainable: which parameters take part.

    Returns:
      {risk: [n, layers or tensors]}.
    """
    logp, batches = SampleLogProbs(model), forget.batches
    options: dict[str, Any] = {"by": by, "method": "gates", "grouping": GROUPING}
    options["trainable"] = trainable
    values = effects.pg_effect(logp, params, batches, directions, **options)
    return {risk: _by_sample(forget, value) for risk, value in values.items()}


def _by_sample(split: Split, values: np.ndarray) -> np.ndarray:
    """Values of all slots, batch after batch, in sample order."""
    sizes = [packed.sample_ids.size for packed in split.packed]
    return split.by_sample(np.split(values, np.cumsum(sizes)[:-1]))


def _moved_dots(gradient: Tree, new: Tree, old: Tree, offload: Offload) -> jax.Array:
    """gradient . (new - old) by layer, [layers]; brings back one parked tensor at a time."""
    leaves = list(zip(*map(jax.tree.leaves, (gradient, new, old)), strict=True))

    def layer_dots(group: effects.Group) -> jax.Array:
        keep = 1 if group.stacked else 0
        tensors = (leaves[i] for i in group.leaves)
        dots = [_moved_dot(offload.back(g), n, offload.back(o), keep=keep) for g, n, o in tensors]
        return jnp.atleast_1d(jnp.sum(jnp.stack(dots), axis=0))

    return jnp.concatenate([layer_dots(group) for group in GROUPING.groups(new)])


@partial(jax.jit, static_argnames="keep")
def _moved_dot(gradient, new, old, *, keep):
    wide = trees.wide
    product = wide(gradient) * (wide(new) - wide(old))
    return jnp.sum(product, axis=tuple(range(keep, product.ndim)))


@jax.jit
def _negative(tree):
    return jax.tree.map(jnp.negative, tree)
