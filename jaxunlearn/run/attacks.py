"""Attacks on unlearned models: which samples each shows, and in which batches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.data import order, packing
from jaxunlearn.evaluate.relearn import chosen
from jaxunlearn.run.feed import make_split
from jaxunlearn.run.measure import Split
from jaxunlearn.run.prepare import Prepared

Count = int | str  # of forget samples, or ALL

ALL, BENIGN, INT8 = "all", "benign", "int8"  # attacks; the others are numbers of samples
COUNTS = (1, 5, 20)  # by default, those that are not all of them, and all


class Settings(NamedTuple):
    """How every attack of a call fine-tunes."""

    steps: int
    lr: float
    batch_size: int  # at most


@dataclasses.dataclass(frozen=True)
class Attack:
    """Fine-tuning on some samples."""

    name: str
    ids: tuple[int, ...]  # of D_u, or of D_r where it is benign
    shown: Split
    batch: Callable[[int], packing.Packed]  # of a step: a pure function of it

    def unseen(self, forget: int) -> np.ndarray:
        """[forget] bool: the samples of D_u that it does not show."""
        shown = () if self.name == BENIGN else self.ids
        return ~np.isin(np.arange(forget), shown)


def counts(samples: Sequence[Count] | None, forget: int) -> list[int]:
    """How many samples each attack shows; all of them is one attack, by either name.

    Args:
      samples: numbers, also as text, or "all"; None: those of COUNTS that are not all, and all.
      forget: samples of D_u.

    Raises:
      ValueError: neither "all" nor in 1..forget.
    """
    if samples is None:
        return [*(k for k in COUNTS if k < forget), forget]
    found = []
    for given in samples:
        known = given == ALL or str(given).isdecimal()
        count = forget if given == ALL else int(given) if known else 0
        if not 1 <= count <= forget:
            raise ValueError(
                f"relearn.samples (--samples): {given!r} is neither 'all' nor in 1..{forget}"
            )
        found.append(count)
    return sorted(set(found))


def on_forget(prepared: Prepared, forget: Split, count: int, settings: Settings) -> Attack:
    """On so many samples of D_u; where these are all, `forget` are their batches."""
    ids = chosen(prepared.config.seed, len(prepared.forget), count)
    if count == len(prepared.forget):
        return _attack(prepared, ALL, ids, prepared.forget, settings, forget)
    return _attack(prepared, str(count), ids, prepared.forget, settings)


def on_retain(prepared: Prepared, settings: Settings) -> Attack:
    """As many samples of D_r as there are to forget, or all of D_r."""
    retain = prepared.measured
    count = min(len(prepared.forget), len(retain))
    ids = chosen(prepared.config.seed, len(retain), count)
    return _attack(prepared, BENIGN, ids, retain, settings)


def _attack(
    prepared: Prepared,
    name: str,
    ids: np.ndarray,
    pool: list[packing.Sequence],
    settings: Settings,
    shown: Split | None = None,
) -> Attack:
    sequences, size = [pool[i] for i in ids], min(len(ids), settings.batch_size)
    draw = lambda step: order.batch_ids(prepared.config.seed, step, len(ids), size)
    plan = packing.plan_steps(
        sequences,
        [draw(step) for step in range(settings.steps)],
        max_width=prepared.model.context,
        row_multiple=prepared.row_multiple,
        width_step=prepared.config.compute.width_step,
    )
    shown = make_split(prepared, sequences, {}) if shown is None else shown
    batch = lambda step: packing.pack_step(sequences, draw(step), plan)
    return Attack(name, tuple(ids.tolist()), shown, batch)
