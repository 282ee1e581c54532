"""Live progress on a terminal, silence elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """The line of one training: step, tokens/s, time left, and the newest values."""

    def __init__(self, progress: Progress | None, task, total: int):
        self._progress, self._task, self._total = progress, task, total
        self._values: dict[str, float] = {}
        self._start, self._tokens = time.perf_counter(), 0

    def advance(self, step: int, tokens: int = 0, **values: float | None) -> None:
        """Shows `step` done and the values given; earlier values stay."""
        if self._progress is None:
            return
        self._tokens += tokens
        self._values.update({k: v for k, v in values.items() if v is not None})
        rate = self._tokens / max(time.perf_counter() - self._start, 1e-9)
        shown = [f"{step}/{self._total}", *(f"{k} {v:.4g}" for k, v in self._values.items())]
        shown += [f"{rate:,.0f} tok/s"] if self._tokens else []
        self._progress.update(self._task, completed=step, text="  ".join(shown))


@contextmanager
def bar(console: Console, name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress line for `total` steps; draws nothing where the output is not a terminal."""
    if not console.is_terminal:
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
