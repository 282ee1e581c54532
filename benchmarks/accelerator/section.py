"""One section in a process of its own: `python -m benchmarks.accelerator.section NAME ..`.

Started by the command, once a section: its memory is its own, and what ends it ends nothing else.
"""

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import record
from benchmarks.accelerator.inputs import Setting
from benchmarks.accelerator.ledger import Ledger, OtherDevice

REFUSED = 2  # the exit status of a process that was given another device's folder


def main(arguments: list[str] | None = None) -> int:
    """Measures the rows of a section; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section")
    for name in ("out", "work", "pack"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    about = record.about("accelerator.section", arguments, torch_threads=False) | {
        "rehearsal": options.rehearse
    }
    try:
        ledger = Ledger(options.out / f"{options.section}.json", about)
    except (OtherDevice, ValueError) as error:
        print(f"benchmarks.accelerator: {error}", file=sys.stderr)
        return REFUSED
    setting = Setting(
        rehearsal=options.rehearse,
        out=options.out,
        work=options.work,
        pack=options.pack,
        seconds=options.seconds,
    )
    try:
        # Imported here: a package that the machine lacks is a failure of the section too.
        module = importlib.import_module(f"benchmarks.accelerator.{options.section}")
        ledger.measure(module.rows(setting), options.seconds, columns=module.COLUMNS)
    except Exception:
        ledger.fail()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
