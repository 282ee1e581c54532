"""Inputs of coming steps, made on a thread while the devices compute, so that no step waits.

An input is a pure function of its step, so when and where it is made changes no value. Placing
arrays on devices involves no other process: every process places the parts of its own devices.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 2
"""Inputs that are made ahead of the step that is taken."""


class Prefetch(Generic[T]):
    """A queue of the inputs of a loop's next steps, filled by a thread.

    As a context manager it ends the thread with the block, however the block ends: inputs that are
    not begun are dropped, and the one that is being made is waited for.

    Attributes:
      waited: seconds that `take` has waited for inputs so far.

    >>> with Prefetch() as ahead:
    ...     ahead.plan(range(3), lambda step: 10 * step)
    ...     [ahead.take(step) for step in range(3)]
    [0, 10, 20]
    """

    def __init__(self, depth: int = DEPTH):
        """Starts with no plan.

        Args:
          depth: inputs to hold beside the one that is taken; each takes memory on the devices.
        """
        self._depth = depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._make: Callable[[int], T] | None = None
        self._planned: list[int] = []
        self._made: dict[int, Future[T]] = {}
        self.waited = 0.0

    def plan(self, steps: Iterable[int], make: Callable[[int], T]) -> None:
        """Says which steps come next, and how their inputs are made; drops what was planned before.

        A plan ends where `make` stops being right: with weights that change before a step, that
        step is the first of the next plan. So no input can be taken that older weights went into.

        Args:
          steps: in the order in which they are taken.
          make: (step) -> its input; called on the thread, one step after the other.
        """
        for future in self._made.values():
            future.cancel()
        self._made, self._planned, self._make = {}, list(steps), make
        self._fill()

    def take(self, step: int) -> T:
        """Returns the input of a planned step; waits until it is made.

        Raises:
          KeyError: the step is not the next one of the plan.
          Exception: whatever `make` raised for this step.
        """
        if step not in self._made or step != next(iter(self._made)):
            raise KeyError(f"step {step} is not the next step of the plan")
        future = self._made.pop(step)
        self._fill()
        start = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited += time.perf_counter() - start

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        """Gives the thread the next planned steps, as many as are held at most."""
        assert self._make is not None  # there is a plan
        while self._planned and len(self._made) < self._depth:
            step = self._planned.pop(0)
            self._made[step] = self._thread.submit(self._make, step)
