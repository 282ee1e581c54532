"""Reports written by processes of their own, while the next run computes."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

from rich.console import Console

from jaxunlearn.core.progress import say
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import page

PROGRAM = f"""import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from jaxunlearn.__main__ import main
sys.exit(main())"""
"""The command line of this very package, which may not be installed."""


class BackgroundReports:
    """The reports of several runs, each written by `jaxunlearn report` in a process of its own.

    A training of a small model keeps one processor core busy, and figures another. A block that
    ends by an exception, such as a stop, ends the processes too: reports can be written again.

    with BackgroundReports() as reports:
        reports.begin(folder, console)
        ..
        reports.finish()
    """

    def __init__(self) -> None:
        self._begun: list[_Begun] = []
        self._ends = contextlib.ExitStack()
        self._folder = Path()

    def __enter__(self) -> Self:
        folder = tempfile.TemporaryDirectory(prefix="jaxunlearn-")
        self._folder = Path(self._ends.enter_context(folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def begin(self, run: Path, console: Console) -> None:
        """Begins to write the report of a finished run.

        Args:
          run: the run's folder.
          console: is told where the report is, by `finish`.
        """
        errors = self._folder / str(len(self._begun))
        # The devices are the next run's, and the current folder must not bring modules of its own
        # (-P). In a session of its own the process gets no Ctrl-C from the terminal.
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, "report", str(run)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                start_new_session=True,
            )
        self._ends.enter_context(process)  # waits for it, once it is killed
        self._ends.callback(process.kill)
        self._begun.append(_Begun(run, console, process, errors))

    def finish(self) -> None:
        """Waits until all reports are written, and prints where they are.

        Raises:
          ChildProcessError: a report could not be written; says why.
        """
        for begun in self._begun:
            if begun.process.wait():
                words = begun.errors.read_text().strip().splitlines() or ["its process died"]
                reason = words[-1].removeprefix("jaxunlearn: ")
                raise ChildProcessError(f"{begun.run}: no report was written: {reason}")
            file = RunFolder(begun.run).html
            say(begun.console, f"report: {file}" if page.is_installed() else page.MISSING)


class _Begun(NamedTuple):
    run: Path
    console: Console
    process: subprocess.Popen[bytes]
    errors: Path
