"""The parts that all suites share: their context, encoded questions, generated text."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import Config, Data, Splits
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.digests import of_samples
from jaxunlearn.data.encoder import Encoder, Items
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.rows import DataRows, retained
from jaxunlearn.data.sources import Sources
from jaxunlearn.evaluation.generate import continuations
from jaxunlearn.metrics.definitions import Definition
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.batch import Split
from jaxunlearn.training.layout import Layout

MetricRows = list[dict[str, Any]]
"""Rows as `metrics.definitions.metric_row` and `missing_row` make them."""

NO_RETRAINED = (
    "needs a model that never saw the forget set: finetune.retrained in a run, --retrained for a"
    " model"
)
"""The reason given for missing numbers that compare with the retrained model."""

NO_QUESTIONS = "free text (data.text_key) has no questions"
"""The reason given for missing numbers of answers to questions."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of every suite: data, tokenizer, model, options.

    Attributes:
      config: the run's, with the names of the forget set and of the retain set.
      splits: the names of all other splits that suites read.
      sources: the rows of every split.
      encoder: encodes rows for the model, as the run does.
      tokenizer: of the model.
      model: the model's configuration.
      layout: how samples become batches on the mesh.
      load: (name of a model) -> its parameters, sharded.
      retrained: whether there is a retrained model, or will be by the time it is loaded.
      base: the same of the model before unlearning.
      generate: questions of each set that are answered in text; None for all.
      recite: questions of each set whose answers are continued word by word; None for all.
      retain_log: a TOFU log that takes the place of the retrained model's.
      log_file: (name of a model) -> where its TOFU log goes.
    """

    config: Config
    splits: Splits
    sources: Sources
    encoder: Encoder
    tokenizer: Any
    model: DecoderConfig
    layout: Layout
    load: Callable[[str], Tree]
    retrained: bool
    base: bool
    generate: int | None
    recite: int | None
    retain_log: Path | None
    log_file: Callable[[str], Path]


class Suite(NamedTuple):
    """A suite whose data are read and encoded, ready to measure any model.

    Attributes:
      settings: everything that its numbers depend on apart from the model, as plain JSON; results
        that were stored with equal settings are used again.
      measure: (name of a model, its parameters) -> rows of metrics.
    """

    settings: dict[str, Any]
    measure: Callable[[str, Tree], MetricRows]


class Evaluation(NamedTuple):
    """Suites by name, and the context they were made for."""

    context: Context
    suites: Mapping[str, Suite]


def find_split(context: Context, key: str, default: str) -> tuple[str, DataRows | None]:
    """Finds a split of `evaluate.splits`.

    Args:
      context: of the evaluation.
      key: its key there.
      default: its name where the configuration has none.

    Returns:
      Its name, and its rows; None where it has the default name and is not there.

    Raises:
      ValueError, OSError: it is named and not there, or cannot be read.
    """
    named = getattr(context.splits, key)
    if named is None:
        return default, context.sources.find(default) or None
    return named, context.sources.require(named, f"evaluate.splits.{key}")


def own_set(context: Context, key: str) -> tuple[str, DataRows | None]:
    """Finds the forget set or the retain set D_r.

    Args:
      context: of the evaluation.
      key: "forget" or "measured_retain", a key of the section `data`.

    Returns:
      The name of its split, and its rows, those of the forget set left out of D_r; None where it
      has the default name and is not there.

    Raises:
      ValueError, OSError: it is named and not there, cannot be read, or all of D_r is to be
        forgotten.
    """
    name = getattr(context.config.data, key)
    if name == getattr(Data, key):
        rows = context.sources.find(name) or None
    else:
        rows = context.sources.require(name, f"data.{key}")
    if key == "forget" or rows is None:
        return name, rows
    forget = own_set(context, "forget")[1] or []
    return name, retained(rows, forget, f"data.{key}", name)


def lacks_set(context: Context, key: str) -> str:
    """The reason given for numbers that need a set which `own_set` does not find."""
    data = context.config.data
    return f"no split {getattr(data, key)!r} in {data.source} (data.{key})"


def digests(sets: Mapping[str, Items]) -> dict[str, str]:
    """{set: digest of its encoded sequences}, for the settings of a suite."""
    return {name: of_samples(flat([items]))[:16] for name, items in sets.items()}


def flat(items: Iterable[Items]) -> list[Sample]:
    """All sequences, set by set, row by row."""
    return [
        sample
        for set_items in items
        for row_samples in set_items.sequences
        for sample in row_samples
    ]


def split_of(context: Context, items: Iterable[Items]) -> Split:
    """All sequences of some sets, packed together in one shape, so that passes compile once."""
    return context.layout.split(flat(items))


def generate_text(
    context: Context, params: Tree, encoded: Sequence[np.ndarray], max_new_tokens: int
) -> list[str]:
    """Greedy continuations of already encoded prompts.

    Args:
      context: of the evaluation.
      params: the model's.
      encoded: prompts, [T] int32 each.
      max_new_tokens: most tokens of a continuation, its EOS included.

    Returns:
      The texts, in the order of the prompts.
    """
    if not encoded:
        return []
    width = max(map(len, encoded)) + max_new_tokens
    return continuations(
        params,
        context.model,
        context.tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=max(context.config.compute.batch_tokens // width, 1),
    )


def versions(definitions: Mapping[str, Definition]) -> dict[str, int]:
    """{name: version}, for the settings of a suite."""
    return {name: definition.version for name, definition in definitions.items()}


@jax.jit
def all_finite(params: Tree) -> jax.Array:
    """Whether no parameter is NaN or infinite, [] bool."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))
