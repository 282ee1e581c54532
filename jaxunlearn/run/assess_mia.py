"""The membership suite of a run: can one tell the forget set from texts that were never seen?"""

import dataclasses
import functools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.data import packing
from jaxunlearn.data.packing import unpack
from jaxunlearn.evaluate import leakage, membership
from jaxunlearn.evaluate.definitions import absent
from jaxunlearn.models import llama
from jaxunlearn.run.assess_sets import (
    TWIN,
    Items,
    Job,
    Suite,
    encode_items,
    flat,
    need_rows,
    read_rows,
    split_of,
    versions,
)
from jaxunlearn.run.losses import TokenLogProbs
from jaxunlearn.run.measure import Split

Tree = Any

OVER = "forget, holdout"
GRADIENT_ENTRIES = 2**28  # of the gradients in flight: 1 GiB, or one gradient where that is more
MOST_GRADIENTS = 8
NO_TWIN = "needs a model without the forget set: set finetune.retrained"


class Signals(NamedTuple):
    """What the attacks on one model read, of the forget set and then of the held-out one."""

    logp: np.ndarray  # [n, S]
    mu: np.ndarray  # [n, S]
    sigma: np.ndarray  # [n, S]
    norms: np.ndarray  # [n]


def mia_suite(job: Job) -> Suite:
    """Reads and encodes the two sets.

    Raises:
      ValueError: a held-out row that the run was trained on.
    """
    split_name = holdout_name(job.config.data.forget)
    holdout = read_rows(job.config, split_name)
    settings = {
        "holdout": None if holdout is None else split_name,
        "yardstick": TWIN if job.twin else None,
        "definitions": versions(leakage.DEFINITIONS),
    }
    if holdout is None:
        reason = (
            f"no split {split_name!r} in {job.config.data.source}: give one, questions and answers"
            " like the forget set's that no model of the run was trained on"
        )
        nothing = [_absent(name, reason) for name in leakage.DEFINITIONS]
        return Suite("mia", settings, lambda name, params: nothing)
    _check_unseen(job, holdout, split_name)
    own = lambda row: [(row["question"], row["answer"])]
    forget = need_rows(job.config, job.config.data.forget)
    sets = [
        encode_items(job.prepared, forget, own, job.config.data.forget),
        encode_items(job.prepared, holdout, own, split_name),
    ]
    settings["items"] = [len(items.rows) for items in sets]
    return Suite("mia", settings, _measure(job, sets))


def holdout_name(forget: str) -> str:
    """The split that is held out where this one is forgotten: forget05 -> holdout05."""
    return forget.replace("forget", "holdout") if "forget" in forget else "holdout"


def _measure(job: Job, sets: list[Items]):
    texts = [row["answer"] for items in sets for row in items.rows]
    members = len(sets[0].rows)
    split = split_of(job.prepared, sets)
    mask = split.by_sample([p.mask.reshape(-1, p.mask.shape[-1]) for p in split.packed])
    # Whole on every device: gradients are taken sample by sample.
    alone = job.prepared.place({"constants": {"packed": packing.padded(flat(sets))}})["constants"]

    @functools.cache
    def twin() -> Signals:
        return _signals(job, job.load(TWIN), split, alone)

    def scores(found: Signals) -> list[dict[str, np.ndarray]]:
        """By attack, of the forget set and of the held-out one."""
        scored = membership.scores(
            found.logp,
            mask,
            texts=texts,
            moments=(found.mu, found.sigma),
            ref_logp=twin().logp if job.twin else None,
            norms=found.norms,
        )
        parts = (slice(members), slice(members, None))
        return [{attack: x[part] for attack, x in scored.items()} for part in parts]

    def rows(name: str, params: Tree) -> list[dict[str, Any]]:
        forget, holdout = scores(twin() if name == TWIN else _signals(job, params, split, alone))
        if not job.twin:
            lacks = [_absent("mia.reference", NO_TWIN), _absent("privleak", NO_TWIN)]
            return [*leakage.table(forget, holdout), *lacks]
        of_forget, of_holdout = scores(twin())
        return leakage.table(forget, holdout, retain_model=(of_forget, of_holdout))

    return rows


def _signals(job: Job, params: Tree, split: Split, alone: Tree) -> Signals:
    model = job.prepared.model
    found = [_moments(params, rows["packed"], model=model) for rows in split.placed]
    column = lambda key: split.by_sample([f[key] for f in found])
    size = sum(math.prod(leaf.shape) for leaf in model.leaves())
    norms = membership.gradient_norms(
        TokenLogProbs(dataclasses.replace(model, attention="xla")),
        params,
        [alone],
        microbatch=min(max(GRADIENT_ENTRIES // size, 1), MOST_GRADIENTS),
    )
    return Signals(column("logp"), column("mu"), column("sigma"), norms)


@partial(jax.jit, static_argnames="model")
def _moments(params, packed, *, model):
    labels = llama.forward(params, packed, model, head=membership.label_moments).labels
    return {name: unpack(x, packed) for name, x in labels.items()}


def _absent(name: str, reason: str) -> dict[str, Any]:
    return absent(name.replace(".", "_"), OVER, reason, leakage.DEFINITIONS[name])


def _check_unseen(job: Job, holdout: list[dict[str, Any]], split: str) -> None:
    seen = {
        (row["question"], row["answer"])
        for name in (job.config.data.forget, *job.config.finetune.splits)
        for row in read_rows(job.config, name) or ()
    }
    for i, row in enumerate(holdout):
        if (row["question"], row["answer"]) in seen:
            raise ValueError(
                f"{split}:{i}: the row is also in the data that the run forgets or was fine-tuned"
                f" on, so it is not held out: {row['question']!r}"
            )
