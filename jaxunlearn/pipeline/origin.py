"""theta_0: the model from which every objective of a run starts."""

from typing import Any

import jax

from jaxunlearn.core.trees import Tree
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.pipeline.prepare import Prepared

ADAPTERS = 1
"""Folded into the seed's key, from which new adapters are drawn."""


def starting_params(prepared: Prepared, params: Tree) -> Tree:
    """The parameters with which unlearning begins, in the types in which the run keeps them.

    Args:
      prepared: the run.
      params: of the plain model, fine-tuned or as it was given.

    Returns:
      The parameters of `prepared.unlearn_model`: `params`, and beside them the adapters of the
      configuration, which are the same for every objective.
    """
    if prepared.unlearn_model.lora is not None:
        params = decoder.add_adapters(params, _adapters(prepared))
    return prepared.scope.as_kept(params)


def _adapters(prepared: Prepared) -> Tree:
    """The adapters that unlearning begins with: those of `train.lora.start`, or new ones."""
    model, start = prepared.unlearn_model, prepared.config.train.lora.start
    shardings = sharding.param_shardings(model, prepared.mesh)
    if start is not None:
        return hf.load_adapters(hf.resolve_adapter(start), model, shardings)
    own: dict[str, Any] = {}
    for leaf in decoder.adapter_leaves(model):
        leaf.put(own, leaf.get(shardings))
    key = jax.random.fold_in(jax.random.key(prepared.config.seed), ADAPTERS)
    return jax.jit(lambda key: decoder.init_adapters(key, model), out_shardings=own)(key)
