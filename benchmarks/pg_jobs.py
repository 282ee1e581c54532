"""The inputs of the benchmark of PG-effects: a model, samples, directions, and layouts of rows."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import Packed
from jaxunlearn.data.planning import Sample
from jaxunlearn.models.decoder import DecoderConfig, abstract_params, init_params

Tree = Any
LABEL_SHARE = 0.6  # of a sample's tokens, as in TOFU
SINGLE_STEP = 24  # a compiled loop's rows are rounded up to this: every width is a program
LENGTHS = (
    "a list of token counts, or of [tokens, labels], or what `python -m benchmarks.train_lengths`"
    " writes"
)


def _llama(vocab: int, width: int, layers: int, heads: int, mlp: int, **more: Any) -> DecoderConfig:
    shape = dict(num_heads=heads, num_kv_heads=heads, head_dim=width // heads, context=512)
    return DecoderConfig(vocab, width, mlp, layers, **shape | more)


MODELS = {
    "tiny": _llama(64, 32, 2, 2, 48),
    "small": _llama(2048, 256, 4, 4, 704),
    "medium": _llama(4096, 384, 8, 6, 1024),
    "7b": _llama(32000, 4096, 32, 32, 11008, dtype="bfloat16", remat="full", context=4096),
}
BATCH_TOKENS = {"7b": 4096}  # most tokens of a packed batch; others: one batch


def parameters(model: str) -> int:
    return sum(x.size for x in jax.tree.leaves(abstract_params(MODELS[model])))


def needed_bytes(model: str, directions: int) -> int:
    """Bytes of the weights, the directions and one gradient."""
    each = jnp.dtype(MODELS[model].dtype).itemsize * parameters(model)
    return (2 + directions) * each


def free_bytes() -> int:
    """Memory that is left on the device."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    with open("/proc/meminfo") as file:
        sizes = dict(line.split(":") for line in file)
    return int(sizes["MemAvailable"].split()[0]) * 1024


class Job(NamedTuple):
    """The inputs of one measurement.

    Attributes:
      config: the model; its `remat` is that of the batch gradient and of gradients by sample.
      params: its parameters.
      directions: trees like `params`.
      sequences: the samples.
      batch_tokens: most tokens of a packed batch.
    """

    config: DecoderConfig
    params: Tree
    directions: tuple[Tree, ...]
    sequences: tuple[Sample, ...]
    batch_tokens: int


class Feed(NamedTuple):
    """Samples laid out in rows; `Packed.sample_ids` says which is where."""

    label: str
    batches: tuple[Packed, ...]


def read_lengths(file: Path, samples: int) -> list[tuple[int, int]]:
    """(tokens, labels) of samples drawn from a file, each at most once.

    Raises:
      ValueError: the file holds something else, or fewer samples.
    """
    content = json.loads(file.read_text())
    try:
        if isinstance(content, dict):
            split = next(iter(content["splits"].values()))
            content = list(zip(split["tokens"], split["labels"], strict=True))
        counts = [c if isinstance(c, (list, tuple)) else (c, _labels(c)) for c in content]
        counts = [(int(tokens), int(labels)) for tokens, labels in counts]
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"{file}: expected {LENGTHS}") from error
    wrong = [c for c in counts if not 1 <= c[1] < c[0]]
    if wrong or not counts:
        raise ValueError(f"{file}: {wrong[:3]} are no (tokens, labels); expected {LENGTHS}")
    if samples > len(counts):
        raise ValueError(f"{file}: {samples} samples asked, it holds {len(counts)}")
    return [counts[i] for i in np.random.default_rng(0).permutation(len(counts))[:samples]]


def synthetic_lengths(samples: int) -> list[tuple[int, int]]:
    """Lognormal, mean 74 and 5-95 % = 46..114 as TOFU's, at evenly spaced quantiles, shuffled."""
    draw = np.sort(np.random.default_rng(0).lognormal(np.log(71), 0.28, 4096))
    picked = draw[((np.arange(samples) + 0.5) / samples * len(draw)).astype(int)]
    tokens = np.random.default_rng(1).permutation(np.rint(picked).astype(int))
    return [(int(t), _labels(t)) for t in tokens]


def equal_lengths(samples: int, tokens: int) -> list[tuple[int, int]]:
    return [(tokens, _labels(tokens))] * samples


def _labels(tokens: int) -> int:
    return max(1, int(LABEL_SHARE * tokens))


def texts(counts: Iterable[tuple[int, int]], vocabulary: int, seed: int) -> tuple[Sample, ...]:
    """Random tokens of these lengths: cost depends on nothing else of the text."""
    draw = np.random.default_rng(seed)
    tokens = lambda n: draw.integers(vocabulary, size=n, dtype=np.int32)
    return tuple(Sample(tokens(n), n - labels) for n, labels in counts)


def random_job(model: str, counts: list[tuple[int, int]], directions: int = 2) -> Job:
    """A job with random weights and directions.

    Args:
      model: a key of MODELS.
      counts: (tokens, labels) of every sample.
      directions: K.
    """
    config = MODELS[model]
    return make_job(config, counts, directions, config.dtype, BATCH_TOKENS.get(model, 2**30))


def make_job(
    config: DecoderConfig,
    counts: list[tuple[int, int]],
    directions: int,
    param_dtype: str,
    batch_tokens: int,
) -> Job:
    """A job of any model, with random weights and directions that are drawn on the device.

    Args:
      config: the model; its context grows to the longest sample.
      counts: (tokens, labels) of every sample.
      directions: K.
      param_dtype: of the weights and of the directions.
      batch_tokens: most tokens of a packed batch.
    """
    longest = max(tokens for tokens, _ in counts)
    config = dataclasses.replace(config, context=max(config.context, longest))
    keys = jax.random.split(jax.random.key(0), 1 + directions)
    params, *along = (init_params(key, config, jnp.dtype(param_dtype)) for key in keys)
    samples = texts(counts, config.vocab_size, seed=0)
    return Job(config, params, tuple(along), samples, batch_tokens)


def packed(job: Job) -> Feed:
    """Several sequences a row, for what can take them."""
    plan = planning.plan_dataset(
        job.sequences, max_width=job.config.context, target_tokens=job.batch_tokens
    )
    return _feed("packed", packing.dataset_batches(job.sequences, plan))


def padded(job: Job) -> Feed:
    """One sequence a row, all padded to the longest."""
    return _feed("padded", [packing.padded(job.sequences)])


def buckets(job: Job) -> Feed:
    """One sequence a row, sorted into two batches, each padded to its longest.

    The cut is where the fewest tokens are computed; equal lengths need none.
    """
    order = np.argsort([len(s.tokens) for s in job.sequences], kind="stable")
    lengths = [len(job.sequences[i].tokens) for i in order]
    sizes = [
        cut * lengths[cut - 1] + (len(order) - cut) * lengths[-1] for cut in range(1, len(order))
    ]
    if not sizes or min(sizes) == len(order) * lengths[-1]:
        return padded(job)
    cut = 1 + int(np.argmin(sizes))
    parts = [(ids, [job.sequences[i] for i in ids]) for ids in (order[:cut], order[cut:])]
    return _feed("2 buckets", [packing.padded(rows, ids=ids) for ids, rows in parts])


def singles(job: Job, step: int = SINGLE_STEP) -> Feed:
    """One sequence at a time; its row is its length rounded up to `step`."""
    shapes: dict[int, list[int]] = {}
    for i, sequence in enumerate(job.sequences):
        shapes.setdefault(-(-len(sequence.tokens) // step) * step, []).append(i)
    batches = []
    for width, ids in shapes.items():
        labels = max(job.sequences[i].labels for i in ids)
        plan = planning.Plan(1, width, slots=1, labels=labels, answer=labels)
        batches += [packing.pack_step(job.sequences, [i], plan) for i in ids]
    return _feed("one by one", batches)


def _feed(label: str, batches: Iterable[Packed]) -> Feed:
    batches = tuple(batches)
    shapes = sorted({batch.tokens.shape for batch in batches}, key=lambda s: s[1])
    sizes = ", ".join(f"{rows}x{width}" for rows, width in shapes)
    if label == "one by one" and len(shapes) > 1:
        sizes = f"1x{shapes[0][1]}..{shapes[-1][1]}"
    elif label == "packed" and len(batches) > 1:
        sizes = f"{len(batches)} x {sizes}"
    return Feed(f"{label} {sizes}", batches)


def collect(feed: Feed, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Values of the rows' slots, [K, slots(, layers)] a batch, as [K, samples(, layers)]."""
    ids = np.concatenate([np.asarray(batch.sample_ids).ravel() for batch in feed.batches])
    values = np.concatenate([np.asarray(part) for part in parts], axis=1)
    ordered = np.zeros_like(values[:, : (ids >= 0).sum()])
    ordered[:, ids[ids >= 0]] = values[:, ids >= 0]
    return ordered
