"""A context on fictional data with a tiny model: no run, no folder of one."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxunlearn.config import Config, schema
from jaxunlearn.data import Encoder, Sources, fictional
from jaxunlearn.evaluation.suite import Context
from jaxunlearn.models import sharding
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.layout import Layout

SIZES = {"authors": 4, "questions": 3, "forget_share": 0.25}


@pytest.fixture(scope="session")
def small():
    """What every context shares: sources, tokenizer, model, layout."""
    sources = Sources("fictional", fictional={"seed": 0, **SIZES})
    tokenizer = fictional.train_tokenizer(
        sources.corpus({"full": "finetune.splits"}), vocab_size=400
    )
    model = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        context=96,
    )
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    layout = Layout(mesh=mesh, context=96, width_step=8, batch_tokens=4096)
    encoder = Encoder(tokenizer, context=96, too_long="error", vocab_size=model.vocab_size)
    return SimpleNamespace(
        sources=sources, tokenizer=tokenizer, model=model, layout=layout, encoder=encoder
    )


@pytest.fixture(scope="session")
def params_of(small):
    """(seed) -> random parameters on the mesh."""

    def make(seed: int):
        rng, tree = np.random.default_rng(seed), {}
        for leaf in small.model.leaves():
            values = rng.normal(float(leaf.init == "ones"), 0.3, leaf.shape)
            leaf.put(tree, values.astype(np.float32))
        shardings = sharding.param_shardings(small.model, small.layout.mesh)
        return sharding.place(tree, shardings)

    return make


@pytest.fixture
def context_of(small, params_of, tmp_path):
    """(changes of the context) -> a context; no text, and no retrained model unless asked for."""
    seeds = {"base": 0, "retrained": 1}

    def make(**changes) -> Context:
        config = Config(data=schema.Data(fictional=schema.Fictional(**SIZES)))
        config = dataclasses.replace(config, finetune=schema.FineTune(epochs=1))
        return Context(
            **{
                "config": config,
                "splits": schema.Splits(),
                "encoder": small.encoder,
                "sources": small.sources,
                "tokenizer": small.tokenizer,
                "model": small.model,
                "layout": small.layout,
                "load": lambda name: params_of(seeds[name]),
                "retrained": False,
                "base": True,
                "generate": 0,
                "recite": 0,
                "retain_log": None,
                "log_file": lambda name: tmp_path / "logs" / f"{name}.json",
                **changes,
            }
        )

    return make


@pytest.fixture
def on_mesh(small):
    """The mesh of the context is the current one."""
    with jax.set_mesh(small.layout.mesh):
        yield
