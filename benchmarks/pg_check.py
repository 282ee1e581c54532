"""Reference values in float64, with which every way must agree before anything is timed."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pg_jobs
from benchmarks.pg_jax import sample_logp
from benchmarks.pg_jobs import Job
from benchmarks.pg_way import Way
from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.models import decoder

GROUPING = effects.Grouping(stacked=decoder.STACKED)
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}  # by the type of the model


class Disagrees(Exception):
    """A way's values are not those of the reference."""


class Reference(NamedTuple):
    """PG-effects by the definition, a gradient at a time, in a wider type than the model's.

    Attributes:
      dtype: the type of the computation.
      layers: [K, samples, layers].
      linear: [K, samples], over the weights of matrix products only.
      scale: [K, samples], norm of the direction x norm of the sample's gradient.
    """

    dtype: str
    layers: np.ndarray
    linear: np.ndarray
    scale: np.ndarray


def reference(job: Job) -> Reference:
    """Float64 on the CPU; for a model in bfloat16, float32 on its device."""
    if job.config.dtype == "bfloat16":
        return by_definition(job, "float32")
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)
        exact = job._replace(params=wide(job.params), directions=wide(job.directions))
        return by_definition(exact, "float64")


def by_definition(job: Job, dtype: str) -> Reference:
    """The gradient of log p of each sample, and its dots with the directions, in a type."""
    logp = sample_logp(dataclasses.replace(job.config, dtype=dtype))
    (rows,) = pg_jobs.padded(job).batches

    @jax.jit
    def values(params, rows, directions):
        def sample_dots(row):
            row = jax.tree.map(lambda x: x[None], row)
            gradient = jax.grad(lambda p: logp(p, row).sum())(params)
            dots = [
                effects.layer_dots(gradient, v, by="tensor", grouping=GROUPING) for v in directions
            ]
            return jnp.stack(dots), trees.norm(gradient)

        return jax.lax.map(sample_dots, rows)

    by_tensor, norms = map(np.asarray, values(job.params, rows, job.directions))
    by_tensor = np.moveaxis(by_tensor, 0, 1)  # [K, samples, tensors]
    tensors, names = (
        names_of(job.params, grouping=GROUPING)
        for names_of in (effects.tensor_names, effects.layer_names)
    )
    layer_index = np.array([names.index(name.split(".")[0]) for name in tensors])
    linear = [name.endswith("kernel") for name in tensors]
    return Reference(
        dtype,
        np.stack([by_tensor[..., layer_index == i].sum(-1) for i in range(len(names))], -1),
        by_tensor[..., linear].sum(-1),
        np.array([float(trees.norm(v)) for v in job.directions])[:, None] * norms,
    )


def error(way: Way, values: np.ndarray, exact: Reference) -> float:
    """Largest |difference| / scale, of the total and, where a way gives them, of the layers."""
    total = exact.linear if way.linear_only else exact.layers.sum(-1)
    differences = [(values if values.ndim == 2 else values.sum(-1)) - total[: way.k]]
    if values.ndim == 3:
        differences += list(np.moveaxis(values - exact.layers[: way.k], -1, 0))
    return max(float(np.max(np.abs(d) / exact.scale[: way.k])) for d in differences)


def checked(way: Way, exact: Reference, tolerance: float) -> float | None:
    """The error of a way's values; None for a plain gradient.

    Raises:
      Disagrees: an exact way over the tolerance.
    """
    values = way.call()
    if values is None:
        return None
    size = error(way, values, exact)
    if way.exact and not size <= tolerance:
        raise Disagrees(
            f"{way.name} (K={way.k}, {way.rows} {way.note}): its error against {exact.dtype} is"
            f" {size:.1e}, over {tolerance:.0e}; nothing was timed"
        )
    return size


def with_gradients(job: Job) -> Job:
    """The job with real directions: the gradients of its samples' and of other samples' risk."""
    logp = sample_logp(job.config)
    gradient = jax.jit(jax.grad(lambda params, batch: -logp(params, batch).mean()))
    counts = [(len(s.tokens), s.labels) for s in job.sequences]
    others = job._replace(sequences=pg_jobs.texts(counts, job.config.vocab_size, seed=1))

    def total(job: Job):
        parts = (gradient(job.params, batch) for batch in pg_jobs.packed(job).batches)
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)

    return job._replace(directions=(total(job), total(others)))
