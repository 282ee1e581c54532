"""Batches of a run: what each step trains on, what each measurement covers, their references."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn.data import order, packing
from jaxunlearn.data.packing import Packed
from jaxunlearn.effects import trees
from jaxunlearn.models import llama
from jaxunlearn.objectives import representation
from jaxunlearn.run import batches as batches_lib
from jaxunlearn.run import hosts
from jaxunlearn.run.batches import LabelCache
from jaxunlearn.run.losses import Term
from jaxunlearn.run.measure import Split
from jaxunlearn.run.prepare import Prepared, Task, steps_of

Tree = Any
PAIRED_SAMPLES = 64  # forget samples of a batch that also carries their substitutes


@dataclasses.dataclass(frozen=True)
class References:
    """What the model before unlearning says, computed once: no second model stays in memory."""

    head: Tree | None  # the parameters its logits need, where an objective reads them
    forget: dict[str, LabelCache]  # by key of the rows: "ref_logp", "ref_hidden"
    retain: dict[str, LabelCache]  # "ref_hidden", and "ref_tap_K" after K blocks
    substitute: LabelCache | None  # log p of every substitute answer that is ever drawn
    pairs: dict[tuple[int, int | None], int]  # (sample, epoch) -> its entry in `substitute`


def make_split(prepared: Prepared, sequences: list[packing.Sequence], cached: dict) -> Split:
    """A whole set as packed batches on the devices, with the cached references of its labels."""
    plan = packing.plan_dataset(
        sequences,
        max_width=prepared.model.context,
        row_multiple=prepared.row_multiple,
        width_step=prepared.config.compute.width_step,
        target_tokens=prepared.config.compute.batch_tokens,
    )
    packed = packing.dataset_batches(sequences, plan)
    rows = [{"packed": p} | {k: c.lay_out(p) for k, c in cached.items()} for p in packed]
    placed = [prepared.place({"rows": r})["rows"] for r in rows]
    return Split(placed, packed, len(sequences))


def reference_pass(prepared: Prepared, params: Tree, folder: Path) -> References:
    """Everything that any objective of the run needs of the model before unlearning."""
    terms = [t.loss.term for t in prepared.tasks]
    kept = [t.loss.retain for t in prepared.tasks if t.loss.retain]
    forget = _cache(prepared, params, prepared.forget, reference_keys(terms), folder / "forget")
    retain = _cache(prepared, params, prepared.retain, reference_keys(kept), folder / "retain")
    pairs, substitutes = drawn_pairs(prepared)
    cache = None
    if any("substitute_ref_logp" in term.loss.arrays for term in terms):
        found = _cache(prepared, params, substitutes, {"ref_logp"}, folder / "substitute")
        cache = found["ref_logp"]
    return References(reference_head(params, [*terms, *kept]), forget, retain, cache, pairs)


def reference_head(params: Tree, terms: Sequence[Term]) -> Tree | None:
    """The parameters that turn final hidden states into logits, where a term reads those."""
    if not any("ref_logits" in term.loss.arrays for term in terms):
        return None
    key = "lm_head" if "lm_head" in params else "embed"
    return {key: params[key]}


class Feed:
    """The batches of one objective: pure functions of (seed, step)."""

    def __init__(self, prepared: Prepared, task: Task, references: References):
        self._prepared, self._task, self._references = prepared, task, references
        self._seed, self._size = prepared.config.seed, prepared.config.unlearn.batch_size
        self.steps = steps_of(prepared.config, len(prepared.forget))
        self._term, self._retain = task.loss.term, task.loss.retain
        self._constants = self._make_constants()
        self._labels = [len(s.tokens) - s.first_label for s in prepared.forget]
        # Parts of a batch, whose gradients are accumulated.
        self._parts = np.split(np.arange(self._size), prepared.config.unlearn.accumulate)
        self._plan = self._step_plan(prepared.forget, self._forget_ids)
        if self._retain is not None:
            self._retain_plan = self._step_plan(prepared.retain, self._retain_ids)
        if "substitute" in task.needs:
            drawn = [
                [prepared.refusals.draw(*pair) for pair in self._pairs(step, part)]
                for step in range(self.steps)
                for part in self._parts
            ]
            self._substitute_plan = _common_plan(prepared, drawn)

    def step(self, step: int, guide: np.ndarray | None = None) -> tuple[Tree, int, float]:
        """The batch of a step, on the devices, its real tokens and their share of all.

        Args:
          step: from 0.
          guide: weights of all tokens to forget, [n, S], for a loss that takes them; None: 1 each.
        """
        parts = [self._part(step, part, guide) for part in self._parts]
        packs = [rows["packed"] for part in parts for rows in part.values()]
        tokens = sum(int((p.segments >= 0).sum()) for p in packs)
        batch = parts[0]
        if len(parts) > 1:
            batch = jax.tree.map(lambda *xs: np.stack(xs), *parts)
        placed = self._prepared.place(batch, parts=len(parts)) | {"constants": self._constants}
        return placed, tokens, packing.real_token_share(packs)

    def measured(self, forget: Split, guide: np.ndarray | None = None) -> list[Tree]:
        """All of D_u as batches of the objective, substitutes and weights (see `step`) included."""
        if "substitute" not in self._task.needs:
            more = [{"rows": self._guide_rows(packed, None, guide)} for packed in forget.packed]
            placed = [self._prepared.place(batch)["rows"] for batch in more]
            pairs = zip(forget.placed, placed, strict=True)
            return [{"forget": a | b, "constants": self._constants} for a, b in pairs]
        samples = np.arange(len(self._prepared.forget))
        groups = np.array_split(samples, -(-len(samples) // PAIRED_SAMPLES))
        draws = [[self._prepared.refusals.draw(int(i), None) for i in ids] for ids in groups]
        plan = _common_plan(
            self._prepared, [[self._prepared.forget[i] for i in ids] for ids in groups]
        )
        substitute_plan = _common_plan(self._prepared, draws)
        batches = []
        for ids in groups:
            packed = packing.pack_step(self._prepared.forget, ids, plan, sample_ids=range(len(ids)))
            drawn: list[tuple[int, int | None]] = [(int(i), None) for i in ids]
            substitute = self._substitute_rows(packed, drawn, substitute_plan)
            rows = {"forget": self._forget_rows(packed, ids, guide), "substitute": substitute}
            batches.append(self._prepared.place(rows) | {"constants": self._constants})
        return batches

    def _part(self, step: int, part: np.ndarray, guide: np.ndarray | None) -> dict[str, Any]:
        """The rows of a part of a step's batch."""
        ids = self._forget_ids(step)[part]
        packed = packing.pack_step(
            self._prepared.forget, ids, self._plan, sample_ids=range(len(ids))
        )
        rows = {"forget": self._forget_rows(packed, ids, guide)}
        if "substitute" in self._task.needs:
            pairs = self._pairs(step, part)
            rows["substitute"] = self._substitute_rows(packed, pairs, self._substitute_plan)
        if self._retain is not None:
            rows["retain"] = self._retain_rows(self._retain_ids(step)[part])
        return rows

    def _forget_rows(
        self, packed: Packed, ids: np.ndarray, guide: np.ndarray | None
    ) -> dict[str, Any]:
        wanted = reference_keys([self._term])
        cached = self._references.forget
        rows = {"packed": packed} | {k: cached[k].lay_out(packed, ids) for k in wanted}
        return rows | self._guide_rows(packed, ids, guide)

    def _guide_rows(
        self, packed: Packed, ids: np.ndarray | None, guide: np.ndarray | None
    ) -> dict[str, Any]:
        if "guide" not in self._task.needs:
            return {}
        if guide is None:
            return {"guide": np.ones(packed.label_tokens.shape, np.float32)}
        return {"guide": LabelCache.of_table(guide, self._labels).lay_out(packed, ids)}

    def _retain_rows(self, ids: np.ndarray) -> dict[str, Any]:
        assert self._retain is not None
        packed = packing.pack_step(
            self._prepared.retain, ids, self._retain_plan, sample_ids=range(len(ids))
        )
        cached = self._references.retain
        return {"packed": packed} | {
            key: cached[key].lay_out(packed, ids) for key in reference_keys([self._retain])
        }

    def _substitute_rows(
        self, packed: Packed, drawn: Sequence[tuple[int, int | None]], plan: packing.Plan
    ) -> dict[str, Any]:
        refusals = self._prepared.refusals
        answers = [refusals.draw(sample, epoch) for sample, epoch in drawn]
        other = packing.pack_step(answers, range(len(answers)), plan)
        rows: dict[str, Any] = {"packed": other}
        if "logp" in self._term.loss.arrays:
            rows["partner"] = batches_lib.partners(packed, other)
        if self._references.substitute is not None:
            entries = np.array([self._references.pairs[pair] for pair in drawn])
            rows["ref_logp"] = self._references.substitute.lay_out(other, entries)
        return rows

    def _forget_ids(self, step: int) -> np.ndarray:
        return order.batch_ids(self._seed, step, len(self._prepared.forget), self._size)

    def _retain_ids(self, step: int) -> np.ndarray:
        return order.retain_ids(self._seed, step, len(self._prepared.retain), self._size)

    def _pairs(self, step: int, part: np.ndarray) -> list[tuple[int, int]]:
        """(sample, epoch) of a part of a step's batch."""
        pairs = zip(self._forget_ids(step)[part], _epochs(self._prepared, step)[part], strict=True)
        return [(int(i), int(e)) for i, e in pairs]

    def _step_plan(self, sequences: list[packing.Sequence], draw: Any) -> packing.Plan:
        return packing.plan_steps(
            sequences,
            [draw(step)[part] for step in range(self.steps) for part in self._parts],
            max_width=self._prepared.model.context,
            row_multiple=self._prepared.row_multiple,
            width_step=self._prepared.config.compute.width_step,
        )

    def _make_constants(self) -> Tree:
        """The target of rmu (drawn once a run) and the reference's head, on every device."""
        constants: dict[str, Any] = {}
        losses = [t.loss for t in (self._term, self._retain) if t is not None]
        arrays = {name for loss in losses for name in loss.arrays}
        if "target" in arrays:
            key = jax.random.fold_in(jax.random.key(self._seed), 1)
            constants["target"] = representation.rmu_target(
                key,
                self._prepared.model.hidden_size,
                scale=self._task.scale,
                unit_norm=self._task.unit_norm,
            )
        constants = self._prepared.place({"constants": constants})["constants"]
        if "ref_logits" in arrays:
            constants["reference_head"] = self._references.head
        return constants


def reference_keys(terms: Sequence[Term]) -> set[str]:
    """The cached references that terms read, as keys of their rows."""
    keys = set()
    for term in terms:
        if "ref_logp" in term.loss.arrays:
            keys.add("ref_logp")
        if "ref_logits" in term.loss.arrays:
            keys.add("ref_hidden")
        if "ref_hidden" in term.loss.arrays:
            keys.add(f"ref_tap_{term.layer}")
    return keys


def _cache(
    prepared: Prepared, params: Tree, sequences: list[packing.Sequence], keys: set[str], file: Path
) -> dict[str, LabelCache]:
    """Computes (or reads) the caches of one set."""
    path = file.with_suffix(".npz")
    if not keys:
        return {}
    if hosts.agreed(path.exists()):
        with np.load(path, allow_pickle=False) as saved:
            return {key: LabelCache(saved[key], saved["offsets"]) for key in keys}
    split = make_split(prepared, sequences, {})
    taps = sorted(int(key.rpartition("_")[2]) for key in keys if key.startswith("ref_tap"))
    values: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for rows in split.placed:
        found = {}
        for tap in taps or [None]:
            out = label_references(params, rows["packed"], model=prepared.model, tap=tap)
            found |= {"ref_logp": out.labels, "ref_hidden": out.final_hidden}
            found[f"ref_tap_{tap}"] = out.hidden
        for key, parts in values.items():
            parts.append(trees.on_host(found[key]))
    caches = {k: LabelCache.gather(split.packed, v, split.samples) for k, v in values.items()}
    if hosts.is_first():
        _save(path, caches)
    return caches


def _save(path: Path, caches: dict[str, LabelCache]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    offsets = next(iter(caches.values())).offsets
    with temporary.open("wb") as file:
        np.savez(
            file, allow_pickle=False, offsets=offsets, **{k: c.values for k, c in caches.items()}
        )
    os.replace(temporary, path)


@partial(jax.jit, static_argnames=("model", "tap"))
def label_references(params, packed, *, model, tap):
    return llama.forward(params, packed, model, tap=tap)


def drawn_pairs(
    prepared: Prepared,
) -> tuple[dict[tuple[int, int | None], int], list[packing.Sequence]]:
    """Every (sample, epoch) whose substitute the run draws, and its sequence."""
    if all("substitute" not in task.needs for task in prepared.tasks):
        return {}, []
    samples = range(len(prepared.forget))
    steps = steps_of(prepared.config, len(prepared.forget))
    last = int(_epochs(prepared, max(steps - 1, 0))[-1])
    names: list[tuple[int, int | None]] = [
        (i, epoch) for epoch in (None, *range(last + 1)) for i in samples
    ]
    return {n: k for k, n in enumerate(names)}, [prepared.refusals.draw(*n) for n in names]


def _epochs(prepared: Prepared, step: int) -> np.ndarray:
    """The epoch of each sample of a step."""
    size = prepared.config.unlearn.batch_size
    return np.arange(step * size, (step + 1) * size) // len(prepared.forget)


def _common_plan(prepared: Prepared, groups: list[list[packing.Sequence]]) -> packing.Plan:
    """One static shape that every group fits."""
    flat = [sequence for group in groups for sequence in group]
    ends = np.cumsum([len(group) for group in groups])
    ids = [range(end - len(group), end) for group, end in zip(groups, ends, strict=True)]
    return packing.plan_steps(
        flat,
        ids,
        max_width=prepared.model.context,
        row_multiple=prepared.row_multiple,
        width_step=prepared.config.compute.width_step,
    )
