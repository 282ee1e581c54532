"""One unlearning step, here and in PyTorch with transformers' Llama: real tokens per second.

    python -m benchmarks.train_step [--model small medium FOLDER] [--lengths FILE] [--json FILE]

NPO by AdamW with the reference's log-probabilities cached, batches of 16 samples as long as TOFU's,
each framework with the batches that its users would make: here packed into rows of one static
shape, that of a whole run of 5 epochs, there padded to the longest sample of the batch. Both must
give the same loss and the same parameters after a step before anything is timed. Each takes all its
steps in each round, in one process; a step's seconds are the median over rounds.

    real tokens/s = computed tokens/s (raw speed) x real tokens / computed tokens (packing)

Utilisation is the FLOPs that a step needs (no padding, no masked score) over what a large matrix
product of the same framework reaches. With --one-core all is pinned to one core and seconds are the
process's own, which a busy machine disturbs least.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import record, train_lengths, train_ours, train_torch
from benchmarks.pg_jobs import MODELS, texts
from benchmarks.train_ours import Job, Stepper
from jaxunlearn.models import decoder, hf, sharding

Tree = Any
Clock = Callable[[], float]

FRAMEWORKS = {"jaxunlearn": train_ours, "transformers": train_torch}
SIZES = ("small", "medium")
LOSS_TOLERANCE = 1e-4  # of the loss
FIRST_LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # in the type of the job
GRADIENT_TOLERANCE = 1e-4  # of its norm
# Of the update. Adam's first one divides a gradient by itself: where that is near eps = 1e-8,
# rounding errors show in full.
UPDATE_TOLERANCE = 5e-3
CHECKED_LR = 1e-3  # large enough for an update to be far above the rounding of the parameters
MATMUL = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
MATMUL_CALLS = 5


class Disagrees(Exception):
    """The frameworks give different results."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both frameworks on each model, and prints a table for each."""
    options = _parser().parse_args(arguments)
    clock = time.perf_counter
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        clock = time.process_time
    reason, frameworks = train_torch.missing(), FRAMEWORKS
    if reason:
        print(f"transformers left out: {reason}")
        frameworks = {"jaxunlearn": train_ours}
    lengths = train_lengths.load(options.lengths)
    result = record.about("train_step", arguments) | {"lengths": lengths.source, "models": []}
    record.show(result)
    for name in options.model:
        work, params = _work(name, lengths, options)
        with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
            measurement = measure(work, params, options.rounds, clock, frameworks)
        result["models"].append({"model": name} | measurement)
        show(result["models"][-1], lengths.source)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(
    work: Job,
    params: Tree,
    rounds: int,
    clock: Clock,
    frameworks: Mapping[str, Any] = FRAMEWORKS,
    *,
    check_update: bool = True,
) -> dict[str, Any]:
    """Checks the frameworks, then times them round by round.

    Args:
      work: what to do.
      params: the parameters to start from.
      rounds: passes over the steps of the job; the median counts.
      clock: seconds.
      frameworks: {name: a module like `train_ours`}, one or two.
      check_update: compares loss and update of one step in float32 first. Without, two frameworks
        must only give the same first loss in the job's own type, which takes no further memory.

    Returns:
      {"agreement": .., "frameworks": [a row each]}

    Raises:
      Disagrees: another loss, or other parameters after one step.
    """
    reference = train_ours.references(work, params)
    agreement = None
    if check_update and len(frameworks) > 1:
        agreement = check(work, params, reference, frameworks)
    steppers = {
        name: framework.stepper(work, params, reference) for name, framework in frameworks.items()
    }
    # A step of another shape may be compiled anew: all of them run once before any is timed.
    steps = range(len(work.steps))
    losses = [[stepper.step(i) for i in steps] for stepper in steppers.values()]
    if not check_update and len(losses) > 1:
        ours, theirs = (of_steps[0] for of_steps in losses)
        agreement = {"loss": abs(ours - theirs) / abs(theirs)}
        _refuse(agreement, {"loss": FIRST_LOSS_TOLERANCE[work.model.dtype]})
    seconds = _times(steppers, len(work.steps), rounds, clock)
    half = work.model.dtype == "bfloat16"
    size = MATMUL[jax.default_backend()]
    rows = []
    for name, stepper in steppers.items():
        framework = frameworks[name]
        peak = framework.matmul_flops(size, half, lambda call: best(call, clock))
        row = {"framework": name, "peak_bytes": framework.peak_bytes(partial(stepper.step, 0))}
        rows.append(row | _row(work, stepper, sum(seconds[name]), peak))
    return {
        "config": dataclasses.asdict(work.model),
        "steps": len(work.steps),
        "rounds": rounds,
        "clock": clock.__name__,
        "agreement": agreement,
        "frameworks": rows,
    }


def check(
    work: Job, params: Tree, reference: Any, frameworks: Mapping[str, Any] = FRAMEWORKS
) -> dict[str, float]:
    """The distance between the frameworks after one step in float32.

    Returns:
      {"loss": relative, "gradient" and "update": norm of the difference over the norm}

    Raises:
      Disagrees: one is over its tolerance.
    """
    model = dataclasses.replace(work.model, dtype="float32", precision="highest")
    work = dataclasses.replace(work, lr=CHECKED_LR, model=model)
    steppers = [module.stepper(work, params, reference) for module in frameworks.values()]
    ours, theirs = (stepper.step(0) for stepper in steppers)
    gradient, others = (stepper.gradient() for stepper in steppers)
    after, other = (stepper.params() for stepper in steppers)
    distances = {
        "loss": abs(ours - theirs) / abs(theirs),
        "gradient": _distance(gradient, others) / optax.tree.norm(gradient).item(),
        "update": _distance(after, other) / _distance(after, params),
    }
    tolerances = (LOSS_TOLERANCE, GRADIENT_TOLERANCE, UPDATE_TOLERANCE)
    _refuse(distances, dict(zip(distances, tolerances, strict=True)))
    return distances


def _refuse(distances: Mapping[str, float], tolerances: Mapping[str, float]) -> None:
    """Raises Disagrees where a distance is over its tolerance."""
    for name, tolerance in tolerances.items():
        if not distances[name] <= tolerance:
            raise Disagrees(
                f"{name}: the frameworks differ by {distances[name]:.1e} > {tolerance:.0e}"
            )


def show(result: dict[str, Any], lengths: str) -> None:
    """Prints one model's table."""
    config, apart = result["config"], result["agreement"]
    print(f"\n{result['model']}: {config['dtype']}, remat {config['remat']}, {lengths}")
    if apart:
        distances = ", ".join(f"{name} {distance:.0e}" for name, distance in apart.items())
        print(f"after one step: {distances} apart")
    print(f"{'framework':<14}{'s/step':>9}{'real tok/s':>12}{'computed':>10}{'share':>8}{'MFU':>7}")
    for row in result["frameworks"]:
        print(
            f"{row['framework']:<14}{row['seconds_per_step']:>9.3f}{row['real_tokens_per_s']:>12.0f}"
            f"{row['computed_tokens_per_s']:>10.0f}{row['real_share']:>8.1%}{row['mfu']:>7.1%}"
        )
    if len(result["frameworks"]) == 2:
        ours, theirs = result["frameworks"]
        total, raw, packing = (
            ours[key] / theirs[key]
            for key in ("real_tokens_per_s", "computed_tokens_per_s", "real_share")
        )
        print(f"ours / theirs: {total:.2f}x = {raw:.2f}x raw speed x {packing:.2f}x packing")


def _work(name: str, lengths: train_lengths.Lengths, options: Any) -> tuple[Job, Tree]:
    """The job and the parameters of a named size, or of a model's folder."""
    compute = {"dtype": options.dtype or _usual_dtype(), "remat": options.remat}
    if name in SIZES:
        model = dataclasses.replace(MODELS[name], **compute)
        params = decoder.init_params(jax.random.key(0), model)
    elif Path(name).is_dir():
        model = hf.load_config(name, **compute)
        params = hf.load_params(name, model)
    else:
        raise SystemExit(f"--model {name}: neither one of {', '.join(SIZES)} nor a model's folder")
    sequences = list(texts(lengths.splits["forget05"], model.vocab_size, seed=0))
    work = train_ours.job(model, sequences, steps=options.steps, batch_size=options.batch_size)
    # On the host: on a card a copy would count as memory of our step, and not of the others'.
    return work, jax.device_get(params)


def _usual_dtype() -> str:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _row(work: Job, stepper: Stepper, seconds: float, peak: float) -> dict[str, float]:
    steps = range(len(work.steps))
    real_tokens, computed = (
        sum(count(i) for i in steps) for count in (work.real_tokens, stepper.computed_tokens)
    )
    return {
        "seconds_per_step": seconds / len(steps),
        "real_tokens_per_s": real_tokens / seconds,
        "computed_tokens_per_s": computed / seconds,
        "real_share": real_tokens / computed,
        "mfu": sum(work.needed_flops(i) for i in steps) / seconds / peak,
        "matmul_flops_per_s": peak,
    }


def _times(
    steppers: dict[str, Stepper], steps: int, rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of every step, compiled already: the median over the rounds.

    In each round every framework takes all steps, one framework after the other.
    """
    seconds = {name: [[] for _ in range(steps)] for name in steppers}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            # No user takes the steps of two frameworks in turns: the one that follows the other
            # finds caches and memory taken, which a step before those that count hides.
            stepper.step(0)
            for i in range(steps):
                start = clock()
                stepper.step(i)
                seconds[name][i].append(clock() - start)
    return {name: [median(values) for values in by_step] for name, by_step in seconds.items()}


def best(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds of the fastest of a few calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(MATMUL_CALLS):
        start = clock()
        call()
        seconds.append(clock() - start)
    return min(seconds)


def _distance(a: Tree, b: Tree) -> float:
    """Euclidean norm of a - b in float64."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    squares = [np.sum((np.asarray(x, np.float64) - np.asarray(y)) ** 2) for x, y in pairs]
    return float(np.sqrt(sum(squares)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", default=["small"], help="small, medium or a folder")
    parser.add_argument("--lengths", type=Path, help="from benchmarks.train_lengths")
    parser.add_argument("--steps", type=int, default=12, help="different batches")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the device's")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


if __name__ == "__main__":
    main()
