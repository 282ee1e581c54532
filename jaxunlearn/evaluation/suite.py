"""The parts that all suites share: their context, encoded questions, generated text."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import Config
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.encoding import Encoder, Items
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.rows import DataRows
from jaxunlearn.data.sources import Sources
from jaxunlearn.evaluation.generate import continuations
from jaxunlearn.metrics.definitions import Definition
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.training.batch import Split
from jaxunlearn.training.layout import Layout

MetricRows = list[dict[str, Any]]
"""Rows as `metrics.definitions.metric_row` and `missing_row` make them."""

NO_RETRAINED = "needs a model that never saw the forget set: set finetune.retrained"
"""The reason given for missing numbers that compare with the retrained model."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of every suite: data, tokenizer, model, options.

    Attributes:
      config: names of the splits, style of the prompts, what to do with rows that are too long.
      sources: the rows of every split.
      tokenizer: of the model.
      model: the model's configuration.
      layout: how samples become batches on the mesh.
      load: (name of a model) -> its parameters, sharded.
      retrained: whether there is a retrained model, or will be by the time it is loaded.
      generate: questions of each set that are answered in text; None for all.
      recite: questions of each set whose answers are continued word by word; None for all.
      retain_log: a TOFU log that takes the place of the retrained model's.
      log_file: (name of a model) -> where its TOFU log goes.
    """

    config: Config
    sources: Sources
    tokenizer: Any
    model: DecoderConfig
    layout: Layout
    load: Callable[[str], Tree]
    retrained: bool
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


def own_pair(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The question of a row with its answer, as the only pair, see `encode_items`."""
    return [(row["question"], row["answer"])]


def encode_items(
    context: Context,
    rows: DataRows,
    pairs: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]],
    source: str,
) -> Items:
    """Encodes several pairs of question and answer of every row.

    A row of which any pair is over the model's context is an error or left out, as
    `data.too_long` says.

    Args:
      context: of the evaluation.
      rows: the rows.
      pairs: (row) -> its pairs.
      source: name of the data in messages.

    Raises:
      ValueError: an empty text, rows over the context, or no row that fits it.
    """
    data = context.config.data
    encoder = Encoder(
        context.tokenizer,
        style=data.prompt,
        context=context.model.context,
        too_long=data.too_long,
        vocab_size=context.model.vocab_size,
    )
    return encoder.items(rows, pairs, source)


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
