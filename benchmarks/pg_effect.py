"""The cost of all PG-effects of a batch, computed in each way, in units of one batch gradient.

    python -m benchmarks.pg_effect [--model small] [--samples 32] [--json FILE]
    python -m benchmarks.pg_effect --grow --rounds 3 --figure FILE.png

The same weights, samples and directions for every way. Values are compared with a float64
reference before anything is timed: |difference| / (norm of the direction x norm of the sample's
gradient), over 1e-4 (bfloat16: 1e-2) an error. Each way gets its rows in the layout that suits it
best: packed where it can read them, else padded to the longest or in two batches by length
(PyTorch: whichever is faster), loops one sample at a time. Seconds are medians of rounds in which
all ways take turns; the first call of each is not counted. FLOPs are those of the matrix products
of a program, "temp" is the compiler's number, "peak" the growth of the resident memory in one call
of a fresh process.

PyTorch's ways need torch, and kronfluence's its package: without, they are left out and named.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks import pg_jobs, pg_measure, pg_memory, pg_report, record

GROW_SAMPLES = (1, 8, 32, 128)
GROW_TOKENS = (64, 128, 256, 512)  # of 8 samples
GROW_LIMIT = 10.0  # seconds a call
K = 2


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark: one table, or with --grow one for each batch size and length."""
    # --- refuse what cannot be measured -----------------------------------------------------------
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.figure and not options.grow:
        parser.error("--figure draws cost against batch size: it needs --grow")
    if options.figure and not options.rounds:
        parser.error("--figure draws seconds: it needs --rounds 1 or more")
    if options.memory and jax.default_backend() != "cpu":
        parser.error("--memory measures resident memory, which is the CPU's; see temp MB instead")
    samples = max(GROW_SAMPLES) if options.grow else options.samples
    try:
        counts, source = _counts(options, samples)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    _refuse_what_does_not_fit(parser, options.model)
    # --- measure, print and draw ------------------------------------------------------------------
    size = f"{pg_jobs.parameters(options.model) / 1e6:.1f} M parameters"
    result: dict[str, Any] = record.about("pg_effect", arguments) | {
        "model": f"{options.model}, {size}",
        "lengths": source,
    }
    record.show(result)
    print(f"{result['model']}; {source}", flush=True)
    if options.grow:
        result["samples"] = _grow_samples(options)
        if options.figure:
            title = (
                f"PG-effects, {K} directions: {options.model} Llama, {source};"
                f" {result['processor']}"
            )
            pg_report.draw(result["samples"], K, title, options.figure)
        result["tokens"] = _grow_tokens(options)
    else:
        result["rows"] = _rows(options, counts, (1, K))
        result["summary"] = pg_report.summary(result["rows"])
        for name, value in result["summary"].items():
            print(f"{value:5.2f}  {name}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    """The flags of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pg_effect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=tuple(pg_jobs.MODELS), default="small")
    add("--samples", type=int, default=32)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--tokens", type=int, help="samples of this one length")
    length.add_argument("--lengths", type=Path, help=f"JSON: {pg_jobs.LENGTHS}")
    add("--rounds", type=int, default=5, help="timed calls of each way; 0 = no seconds")
    add("--ways", default="", help="parts of the names of ways, with semicolons between; all")
    add("--memory", action="store_true", help=f"peak memory too, K={K}: a process a way")
    add("--grow", action="store_true", help=f"K={K} over {GROW_SAMPLES} samples and lengths")
    add("--json", type=Path, help="write everything here")
    add("--figure", type=Path, help="with --grow: draw cost against batch size here, a PNG")
    return parser


def _counts(options: argparse.Namespace, samples: int) -> tuple[list[tuple[int, int]], str]:
    """(tokens, labels) of every sample, and where they are from."""
    if samples < 1:
        raise ValueError(f"--samples {samples}: at least 1")
    if options.tokens is not None:
        if options.tokens < 2:
            raise ValueError(f"--tokens {options.tokens}: at least 2, a label and what predicts it")
        return pg_jobs.equal_lengths(samples, options.tokens), f"{options.tokens} tokens a sample"
    if options.lengths:
        return pg_jobs.read_lengths(options.lengths, samples), f"lengths of {options.lengths.name}"
    return pg_jobs.synthetic_lengths(samples), "synthetic lengths (lognormal, mean 74)"


def _refuse_what_does_not_fit(parser: argparse.ArgumentParser, model: str) -> None:
    needed, free = pg_jobs.needed_bytes(model, K), pg_jobs.free_bytes()
    if needed > free:
        sizes = f"{needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"
        parser.error(f"--model {model}: weights, {K} directions and a gradient need {sizes}")


def _rows(options, counts, ks: tuple[int, ...], limit: float = math.inf) -> list[dict]:
    """Measures one batch and prints its table."""
    job = pg_jobs.random_job(options.model, counts, K)
    selection = [part.strip() for part in options.ways.split(";") if part.strip()]
    rows, reasons = pg_measure.measure(job, ks, selection, options.rounds, limit)
    if options.memory:
        for row in rows:
            if row["k"] in (0, K):
                row["peak"] = pg_memory.peak_growth(options.model, counts, row)
    token_count = sum(tokens for tokens, _ in counts)
    print(f"\n{len(counts)} samples, {token_count} tokens\n\n{pg_report.table(rows)}\n")
    for name, reason in reasons.items():
        print(f"left out: {name}: {reason}")
    sys.stdout.flush()
    return rows


def _grow_samples(options: argparse.Namespace) -> list[dict[str, Any]]:
    batches = {samples: _counts(options, samples)[0] for samples in GROW_SAMPLES}
    return [
        {"samples": samples, "rows": _rows(options, counts, (K,), GROW_LIMIT)}
        for samples, counts in batches.items()
    ]


def _grow_tokens(options: argparse.Namespace) -> list[dict[str, Any]]:
    batches = {tokens: pg_jobs.equal_lengths(8, tokens) for tokens in GROW_TOKENS}
    return [
        {"tokens": tokens, "rows": _rows(options, counts, (K,), GROW_LIMIT)}
        for tokens, counts in batches.items()
    ]


if __name__ == "__main__":
    main()
