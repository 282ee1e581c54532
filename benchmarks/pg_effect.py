"""What a PG-effect costs, each way, next to one ordinary gradient.

    python -m benchmarks.pg_effect [--samples 32] [--tokens 128] [--json FILE]

Two directions, one model, the same samples. Each way's numbers are compared with the definition
(one gradient a sample, then a dot) before anything is timed. Seconds are medians of interleaved
rounds in one process; bytes are the compiler's, exact. Runs on whatever device is there.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import packing
from jaxunlearn.data.packing import unpack
from jaxunlearn.effects import trees
from jaxunlearn.models import llama

evaluators = importlib.import_module("jaxunlearn.effects.pg_effect")

ROUNDS = 5
MODEL = llama.LlamaConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    context=512,
)


def sample_logp(params, packed, probe=None):
    """log p of every sample, [B]."""
    return unpack(llama.forward(params, packed, MODEL, probe=probe).labels, packed).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    rows = measure(options.samples, options.tokens)
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {options.samples} samples x {options.tokens} tokens")
    print(f"{'way':<18}{'temp MB':>9}{'seconds':>9}{'x gradient':>12}{'error':>10}")
    for row in rows:
        ratio = row["seconds"] / rows[0]["seconds"]
        error = "-" if row["error"] is None else f"{row['error']:.0e}"
        numbers = f"{row['temp_mb']:>9.0f}{row['seconds']:>9.3f}{ratio:>12.2f}{error:>10}"
        print(f"{row['way']:<18}{numbers}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(samples: int, tokens: int) -> list[dict[str, Any]]:
    """One row a way: bytes, seconds, and the largest error.

    An error is relative to the product of the norms of the direction and of a sample's gradient.
    """
    arguments = _inputs(samples, tokens)
    programs = {name: jax.jit(way).lower(*arguments).compile() for name, way in ways().items()}
    exact = np.asarray(programs["vmap, by sample"](*arguments))
    scale = _scale(*arguments)
    seconds = _times(programs, arguments)
    rows = []
    for name, program in programs.items():
        error = None
        if name != "batch gradient":
            found = np.asarray(program(*arguments)).reshape(*exact.shape, -1).sum(-1)
            error = float(np.max(np.abs(found - exact) / scale))
        temp = program.memory_analysis().temp_size_in_bytes / 1e6
        rows.append({"way": name, "temp_mb": temp, "seconds": seconds[name], "error": error})
    return rows


def ways() -> dict[str, Callable[..., Any]]:
    """(params, batch, directions) -> [K, B] or [K, B, layers]; the gradient first."""
    common = {"fn": sample_logp, "stacked": ("blocks",)}
    mean = lambda params, batch: -sample_logp(params, batch).mean()
    return {
        "batch gradient": lambda p, b, _: jax.grad(mean)(p, b),
        "jvp, by sample": lambda *a: evaluators.by_jvp(*a, by="sample", **common),
        "gates, by sample": lambda *a: evaluators.by_gates(*a, by="sample", **common),
        "gates, by layer": lambda *a: evaluators.by_gates(*a, by="layer", **common),
        "vmap, by sample": lambda *a: evaluators.by_vmap(
            *a, by="sample", microbatch=len(a[1].tokens), **common
        ),
    }


def _inputs(samples: int, tokens: int) -> tuple[Any, Any, tuple[Any, ...]]:
    params, *directions = (
        llama.init_params(key, MODEL) for key in jax.random.split(jax.random.key(0), 3)
    )
    texts = np.random.default_rng(0).integers(3, MODEL.vocab_size, (samples, tokens))
    sequences = [packing.Sequence(text.astype(np.int32), tokens // 3) for text in texts]
    return params, jax.tree.map(jnp.asarray, packing.padded(sequences)), tuple(directions)


def _scale(params: Any, batch: Any, directions: tuple[Any, ...]) -> np.ndarray:
    """[K, 1]: the norm of each direction x the mean norm of a sample's gradient."""
    one = jax.tree.map(lambda x: x[:1], batch)
    gradient = jax.grad(lambda p: sample_logp(p, one).sum())(params)
    return np.array([[trees.norm(v) * trees.norm(gradient)] for v in directions])


def _times(programs: dict[str, Any], arguments: tuple[Any, ...]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
