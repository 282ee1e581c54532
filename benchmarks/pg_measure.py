"""Checks every way, then times all of them in turns."""

import gc
import math
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from benchmarks.pg_check import TOLERANCE, checked, reference, with_gradients
from benchmarks.pg_jobs import Job
from benchmarks.pg_way import UNIT, DoesNotFit, Way
from benchmarks.pg_ways import all_ways

Row = dict[str, Any]


def measure(
    job: Job, ks: Sequence[int], selection: Sequence[str], rounds: int, limit: float
) -> tuple[list[Row], dict[str, str]]:
    """One row a way and K: what it gives, error, FLOPs, bytes and seconds.

    Args:
      job: its directions are replaced by gradients.
      ks: numbers of directions.
      selection: parts of the names of ways; none = all. The unit is always measured.
      rounds: timed calls of each way, all ways in turns; the median counts.
      limit: seconds; a way whose call takes longer is not timed further.

    Returns:
      Rows, the unit first, and {way: why it was left out}.

    Raises:
      Disagrees: before anything is timed, where a way's values are wrong.
    """
    job = with_gradients(job)
    candidates, reasons = build(job, ks, selection)
    exact = reference(job)
    tolerance = TOLERANCE[job.config.dtype]
    with warnings.catch_warnings():
        # PyTorch warns of slow fallbacks; where one is slow, another variant is chosen.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        errors = [[checked(way, exact, tolerance) for way in ways] for ways in candidates]
        gc.collect()
        gc.freeze()  # a library that collects garbage as it runs is not charged for ours
        if not rounds:
            chosen = [(0, None)] * len(candidates)
        else:
            chosen = [fastest(ways, limit) for ways in candidates]
        ways = [ways[i] for ways, (i, _) in zip(candidates, chosen, strict=True)]
        seconds = times([way for way, (_, s) in zip(ways, chosen, strict=True) if s], rounds)
    rows = [
        row(way) | {"error": variant_errors[i], "seconds": seconds.get(id(way))}
        for way, variant_errors, (i, _) in zip(ways, errors, chosen, strict=True)
    ]
    return rows, reasons


def build(
    job: Job, ks: Sequence[int], selection: Sequence[str]
) -> tuple[list[list[Way]], dict[str, str]]:
    """The variants of every way and K, and {way: why it was left out}."""
    builders, reasons = all_ways(job)
    names = [
        n for n in builders if n == UNIT or not selection or any(part in n for part in selection)
    ]

    def each_k(name: str) -> list[tuple[str, list[Way] | str]]:
        variants: list[tuple[str, list[Way] | str]] = []
        for k in ks:
            try:
                ways = builders[name](k)
            except DoesNotFit as error:
                variants.append((f"{name}, K={k}", str(error)))
                continue
            variants.append((name, ways))
            if ways[0].k == 0:  # the same for every K
                break
        return variants

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a compilation keeps one core busy
        built = [pair for pairs in pool.map(each_k, names) for pair in pairs]
    reasons |= {name: ways for name, ways in built if isinstance(ways, str)}
    return [ways for _, ways in built if not isinstance(ways, str)], reasons


def row(way: Way) -> Row:
    """The columns of a way that are known before it runs."""
    return {
        "way": way.name,
        "k": way.k,
        "gives": way.gives + (" (Linear layers only)" if way.linear_only else ""),
        "rows": way.rows,
        "variant": way.note,
        "linear_only": way.linear_only,
        "flops": way.flops,
        "temp": way.temp,
    }


def fastest(ways: list[Way], limit: float) -> tuple[int, float | None]:
    """The index of the fastest variant, and its seconds, or None where over the limit."""
    if len(ways) == 1 and limit == math.inf:
        return 0, math.inf  # nothing to choose
    seconds = [_time(way) for way in ways]
    best = min(range(len(ways)), key=seconds.__getitem__)
    return best, seconds[best] if seconds[best] <= limit else None


def times(ways: Sequence[Way], rounds: int) -> dict[int, float]:
    """{id(way): median seconds of a call}, all ways in turns."""
    seconds: dict[int, list[float]] = {id(way): [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            seconds[id(way)].append(_time(way))
    return {key: median(values) for key, values in seconds.items()}


def _time(way: Way) -> float:
    start = time.perf_counter()
    way.call()
    return time.perf_counter() - start
