"""Greedy decoding with a cache of keys and values, next to recomputing the prefix at every step.

    python -m benchmarks.generate [--model FOLDER] [--rows 8] [--prompt 32] [--new 200]
                                  [--json FILE]

Both ways are one compiled loop, and must write the same tokens before anything is timed. Seconds
are medians of interleaved rounds in one process; bytes are the compiler's, exact. Without a
folder, a small random Llama. Runs on whatever device is there.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, hf
from jaxunlearn.models.decoder import decode

ROUNDS = 5
MODEL = decoder.DecoderConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    context=512,
)


def main() -> None:
    """Measures both ways on a model, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder with a Hugging Face Llama")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=200, help="tokens of a continuation")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    config = hf.load_config(options.model) if options.model else MODEL
    params = _params(options.model, config)
    rows = measure(params, config, options.rows, options.prompt, options.new)
    device = jax.devices()[0].device_kind
    size = f"{options.rows} rows x ({options.prompt} + {options.new}) tokens"
    print(f"{device}, jax {jax.__version__}, {size}")
    print(f"{'way':<12}{'temp MB':>9}{'seconds':>9}{'tokens/s':>10}{'x prefix':>10}")
    for row in rows:
        speed = rows[0]["seconds"] / row["seconds"]
        numbers = f"{row['temp_mb']:>9.1f}{row['seconds']:>9.3f}{row['tokens_per_s']:>10.0f}"
        print(f"{row['way']:<12}{numbers}{speed:>10.1f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(
    params: Any, config: decoder.DecoderConfig, rows: int, prompt: int, new: int
) -> list[dict[str, Any]]:
    """One row a way: bytes, seconds, tokens a second; the prefix first."""
    texts = np.random.default_rng(0).integers(3, config.vocab_size, (rows, prompt))
    arguments = (params, jnp.asarray(texts, jnp.int32))
    programs = {
        name: jax.jit(partial(way, config=config, new=new)).lower(*arguments).compile()
        for name, way in WAYS.items()
    }
    prefix, cache = (np.asarray(program(*arguments)) for program in programs.values())
    if not np.array_equal(prefix, cache):
        raise SystemExit(f"{(prefix != cache).any(1).sum()} rows differ: nothing was timed")
    seconds = _times(programs, arguments)
    return [
        {
            "way": name,
            "temp_mb": program.memory_analysis().temp_size_in_bytes / 1e6,
            "seconds": seconds[name],
            "tokens_per_s": rows * new / seconds[name],
        }
        for name, program in programs.items()
    ]


def by_prefix(
    params: Any, prompts: jax.Array, *, config: decoder.DecoderConfig, new: int
) -> jax.Array:
    """Greedy continuations [B, N]: every step runs the model on the whole row."""
    rows, width = prompts.shape
    sequence = planning.Sample(np.zeros(width + new, np.int32), width)
    batch = jax.tree.map(jnp.asarray, packing.padded([sequence] * rows))
    best = lambda logits, labels: jnp.argmax(logits, -1)

    def step(i, tokens):
        at = jnp.full((rows, 1), width + i - 1)
        part = batch._replace(tokens=tokens, label_at=at, label_tokens=jnp.zeros_like(at))
        token = decoder.forward(params, part, config, head=best).labels
        return jax.lax.dynamic_update_slice(tokens, token.astype(tokens.dtype), (0, width + i))

    return jax.lax.fori_loop(0, new, step, jnp.pad(prompts, ((0, 0), (0, new))))[:, width:]


def by_cache(
    params: Any, prompts: jax.Array, *, config: decoder.DecoderConfig, new: int
) -> jax.Array:
    """Greedy continuations [B, N] by `decode.generate`, to the end."""
    lengths = jnp.full(prompts.shape[:1], prompts.shape[1])
    options = {"max_new_tokens": new, "eos_token_id": None}
    return decode.generate(params, prompts, lengths, config, **options)[0]


WAYS: dict[str, Callable[..., jax.Array]] = {"prefix": by_prefix, "cache": by_cache}


def _params(folder: Path | None, config: decoder.DecoderConfig) -> Any:
    """A folder's, or random ones with logits far enough apart for the ways to agree."""
    if folder:
        return hf.load_params(folder, config)
    params = decoder.init_params(jax.random.key(0), config)
    return params | {"lm_head": jax.tree.map(lambda x: 10 * x, params["lm_head"])}


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
