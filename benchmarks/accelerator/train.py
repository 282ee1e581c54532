"""Section train: a step of NPO by this library, at the sizes of real models."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import memory, train_ours
from benchmarks.accelerator.inputs import EIGHT_BLOCKS, LARGE, SMOLLM2, TOFU, Setting
from benchmarks.accelerator.ledger import Row, Values
from benchmarks.pg_jobs import texts
from benchmarks.train_ours import Training
from jaxunlearn.models import sharding
from jaxunlearn.training.batch import LabelCache

COLUMNS = {
    "shape": ("batch", "text"),
    "device_seconds": ("s/step", "seconds"),
    "tokens_per_s": ("real tok/s", "count"),
    "mfu": ("MFU", "percent"),
    "peak_bytes": ("peak GB", "giga"),
    "forecast_bytes": ("forecast GB", "giga"),
    "peak_over_forecast": ("peak/forecast", "ratio"),
    "host_seconds": ("host s", "seconds"),
    "waiting_seconds": ("waiting s", "seconds"),
    "compile_seconds": ("compile s", "seconds"),
}
TIMED_SECONDS = 4.0  # of each of two loops over steps
MOST_STEPS, REHEARSED_STEPS = 10, 2
LOG_P = -10.0  # of a label under the reference; its value does not change the cost


class Case(NamedTuple):
    """A step: which model, on what, and how it is computed."""

    model: str
    batch: str
    remat: str
    attention: str
    dtype: str = "bfloat16"
    precision: str = "highest"  # of float32

    @property
    def name(self) -> str:
        kind = self.dtype if self.dtype == "bfloat16" else f"{self.dtype} {self.precision}"
        return f"{self.model}, {self.batch}, remat {self.remat}, {self.attention}, {kind}"


CASES = (
    Case("7b", LARGE, "full", "cudnn"),
    Case("7b", TOFU, "full", "cudnn"),
    Case(EIGHT_BLOCKS, LARGE, "full", "cudnn"),
    Case("1b", LARGE, "full", "cudnn"),
    Case("1b", TOFU, "none", "cudnn"),
    Case(SMOLLM2, TOFU, "none", "cudnn"),
    Case("7b", "16k tokens", "full", "cudnn"),
    Case("1b", LARGE, "full", "xla"),
    Case("1b", TOFU, "none", "xla"),
    Case("7b", TOFU, "full", "xla"),
    Case(SMOLLM2, LARGE, "none", "cudnn"),
    Case(SMOLLM2, TOFU, "none", "xla"),
    Case("1b", LARGE, "dots", "cudnn"),
    Case("1b", TOFU, "none", "xla", "float32", "highest"),
    Case("1b", TOFU, "none", "xla", "float32", "default"),
    Case("7b", LARGE, "full", "xla"),
    Case("7b", TOFU, "dots", "cudnn"),
    Case("7b", TOFU, "none", "cudnn"),
    Case("1b", LARGE, "none", "cudnn"),
    Case("7b", LARGE, "dots", "cudnn"),
)

# In a rehearsal all models have one size: these would do the same as others.
ALIKE = (
    Case("7b", LARGE, "full", "xla"),
    Case("7b", TOFU, "full", "xla"),
    Case(SMOLLM2, TOFU, "none", "xla"),
    Case("1b", TOFU, "none", "xla", "float32", "default"),
)


def rows(setting: Setting) -> list[Row]:
    """A row for each case; one model follows another in no order of size, but of importance."""
    setting.check_lengths()
    left_out = () if not setting.rehearsal else ALIKE
    cases = [case for case in CASES if case not in left_out]
    return [Row(case.name, partial(measure, setting, case)) for case in cases]


def measure(setting: Setting, case: Case) -> Values:
    """Seconds, tokens, MFU and memory of a step."""
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        work = make_work(setting, case)
        params = setting.parameters(case.model, work.model)
        training = Training(work, params, flat_reference(work))
        del params  # the first update donates them
        return _measured(setting, case, work, training)


def make_work(setting: Setting, case: Case) -> train_ours.Job:
    """The job of a case: a few different batches of TOFU's lengths."""
    compute = {"dtype": case.dtype, "precision": case.precision}
    compute |= {"attention": case.attention, "remat": case.remat}
    model = setting.model(case.model, **compute)
    tokens = setting.batch_tokens(case.batch)
    batch_size = 16 if case.batch == TOFU else len(setting.counts(tokens))
    sequences = list(texts(setting.samples(3 * batch_size), model.vocab_size, seed=0))
    return train_ours.job(
        model, sequences, steps=3, batch_size=batch_size, width_step=setting.scaled(128, 8)
    )


def flat_reference(work: train_ours.Job) -> LabelCache:
    """The same log p for every label: a pass of another model would take its memory."""
    offsets = np.cumsum([0, *(sample.labels for sample in work.sequences)])
    return LabelCache(np.full(offsets[-1], LOG_P, np.float32), offsets)


def _measured(setting: Setting, case: Case, work: train_ours.Job, training: Training) -> Values:
    """Compiles, then times steps that wait for each other, and steps as a run takes them."""
    start = time.perf_counter()
    cost = training.cost
    compiled = time.perf_counter() - start
    before = memory.in_use()
    batches = [training.batch(i) for i in range(len(work.steps))]

    def wait(step: int) -> None:
        training.update(batches[step % len(batches)])
        jax.block_until_ready(training.state)

    peak = memory.peak_of(partial(wait, 0))
    most = setting.scaled(MOST_STEPS, REHEARSED_STEPS)
    count = int(np.clip(TIMED_SECONDS / _seconds(partial(wait, 1)), 2, most))
    device = [_seconds(partial(wait, i)) for i in range(count)]
    # --- as a run does: the next batch is made while the device works on the last -----------------
    host, start = [], time.perf_counter()
    for i in range(count):
        began = time.perf_counter()
        batch = training.batch(i % len(work.steps))
        host.append(time.perf_counter() - began)
        training.update(batch)
    jax.block_until_ready(training.state)
    loop = (time.perf_counter() - start) / count
    steps = [i % len(work.steps) for i in range(count)]
    needed, tokens = (np.mean([f(i) for i in steps]) for f in (work.needed_flops, work.real_tokens))
    seconds = median(device)
    forecast = None if before is None else cost.peak + before - cost.arguments
    return {
        "shape": training.shape,
        "steps": count,
        "compile_seconds": compiled,
        "device_seconds": seconds,
        "loop_seconds": loop,
        "host_seconds": median(host),
        "waiting_seconds": max(0.0, loop - seconds),
        "tokens": float(tokens),
        "real_share": float(tokens) / training.computed_tokens,
        "tokens_per_s": float(tokens) / loop,
        "mfu": setting.mfu(float(needed), loop, work.model),
        "program_flops": cost.flops,
        "peak_bytes": peak and peak.bytes,
        "peak_exact": peak and peak.exact,
        "forecast_bytes": cost.peak if forecast is None else forecast,
        "peak_over_forecast": peak and forecast and peak.bytes / forecast,
    }


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
