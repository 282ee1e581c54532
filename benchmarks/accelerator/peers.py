"""Section peers: the same work by PyTorch, on the same card, in the same process, in turns."""

import gc
import time
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax

from benchmarks import pg_check, pg_jax, pg_jobs, pg_measure, train_ours, train_step, train_torch
from benchmarks.accelerator.inputs import SMOLLM2, TOFU, Setting
from benchmarks.accelerator.ledger import NoMaterial, NotHere, Row, Values
from benchmarks.accelerator.train import Case, make_work
from benchmarks.pg_jobs import Job
from benchmarks.pg_way import Way
from jaxunlearn.models import sharding

COLUMNS = {
    "ours": ("ours s", "seconds"),
    "ours_by": ("by", "text"),
    "theirs": ("theirs s", "seconds"),
    "theirs_by": ("by", "text"),
    "ratio": ("theirs/ours", "ratio"),
    "speed_ratio": ("our tok/s over theirs", "ratio"),
    "ours_bytes": ("our GB", "giga"),
    "theirs_bytes": ("their GB", "giga"),
    "apart": ("apart", "small"),
}
SAMPLES = 32
K = 2
TRAINED = ("1b", SMOLLM2)
COMPILERS = {"as it is": None, "torch.compile": "inductor"}
REHEARSED_COMPILER = "aot_eager"  # traces as inductor does, and compiles nothing
DTYPES = ("bfloat16", "float32")
LARGEST = "torch vmap(grad), the largest chunk that fits"
KRONFLUENCE = "kronfluence identity"
WAYS = ("torch ghost dot", LARGEST, "torch jvp", "torch loop of autograd.grad", KRONFLUENCE)


def rows(setting: Setting) -> list[Row]:
    """Train steps and PG-effects in the type of a card's run first."""
    setting.check_lengths()
    # In a rehearsal both models have one size, and a second type is no further code.
    models = TRAINED[:1] if setting.rehearsal else TRAINED
    steps = [
        Row(
            f"step, {model}, 16 samples, bfloat16: transformers, {how}",
            partial(step, setting, model, how),
        )
        for how in COMPILERS
        for model in models
    ]
    effects = [
        Row(f"PG-effects, 1b, K={K}, {dtype}: {name}", partial(effect, setting, dtype, name))
        for dtype in DTYPES
        for name in WAYS
    ]
    first, second = effects[: len(WAYS)], effects[len(WAYS) :]
    return [steps[0], *first, *steps[1:], *([] if setting.rehearsal else second)]


def step(setting: Setting, model: str, how: str) -> Values:
    """NPO's step here and by transformers and autocast, each with its own batches."""
    _require_torch()
    setting.kept.drop()
    attention = "cudnn" if setting.gpu else "xla"
    work = make_work(setting, Case(model, TOFU, "none", attention))
    compiler = COMPILERS[how] and (REHEARSED_COMPILER if setting.rehearsal else COMPILERS[how])
    peer = SimpleNamespace(
        stepper=partial(train_torch.stepper, compiler=compiler),
        matmul_flops=train_torch.matmul_flops,
        peak_bytes=train_torch.peak_bytes,
    )
    frameworks = {"jaxunlearn": train_ours, "transformers": peer}
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        # On the host: a copy on the card would count as memory of our step, and not of theirs.
        params = jax.device_get(setting.parameters(model, work.model))
        result = train_step.measure(
            work, params, setting.rounds, time.perf_counter, frameworks, check_update=False
        )
    ours, theirs = result["frameworks"]
    _release()
    return {
        "ours": ours["seconds_per_step"],
        "ours_by": f"packed, {attention}",
        "theirs": theirs["seconds_per_step"],
        "theirs_by": f"padded, sdpa, {how}",
        "ratio": theirs["seconds_per_step"] / ours["seconds_per_step"],
        "speed_ratio": ours["real_tokens_per_s"] / theirs["real_tokens_per_s"],
        "ours_bytes": ours["peak_bytes"],
        "theirs_bytes": theirs["peak_bytes"],
        "apart": result["agreement"]["loss"],
        "frameworks": result["frameworks"],
    }


def effect(setting: Setting, dtype: str, name: str) -> Values:
    """PG-effects by our faster way and by one of PyTorch's, both compared with the definition."""
    _require_torch()
    # As PyTorch's, products in float32 are exact: the model says so of its own, this of the others.
    with jax.default_matmul_precision("highest"), warnings.catch_warnings():
        # PyTorch warns of slow fallbacks; where one is slow, another variant is chosen.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        return _effect(setting, dtype, name)


def _effect(setting: Setting, dtype: str, name: str) -> Values:
    """`effect`, in the precision that is set around it."""
    job, exact, ours = setting.kept.get(dtype, partial(_job, setting, dtype))
    built = _peer_ways(job)[name](K)
    tolerance = pg_check.TOLERANCE[dtype]
    errors = [pg_check.checked(way, exact, tolerance) for way in built]
    fastest, _ = pg_measure.fastest(built, float("inf"))
    theirs = built[fastest]
    seconds = pg_measure.times([*ours, theirs], setting.rounds)
    best = min(ours, key=lambda way: seconds[id(way)])
    own, other = seconds[id(best)], seconds[id(theirs)]
    values = {
        "ours": own,
        "ours_by": best.name,
        "theirs": other,
        "theirs_by": ", ".join(part for part in (theirs.rows, theirs.note) if part),
        "ratio": other / own,
        "ours_bytes": train_ours.peak_bytes(best.call),
        "theirs_bytes": train_torch.peak_bytes(theirs.call),
        "apart": errors[fastest],
        "linear_only": theirs.linear_only,
        "each": {way.name: seconds[id(way)] for way in ours},
    }
    del built, theirs
    _release()
    return values


def _job(setting: Setting, dtype: str) -> tuple[Job, pg_check.Reference, list[Way]]:
    """Samples with real directions, the definition's values, and our ways, checked."""
    model = setting.model("1b", dtype=dtype)
    job = pg_jobs.make_job(model, setting.samples(SAMPLES), K, dtype, batch_tokens=2**30)
    job = pg_check.with_gradients(job)
    exact = pg_check.by_definition(job, "float32")  # float64 is the CPU's, too slow for 1B
    ours = [*pg_jax.jvp(job, K), *pg_jax.gates(job, K)]
    for way in ours:
        pg_check.checked(way, exact, pg_check.TOLERANCE[dtype])
    return job, exact, ours


def _peer_ways(job: Job) -> dict[str, Callable[[int], list[Way]]]:
    """The builders of PyTorch's ways, by name."""
    from benchmarks import pg_torch

    peer = pg_torch.peer(job)
    return {
        **pg_torch.ways(peer),
        LARGEST: partial(pg_torch.largest_vmap, peer),
        KRONFLUENCE: partial(_kronfluence, peer),
    }


def _kronfluence(peer: Any, k: int) -> list[Way]:
    try:
        from benchmarks import pg_kronfluence

        return pg_kronfluence.identity(peer, k)
    except ImportError as error:
        raise NoMaterial(f"neither here nor in the pack: the package {error.name}") from error


def _require_torch() -> None:
    reason = train_torch.missing()
    if reason:
        raise NotHere(reason)


def _release() -> None:
    """Gives PyTorch's cached memory back, which the next row's models need."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
