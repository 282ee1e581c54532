"""Effects of one job at each precision, and float64's, with which they are compared."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rounding
from benchmarks.precision_job import (
    Job,
    kl_term,
    make_batch,
    on_host,
    reference_outputs,
    term,
)
from jaxunlearn import effects
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects.programs import SingleLoss, gradient_sums, pg_by_gates
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.batch import Batch, Rows
from jaxunlearn.training.losses import GROUPING, Risk, SampleLogProbs

OBJECTIVES = ("ga", "npo", "tnpo", "wga", "rmu", "po", "ceu", "kl")
RISKS = ("unlearn", "retain")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to compute.

    Attributes:
      name: for the tables.
      meaning: what it does to a product.
      dtype: of the computation, `DecoderConfig.dtype`.
      products: the emulation of its products; None multiplies as the device does.
      precision: what float32 products ask the device for; a CPU does "highest" whatever is asked.
    """

    name: str
    meaning: str
    dtype: str = "float32"
    products: rounding.Products | None = None
    precision: Literal["highest", "high", "default"] = "highest"

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled, its products being those of this setting."""
        if self.products is not None:
            function = rounding.with_products(function, self.products)
        return jax.jit(function)

    def model(self, model: DecoderConfig) -> DecoderConfig:
        """A model computed at this setting."""
        return dataclasses.replace(model, dtype=self.dtype, precision=self.precision)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """What must be set while this setting computes: float64 is off elsewhere."""
        with contextlib.ExitStack() as stack:
            if self.dtype == "float64":
                stack.enter_context(jax.enable_x64(True))
                cpu = jax.local_devices(backend="cpu")[0]
                stack.enter_context(jax.default_device(cpu))
            yield


EXACT = Setting("float64", "float64 throughout", dtype="float64")
BFLOAT16 = Setting(
    "bfloat16", "`compute.dtype: bfloat16`: products and activations", dtype="bfloat16"
)
EMULATED = (
    Setting("float32", "float32 products"),
    Setting(
        "bf16x3",
        "three products of operands split into bfloat16 parts (`high` on TPUs)",
        products=rounding.split_operands,
    ),
    Setting(
        "TF32",
        "operands rounded to 10 mantissa bits (`default` on GPUs)",
        products=rounding.round_operands(10),
    ),
    Setting(
        "bf16x1",
        "operands rounded to 7 mantissa bits (`default` on TPUs)",
        products=rounding.round_operands(7),
    ),
    BFLOAT16,
)
"""On a CPU: its own float32, and the products of accelerators on it."""

MEASURED = (
    Setting("highest", "float32 products"),
    Setting("high", "what the device does for `high`", precision="high"),
    Setting("default", "what the device does unasked", precision="default"),
    BFLOAT16,
)
"""On an accelerator: what it does itself."""


class Effects(NamedTuple):
    """All effects of a job, by layer.

    Attributes:
      g: [objectives, risks, layers], e = grad R . grad L.
      pg: [risks, samples, layers], grad R . grad log p(s).
    """

    g: np.ndarray
    pg: np.ndarray


class Scales(NamedTuple):
    """The products of norms that errors are compared with, in the layouts of `Effects`.

    Attributes:
      g: ||grad R|| ||grad L|| of each layer.
      pg: ||grad R|| ||grad log p(s)|| of each layer.
      g_total: the same of whole gradients, [objectives, risks].
      pg_total: [risks, samples].
    """

    g: np.ndarray
    pg: np.ndarray
    g_total: np.ndarray
    pg_total: np.ndarray


def settings() -> tuple[Setting, ...]:
    """The settings that this machine's device can tell apart."""
    return EMULATED if jax.default_backend() == "cpu" else MEASURED


def measure(
    job: Job, setting: Setting, objectives: Sequence[str] = OBJECTIVES
) -> tuple[Effects, np.ndarray]:
    """The effects of a job as a run computes them at this setting, reference values included.

    Returns:
      The effects, and [risks + objectives, layers], the squared norms of the gradients.
    """
    with setting.computing():
        model = setting.model(job.model)
        wide = jnp.float64 if setting.dtype == "float64" else jnp.float32
        theta, reference = (
            jax.tree.map(lambda x: jnp.asarray(x, wide), tree)
            for tree in (job.params, job.reference)
        )
        outputs = setting.compile(partial(reference_outputs, model))(reference, job.packs)
        batch = make_batch(job, model, reference, outputs)
        gradient = partial(_gradient, setting, theta)
        nll = Risk(model, "sequence_sum")
        directions = tuple(gradient(nll, rows) for rows in (batch.forget, batch.retain))
        rows, squares = [], [_dots(risk, risk) for risk in directions]
        for name in objectives:
            along = _objective_gradient(name, model, batch, directions[0], gradient)
            rows.append([_dots(risk, along) for risk in directions])
            squares.append(_dots(along, along))
        pg = _pg_effects(setting, job, model, theta, directions)
        return Effects(np.array(rows), pg), np.array(squares)


def _objective_gradient(
    name: str, model: DecoderConfig, batch: Batch, risk: Tree, gradient: Callable[..., Tree]
) -> Tree:
    if name == "ga":
        return jax.tree.map(jnp.negative, risk)  # as a run does: L is - R
    return gradient(kl_term(model) if name == "kl" else term(name, model), batch)


def _gradient(setting: Setting, params: Tree, loss: Any, batch: Any) -> Tree:
    """The gradient of a loss over a batch, which is the whole set."""
    program = partial(gradient_sums, losses_fn=SingleLoss(loss), shardings=_unsharded(params))
    _, counts, gradients = setting.compile(program)(params, batch)
    return jax.tree.map(lambda x: x / counts["loss"], gradients["loss"])


def _pg_effects(
    setting: Setting, job: Job, model: DecoderConfig, params: Tree, directions: tuple[Tree, ...]
) -> np.ndarray:
    program = partial(pg_by_gates, fn=SampleLogProbs(model), by="layer", grouping=GROUPING)
    values = np.asarray(setting.compile(program)(params, Rows(job.packs.forget), directions))
    ids = np.asarray(job.packs.forget.sample_ids).ravel()
    ordered = np.zeros((len(values), int((ids >= 0).sum()), values.shape[-1]), values.dtype)
    ordered[:, ids[ids >= 0]] = values[:, ids >= 0]
    return ordered


def sample_norms(job: Job) -> np.ndarray:
    """Squared norms of the gradient of each sample's log p by layer, in float32.

    Returns:
      [samples, layers]
    """
    logp = SampleLogProbs(job.model)

    @jax.jit
    def norms(params: Tree, rows: Rows) -> jax.Array:
        def one(row: Rows) -> jax.Array:
            row = jax.tree.map(lambda x: x[None], row)
            along = jax.grad(lambda p: logp(p, row).sum())(params)
            return effects.layer_dots(along, along, grouping=GROUPING)

        return jax.lax.map(one, rows)

    return np.asarray(norms(job.params, Rows(jax.tree.map(jnp.asarray, job.packs.alone))))


def scales(squares: np.ndarray, samples: np.ndarray) -> Scales:
    """The scales of errors.

    Args:
      squares: of `measure`, in float64.
      samples: of `sample_norms`.
    """
    norms, totals = np.sqrt(squares), np.sqrt(squares.sum(-1))
    risks, objectives = norms[: len(RISKS)], norms[len(RISKS) :]
    own, own_total = np.sqrt(samples), np.sqrt(samples.sum(-1))
    return Scales(
        g=objectives[:, None] * risks[None],
        pg=risks[:, None] * own[None],
        g_total=totals[len(RISKS) :, None] * totals[None, : len(RISKS)],
        pg_total=totals[: len(RISKS), None] * own_total[None],
    )


def layers(job: Job) -> list[str]:
    """The names of the layers."""
    return list(effects.layer_names(job.params, grouping=GROUPING))


@jax.jit
def _layer_dots(a: Tree, b: Tree) -> jax.Array:
    return effects.layer_dots(a, b, grouping=GROUPING)


def _dots(a: Tree, b: Tree) -> np.ndarray:
    return on_host(_layer_dots(a, b))


def _unsharded(params: Tree) -> tuple[None, ...]:
    return tuple(None for _ in jax.tree.leaves(params))
