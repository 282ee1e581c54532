"""An unlearning step of this library, ready to be timed: `training.step` on packed rows."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import memory
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import order, packing, planning
from jaxunlearn.effects import Cost, programs
from jaxunlearn.models import decoder, sharding
from jaxunlearn.objectives import registry
from jaxunlearn.training import losses
from jaxunlearn.training.arrays import REF_LOGP
from jaxunlearn.training.batch import Batch, LabelCache, Rows
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.references import label_references
from jaxunlearn.training.step import init_state, optimizer, train_step

BETA = 0.1
EPOCHS = 5  # of a run on TOFU


@dataclasses.dataclass(frozen=True)
class Job:
    """The task of both frameworks: NPO by AdamW on the same batches of samples.

    Attributes:
      model: the model's configuration.
      sequences: the samples.
      steps: the sample ids, [batch], of each step that is timed.
      planned: the sample ids of all steps of the run, which share one static shape.
      lr: the learning rate.
      weight_decay: of AdamW.
      width_step: rows are a multiple of so many tokens wide.
    """

    model: decoder.DecoderConfig
    sequences: list[planning.Sample]
    steps: list[np.ndarray]
    planned: list[np.ndarray]
    lr: float
    weight_decay: float = 0.01
    width_step: int = 8

    def real_tokens(self, step: int) -> int:
        return sum(len(self.sequences[i].tokens) for i in self.steps[step])

    def needed_flops(self, step: int) -> int:
        """FLOPs of forward and backward with no padding, no masked score and no unread logit."""
        samples = [self.sequences[i] for i in self.steps[step]]
        tokens, labels = (
            np.array(x) for x in zip(*((len(s.tokens), s.labels) for s in samples), strict=True)
        )
        return int(decoder.GRADIENT * decoder.forward_flops(self.model, tokens, labels).sum())


class Stepper(NamedTuple):
    """The training of one framework, step by step.

    Attributes:
      step: makes the batch of a step, updates, blocks until that is done, and returns the loss.
      computed_tokens: the tokens of a step, padding included.
      params: returns the current parameters, in this library's layout.
      gradient: returns the gradient of the first step after it, in the same layout.
    """

    step: Callable[[int], float]
    computed_tokens: Callable[[int], int]
    params: Callable[[], Tree]
    gradient: Callable[[], Tree]


def job(
    model: decoder.DecoderConfig,
    sequences: list[planning.Sample],
    *,
    steps: int,
    batch_size: int = 16,
    lr: float = 1e-5,
    width_step: int = 8,
) -> Job:
    """The first steps of a run of EPOCHS over these samples."""
    total = order.num_steps(len(sequences), batch_size, EPOCHS)
    if not 1 <= steps <= total:
        raise ValueError(f"steps={steps} must be in 1..{total}, the steps of the run")
    ids = [order.batch_ids(0, step, len(sequences), batch_size) for step in range(total)]
    return Job(model, sequences, ids[:steps], ids, lr, width_step=width_step)


def references(work: Job, params: Tree) -> LabelCache:
    """log p of every label under another model: these parameters, shaken by a tenth of their size.

    A reference equal to the model would make the first loss the same whatever the parameters.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    shaken = [
        leaf + 0.1 * leaf.std() * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    plan = planning.plan_dataset(work.sequences, max_width=work.model.context)
    packed = packing.dataset_batches(work.sequences, plan)
    other = jax.tree.unflatten(structure, shaken)
    log_probs = lambda rows: label_references(other, rows, model=work.model, tap=None).labels
    values = [np.asarray(log_probs(rows)) for rows in packed]
    return LabelCache.gather(packed, values, len(work.sequences))


def matmul_flops(
    size: int,
    half: bool,
    seconds: Callable[[Callable[[], Any]], float],
    precision: str | None = None,
) -> float:
    """FLOPs per second of the product of two square matrices.

    Args:
      size: rows and columns.
      half: in bfloat16, else in float32.
      seconds: measures a call.
      precision: of a float32 product, "default" or "highest"; None leaves it to JAX's settings.
    """
    key, dtype = jax.random.key(0), jnp.bfloat16 if half else jnp.float32
    a = jax.random.normal(key, (size, size), dtype)
    product = jax.jit(partial(jnp.matmul, precision=precision))
    return 2 * size**3 / seconds(lambda: jax.block_until_ready(product(a, a)))


class Training:
    """This library's training of a job; use it inside `jax.set_mesh`.

    Attributes:
      state: parameters and moments; each update donates it.
      computed_tokens: the tokens of a step, padding included.
      shape: rows x width of a batch.
    """

    def __init__(self, work: Job, params: Tree, reference: LabelCache):
        """Plans the batches and makes the moments; nothing is compiled yet.

        Args:
          work: what to do.
          params: the parameters to start from, on the device; the first update donates them.
          reference: log p of every label under the reference.
        """
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self._work, self._reference = work, reference
        self._lr = jnp.float32(work.lr)
        self._layout = Layout(mesh, work.model.context, work.width_step, batch_tokens=16384)
        self._plan = self._layout.plan_steps(work.sequences, work.planned)
        term = losses.Term(registry.get("npo", beta=BETA), work.model, "sequence_sum", 0, "forget")
        tx = optimizer(weight_decay=work.weight_decay)
        self._static = {"loss": losses.UnlearnLoss(term), "tx": tx}
        shardings = sharding.param_shardings(work.model, mesh)
        self.state = init_state(jax.device_put(params, shardings), tx)
        self.computed_tokens = self._plan.rows * self._plan.width
        self.shape = f"{self._plan.rows} x {self._plan.width}"

    def batch(self, step: int) -> Batch:
        """Packs the samples of a step and puts them on the device."""
        rows = _rows(self._work, self._plan, self._reference, step)
        return self._layout.shard_rows(Batch(rows))

    @cached_property
    def program(self) -> Any:
        """The compiled `train_step`."""
        return train_step.lower(self.state, self.batch(0), self._lr, **self._static).compile()

    @cached_property
    def cost(self) -> Cost:
        """Bytes and FLOPs of the program, which forecasts a step."""
        like = lambda tree: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
        args = like(self.state), like(self.batch(0)), like(self._lr)
        return programs.cost_of_compiled(self.program, train_step, *args, **self._static)

    def update(self, batch: Batch) -> Any:
        """Applies one update; returns its metrics, on the device."""
        self.state, metrics = self.program(self.state, batch, self._lr)
        return metrics


def stepper(work: Job, params: Tree, reference: LabelCache) -> Stepper:
    """This library's step. The parameters are copied; run it inside `jax.set_mesh`."""
    training = Training(work, jax.tree.map(jnp.copy, params), reference)

    def step(i: int) -> float:
        metrics = training.update(training.batch(i))
        jax.block_until_ready(training.state)
        return float(metrics["loss"])

    def gradient() -> Tree:
        return jax.tree.map(first_gradient, optax.tree.get(training.state.opt_state, "mu"))

    return Stepper(
        step, lambda _: training.computed_tokens, lambda: training.state.params, gradient
    )


def first_gradient(moment: Any) -> Any:
    """The gradient of the first step from Adam's first moment after it, which decays by 0.9."""
    return moment / (1 - 0.9)


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Bytes of the device's memory that JAX holds at most during a call; None on a CPU."""
    peak = memory.peak_of(call)
    return None if peak is None else peak.bytes


def _rows(work: Job, plan: planning.Plan, reference: LabelCache, step: int) -> Rows:
    ids = work.steps[step]
    packed = packing.pack_step(work.sequences, ids, plan, sample_ids=range(len(ids)))
    return Rows(packed, {REF_LOGP.name: reference.lay_out(packed, ids)})
