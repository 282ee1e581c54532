"""Everything that is worth knowing of a card, in sections that end in minutes.

    python -m benchmarks.accelerator [--minutes 8] [--only SECTION ..] [--out DIR] [--rehearse]
    python -m benchmarks.accelerator pack DIR --model FOLDER ..

Each section is a process of its own that writes DIR/SECTION.json after every row. A section that
fails records its traceback, and the next one runs; rows without a final result are measured by the
next call with the same --out. Needs neither a network nor tyro nor datasets. What a machine needs
beside this repository is packed by the second command, and found where --pack says.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator import SECTIONS, pack, table
from jaxunlearn.core import files

ROOT = Path(__file__).parents[2]
PACK = ROOT / "benchmarks" / "pack"  # where the pack is looked for, if there is one
MOST_SECONDS = 120.0  # of a section
GRACE_SECONDS = 60.0  # for the row that is under way when the time of a section is used up
REFUSED = 2
# JAX takes most of the card, but in "peers" PyTorch needs as much, and "truth" starts a second
# process beside its own.
MEMORY = {
    "peers": {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".45"},
    "truth": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
}
# Runs that are started again compile the same programs. Facts of the compiler need a fresh
# compilation, so the other sections have no cache.
CACHED = ("truth", "job")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sections, or packs; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["pack"]:
        pack.main(words[1:])
        return 0
    parser = _parser()
    options = parser.parse_args(words)
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: must be positive")
    if options.pack != PACK and not options.pack.is_dir():
        parser.error(f"--pack {options.pack}: no such folder")
    end = time.monotonic() + 60 * options.minutes
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    site = _install_wheels(options.pack / "wheels", options.work / "site")
    notes: dict[str, str] = {}
    for number, name in enumerate(options.only):
        if _is_complete(options.out / f"{name}.json", options.rehearse):
            print(f"{name}: all done", flush=True)
            continue
        share = max(0.0, end - time.monotonic()) / (len(options.only) - number)
        # A rehearsal shows that every row runs, however slow or busy the machine is.
        seconds = share if options.rehearse else min(MOST_SECONDS, share)
        status, note = _run(name, seconds, options, site)
        if status == REFUSED:
            return REFUSED
        if note:
            notes[name] = note
            print(f"{name}: {note}", flush=True)
    text = table.markdown(table.read(options.out, SECTIONS), notes)
    (options.out / "table.md").write_text(text)
    print(f"\n{text}")
    return 0


def _run(
    name: str, seconds: float, options: argparse.Namespace, site: Path | None
) -> tuple[int | None, str]:
    """Runs a section's process; returns its exit status, None where it was killed, and a note."""
    print(f"{name}: {seconds:.0f} s", flush=True)
    command = [sys.executable, "-m", "benchmarks.accelerator.section", name]
    for key in ("out", "work", "pack"):
        command += [f"--{key}", str(getattr(options, key).resolve())]
    command += ["--seconds", f"{seconds:.1f}", *(["--rehearse"] if options.rehearse else [])]
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(name, options, site))
    try:
        status = process.wait(seconds + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"killed {GRACE_SECONDS:.0f} s after its time; the row under way is lost"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return status, "" if status in (0, 1) else f"its process ended with status {status}"


def _environment(name: str, options: argparse.Namespace, site: Path | None) -> dict[str, str]:
    """The environment of a section: memory, caches, and the packages of the pack."""
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".95"} | MEMORY.get(name, {})
    if name in CACHED:
        environment["JAX_COMPILATION_CACHE_DIR"] = str((options.work / "compiled").resolve())
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    environment |= os.environ
    if environment.get("JAX_PLATFORMS"):
        environment["JAX_PLATFORMS"] += ",cpu"  # float64, for what is compared with it
    if options.rehearse:
        # A compiler that optimises little takes half the time.
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    paths = [str(ROOT), os.environ.get("PYTHONPATH"), site and str(site.resolve())]
    return environment | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _is_complete(path: Path, rehearsal: bool) -> bool:
    """Whether a section's file has a final state for every row that it planned."""
    if not path.is_file():
        return False
    record = files.read_json(path)
    planned = bool(record["planned"]) and not record["left"] and not record["traceback"]
    return planned and record["rehearsal"] == rehearsal


def _install_wheels(wheels: Path, site: Path) -> Path | None:
    """Unpacks the wheels of the pack, which sections find after the machine's own packages."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--upgrade", "--target", str(site), *map(str, found)]
    if subprocess.run(command).returncode:
        print("the wheels of the pack could not be installed; their rows are left out")
        return None
    return site


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="for all; 2 each at most if not a rehearsal")
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    add("--out", type=Path, default=Path("build/accelerator"), help="the sections' files")
    add("--work", type=Path, default=Path("build/accelerator_work"), help="everything else")
    add("--pack", type=Path, default=PACK, help="from the command pack")
    add("--rehearse", action="store_true", help="tiny sizes on the CPU, to see that it all runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
