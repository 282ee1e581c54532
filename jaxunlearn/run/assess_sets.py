"""What the suites of an evaluation have in common: rows, encoded questions, generated text."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import Config
from jaxunlearn.data import packing, prompts
from jaxunlearn.evaluate import generate
from jaxunlearn.evaluate.definitions import Definition
from jaxunlearn.run.feed import make_split
from jaxunlearn.run.measure import Split
from jaxunlearn.run.prepare import Prepared, Splits

Tree = Any
Rows = list[dict[str, Any]]

TWIN = "retrained"  # the model that never saw the forget set
BEFORE = "before"  # theta_0


@dataclasses.dataclass(frozen=True)
class Job:
    """What the suites are asked."""

    run: Path
    prepared: Prepared
    load: Callable[[str], Tree]  # the parameters of a model
    twin: bool  # whether there is a retrained model
    generate: int | None  # questions of each set to answer in text; None: all
    recite: int | None  # questions of each set whose answers are continued word by word; None: all
    retain_log: Path | None  # a log in the retrained model's place

    @property
    def config(self) -> Config:
        return self.prepared.config


class Suite(NamedTuple):
    """One suite: what its numbers depend on, and how to get a model's."""

    name: str
    settings: dict[str, Any]  # plain JSON; numbers with other settings are measured again
    measure: Callable[[str, Tree], list[dict[str, Any]]]  # (model, parameters) -> rows
    only_unlearned: bool = False  # says nothing of the models before and without unlearning


class Exam(NamedTuple):
    """Suites whose data are read and encoded, ready for any model of a run."""

    job: Job
    suites: tuple[Suite, ...]


class Items(NamedTuple):
    """Rows, and the sequences of each."""

    rows: Rows
    sequences: list[list[packing.Sequence]]


def read_rows(config: Config, split: str) -> Rows | None:
    """The rows of a split, None where the data have none of this name.

    Raises:
      ValueError: a file that cannot be read.
    """
    return Splits(config).find(split)


def need_rows(config: Config, split: str) -> Rows:
    """The rows of a split that must be there."""
    rows = read_rows(config, split)
    if rows is None:
        raise FileNotFoundError(f"{config.data.source}: no split {split!r}")
    return rows


def encode_items(
    prepared: Prepared, rows: Rows, pairs: Callable[[dict], Iterable[tuple[str, str]]], source: str
) -> Items:
    """Encodes all (question, answer) pairs of every row.

    A row of which any pair is over the context is an error, or left out (`data.too_long`).

    Args:
      pairs: of a row.
      source: name of the data in messages.
    """
    by_row = [list(pairs(row)) for row in rows]
    encoded = prompts.encode_rows(
        prepared.tokenizer,
        [{"question": q, "answer": a} for of_row in by_row for q, a in of_row],
        style=prepared.config.data.prompt,
        context=prepared.model.context,
        too_long=prepared.config.data.too_long,
        source=f"{source}, all answers in a row",
    )
    whole = dict(zip(encoded.kept_ids.tolist(), encoded.sequences, strict=True))
    ends = np.cumsum([len(of_row) for of_row in by_row])
    items = Items([], [])
    for row, end, of_row in zip(rows, ends, by_row, strict=True):
        ids = range(end - len(of_row), end)
        if all(i in whole for i in ids):
            items.rows.append(row)
            items.sequences.append([whole[i] for i in ids])
    if not items.rows:
        raise ValueError(f"{source}: no row fits the context of {prepared.model.context} tokens")
    return items


def flat(items: Iterable[Items]) -> list[packing.Sequence]:
    """All sequences, set by set, row by row."""
    return [s for found in items for of_row in found.sequences for s in of_row]


def split_of(prepared: Prepared, items: Iterable[Items]) -> Split:
    """All sequences of some sets, packed together: one shape, hence one compilation."""
    return make_split(prepared, flat(items), {})


def write_on(
    prepared: Prepared, params: Tree, encoded: Sequence[np.ndarray], max_new_tokens: int
) -> list[str]:
    """The model's greedy text after each prompt."""
    if not encoded:
        return []
    width = max(map(len, encoded)) + max_new_tokens
    return generate.continuations(
        params,
        prepared.model,
        prepared.tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=max(prepared.config.compute.batch_tokens // width, 1),
    )


def versions(definitions: Mapping[str, Definition]) -> dict[str, int]:
    """{name: version}, for the settings of a suite."""
    return {name: definition.version for name, definition in definitions.items()}


@jax.jit
def finite(params):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))
