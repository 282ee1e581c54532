"""stories260k against numbers that another implementation computed (golden.json)."""

import json

import jax
import numpy as np
import pytest

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, hf

log_probs = jax.jit(
    lambda params, batch, config: decoder.forward(params, batch, config).labels, static_argnums=2
)
pytestmark = [pytest.mark.golden, pytest.mark.stories]


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "models" / "stories260k"


@pytest.fixture(scope="module")
def golden(folder):
    return json.loads((folder / "golden.json").read_text())


@pytest.fixture(scope="module")
def stories(folder):
    config = hf.load_config(folder)
    return config, hf.load_params(folder, config)


def encoded(ids, first_label=1):
    return planning.Sample(np.array(ids, np.int32), first_label)


def test_config(stories):
    config, params = stories
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.tied) == (
        5,
        8,
        4,
        True,
    )
    assert sum(x.size for x in jax.tree.leaves(params)) == 260_032


def test_token_log_probs(stories, golden):
    config, params = stories
    batch = packing.padded([encoded(golden["story_ids"])], width=80)
    logp = log_probs(params, batch, config)[0]
    np.testing.assert_allclose(logp, golden["story_token_logprob"], atol=1e-5)


def test_last_logits(stories, golden):
    config, params = stories
    batch = packing.padded([encoded([*golden["story_ids"], 0])])
    final = jax.jit(lambda p: decoder.forward(p, batch, config, head=None).final_hidden)(params)
    last = decoder.head_logits(params, final, config)[0, -1, :8]
    np.testing.assert_allclose(last, golden["last_logits_first8"], atol=1e-4)


def test_greedy_text(stories, golden, folder):
    """Greedy decoding writes a text whose every next token is the best one."""
    config, params = stories
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("Once upon a time")["input_ids"]
    assert golden["greedy_ids"][: len(prompt)] == prompt
    batch = packing.padded([encoded(golden["greedy_ids"], len(prompt))])
    statistics = lambda p: decoder.forward(p, batch, config, head=decoder.label_statistics).labels
    assert jax.jit(statistics)(params)["correct"].all()
    text = tokenizer.decode(golden["greedy_ids"], skip_special_tokens=True)
    assert text == golden["greedy_text"]


def test_tofu_answers(stories, golden):
    """Four rows of TOFU, packed together: the sum and mean of each answer's NLL."""
    config, params = stories
    rows = golden["tofu"]
    sequences = [encoded(row["ids"], row["num_question_tokens"]) for row in rows]
    plan = planning.plan_dataset(sequences, width=256, max_width=512)
    (batch,) = packing.dataset_batches(sequences, plan)
    logp = packing.unpack(log_probs(params, batch, config), batch)
    ids = batch.sample_ids.reshape(-1)
    for i, row in enumerate(rows):
        (slot,) = np.flatnonzero(ids == i)
        labels = batch.mask.reshape(len(ids), -1)[slot].sum()
        assert labels == row["num_answer_tokens"]
        np.testing.assert_allclose(-logp[slot].sum(), row["answer_loss_sum"], rtol=1e-5)
        np.testing.assert_allclose(-logp[slot].sum() / labels, row["answer_loss_mean"], rtol=1e-5)


def test_gradient_norms(stories, golden):
    """The L2 norm of every parameter's gradient of the first row's mean NLL."""
    config, params = stories
    row, check = golden["tofu"][0], golden["grad_check"]
    batch = packing.padded([encoded(row["ids"], row["num_question_tokens"])])
    mean_nll = lambda params: -decoder.forward(params, batch, config).labels.mean()
    loss, gradient = jax.jit(jax.value_and_grad(mean_nll))(params)
    np.testing.assert_allclose(loss, check["loss"], rtol=1e-5)
    norms = {}
    for name, ((leaf,), layer, _) in hf.tensor_table(config).items():
        value = np.asarray(leaf.get(gradient), np.float64)
        norms[name] = np.linalg.norm(value[layer] if leaf.stacked else value)
    assert norms.keys() == check["l2"].keys()
    for name, norm in check["l2"].items():
        np.testing.assert_allclose(norms[name], norm, rtol=1e-4, err_msg=name)


def test_tokenizer(folder, golden):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(golden["story"])["input_ids"] == golden["story_ids"]
