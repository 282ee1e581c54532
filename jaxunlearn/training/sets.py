"""The samples that an unlearning run draws its batches from."""

from typing import NamedTuple

from jaxunlearn.config import Unlearn
from jaxunlearn.data import order
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.refusals import Refusals
from jaxunlearn.training.schedule import epochs_of_step

Draw = tuple[int, int | None]
"""A forget sample, and the epoch that its substitute is drawn for; None for measurements."""


class SampleSets(NamedTuple):
    """The samples that an unlearning run draws from.

    Attributes:
      forget: the forget set D_u.
      retain: the pool that retain terms and guides draw from; no sample of it is in the retain set
        D_r, on which retention is measured.
      refusals: the substitute answers of the forget samples.
    """

    forget: list[Sample]
    retain: list[Sample]
    refusals: Refusals

    def refusal_draws(self, unlearn: Unlearn) -> dict[Draw, Sample]:
        """Every substitute answer that a run of this schedule draws, in a fixed order.

        Those of measurements come first, then those of each epoch, forget sample by forget sample.
        """
        samples = len(self.forget)
        steps = order.num_steps(samples, unlearn.batch_size, unlearn.epochs)
        last = int(epochs_of_step(max(steps - 1, 0), unlearn.batch_size, samples)[-1])
        draws = [(i, epoch) for epoch in (None, *range(last + 1)) for i in range(samples)]
        return {draw: self.refusals.draw(*draw) for draw in draws}
