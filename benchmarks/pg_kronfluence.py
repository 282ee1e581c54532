"""PG-effects by kronfluence, a library of influence functions: its `identity` pairwise scores.

    pip install --no-deps kronfluence accelerate einops einconv opt_einsum psutil

Its scoring pass hooks every Linear layer and contracts inputs and cotangents with the query's
gradient, here a direction. Embedding and norms are left out. The queries' own pass is not run: as
everywhere here, directions are given.
"""

import functools
import logging
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import pg_jobs, torch_llama
from benchmarks.pg_jobs import Feed
from benchmarks.pg_torch import Peer
from benchmarks.pg_way import Builder, Way
from benchmarks.torch_llama import Batch, sample_logp
from jaxunlearn.models.decoder import DecoderConfig

NAME = "kronfluence identity"


class Modules(nn.Module):
    """The plain Llama with a Linear module for each matrix."""

    def __init__(self, weights: torch_llama.Weights, config: DecoderConfig):
        super().__init__()
        self.config, self.weights = config, weights
        self.linears = nn.ModuleDict(
            {_key(name): _linear(w) for name, w in weights.items() if torch_llama.is_linear(name)}
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        def read(name, x):
            if torch_llama.is_linear(name):
                return self.linears[_key(name)](x)
            return torch_llama.apply(name, self.weights[name], x)

        return sample_logp(read, batch, self.config)


def identity(job: Peer, k: int) -> list[Way]:
    """One way a feed."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.task import Task

    class LogLikelihood(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return model(Batch(*batch)).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    model = prepare_model(Modules(job.weights, job.config), LogLikelihood())
    return [_way(model, LogLikelihood(), job, k, feed) for feed in job.feeds]


def ways(job: Peer) -> dict[str, Builder]:
    """The builder of one job, by name."""
    return {NAME: functools.partial(identity, job)}


def _way(model: nn.Module, task: Any, job: Peer, k: int, feed: Feed) -> Way:
    """The way on one layout of rows: scores of all samples against the directions as queries."""
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.module import TrackedModule
    from kronfluence.score.dot_product import compute_dot_products_with_loader
    from kronfluence.utils.constants import (
        ACCUMULATED_PRECONDITIONED_GRADIENT_NAME,
        ALL_MODULE_NAME,
    )
    from kronfluence.utils.state import State

    logging.getLogger("kronfluence").setLevel(logging.ERROR)
    tracked = {m.name: m for m in model.modules() if isinstance(m, TrackedModule)}
    # Its scores are float32 products, also of a model in bfloat16.
    queries = {
        f"linears.{_key(name)}": torch.stack([v[name] for v in job.directions[:k]]).float()
        for name in job.weights
        if torch_llama.is_linear(name)
    }
    batches = [tuple(torch_llama.to_batch(batch, job.device)) for batch in feed.batches]
    loader = DataLoader(batches, batch_size=None)  # as they are
    options = dict(
        model=model,
        task=task,
        state=State(cpu=job.device == "cpu"),
        factor_args=FactorArguments(strategy="identity"),
        score_args=ScoreArguments(),
        tracked_module_names=list(tracked),
        scaler=torch.amp.GradScaler(enabled=False),
        disable_tqdm=True,
    )

    def call() -> np.ndarray:
        for name, module in tracked.items():  # a pass clears them
            module.set_factor(ACCUMULATED_PRECONDITIONED_GRADIENT_NAME, queries[name])
        scores = compute_dot_products_with_loader(train_loader=loader, **options)
        return pg_jobs.collect(feed, [scores[ALL_MODULE_NAME]])

    return Way(NAME, k, feed.label, call, linear_only=True)


def _key(name: str) -> str:
    return name.replace(".", "_")


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer
