"""Decoding with a cache against recomputing the prefix, against transformers, and by its rules."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.decoder import Sampling, decode, sampling, transformer
from tests.models.small_models import TIED, UNTIED, random_params

NEW = 8
LENGTHS = np.array([5, 1, 9, 7], np.int32)
LLAMA3 = decoder.Llama3RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16
)
SHAPES = {
    "grouped": UNTIED,
    "tied": dataclasses.replace(TIED, num_kv_heads=1),
    "ungrouped": dataclasses.replace(UNTIED, num_kv_heads=4, norm_eps=1e-2),
    "llama3": dataclasses.replace(UNTIED, rope_theta=100.0, rope_scaling=LLAMA3),
}
greedy = partial(decode.generate, max_new_tokens=NEW, eos_token_id=None)


def left_padded(rows, width=None, fill=0):
    """Prompts [B, P] and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    width = width or lengths.max()
    padded = [np.pad(row, (width - len(row), 0), constant_values=fill) for row in rows]
    return jnp.asarray(np.stack(padded), jnp.int32), jnp.asarray(lengths)


def random_prompts(lengths=LENGTHS, seed=3):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, UNTIED.vocab_size, n).astype(np.int32) for n in lengths]


@partial(jax.jit, static_argnums=2)
def all_logits(params, batch, config):
    keep = lambda logits, labels: logits
    return decoder.forward(params, batch, config, head=keep).labels


def next_logits(params, prefix, config):
    """Logits after a prefix, from the whole model on the prefix; its last label is a stand-in."""
    sequence = planning.Sample(np.append(prefix, 0).astype(np.int32), len(prefix))
    batch = packing.padded([sequence], width=LENGTHS.max() + NEW + 1)
    return np.asarray(all_logits(params, batch, config))[0, 0]


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_greedy_is_recomputing_the_prefix(config):
    params, prompts = random_params(config), random_prompts()
    tokens, lengths = greedy(params, *left_padded(prompts), config)
    assert tokens.shape == (4, NEW) and tokens.dtype == jnp.int32
    assert lengths.tolist() == [NEW] * 4
    for prompt, result in zip(prompts, np.asarray(tokens), strict=True):
        prefix = list(prompt)
        for token in result:
            assert token == next_logits(params, prefix, config).argmax()
            prefix.append(token)


def test_bfloat16():
    """Every token is all but the best one after its prefix, by the float32 model."""
    config = dataclasses.replace(UNTIED, dtype="bfloat16")
    params, prompts = random_params(config), random_prompts()
    tokens, _ = greedy(params, *left_padded(prompts), config)
    for prompt, result in zip(prompts, np.asarray(tokens), strict=True):
        for step, token in enumerate(result):
            logits = next_logits(params, [*prompt, *result[:step]], UNTIED)
            assert logits.max() - logits[token] < 0.03 * np.ptp(logits)


def test_rows_do_not_know_of_each_other():
    """Nor of their padding: alone, in another order, wider, with other tokens in the padding."""
    params, prompts = random_params(UNTIED), random_prompts()
    expected, _ = greedy(params, *left_padded(prompts), UNTIED)
    for row, prompt in enumerate(prompts):
        alone, _ = greedy(params, *left_padded([prompt], width=9), UNTIED)
        np.testing.assert_array_equal(alone[0], expected[row])
    turned, _ = greedy(params, *left_padded(prompts[::-1], width=14, fill=7), UNTIED)
    np.testing.assert_array_equal(turned[::-1], expected)


@pytest.mark.parametrize(
    ("shape", "temperature"), [((8, 1, 1), 0.0), ((1, 4, 2), 0.0), ((2, 2, 2), 0.7)], ids=str
)
def test_eight_devices_are_one(shape, temperature):
    config = dataclasses.replace(UNTIED, hidden_size=32)
    params, prompts = random_params(config), left_padded(random_prompts([5, 1, 9, 7, 3, 2, 6, 8]))
    options = {"max_new_tokens": NEW, "eos_token_id": 11, "sampling": Sampling(temperature)}
    options |= {"key": jax.random.key(5)} if temperature else {}
    expected = decode.generate(params, *prompts, config, **options)
    mesh = sharding.make_mesh(*shape)
    placed = sharding.place(params, sharding.param_shardings(config, mesh))
    with jax.set_mesh(mesh):
        result = decode.generate(placed, *prompts, config, **options)
    assert all(x.sharding.is_fully_replicated for x in result)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_the_cache_lives_on_all_devices():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    cache = decode.Cache(*[jnp.zeros((3, 4, 6, 2, 4))] * 2)
    with jax.set_mesh(mesh):
        pinned = jax.jit(decode._pinned)(cache)
    spec = jax.P(None, sharding.ROWS, None, "tensor")
    assert all(x.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), 5) for x in pinned)


def test_rows_end_with_eos():
    params, prompts = random_params(UNTIED), left_padded(random_prompts())
    free = np.asarray(greedy(params, *prompts, UNTIED)[0])
    eos = int(free[0, 3])
    tokens, lengths = greedy(params, *prompts, UNTIED, eos_token_id=eos)
    assert 0 < lengths[0] <= 4
    for row, result, length in zip(free, np.asarray(tokens), np.asarray(lengths), strict=True):
        ends = np.flatnonzero(row == eos)
        assert length == (ends[0] + 1 if len(ends) else NEW)
        np.testing.assert_array_equal(result[:length], row[:length])
        assert (result[length:] == eos).all()


def test_stops_when_all_rows_have_ended(monkeypatch):
    """The model runs once on the prompts, and once a step until the last row has ended."""
    runs, head_logits = [], decoder.head_logits

    def counted(*args, **options):
        jax.debug.callback(lambda: runs.append(1))
        return head_logits(*args, **options)

    params, prompts = random_params(UNTIED), left_padded(random_prompts([4, 6]))
    tokens = np.asarray(greedy(params, *prompts, UNTIED)[0])
    eos = int(next(token for token in tokens[0] if token in tokens[1]))
    ends = [list(row).index(eos) + 1 for row in tokens]
    monkeypatch.setattr(transformer, "head_logits", counted)
    options = {"config": UNTIED, "max_new_tokens": NEW, "eos_token_id": eos}
    _, lengths = jax.jit(partial(decode.generate.__wrapped__, **options))(params, *prompts)
    jax.effects_barrier()
    assert lengths.tolist() == ends
    assert len(runs) == max(ends) < NEW


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"temperature": 1.0, "top_k": 1}])
def test_sampling_that_is_greedy(options):
    params, prompts = random_params(UNTIED), left_padded(random_prompts())
    expected, _ = greedy(params, *prompts, UNTIED)
    options = {"sampling": Sampling(**options), "key": jax.random.key(0)}
    result, _ = greedy(params, *prompts, UNTIED, **options)
    np.testing.assert_array_equal(result, expected)


def test_sampling_is_seeded():
    params, rows = random_params(UNTIED), random_prompts()
    sample = partial(greedy, params, config=UNTIED, sampling=Sampling(temperature=1.0))
    keys = lambda seed: jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(4))
    first, _ = sample(*left_padded(rows), key=jax.random.key(1))
    again, _ = sample(*left_padded(rows), key=keys(1))
    other, _ = sample(*left_padded(rows), key=keys(2))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any(axis=1).all()
    turned, _ = sample(*left_padded(rows[::-1]), key=keys(1)[::-1])
    np.testing.assert_array_equal(turned[::-1], first)
    same, _ = sample(*left_padded([rows[2]] * 4), key=keys(1))
    assert len({tuple(row) for row in same.tolist()}) == 4


@pytest.mark.parametrize(
    ("step", "options"),
    [(0, Sampling(temperature=1.0)), (1, Sampling(temperature=0.6, top_k=5))],
    ids=["first", "second"],
)
def test_samples_follow_the_softmax(step, options):
    """Chi-square of the draws of one step against the probabilities of the logits.

    The second step is that of the rows whose first token is the most common one.
    """
    chisquare = pytest.importorskip("scipy.stats").chisquare
    params, prefix = random_params(UNTIED), random_prompts([3])[0].tolist()
    prompts = left_padded([prefix] * 4000)
    tokens, _ = greedy(
        params,
        *prompts,
        UNTIED,
        max_new_tokens=step + 1,
        sampling=options,
        key=jax.random.key(3),
    )
    tokens = np.asarray(tokens)
    if step == 1:
        common = np.bincount(tokens[:, 0]).argmax()
        prefix, tokens = [*prefix, common], tokens[tokens[:, 0] == common]
    logits = sampling.filter_logits(jnp.asarray(next_logits(params, prefix, UNTIED)), options)
    expected = np.asarray(jax.nn.softmax(logits), np.float64) * len(tokens)
    observed = np.bincount(tokens[:, step], minlength=UNTIED.vocab_size)
    assert not observed[expected == 0].any()
    often = expected >= 5
    bins = lambda counts: np.append(counts[often], counts[~often].sum())
    observed, expected = bins(observed), np.maximum(bins(expected), 1e-9)
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01


def test_filtered_logits_are_those_of_transformers():
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    logits = np.random.default_rng(0).normal(0, 3, (20, 50)).astype(np.float32)
    warpers = [
        transformers.TemperatureLogitsWarper(0.8),
        transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.85),
    ]
    for used in ([0], [0, 1], [0, 2], [0, 1, 2]):
        expected = torch.from_numpy(logits)
        for i in used:
            expected = warpers[i](None, expected)
        options = Sampling(0.8, 12 if 1 in used else None, 0.85 if 2 in used else None)
        result = sampling.filter_logits(jnp.asarray(logits), options)
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 56}, "prompts of 9 tokens and max_new_tokens=56 .* context of 64"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"sampling": {"temperature": -1.0}}, r"temperature=-1.0 must be 0 \(greedy\) or more"),
        ({"sampling": {"temperature": float("nan")}}, "temperature=nan must be 0"),
        ({"sampling": {"temperature": float("inf")}}, "temperature=inf must be .* and finite"),
        (
            {"sampling": {"temperature": 1.0, "top_k": float("nan")}},
            "top_k=nan must be at least 1",
        ),
        (
            {"sampling": {"temperature": 1.0, "top_p": float("nan")}},
            r"top_p=nan must be in \(0, 1\]",
        ),
        ({"sampling": {"top_k": 3}}, "top_k=3, top_p=None: greedy decoding"),
        (
            {"sampling": {"temperature": 1.0}},
            r"temperature=1.0 draws tokens: give key=jax.random.key\(SEED\)",
        ),
        ({"sampling": {"temperature": 1.0, "top_k": 0}}, "top_k=0 must be at least 1"),
        ({"sampling": {"temperature": 1.0, "top_p": 1.5}}, r"top_p=1.5 must be in \(0, 1\]"),
        (
            {"sampling": {"temperature": 1.0}, "key": jax.random.PRNGKey(0)},
            r"one jax.random.key or \[4\]",
        ),
        (
            {"sampling": {"temperature": 1.0}, "key": jax.random.split(jax.random.key(0), 3)},
            r"of shape \(3,\)",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        options = options | {"sampling": Sampling(**options.get("sampling", {}))}
        greedy(random_params(UNTIED), *left_padded(random_prompts()), UNTIED, **options)


def test_the_whole_context_is_used():
    prompts = left_padded(random_prompts())
    tokens, lengths = greedy(random_params(UNTIED), *prompts, UNTIED, max_new_tokens=55)
    assert tokens.shape == (4, 55) and (lengths == 55).all()


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "models" / "stories260k"
    config = hf.load_config(folder)
    return folder, config, hf.load_params(folder, config)


@pytest.mark.golden
@pytest.mark.stories
def test_golden_text(stories):
    folder, config, params = stories
    golden = json.loads((folder / "golden.json").read_text())
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    prompt = np.array(tokenizer("Once upon a time")["input_ids"], np.int32)
    new = len(golden["greedy_ids"]) - len(prompt)
    tokens, lengths = decode.generate(
        params, *left_padded([prompt]), config, max_new_tokens=new, eos_token_id=2
    )
    assert lengths.tolist() == [new]
    assert [*prompt, *np.asarray(tokens[0])] == golden["greedy_ids"]
    assert tokenizer.decode([*prompt, *tokens[0].tolist()], True) == golden["greedy_text"]


@pytest.mark.stories
def test_transformers_writes_the_same(stories):
    """200 tokens of four prompts at once; transformers' batches are padded on the left too."""
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    folder, config, params = stories
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["Once upon a time", "Lily", "The dog was sad because", "One day, Tom and his mom"]
    prompts, sizes = left_padded([np.array(tokenizer(text)["input_ids"]) for text in texts])
    options = {"max_new_tokens": 200, "eos_token_id": tokenizer.eos_token_id}
    tokens, lengths = decode.generate(params, prompts, sizes, config, **options)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="float32").eval()
    torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
    width = prompts.shape[1]
    mask = np.arange(width) >= width - np.asarray(sizes)[:, None]
    ids = torch.tensor(prompts.tolist())
    expected_rows = model.generate(
        ids,
        attention_mask=torch.from_numpy(mask).long(),
        do_sample=False,
        pad_token_id=0,
        **options,
    )[:, width:].numpy()
    for result, length, row in zip(
        np.asarray(tokens), np.asarray(lengths), expected_rows, strict=True
    ):
        np.testing.assert_array_equal(result[:length], row[:length])
