"""Says where a model broke whose loss is no longer finite: the first layer, and the samples."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.measurement.statistics import Statistics
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.batch import Split


class Divergence(NamedTuple):
    """The first state of a training at which the loss is not finite.

    Attributes:
      step: t; the loss of theta_t is not finite, that of theta_{t-1} was.
      layer: the first layer, in the order of the forward pass, whose output on D_u is not finite;
        None where all of D_u has finite log-probabilities, as under a retain term that broke.
      sample: the first sample of D_u whose log-probability is not finite; None as above.
      samples: how many samples of D_u these are.
      operation: the operation to blame, in words, see `nonfinite`; None where nobody asked for it.
    """

    step: int
    layer: str | None
    sample: int | None
    samples: int
    operation: str | None = None

    def sentence(self) -> str:
        """What broke, for people."""
        words = f"the loss before the update of step {self.step} is not finite"
        if self.layer is not None:
            words += (
                f": on {self.samples} forget samples, first on sample {self.sample}, and in the"
                f" forward pass first after {self.layer}"
            )
        return words if self.operation is None else f"{words}; {self.operation}"


def diagnose(
    step: int, params: Tree, stats: Statistics, forget: Split, model: DecoderConfig
) -> Divergence:
    """Finds the first layer and the samples whose values are not finite.

    Args:
      step: t.
      params: theta_t.
      stats: of D_u at theta_t.
      forget: D_u.
      model: its configuration.
    """
    broken = np.flatnonzero(~np.isfinite(stats.logp).all(-1))
    if not broken.size:
        return Divergence(step, None, None, 0)
    layer = _first_layer(params, forget, model)
    return Divergence(step, layer, int(broken[0]), int(broken.size))


def _first_layer(params: Tree, forget: Split, model: DecoderConfig) -> str:
    """The first layer after which a hidden state of D_u, or else a logit, is not finite.

    What is not finite stays so in all later layers, so that the first one is found by halving the
    range: a number of blocks is compiled only for each try.
    """
    low, high = 0, model.num_layers + 1  # the hidden state after `high` blocks is not finite
    while low < high:
        middle = (low + high) // 2
        if middle <= model.num_layers and _finite_after(params, forget, model, middle):
            low = middle + 1
        else:
            high = middle
    if low > model.num_layers:
        return "the logits of embed" if model.tied else "lm_head"
    if low == 0:
        return "embed"
    # The states after all blocks are known after the final norm alone.
    return f"block_{low - 1}" + " or norm" * (low == model.num_layers)


def _finite_after(params: Tree, forget: Split, model: DecoderConfig, blocks: int) -> bool:
    """Whether all hidden states that predict labels of D_u are finite after so many blocks."""
    finite = [_finite(params, rows.packed, model=model, blocks=blocks) for rows in forget.batches]
    return all(bool(trees.on_host(x)) for x in finite)


@partial(jax.jit, static_argnames=("model", "blocks"))
def _finite(params: Tree, packed: Any, *, model: DecoderConfig, blocks: int) -> jax.Array:
    hidden = decoder.forward(params, packed, model, head=None, tap=blocks).hidden
    assert hidden is not None  # there is a tap
    # A row's labels come first; the entries behind them are padding.
    counts = jnp.asarray(packed.mask).sum((1, 2))
    real = jnp.arange(hidden.shape[1]) < counts[:, None]
    return jnp.all(jnp.isfinite(hidden).all(-1) | ~real)
