"""The ways to PG-effects in PyTorch: what one would use there today."""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import pg_jobs, torch_llama
from benchmarks.pg_jobs import Feed, Job
from benchmarks.pg_way import Builder, DoesNotFit, Way, require_free
from benchmarks.torch_llama import Batch, Weights, reader, sample_logp
from jaxunlearn.models.decoder import DecoderConfig

CHUNK = 8
# (weights, a batch, directions) -> [K, rows], or anything for a plain gradient
Program = Callable[[Weights, Batch, tuple[Weights, ...]], Any]


class Attention(NamedTuple):
    name: str
    context: Callable[[], Any]


class Peer(NamedTuple):
    """A job in PyTorch's arrays, shared by all ways.

    Attributes:
      config: the model.
      weights: its weights.
      directions: dicts like `weights`.
      device: "cpu" or "cuda".
      feeds: the samples padded to the longest, and in two batches by length where that differs.
      singles: the samples one by one.
    """

    config: DecoderConfig
    weights: Weights
    directions: tuple[Weights, ...]
    device: str
    feeds: tuple[Feed, ...]
    singles: Feed


FUSED = Attention("sdpa", nullcontext)  # PyTorch chooses
MATH = Attention("math", lambda: sdpa_kernel(SDPBackend.MATH))  # the one with a forward mode


def peer(job: Job) -> Peer:
    """The job for PyTorch, on JAX's device.

    Raises:
      ImportError: this PyTorch cannot run there.
    """
    platform = jax.default_backend()
    if platform != "cpu" and not (platform == "gpu" and torch.cuda.is_available()):
        raise ImportError(f"JAX runs on a {platform}, where this torch does not")
    device = "cpu" if platform == "cpu" else "cuda"
    feeds = {feed.label: feed for feed in (pg_jobs.padded(job), pg_jobs.buckets(job))}
    return Peer(
        job.config,
        torch_llama.to_weights(job.params, device),
        tuple(torch_llama.to_weights(v, device) for v in job.directions),
        device,
        tuple(feeds.values()),
        pg_jobs.singles(job, step=1),
    )


def free_bytes(device: str) -> int:
    """Memory that PyTorch could still take."""
    if device == "cpu":
        return pg_jobs.free_bytes()
    held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + held


def largest_vmap(job: Peer, k: int) -> list[Way]:
    """`vmap` with as many samples at a time as fit, which calls find out."""
    chunk = len(job.singles.batches)
    while True:
        try:
            ways = vmap(job, k, chunk)
            for way in ways:
                way.call()
            return [dataclasses.replace(way, note=f"{chunk} at a time") for way in ways]
        except (DoesNotFit, torch.OutOfMemoryError):
            if chunk == 1:
                raise
            chunk = -(-chunk // 2)
            torch.cuda.empty_cache()


def batch_gradient(job: Peer, k: int) -> list[Way]:
    def fn(weights, batch, _):
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        risk = -sample_logp(reader(leaves), batch, job.config).sum()
        return torch.autograd.grad(risk, list(leaves.values()))

    return [_way("torch batch gradient", job, 0, feed, fn, gives="-") for feed in job.feeds]


def vmap(job: Peer, k: int, chunk: int | None = None) -> list[Way]:
    """torch.func.vmap of grad, then dots; all at once, or a few at a time."""
    samples = len(job.singles.batches)
    gradients_held = min(chunk or samples, samples)
    needed = 2 * gradients_held * sum(weight.nbytes for weight in job.weights.values())
    require_free(needed, free_bytes(job.device))

    def fn(weights, batch, directions):
        def one(row):
            one_row = Batch(*(x[None] for x in row))
            logp = lambda w: sample_logp(reader(w), one_row, job.config)[0]
            gradient = torch.func.grad(logp)(weights)
            return torch.stack([_dot(gradient, v) for v in directions])

        return torch.func.vmap(one, chunk_size=chunk)(batch).T

    name = f"torch vmap(grad), {f'{chunk} at a time' if chunk else 'dot'}"
    ways = [(feed, how) for feed in job.feeds for how in (FUSED, MATH)]
    return [_way(name, job, k, feed, fn, how) for feed, how in ways]


def loop(job: Peer, k: int) -> list[Way]:
    """autograd.grad of one unpadded sample at a time."""

    def fn(weights, batch, directions):
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        logp = sample_logp(reader(leaves), batch, job.config).sum()
        gradient = dict(zip(leaves, torch.autograd.grad(logp, list(leaves.values())), strict=True))
        return torch.stack([_dot(gradient, v) for v in directions])[:, None]

    return [_way("torch loop of autograd.grad", job, k, job.singles, fn)]


def jvp(job: Peer, k: int) -> list[Way]:
    """torch.func.jvp: once a direction, or one vmap over the directions."""

    def push(weights, batch, v):
        logp = lambda w: sample_logp(reader(w), batch, job.config)
        return torch.func.jvp(logp, (weights,), (v,))[1]

    def one_by_one(weights, batch, directions):
        return torch.stack([push(weights, batch, v) for v in directions])

    def together(weights, batch, directions):
        stacked = {name: torch.stack([v[name] for v in directions]) for name in weights}
        return torch.func.vmap(functools.partial(push, weights, batch))(stacked)

    forms = {"K jvps": one_by_one} | ({"vmap": together} if k > 1 else {})
    return [
        _way("torch jvp", job, k, feed, fn, MATH, note=note)
        for feed in job.feeds
        for note, fn in forms.items()
    ]


def ghost(job: Peer, k: int) -> list[Way]:
    """Each weight's read keeps x and contracts the cotangent with x V; no gradient is formed."""

    def fn(weights, batch, directions):
        gates = torch.zeros(k, batch.tokens.shape[0], device=batch.tokens.device)
        gates.requires_grad_()

        def read(name, x):
            return Ghost.apply(gates, x, weights[name], name, *(v[name] for v in directions))

        logp = sample_logp(read, batch, job.config).sum()
        return torch.autograd.grad(logp, gates)[0]

    return [_way("torch ghost dot", job, k, feed, fn) for feed in job.feeds]


class Ghost(torch.autograd.Function):
    """apply(name, weight, x), with <cotangent, apply(name, V_k, x)> a sample as gates' gradient."""

    @staticmethod
    def forward(ctx, gates, x, weight, name, *directions):
        ctx.save_for_backward(x, weight, *directions)
        ctx.name = name
        return torch_llama.apply(name, weight, x)

    @staticmethod
    def backward(ctx, dy):
        x, weight, *directions = ctx.saved_tensors
        # Not an einsum: that becomes a product of 1 x n by n x 1 matrices, and a slow one.
        slopes = [(dy * torch_llama.apply(ctx.name, v, x)).flatten(1).sum(1) for v in directions]
        dx = None
        if ctx.name != "embed":
            dx = dy @ weight if torch_llama.is_linear(ctx.name) else dy * weight
        return torch.stack(slopes), dx, None, None, *(None for _ in directions)


def ways(job: Peer) -> dict[str, Builder]:
    """The builders of one job, by name."""
    builders = {
        "torch batch gradient": batch_gradient,
        "torch vmap(grad), dot": vmap,
        f"torch vmap(grad), {CHUNK} at a time": functools.partial(vmap, chunk=CHUNK),
        "torch loop of autograd.grad": loop,
        "torch jvp": jvp,
        "torch ghost dot": ghost,
    }
    return {name: functools.partial(builder, job) for name, builder in builders.items()}


def _dot(a: Weights, b: Weights) -> Tensor:
    wide = torch.promote_types(next(iter(a.values())).dtype, torch.float32)
    return sum(torch.sum(a[name] * b[name], dtype=wide) for name in a)


def _way(
    name: str, job: Peer, k: int, feed: Feed, fn: Program, how: Attention = FUSED, **more: Any
) -> Way:
    directions = job.directions[:k]
    batches = [torch_llama.to_batch(batch, job.device) for batch in feed.batches]

    def call() -> np.ndarray | None:
        with how.context():
            parts = [fn(job.weights, batch, directions) for batch in batches]
        if job.device == "cuda":
            torch.cuda.synchronize()
        return pg_jobs.collect(feed, [part.detach().cpu() for part in parts]) if k else None

    more["note"] = ", ".join(filter(None, (more.get("note"), "" if how is FUSED else how.name)))
    return Way(name, k, feed.label, call, **more)
