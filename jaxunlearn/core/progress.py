"""Progress: a line that is redrawn on a terminal, and a new line now and then anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def quiet_console() -> Console:
    """Returns a console that prints nothing: the default where no console is given."""
    return Console(quiet=True)


def say(console: Console, *lines: str, style: str | None = None) -> None:
    """Prints lines as they are: nothing in them is markup, and none is broken.

    Lines hold names and texts of users, paths that people copy, and sentences that they search logs
    for.

    Args:
      console: where they go.
      *lines: one print each.
      style: of rich, for all of them.
    """
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


EVERY = 60.0
"""Seconds between two lines where the output is not a terminal, at least."""


class Bar:
    """The progress of one training: step, newest values, tokens per second, time left."""

    def __init__(self, show: Callable[[int, str, float | None], None], total: int, done: int = 0):
        """Starts the clock.

        Args:
          show: takes the step, the text, and the seconds left (None before the first step).
          total: number of steps.
          done: steps that an earlier start has done.
        """
        self._show, self._total, self._done = show, total, done
        self._values: dict[str, float] = {}
        self._start, self._tokens = time.perf_counter(), 0

    def advance(self, step: int, tokens: int = 0, **values: float | None) -> None:
        """Updates the line.

        Args:
          step: steps done so far.
          tokens: tokens processed since the last call.
          **values: numbers to show by name; None keeps the value shown before.
        """
        self._tokens += tokens
        self._values.update({k: v for k, v in values.items() if v is not None})
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate, made = self._tokens / seconds, step - self._done
        parts = [f"{step}/{self._total}", *(f"{k} {v:.4g}" for k, v in self._values.items())]
        parts += [f"{rate:,.0f} tok/s"] if self._tokens else []
        left = seconds / made * (self._total - step) if made else None
        self._show(step, "  ".join(parts), left)


@contextmanager
def bar(console: Console, name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Shows progress while the block runs.

    Args:
      console: a terminal has a line that is redrawn, and removed at the end; anything else gets at
        most one line a minute; one that is quiet gets none.
      name: what is in progress.
      total: number of steps.
      done: steps that an earlier, interrupted start has done.
    """
    if console.quiet or not console.is_terminal:
        yield Bar(_Lines(console, name), total, done)
        return
    shape = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*shape, console=console, transient=True) as progress:
        task = progress.add_task(name, total=total, completed=done, text=f"{done}/{total}")
        show = lambda step, text, _: progress.update(task, completed=step, text=text)
        yield Bar(show, total, done)


class _Lines:
    """Prints a line of progress if the last one, or the start, is a minute ago."""

    def __init__(self, console: Console, name: str):
        self._console, self._name, self._last = console, name, time.perf_counter()

    def __call__(self, step: int, text: str, left: float | None) -> None:
        now = time.perf_counter()
        if now - self._last < EVERY:
            return
        self._last = now
        time_left = "" if left is None else f"  {left / 60:.0f} min left"
        say(self._console, f"{self._name} {text}{time_left}")
