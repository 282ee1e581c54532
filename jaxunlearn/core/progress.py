"""Progress lines for terminals; nothing is drawn where the output is not a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


def quiet_console() -> Console:
    """Returns a console that prints nothing: the default where no console is given."""
    return Console(quiet=True)


class Bar:
    """The progress line of one training: step, newest values, tokens per second, time left."""

    def __init__(self, progress: Progress | None, task: TaskID | None, total: int):
        self._progress, self._task, self._total = progress, task, total
        self._values: dict[str, float] = {}
        self._start, self._tokens = time.perf_counter(), 0

    def advance(self, step: int, tokens: int = 0, **values: float | None) -> None:
        """Updates the line.

        Args:
          step: steps done so far.
          tokens: tokens processed since the last call.
          **values: numbers to show by name; None keeps the value shown before.
        """
        if self._progress is None or self._task is None:
            return
        self._tokens += tokens
        self._values.update({k: v for k, v in values.items() if v is not None})
        rate = self._tokens / max(time.perf_counter() - self._start, 1e-9)
        parts = [f"{step}/{self._total}", *(f"{k} {v:.4g}" for k, v in self._values.items())]
        parts += [f"{rate:,.0f} tok/s"] if self._tokens else []
        self._progress.update(self._task, completed=step, text="  ".join(parts))


@contextmanager
def bar(console: Console, name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Shows a progress line while the block runs, and removes it at the end.

    Args:
      console: where the line goes; one that is no terminal shows nothing.
      name: what is in progress.
      total: number of steps.
      done: steps that an earlier, interrupted start has done.
    """
    if not console.is_terminal or console.quiet:
        yield Bar(None, None, total)
        return
    shape = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*shape, console=console, transient=True) as progress:
        task = progress.add_task(name, total=total, completed=done, text=f"{done}/{total}")
        yield Bar(progress, task, total)
