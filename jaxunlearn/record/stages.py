"""The stages of a run: their time, throughput and waiting, in the run's timings and on the console.

A stage, such as one objective, has parts, such as its train steps and its measurements. Wall-clock
time is written to `timings.jsonl` and nowhere else.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.monitoring
from rich.console import Console

from jaxunlearn.core import devices as device_facts
from jaxunlearn.core.files import append
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.core.trees import Tree
from jaxunlearn.record.folder import RunFolder

COMPILATION = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
"""Events by which JAX reports the seconds of tracing, lowering and compiling a program."""


@dataclasses.dataclass
class Part:
    """One kind of work of a stage, added up over all its turns.

    Attributes:
      seconds: wall clock, compilation included.
      tokens: real tokens (no padding) of all passes over data.
      flops: that these needed, see `decoder.forward_flops`.
      waiting: seconds that the loop waited for batches.
      compiling: seconds of tracing, lowering and compiling.
    """

    seconds: float = 0.0
    tokens: int = 0
    flops: int = 0
    waiting: float = 0.0
    compiling: float = 0.0

    def add(self, tokens: int, flops: int = 0) -> None:
        """Counts a pass over some tokens."""
        self.tokens += tokens
        self.flops += flops


class Stage:
    """A stage that runs: one clock, whose time goes to one part at a time.

    Attributes:
      whole: all of the stage, in a part or not.
      parts: by name, in the order of their first turns.
    """

    def __init__(self):
        self.whole, self.parts = Part(), {}
        self._open: list[Part] = []
        self._last = ""
        self._start = self._mark = time.perf_counter()
        self._compilations: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def part(self, name: str, *, after: Tree = None) -> Iterator[Part]:
        """Gives the block's time to a part; the part that was open pauses.

        Args:
          name: of the part; its turns add up.
          after: arrays to wait for first. JAX runs ahead of the host, and the devices' work on them
            belongs to the part before.
        """
        jax.block_until_ready(after)
        part = self.parts.setdefault(name, Part())
        self._last = name
        self._turn()
        self._open.append(part)
        try:
            yield part
        finally:
            self._turn()
            self._open.pop()

    def place(self, name: str) -> str:
        """Where the stage of this name ended: with the part whose turn was the last."""
        return f"{name}, {self._last}" if self._last else name

    def close(self) -> None:
        """Sets the totals of the stage."""
        self.whole.seconds = time.perf_counter() - self._start
        for part in self.parts.values():
            self.whole.add(part.tokens, part.flops)
            self.whole.waiting += part.waiting

    def on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        """Counts a compilation; a program that is traced inside another one counts once."""
        if event not in COMPILATION:
            return
        end = time.perf_counter()
        start, inner = end - duration_secs, 0.0
        while self._compilations and self._compilations[-1][0] >= start:
            first, last = self._compilations.pop()
            inner += last - first
        self._compilations.append((start, end))
        for part in (self.whole, *self._open[-1:]):
            part.compiling += duration_secs - inner

    def _turn(self) -> None:
        """Gives the time since the last turn to the part that is open."""
        now = time.perf_counter()
        if self._open:
            self._open[-1].seconds += now - self._mark
        self._mark = now


@dataclasses.dataclass(frozen=True)
class Stages:
    """Times the stages of a run.

    Attributes:
      folder: of the run.
      console: for a line a stage, and for progress.
      devices: that the run computes on.
      peak: FLOP/s of all devices together; None where it is not known, and no MFU is given.
      interrupts: whether the run was asked to stop; no stage begins then.
    """

    folder: RunFolder
    console: Console = dataclasses.field(default_factory=quiet_console)
    devices: Sequence[Any] = ()
    peak: float | None = None
    interrupts: Interrupts = dataclasses.field(default_factory=Interrupts)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times the block, records the stage and its parts, and prints its line.

        A stage is recorded also when the block raises; one that is resumed has several records,
        which add up.

        Args:
          name: of the stage.

        Raises:
          Stopped: the run was asked to stop.
          OutOfMemory: a device is out of memory; names the stage and the part.
        """
        self.interrupts.check(f"before {name}")
        stage = Stage()
        jax.monitoring.register_event_duration_secs_listener(stage.on_event)
        try:
            yield stage
            self.interrupts.reached(f"after {name}")
        except RuntimeError as error:
            no_memory = device_facts.out_of_memory(error, stage.place(name))
            if no_memory is None:
                raise
            raise no_memory from error
        finally:
            jax.monitoring.unregister_event_duration_listener(stage.on_event)
            stage.close()
            for part_name, part in {**stage.parts, None: stage.whole}.items():
                append(self.folder.timings, self._record(name, part_name, part))
        say(self.console, self._line(name, stage))

    def _record(self, name: str, part_name: str | None, part: Part) -> dict[str, Any]:
        """A record of the timings.

        For the whole stage `part` is None and there are no rates: some parts process no data.
        """
        rate, utilisation = (None, None) if part_name is None else self._rates(part)
        local = [d for d in self.devices if d.process_index == jax.process_index()]
        return {
            "stage": name,
            "part": part_name,
            "seconds": round(part.seconds, 3),
            "tokens": part.tokens or None,
            "tokens_per_second": None if rate is None else round(rate, 1),
            "flops": part.flops or None,
            "mfu": None if utilisation is None else round(utilisation, 5),
            "waiting_seconds": round(part.waiting, 4),
            "compile_seconds": round(part.compiling, 3),
            "peak_bytes": device_facts.peak_bytes(local),
        }

    def _rates(self, part: Part) -> tuple[float | None, float | None]:
        """Tokens per second and MFU, compilation left out; None where there are none."""
        seconds = part.seconds - part.compiling
        if seconds <= 0:
            return None, None
        rate = part.tokens / seconds if part.tokens else None
        if self.peak is None or not part.flops:
            return rate, None
        return rate, part.flops / seconds / self.peak

    def _line(self, name: str, stage: Stage) -> str:
        """The line of a stage: its seconds, and the throughput of its parts."""
        texts = [f"{name}: {_seconds(stage.whole.seconds)}"]
        if stage.whole.compiling >= 0.05:
            texts[0] += f", {_seconds(stage.whole.compiling)} of it compiling"
        for part_name, part in stage.parts.items():
            words = [f"{part_name} {_seconds(part.seconds)}"]
            rate, utilisation = self._rates(part)
            if rate is None and part.seconds < 0.1:
                continue  # too little to be worth a place in the line; the timings have it
            if rate is not None:
                words.append(f"{rate:,.0f} tokens/s")
            if utilisation is not None:
                words.append(f"MFU {utilisation:.1%}")
            if part.waiting > 0:
                words.append(f"waiting {part.waiting / part.seconds:.1%}")
            texts.append(", ".join(words))
        return "; ".join(texts)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
