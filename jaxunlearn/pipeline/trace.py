"""Traces of training steps by `jax.profiler`."""

from pathlib import Path

import jax

from jaxunlearn.core.trees import Tree


class Trace:
    """Traces some steps of the loop with `jax.profiler`."""

    def __init__(self, folder: Path, first: int, steps: int):
        """Plans a trace.

        Args:
          folder: where it goes.
          first: the first step to trace.
          steps: how many; none where it is not positive.
        """
        self._folder, self._steps, self._on = folder, range(first, first + steps), False

    def before(self, step: int, state: Tree) -> None:
        """Starts or stops the trace before a step, once the steps before have run."""
        wanted = step in self._steps
        if wanted == self._on:
            return
        jax.block_until_ready(state)
        if wanted:
            jax.profiler.start_trace(str(self._folder))
        else:
            jax.profiler.stop_trace()
        self._on = wanted
