"""The ways to PG-effects in JAX: the library's three, and what one would write without it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pg_jobs
from benchmarks.pg_jobs import Feed, Job
from benchmarks.pg_way import UNIT, Builder, Way, require_free
from jaxunlearn.core import trees
from jaxunlearn.data.packing import unpack
from jaxunlearn.effects import Grouping, count_flops, programs
from jaxunlearn.models import decoder

Tree = Any
# (parameters, a batch, directions) -> [K, slots(, layers)]
Program = Callable[[Tree, Any, tuple[Tree, ...]], Any]
DIFFERENCE_STEP = 1e-2  # of a finite difference, divided by the norm of the direction


@functools.cache
def sample_logp(config: decoder.DecoderConfig) -> Callable[..., jax.Array]:
    """(params, packed, probe) -> log p of every slot, [B]."""

    def logp(params, packed, probe=None):
        return unpack(decoder.forward(params, packed, config, probe=probe).labels, packed).sum(-1)

    return logp


def batch_gradient(job: Job, k: int) -> list[Way]:
    """One ordinary gradient: the unit of cost."""
    logp = sample_logp(job.config)
    fn = lambda params, batch, _: jax.grad(lambda p: -logp(p, batch).mean())(params)
    return [compiled_way(UNIT, job, 0, pg_jobs.packed(job), fn, gives="-")]


def batch_gradient_remat(job: Job, k: int) -> list[Way]:
    (way,) = batch_gradient(job._replace(config=_remat(job.config, "full")), k)
    return [dataclasses.replace(way, name="batch gradient, remat")]


def jvp(job: Job, k: int) -> list[Way]:
    fn = by_library(programs.pg_by_jvp, sample_logp(job.config), by="sample")
    return [compiled_way("jvp", job, k, pg_jobs.packed(job), fn, gives="sample (or token)")]


def gates(job: Job, k: int, remat: str = "none") -> list[Way]:
    fn = by_library(programs.pg_by_gates, sample_logp(_remat(job.config, remat)), by="layer")
    name = "gates" if remat == "none" else "gates, remat"
    return [compiled_way(name, job, k, pg_jobs.packed(job), fn, gives="sample x layer")]


def vmap(job: Job, k: int) -> list[Way]:
    """The definition: a gradient a sample, all at once, then dots."""

    def fn(params, batch, directions):
        rows = batch.tokens.shape[0]
        compute = by_library(
            programs.pg_by_vmap, sample_logp(job.config), by="sample", microbatch=rows
        )
        return compute(params, batch, directions)

    return [compiled_way("vmap(grad), dot", job, k, pg_jobs.buckets(job), fn)]


def mapped(job: Job, k: int) -> list[Way]:
    fn = lambda params, batch, directions: (
        jax.lax.map(
            lambda row: _dots(job.config, params, jax.tree.map(lambda x: x[None], row), directions),
            batch,
        ).T
    )
    return [compiled_way("lax.map(grad), dot", job, k, pg_jobs.buckets(job), fn)]


def loop(job: Job, k: int) -> list[Way]:
    """A Python loop over samples: a compiled gradient and dots for every width of a row."""
    fn = lambda params, row, directions: _dots(job.config, params, row, directions)[:, None]
    return [compiled_way("loop of grad, dot", job, k, pg_jobs.singles(job), fn)]


def difference(job: Job, k: int) -> list[Way]:
    """[log p(theta + h v) - log p(theta - h v)] / 2h."""
    logp = sample_logp(job.config)

    def slope(params, batch, v):
        step = DIFFERENCE_STEP / trees.norm(v)
        at = lambda h: jax.tree.map(lambda p, u: p + (h * u).astype(p.dtype), params, v)
        shifted = lambda h: logp(at(h), batch)
        return (shifted(step) - shifted(-step)) / (2 * step)

    fn = lambda params, batch, directions: jnp.stack([slope(params, batch, v) for v in directions])
    return [compiled_way("finite difference", job, k, pg_jobs.packed(job), fn, exact=False)]


def ways(job: Job) -> dict[str, Builder]:
    """The builders of one job, by name."""
    builders = {
        UNIT: batch_gradient,
        "batch gradient, remat": batch_gradient_remat,
        "jvp": jvp,
        "gates": gates,
        "gates, remat": functools.partial(gates, remat="full"),
        "vmap(grad), dot": vmap,
        "lax.map(grad), dot": mapped,
        "loop of grad, dot": loop,
        "finite difference": difference,
    }
    if job.config.remat == "full":
        del builders["batch gradient, remat"]  # the unit is that already
    return {name: functools.partial(builder, job) for name, builder in builders.items()}


def _remat(config: decoder.DecoderConfig, remat: str) -> decoder.DecoderConfig:
    return dataclasses.replace(config, remat=remat)


def by_library(evaluator: Callable, logp: Callable, **options: Any) -> Program:
    """One of `effects.programs` as a program of a way."""
    options |= {"fn": logp, "grouping": Grouping(stacked=decoder.STACKED)}
    return lambda params, batch, directions: evaluator(params, batch, directions, **options)


def _dots(config: decoder.DecoderConfig, params: Tree, row: Any, directions: tuple) -> jax.Array:
    """[K] of a batch that is one sample."""
    gradient = jax.grad(lambda p: sample_logp(config)(p, row).sum())(params)
    return jnp.stack([trees.dot(gradient, v) for v in directions])


def compiled_way(
    name: str,
    job: Job,
    k: int,
    feed: Feed,
    fn: Program,
    *,
    by_sample: bool = True,
    **more: Any,
) -> Way:
    """Compiles `fn` for the shapes of a feed; nothing runs.

    Args:
      name: of the way.
      job: whose parameters and first `k` directions the way reads.
      k: number of directions.
      feed: the rows.
      fn: (parameters, a batch, directions) -> [K, slots(, layers)].
      by_sample: whether the values are those of samples, which a call returns in their order;
        else, and for k = 0, it returns None.
      **more: further fields of `Way`.

    Raises:
      DoesNotFit: by the compiler's word.
    """
    directions = job.directions[:k]
    batches = [jax.tree.map(jnp.asarray, batch) for batch in feed.batches]
    shape = lambda batch: tuple(x.shape for x in batch)
    costs, programs = {}, {}
    for batch in batches:
        if shape(batch) not in programs:
            program = jax.jit(fn).lower(job.params, batch, directions).compile()
            programs[shape(batch)] = program
            costs[shape(batch)] = count_flops(fn, job.params, batch, directions)
    memory = [program.memory_analysis() for program in programs.values()]
    temp = max(m.temp_size_in_bytes for m in memory)
    require_free(temp + max(m.output_size_in_bytes for m in memory))

    def call() -> np.ndarray | None:
        run = [programs[shape(batch)](job.params, batch, directions) for batch in batches]
        jax.block_until_ready(run)
        return pg_jobs.collect(feed, run) if k and by_sample else None

    total = sum(costs[shape(batch)] for batch in batches)
    return Way(name, k, feed.label, call, flops=total, temp=temp, **more)
