"""Section effects: G-effects and PG-effects, in units of one gradient of the same batch."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import pg_jax, pg_jobs, pg_measure
from benchmarks.accelerator.inputs import LARGE, Counts, Setting
from benchmarks.accelerator.ledger import Row, Values
from benchmarks.pg_jobs import Job
from benchmarks.pg_way import Way
from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import programs
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.objectives import reduce_losses, registry
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import GROUPING, Risk, TokenLogProbs

COLUMNS = {
    "fed": ("batch", "text"),
    "seconds": ("s", "seconds"),
    "over_gradient": ("x gradient", "ratio"),
    "flops_over_gradient": ("FLOPs x", "ratio"),
    "mfu": ("MFU", "percent"),
    "temp_bytes": ("temp GB", "giga"),
    "gradient_seconds": ("gradient s", "seconds"),
    "gradient_mfu": ("its MFU", "percent"),
}
BATCH = "16k tokens"  # of a pass over a whole set, as a run makes it
LIKELIHOOD = ("ga", "wga", "npo", "tnpo", "wtnpo", "satimp")  # at one theta, from one forward pass
# Weights of the 7B in bfloat16, so that K = 2 directions fit next to them on a card of 80 GB.
MODELS = {"1b": ("float32", "none"), "7b": ("bfloat16", "full")}
LENGTHS = (64, 256, 1024)


class Case(NamedTuple):
    """One way on one batch.

    Attributes:
      model: of MODELS.
      way: a key of WAYS.
      k: directions.
      batch: a batch by its name, or tokens of samples of one length.
      attention: of the way and of its gradient.
    """

    model: str
    way: str
    k: int
    batch: str | int = BATCH
    attention: str = "xla"

    @property
    def name(self) -> str:
        batch = f"length {self.batch}" if isinstance(self.batch, int) else self.batch
        return f"{self.model}, {self.way}, K={self.k}, {batch}, {self.attention}"


@dataclasses.dataclass(frozen=True)
class Objectives:
    """Several objectives of the log-probabilities of one forward pass, for `programs.g_by_jvp`."""

    model: DecoderConfig
    names: tuple[str, ...] = LIKELIHOOD

    def __call__(self, params: Tree, rows: Rows) -> dict[str, tuple[jax.Array, jax.Array]]:
        logp, mask = TokenLogProbs(self.model)(params, rows), jnp.asarray(rows.mask)
        arrays = {"logp": logp, "ref_logp": jnp.full_like(logp, -1.0), "mask": mask}
        losses = {
            name: objective.loss(**{array: arrays[array] for array in objective.arrays})
            for name in self.names
            for objective in [registry.get(name)]
        }
        return {name: reduce_losses(each, mask, "sequence_sum") for name, each in losses.items()}


def rows(setting: Setting) -> list[Row]:
    """Both models' ways on the batch of a run, then cost against batch size and length."""
    setting.check_lengths()
    core = [("jvp", 2), ("gates", 2), ("jvp", 1), ("gates", 1)]
    more = [
        ("jvp by token", 2),
        ("G-effect, full", 1),
        ("G-effect, gates", 1),
        (f"G-effects of {len(LIKELIHOOD)} objectives", 1),
    ]
    grown: list[str | int] = ["2k tokens", LARGE, *LENGTHS]
    if setting.rehearsal:
        grown = grown[-1:]  # the other sizes would be no further code
    cases = [Case(model, *way) for model in MODELS for way in core]
    cases += [Case(model, *way) for model in MODELS for way in more]
    cases += [Case(model, "gates", 2, attention="cudnn") for model in MODELS]
    if setting.rehearsal:
        cases = [case for case in cases if case.model == "1b" or case.way == "gates"]
    cases += [Case("1b", way, 2, batch) for batch in grown for way in ("jvp", "gates")]
    return [Row(case.name, partial(measure, setting, case)) for case in cases]


def measure(setting: Setting, case: Case) -> Values:
    """A way and the gradient of its batch, in turns."""
    key = case.model, case.batch, case.attention
    job, unit = setting.kept.get(key, partial(_job, setting, case))
    way = WAYS[case.way](job, case.k)
    for each in (unit, way):
        each.call()  # allocates what later calls have ready
    seconds = pg_measure.times([unit, way], setting.rounds)
    own, gradient = seconds[id(way)], seconds[id(unit)]
    flops, unit_flops = way.flops or 0, unit.flops or 1
    return {
        "fed": way.rows,
        "tokens": sum(len(sample.tokens) for sample in job.sequences),
        "parameters": MODELS[case.model][0],
        "remat": job.config.remat,
        "seconds": own,
        "gradient_seconds": gradient,
        "over_gradient": own / gradient,
        "flops_over_gradient": flops / unit_flops,
        "mfu": setting.mfu(flops, own, job.config),
        "gradient_mfu": setting.mfu(unit_flops, gradient, job.config),
        "temp_bytes": way.temp,
        "gradient_temp_bytes": unit.temp,
    }


def _job(setting: Setting, case: Case) -> tuple[Job, Way]:
    """Random weights, two directions and samples, with their compiled gradient."""
    dtype, remat = MODELS[case.model]
    model = setting.model(case.model, attention=case.attention, remat=remat)
    tokens = setting.batch_tokens(case.batch if isinstance(case.batch, str) else BATCH)
    job = pg_jobs.make_job(model, _counts(setting, case, tokens), 2, dtype, batch_tokens=2**30)
    (unit,) = pg_jax.batch_gradient(job, 0)
    return job, unit


def _counts(setting: Setting, case: Case, tokens: int) -> Counts:
    if isinstance(case.batch, str):
        return setting.counts(tokens)
    length = min(case.batch, tokens)
    return pg_jobs.equal_lengths(max(1, tokens // length), length)


def _jvp(job: Job, k: int) -> Way:
    return pg_jax.jvp(job, k)[0]


def _gates(job: Job, k: int) -> Way:
    return pg_jax.gates(job, k, job.config.remat)[0]


def _by_token(job: Job, k: int) -> Way:
    logp = TokenLogProbs(job.config)
    token_logp = lambda params, packed, probe=None: logp(params, Rows(packed), probe)
    fn = pg_jax.by_library(programs.pg_by_jvp, token_logp, by="token")
    return pg_jax.compiled_way("jvp by token", job, k, pg_jobs.packed(job), fn, gives="token")


def _formed(job: Job, k: int) -> Way:
    """The effect of a direction on the risk, by layer, from the risk's gradient."""
    losses = programs.SingleLoss(Risk(job.config, "sequence_sum"))
    shardings = trees.named_shardings(job.params)

    def fn(params: Tree, packed: Any, directions: tuple[Tree, ...]) -> jax.Array:
        options = {"losses_fn": losses, "shardings": shardings}
        _, _, gradients = programs.gradient_sums(params, Rows(packed), **options)
        return effects.layer_dots(gradients["loss"], directions[0], grouping=GROUPING)

    return _uncollected("G-effect, full", job, k, fn)


def _gated(job: Job, k: int) -> Way:
    """The same without the risk's gradient."""
    risk = Risk(job.config, "sequence_sum")

    def fn(params: Tree, packed: Any, directions: tuple[Tree, ...]) -> jax.Array:
        options = {"risk_fn": risk, "by": "layer", "grouping": GROUPING}
        return programs.g_by_gates(params, Rows(packed), directions[0], **options)[0]

    return _uncollected("G-effect, gates", job, k, fn)


def _of_objectives(job: Job, k: int) -> Way:
    losses = Objectives(job.config)

    def fn(params: Tree, packed: Any, directions: tuple[Tree, ...]) -> jax.Array:
        found = programs.g_by_jvp(params, Rows(packed), directions[0], losses_fn=losses)
        return jnp.stack([effect / count for effect, count in found.values()])

    return _uncollected("G-effects of objectives", job, k, fn)


def _uncollected(name: str, job: Job, k: int, fn: pg_jax.Program) -> Way:
    """A way whose values are of the whole batch, so that they are not sorted by sample."""
    return pg_jax.compiled_way(name, job, k, pg_jobs.packed(job), fn, by_sample=False)


WAYS = {
    "jvp": _jvp,
    "gates": _gates,
    "jvp by token": _by_token,
    "G-effect, full": _formed,
    "G-effect, gates": _gated,
    f"G-effects of {len(LIKELIHOOD)} objectives": _of_objectives,
}
