"""The table of the arrays that a loss may take, with the source of each.

`objectives.signature` names these arrays. This table says how each is computed from the model and a
batch, and which label values the rows of the batch must carry for that. To add an array, add a row
there and a row here.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxunlearn.core.trees import Tree
from jaxunlearn.data.packing import unpack
from jaxunlearn.models import decoder
from jaxunlearn.objectives import Objective
from jaxunlearn.training.batch import Batch, Rows


class ArrayReader(Protocol):
    """What reads arrays: a loss on one kind of rows, see `losses.Term`."""

    @property
    def objective(self) -> Objective:
        """The loss, which names its arrays."""
        ...

    @property
    def model(self) -> decoder.DecoderConfig:
        """The model that it is a loss of."""
        ...

    @property
    def layer(self) -> int:
        """Blocks after which hidden states are read."""
        ...

    @property
    def rows(self) -> str:
        """The field of `Batch` that it is a loss of."""
        ...

    @property
    def substitutes_alone(self) -> bool:
        """Whether it reads substitute answers, and nothing of the original ones."""
        ...


@dataclasses.dataclass(frozen=True)
class LabelValue:
    """A quantity of every label that rows carry because the model being trained cannot give it.

    Attributes:
      name: its key in `Rows.values` and in the files of the reference pass.
      tap: blocks after which the reference's hidden states are read, if they are.
      of_reference: reads it off a forward pass of the model before unlearning, [R, N, ...]; None
        for a value that the run computes on the way and hands to each batch.
    """

    name: str
    tap: int | None = None
    of_reference: Callable[[decoder.Outputs], Any] | None = dataclasses.field(
        default=None, compare=False
    )


class Source(NamedTuple):
    """The way to obtain one array of a loss.

    Attributes:
      read: computes it from the inputs of one evaluation, in the layout that
        `objectives.signature` states.
      value: the label value that the term's rows must carry for it, as a function of the term's
        layer; None where they need none.
      substitute_value: the same for the rows of substitute answers.
    """

    read: Callable[["LossInputs"], jax.Array]
    value: Callable[[int], LabelValue] | None = None
    substitute_value: Callable[[int], LabelValue] | None = None


REF_LOGP = LabelValue("ref_logp", of_reference=lambda outputs: outputs.labels)
REF_FINAL_HIDDEN = LabelValue("ref_hidden", of_reference=lambda outputs: outputs.final_hidden)
GUIDE = LabelValue("guide")


def ref_tap(layer: int) -> LabelValue:
    """Hidden states of the reference after `layer` blocks."""
    return LabelValue(f"ref_tap_{layer}", tap=layer, of_reference=lambda outputs: outputs.hidden)


class LossInputs:
    """The inputs of one evaluation of a loss; each is computed when it is first read.

    A loss that reads only hidden states therefore runs no head and no block after its layer, and a
    loss that reads only substitute answers runs no forward pass over the original ones.
    """

    def __init__(
        self,
        term: ArrayReader,
        params: Tree,
        batch: Batch,
        *,
        with_logp: bool,
        final_hidden: jax.Array | None = None,
    ):
        """Notes what the arrays are computed from; nothing is computed yet.

        Args:
          term: the loss.
          params: of the model.
          batch: its rows.
          with_logp: whether log p is read, whatever the loss reads.
          final_hidden: [R, N, D] of the loss's rows, where a pass over more rows has them; the loss
            is none of hidden states then.
        """
        self.term, self.params, self.batch = term, params, batch
        self._with_logp, self._final_hidden = with_logp, final_hidden

    @property
    def rows(self) -> Rows:
        """The rows that the loss is a loss of."""
        return getattr(self.batch, self.term.rows)

    @functools.cached_property
    def outputs(self) -> decoder.Outputs:
        """The forward pass over the loss's rows."""
        kind, head, inputs = self.term.objective.kind, decoder.label_log_probs, ()
        if kind == "hidden" and not self._with_logp:
            head = None
        if kind == "logits":
            head, inputs = self._head, self._head_inputs
        tap = self.term.layer if kind == "hidden" else None
        packed, model = self.rows.packed, self.term.model
        if self._final_hidden is not None:
            hidden, options = self._final_hidden, {"head": head, "head_inputs": inputs}
            labels = decoder.forward_head(self.params, hidden, packed, model, **options)
            return decoder.Outputs(labels, None, hidden)
        return decoder.forward(self.params, packed, model, head=head, head_inputs=inputs, tap=tap)

    @property
    def hyper(self) -> dict[str, jax.Array]:
        """The hyper-parameters that the loss leaves open, from the batch's constants."""
        values = self.batch.constants.hyper
        return {
            name: jnp.asarray(values[self.term.rows][name]) for name in self.term.objective.open
        }

    @property
    def logp(self) -> jax.Array:
        """log p of the labels, [B, S]."""
        labels = self.outputs.labels
        return unpack(
            labels["logp"] if self.term.objective.kind == "logits" else labels, self.rows.packed
        )

    @property
    def position_losses(self) -> jax.Array:
        """The values of a loss of logits, which runs inside the head, for each label, [R, N]."""
        return self.outputs.labels["loss"]

    @property
    def hidden(self) -> jax.Array:
        """Hidden states after the term's layer where labels are predicted, [R, N, D]."""
        hidden = self.outputs.hidden
        assert hidden is not None  # the term taps its layer
        return hidden

    def value(self, label_value: LabelValue) -> jax.Array:
        """A label value of the loss's rows, [R, N, ...]."""
        return jnp.asarray(self.rows.values[label_value.name])

    @functools.cached_property
    def substitute(self) -> dict[str, jax.Array]:
        """The arrays of the substitute answers, [B, S], by the names of `objectives.signature`."""
        rows, names = self.batch.substitute, self.term.objective.arrays
        assert rows is not None  # the feed gives them to every objective that names them
        arrays = {
            "substitute_logp": decoder_logp(self.params, rows, self.term.model),
            "substitute_mask": jnp.asarray(rows.mask),
        }
        if "substitute_ref_logp" in names:
            arrays["substitute_ref_logp"] = unpack(rows.values[REF_LOGP.name], rows.packed)
        if self.term.substitutes_alone:
            return arrays
        # The loss reads both answers of a sample, but the two packings put a sample in different
        # slots: the substitutes are brought to the slots of the originals.
        assert self.batch.partner is not None
        partner = self.batch.partner.reshape(-1)
        is_filled = self.rows.packed.mask.any(-1).reshape(-1)
        aligned = {name: jnp.take(x, partner, axis=0) for name, x in arrays.items()}
        aligned["substitute_mask"] &= is_filled[:, None]  # an empty slot has no partner
        return aligned

    @property
    def _head(self) -> decoder.Head:
        """The head that applies a loss of logits to one chunk of labels.

        Logits of all labels together are never in memory.
        """

        def head(logits, labels, *reference_hidden):
            arrays: dict[str, jax.Array] = {"logits": logits, "labels": labels}
            if reference_hidden:
                reference = self.batch.constants.reference_head
                arrays["ref_logits"] = decoder.head_logits(
                    reference, reference_hidden[0], self.term.model
                )
            objective = self.term.objective
            named = {name: arrays[name] for name in objective.arrays}
            loss = objective.loss(**named, **self.hyper)
            return {"logp": decoder.label_log_probs(logits, labels), "loss": loss}

        return head

    @property
    def _head_inputs(self) -> tuple[jax.Array, ...]:
        names = self.term.objective.arrays
        return (self.value(REF_FINAL_HIDDEN),) if "ref_logits" in names else ()


def decoder_logp(
    params: Tree, rows: Rows, model: decoder.DecoderConfig, probe: Tree | None = None
) -> jax.Array:
    """log p of every label token of rows, [B, S], 0 where there is none."""
    return unpack(decoder.forward(params, rows.packed, model, probe=probe).labels, rows.packed)


def _in_head(inputs: LossInputs) -> jax.Array:
    """Raises: these arrays exist one chunk at a time, inside `LossInputs._head`."""
    raise AssertionError("arrays of a loss of logits are made inside the head")


SOURCES: dict[str, Source] = {
    "mask": Source(lambda inputs: jnp.asarray(inputs.rows.mask)),
    "logp": Source(lambda inputs: inputs.logp),
    "ref_logp": Source(
        lambda inputs: unpack(inputs.value(REF_LOGP), inputs.rows.packed), lambda _: REF_LOGP
    ),
    "guide": Source(
        lambda inputs: unpack(inputs.value(GUIDE), inputs.rows.packed), lambda _: GUIDE
    ),
    "substitute_logp": Source(lambda inputs: inputs.substitute["substitute_logp"]),
    "substitute_mask": Source(lambda inputs: inputs.substitute["substitute_mask"]),
    "substitute_ref_logp": Source(
        lambda inputs: inputs.substitute["substitute_ref_logp"], substitute_value=lambda _: REF_LOGP
    ),
    "logits": Source(_in_head),
    "labels": Source(_in_head),
    "ref_logits": Source(_in_head, lambda _: REF_FINAL_HIDDEN),
    "hidden": Source(lambda inputs: inputs.hidden),
    "ref_hidden": Source(lambda inputs: inputs.value(ref_tap(inputs.term.layer)), ref_tap),
    "target": Source(lambda inputs: jnp.asarray(inputs.batch.constants.target)),
}


def read_arrays(inputs: LossInputs) -> dict[str, jax.Array]:
    """Every array that the loss names."""
    return {name: SOURCES[name].read(inputs) for name in inputs.term.objective.arrays}


def label_values(terms: Iterable[ArrayReader]) -> tuple[LabelValue, ...]:
    """The label values that the rows of some terms must carry, none twice, sorted by name."""
    return _values(terms, lambda source: source.value)


def substitute_values(terms: Iterable[ArrayReader]) -> tuple[LabelValue, ...]:
    """The label values that the rows of substitute answers must carry, as in `label_values`."""
    return _values(terms, lambda source: source.substitute_value)


def _values(
    terms: Iterable[ArrayReader], value_of: Callable[[Source], Callable[[int], LabelValue] | None]
) -> tuple[LabelValue, ...]:
    values: set[LabelValue] = set()
    for term in terms:
        for name in term.objective.arrays:
            if (make := value_of(SOURCES[name])) is not None:
                values.add(make(term.layer))
    return tuple(sorted(values, key=lambda value: value.name))
