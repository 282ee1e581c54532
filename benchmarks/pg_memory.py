"""Peak resident memory of one call of a way, in a process of its own.

Run by the benchmark itself, `python -m benchmarks.pg_memory SPEC`, once a way.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import pg_jobs
from benchmarks.pg_ways import all_ways

ROOT = Path(__file__).parents[1]


def peak_growth(model: str, counts: list[tuple[int, int]], row: dict) -> int:
    """Bytes by which one call of a row's way raises the resident peak of a fresh process.

    Arguments and compiled programs are there before; the call is the first.

    Raises:
      RuntimeError: the process failed.
    """
    keys = {key: row[key] for key in ("way", "k", "rows", "variant")}
    spec = json.dumps({"model": model, "counts": counts} | keys)
    command = [sys.executable, "-m", "benchmarks.pg_memory", spec]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{row['way']}: its memory was not measured:\n{process.stderr[-2000:]}")
    return int(process.stdout.splitlines()[-1])


def main() -> None:
    spec = json.loads(sys.argv[1])
    way = _way(spec)
    if way.temp is None:  # not a compiled program: a small call first, for pools and libraries
        _way(spec | {"counts": [(8, 4)], "rows": None}).call()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    way.call()
    print(_status("VmHWM") - before)


def _way(spec: dict):
    job = pg_jobs.random_job(spec["model"], [tuple(count) for count in spec["counts"]])
    builders, _ = all_ways(job)
    ways = builders[spec["way"]](spec["k"])
    if spec["rows"] is None:
        return ways[0]
    return next(w for w in ways if (w.rows, w.note) == (spec["rows"], spec["variant"]))


def _status(key: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
