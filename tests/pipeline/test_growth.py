"""A long run and many runs in one process hold no more at their end than at their beginning.

What they hold is counted in a process of its own, which other tests have not filled:
`python -m tests.pipeline.test_growth steps FOLDER` and `... runs FOLDER` print it, one line of
JSON a moment.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxunlearn.config import Objective
from jaxunlearn.training.checkpoint import Checkpoints
from tests.pipeline.tiny import replace, run

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/maps").is_file(), reason="what is held is in /proc"
)

ROOT = Path(__file__).parents[2]
STEPS, EVERY, RUNS = 500, 10, 8

# A step an epoch, each measurement with a checkpoint; so small a rate keeps the loss finite.
LONG = replace(
    finetune={"epochs": 1},
    unlearn={"epochs": STEPS, "batch_size": 3, "lr": 1e-6},
    objectives={"npo": Objective(hyper={"beta": 0.5})},
    measure={
        "every": EVERY,
        "pg_steps": tuple(range(0, STEPS, 4 * EVERY)),
        "token_steps": tuple(range(0, STEPS, 4 * EVERY)),
    },
)
SHORT = replace(finetune={"epochs": 1}, unlearn={"epochs": 2}, objectives={"ga": Objective()})


class Held(NamedTuple):
    """What a process holds: open files, threads, memory maps and resident memory in bytes."""

    files: int
    threads: int
    maps: int
    resident: int


def held() -> Held:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is not held, wherever the allocator keeps it
    process = Path("/proc/self")
    pages = int((process / "statm").read_text().split()[1])
    return Held(
        files=len(list((process / "fd").iterdir())),
        threads=threading.active_count(),
        maps=(process / "maps").read_bytes().count(b"\n"),
        resident=pages * os.sysconf("SC_PAGE_SIZE"),
    )


def after_saves(out: Path) -> None:
    """One long run; says what it holds after every save of the unlearning."""
    save = Checkpoints.save

    def saved(checkpoints, step, state):
        save(checkpoints, step, state)
        print(json.dumps([step, *held()]), flush=True)

    Checkpoints.save = saved
    run(LONG, out)


def after_runs(out: Path) -> None:
    """Short runs one after the other; says what the process holds after each."""
    for number in range(RUNS):
        run(SHORT, out / str(number))
        print(json.dumps([number, *held()]), flush=True)


def moments(kind: str, out: Path) -> list[tuple[int, Held]]:
    """What a process of its own says: [(step or run, held)]."""
    command = [sys.executable, "-m", "tests.pipeline.test_growth", kind, str(out)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # With a heap for every thread, chance alone moves the resident memory by a hundredth.
        "MALLOC_ARENA_MAX": "1",
    }
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    return [(number, Held(*counts)) for number, *counts in rows]


@pytest.mark.nightly
def test_a_long_run_does_not_grow(tmp_path):
    """A save under way holds more or less by chance; what is never given back adds to them all."""
    after = moments("steps", tmp_path)
    assert after[-1][0] == STEPS
    # The beginning and the end of the run, without the steps in which programs are compiled.
    early, late = (
        [held for step, held in after if first <= step <= first + 40]
        for first in (STEPS // 5 - 20, STEPS - 40)
    )
    assert len(early) == len(late) == 1 + 40 // EVERY
    for count in ("files", "threads"):
        least = [min(getattr(held, count) for held in part) for part in (early, late)]
        assert least[1] <= least[0] + 6, (count, after)
    # A program compiled anew would hold some sixty memory maps.
    maps, resident = (
        [np.median([getattr(held, name) for held in part]) for part in (early, late)]
        for name in ("maps", "resident")
    )
    assert maps[1] <= maps[0] + 20, after
    # Not quite nothing: the library that writes arrays keeps tens of kB of metrics of every save.
    assert resident[1] <= 1.01 * resident[0], after


@pytest.mark.nightly
def test_many_runs_in_one_process_do_not_grow(tmp_path):
    """A notebook makes many; what each left behind would add to every count."""
    after = [held for _, held in moments("runs", tmp_path)]
    assert len(after) == RUNS
    early, late = (np.min(part, axis=0) for part in (after[: RUNS // 2], after[RUNS // 2 :]))
    files, threads, maps, resident = late - early
    assert files <= 1 and threads <= 1, after
    assert maps <= 20, after  # a program that is kept holds some sixty
    assert resident <= 0.05 * early[-1], after  # most of it comes after the first run


if __name__ == "__main__":
    {"steps": after_saves, "runs": after_runs}[sys.argv[1]](Path(sys.argv[2]))
