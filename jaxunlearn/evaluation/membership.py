"""The membership suite: attacks that try to tell the forget set from texts never trained on."""

import dataclasses
import functools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import objectives
from jaxunlearn.config.schema import Guide, Objective
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import encoding, packing
from jaxunlearn.data.packing import unpack
from jaxunlearn.data.rows import DataRows, row_key, title, without
from jaxunlearn.evaluation.suite import (
    NO_RETRAINED,
    Context,
    MetricRows,
    Suite,
    digests,
    find_split,
    flat,
    lacks_set,
    own_set,
    split_of,
    versions,
)
from jaxunlearn.metrics import membership, privacy
from jaxunlearn.metrics.definitions import missing_row
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.record.folder import RETRAINED
from jaxunlearn.training.batch import Rows, Split
from jaxunlearn.training.losses import GROUPING, TokenLogProbs

OVER = "forget, holdout"
"""The set in the rows of the table."""
GRADIENT_ENTRIES = 2**28
"""Entries of the gradients held at a time: 1 GiB, or one gradient where that is more."""
MAX_GRADIENTS = 8

Scores = dict[str, np.ndarray]
"""{attack: [n], larger where a text looks more like a member}"""


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of the forget set, then those of the held-out set, encoded.

    Attributes:
      members: the number of texts of the forget set.
      answers: the n answers, or chunks of documents, as text.
      digests: {set: digest of its encoded texts}.
      split: all sequences, packed.
      mask: [n, S] bool, the labels of each.
      single: one sequence a row, whole on every device: gradients are taken sample by sample.
    """

    members: int
    answers: list[str]
    digests: dict[str, str]
    split: Split
    mask: np.ndarray
    single: Rows


class Signals(NamedTuple):
    """The quantities of one model from which attacks compute their scores.

    Attributes:
      logp: [n, S] log p of the labels.
      mu: [n, S] mean of log p under the model's own predictions.
      sigma: [n, S] its standard deviation.
      norms: [n] norms of the gradients of log p of each text.
      tensor_norms: [n] means over tensors of the same, without the last label.
    """

    logp: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    norms: np.ndarray
    tensor_norms: np.ndarray


@dataclasses.dataclass(frozen=True)
class AllButLast:
    """log p of every label token but the last of each text, [B, S], 0 elsewhere."""

    of_labels: TokenLogProbs

    def __call__(self, params: Tree, rows: Rows) -> jax.Array:
        rest = membership.without_last_label(jnp.asarray(rows.mask))
        return jnp.where(rest, self.of_labels(params, rows), 0)


def mia_suite(context: Context) -> Suite:
    """Reads and encodes the forget set and the held-out set.

    Raises:
      ValueError: a held-out row that the run forgets or was fine-tuned on.
    """
    split, holdout = find_split(context, "holdout", holdout_name(context.config.data.forget))
    settings: dict[str, Any] = {
        "holdout": None if holdout is None else split,
        "compared_with": RETRAINED if context.retrained else None,
        "definitions": versions(privacy.DEFINITIONS),
    }
    if holdout is None:
        reason = (
            f"no split {split!r} in {context.config.data.source}: give one, rows like the forget"
            " set's that no model of the run was trained on (evaluate.splits.holdout)"
        )
        return _no_suite(settings, reason)
    if own_set(context, "forget")[1] is None:
        return _no_suite(settings, lacks_set(context, "forget"))
    check_unseen(context, holdout, split)
    texts = _encode(context, holdout, split)
    settings["items"] = [texts.members, len(texts.answers) - texts.members]
    settings["data"] = texts.digests
    model = context.model
    # Every model is compared with the retrained one, which is measured once.
    retrained = functools.cache(lambda: _signals(model, context.load(RETRAINED), texts))

    def measure(name: str, params: Tree) -> MetricRows:
        # A model that is being measured as the retrained one is not measured twice.
        signals = retrained() if name == RETRAINED else _signals(model, params, texts)
        return _rows(texts, signals, retrained() if context.retrained else None)

    return Suite(settings, measure)


def _no_suite(settings: dict[str, Any], reason: str) -> Suite:
    """The suite of data that lack one of its sets: every number has the reason."""
    missing = [_missing(name, reason) for name in privacy.DEFINITIONS]
    return Suite(settings | {"absent": reason}, lambda name, params: missing)


def holdout_name(forget: str) -> str:
    """The name of the held-out split that belongs to a forget split.

    >>> holdout_name("forget05"), holdout_name("authors")
    ('holdout05', 'holdout')
    """
    return forget.replace("forget", "holdout") if "forget" in forget else "holdout"


def check_unseen(context: Context, holdout: DataRows, split: str) -> None:
    """Checks that no held-out row is in the data that the run forgets, fine-tunes on or retains.

    Args:
      context: of the evaluation.
      holdout: the held-out rows.
      split: their split, for messages.

    Raises:
      ValueError: names the first row that is.
      OSError: the data that they are compared with cannot be read.
    """
    data, spec, sources = context.config.data, context.config.finetune, context.sources
    training_rows = [sources.require(data.forget, "data.forget")]
    for name in spec.splits:
        # A run that does not fine-tune may lack the fine-tuning data. Where they are there, the
        # model was probably trained on them before.
        rows = sources.require(name, "finetune.splits") if spec.epochs else sources.find(name)
        training_rows.append(rows or [])
    if any(_reads_retain(name, spec) for name, spec in context.config.objectives.items()):
        # Retain terms and guided weights read what is not measured.
        pool, measured = (sources.find(name) or [] for name in (data.retain, data.measured_retain))
        training_rows.append(without(pool, measured))
    training_keys = {row_key(row) for rows in training_rows for row in rows}
    for i, row in enumerate(holdout):
        if row_key(row) in training_keys:
            raise ValueError(
                f"{split}:{i}: the row is also in the data that the run forgets, was fine-tuned on"
                f" or draws from for retain terms or guided weights, so it is not held out:"
                f" {title(row)!r}"
            )


def _reads_retain(name: str, spec: Objective) -> bool:
    """Whether an objective reads samples to retain, as far as its configuration tells.

    Losses of users' own are not imported for models that are finished: of these a section `guide`
    tells.
    """
    loss = spec.loss or name
    guided = loss in objectives.names() and "guide" in objectives.get(loss, **spec.hyper).needs
    return spec.retain is not None or guided or spec.guide != Guide()


def _encode(context: Context, holdout: DataRows, split: str) -> Texts:
    """Encodes both sets, packed for forward passes and one sequence a row for gradients."""
    forget = context.config.data.forget
    forget_rows = context.sources.require(forget, "data.forget")
    sets = {
        "forget": context.encoder.own(forget_rows, forget),
        "holdout": context.encoder.own(holdout, split),
    }
    packed = split_of(context, sets.values())
    return Texts(
        members=len(sets["forget"].rows),
        answers=[
            encoding.answer_text(context.tokenizer, row, sample)
            for items in sets.values()
            for row, (sample,) in zip(items.rows, items.sequences, strict=True)
        ],
        digests=digests(sets),
        split=packed,
        mask=packed.mask,
        single=context.layout.replicate(Rows(packing.padded(flat(sets.values())))),
    )


def _rows(texts: Texts, signals: Signals, retrained: Signals | None) -> MetricRows:
    """AUC of every attack, and PrivLeak where there is a retrained model."""
    ref_logp = None if retrained is None else retrained.logp
    forget, holdout = split_scores(texts, signals, ref_logp)
    if retrained is None:
        missing = [_missing(name, NO_RETRAINED) for name in ("mia.reference", "privleak")]
        return [*privacy.table(forget, holdout), *missing]
    # The retrained model's reference is itself: it gets an AUC of 0.5 by that attack.
    retain_model = split_scores(texts, retrained, ref_logp)
    return privacy.table(forget, holdout, retain_model=retain_model)


def split_scores(
    texts: Texts, signals: Signals, ref_logp: np.ndarray | None
) -> tuple[Scores, Scores]:
    """The scores of all attacks on one model.

    Args:
      texts: both sets.
      signals: of the model.
      ref_logp: [n, S] of a model that saw none of the texts, if there is one.

    Returns:
      The scores of the forget set, and those of the held-out set.
    """
    scores = membership.scores(
        signals.logp,
        texts.mask,
        texts=texts.answers,
        moments=(signals.mu, signals.sigma),
        ref_logp=ref_logp,
        norms=signals.norms,
        tensor_norms=signals.tensor_norms,
    )
    parts = (slice(texts.members), slice(texts.members, None))
    forget, holdout = ({attack: x[part] for attack, x in scores.items()} for part in parts)
    return forget, holdout


def _signals(model: DecoderConfig, params: Tree, texts: Texts) -> Signals:
    """Measures one model on both sets."""
    moments = [_moments(params, rows.packed, model=model) for rows in texts.split.batches]
    by_name = {
        name: texts.split.by_sample([batch[name] for batch in moments])
        for name in ("logp", "mu", "sigma")
    }
    size = sum(math.prod(leaf.shape) for leaf in model.leaves())
    norms = partial(
        membership.gradient_norms,
        params=params,
        batches=[texts.single],
        microbatch=min(max(GRADIENT_ENTRIES // size, 1), MAX_GRADIENTS),
    )
    logp_fn = TokenLogProbs(model.with_forward_mode())
    return Signals(
        **by_name,
        norms=norms(logp_fn),
        tensor_norms=norms(AllButLast(logp_fn), tensors=GROUPING),
    )


@partial(jax.jit, static_argnames="model")
def _moments(params, packed, *, model):
    """Log p, mean and standard deviation of every label of packed rows, [B, S] each, compiled."""
    labels = decoder.forward(params, packed, model, head=decoder.label_moments).labels
    return {name: unpack(x, packed) for name, x in labels.items()}


def _missing(name: str, reason: str) -> dict[str, Any]:
    return missing_row(name.replace(".", "_"), OVER, reason, privacy.DEFINITIONS[name])
