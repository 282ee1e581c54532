"""References: outputs of the model before unlearning on the data, computed once and cached."""

import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import Unlearn
from jaxunlearn.core import files, hosts, trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.planning import Sample
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.training.arrays import REF_LOGP, LabelValue, label_values, substitute_values
from jaxunlearn.training.batch import LabelCache, Split
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.losses import Term
from jaxunlearn.training.sets import Draw, SampleSets
from jaxunlearn.training.tasks import Task

Caches = dict[str, LabelCache]
ComputeCaches = Callable[[str, Sequence[Sample], Sequence[LabelValue]], Caches]
"""(name of a set, its samples, the values of their labels) -> the caches, by name of the value."""


@dataclasses.dataclass(frozen=True)
class References:
    """Outputs of the model before unlearning, so that no second model stays in memory.

    Attributes:
      head: the parameters that turn its final hidden states into logits, if an objective reads
        those.
      forget: label values of the forget set, by name.
      retain: label values of the retain pool, by name.
      substitute: log p of every substitute answer that the run draws, if an objective reads it.
      entries: where in `substitute` each draw is.
    """

    head: Tree | None
    forget: Caches
    retain: Caches
    substitute: LabelCache | None
    entries: Mapping[Draw, int]


def reference_pass(
    params: Tree,
    tasks: Sequence[Task],
    sets: SampleSets,
    *,
    layout: Layout,
    model: DecoderConfig,
    unlearn: Unlearn,
    folder: RunFolder,
    on_pass: Callable[[Split], None] = lambda split: None,
) -> References:
    """Computes, or reads from `folder`, all that any objective of a run reads of theta_0.

    Args:
      params: theta_0.
      tasks: the objectives.
      sets: the samples.
      layout: how they become batches.
      model: theta_0's configuration.
      unlearn: the schedule, which says which substitute answers are drawn.
      folder: the run's, with one file a set; values that are there are not computed again.
      on_pass: is given the set of every forward pass that is made.

    Returns:
      References.
    """

    def compute(name: str, samples: Sequence[Sample], values: Sequence[LabelValue]) -> Caches:
        path = folder.reference(name)
        saved = _read(path, values)
        if hosts.agreed(saved is not None) and saved is not None:
            return saved
        caches = _compute(params, samples, values, layout, model, on_pass)
        _write(path, caches)
        return caches

    return gather_references(params, tasks, sets, unlearn, compute)


def gather_references(
    params: Tree,
    tasks: Sequence[Task],
    sets: SampleSets,
    unlearn: Unlearn,
    compute: ComputeCaches,
) -> References:
    """Collects the references that some objectives need, and computes them.

    Args:
      params: theta_0, or its shapes.
      tasks, sets, unlearn: as in `reference_pass`.
      compute: makes the caches of one set; it is called only for sets with values to cache.
    """
    unlearn_terms = [task.loss.unlearn for task in tasks]
    retain_terms = [task.retain for task in tasks if task.retain]
    substitute = _of_reference(substitute_values(unlearn_terms))
    draws = sets.refusal_draws(unlearn) if any("substitute" in t.needs for t in tasks) else {}
    parts = {
        "forget": (sets.forget, _of_reference(label_values(unlearn_terms))),
        "retain": (sets.retain, _of_reference(label_values(retain_terms))),
        "substitute": (list(draws.values()), substitute),
    }
    caches = {n: compute(n, samples, v) if v else {} for n, (samples, v) in parts.items()}
    return References(
        reference_head(params, [*unlearn_terms, *retain_terms]),
        caches["forget"],
        caches["retain"],
        caches["substitute"].get(REF_LOGP.name),
        {draw: i for i, draw in enumerate(draws)},
    )


def reference_head(params: Tree, terms: Sequence[Term]) -> Tree | None:
    """The parameters that turn final hidden states into logits, if a term reads reference logits.

    The head is small compared with the model, and final hidden states are smaller than logits by
    the ratio of vocabulary to width. So reference logits need no second model and no large cache.
    """
    if not any("ref_logits" in term.objective.arrays for term in terms):
        return None
    key = "lm_head" if "lm_head" in params else "embed"  # a tied model has no lm_head
    return {key: params[key]}


def _of_reference(values: Sequence[LabelValue]) -> list[LabelValue]:
    """The values that a reference pass computes; the others come from the run itself."""
    return [value for value in values if value.of_reference is not None]


def _compute(
    params: Tree,
    samples: Sequence[Sample],
    values: Sequence[LabelValue],
    layout: Layout,
    model: DecoderConfig,
    on_pass: Callable[[Split], None],
) -> Caches:
    """One forward pass over a set for each tap that the values need."""
    split = layout.split(samples)
    taps = sorted({value.tap for value in values if value.tap is not None})
    parts: dict[str, list[np.ndarray]] = {value.name: [] for value in values}
    for _ in taps or (None,):
        on_pass(split)
    for rows in split.batches:
        outputs = {t: label_references(params, rows.packed, model=model, tap=t) for t in taps}
        # Values without a tap are the same in every pass; one is needed if there is no tap.
        any_pass = outputs[taps[-1]] if taps else None
        if any_pass is None:
            any_pass = label_references(params, rows.packed, model=model, tap=None)
        for value in values:
            assert value.of_reference is not None
            pass_outputs = any_pass if value.tap is None else outputs[value.tap]
            parts[value.name].append(trees.on_host(value.of_reference(pass_outputs)))
    return {
        name: LabelCache.gather(split.packed, rows, split.samples) for name, rows in parts.items()
    }


def _read(path: Path, values: Sequence[LabelValue]) -> Caches | None:
    """The values that a file holds; None where it is damaged, or lacks one.

    An objective that was added later may need more.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            offsets = saved["offsets"]
            return {v.name: LabelCache(_typed(saved[v.name]), offsets) for v in values}
    # A damaged archive may also claim to be encrypted, of a later version, or to go on elsewhere.
    except (KeyError, ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def _typed(array: np.ndarray) -> np.ndarray:
    """An array with its type: numpy's files keep bfloat16, which numpy does not know, as bytes."""
    return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def _write(path: Path, caches: Caches) -> None:
    offsets = next(iter(caches.values())).offsets
    files.write_arrays(path, offsets=offsets, **{name: c.values for name, c in caches.items()})


@partial(jax.jit, static_argnames=("model", "tap"))
def label_references(params, packed, *, model, tap):
    """The forward pass from which references are read, compiled."""
    return decoder.forward(params, packed, model, tap=tap)
