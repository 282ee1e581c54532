"""Prepares a run for a forecast: only its shapes are known, nothing is downloaded or placed."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.config import Config, validate
from jaxunlearn.core.paths import user_path
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.refusals import Refusals
from jaxunlearn.data.sources import Sources, part_of
from jaxunlearn.models import hf, sizes
from jaxunlearn.pipeline import checks, prepare, subject
from jaxunlearn.pipeline.evaluation_stage import requested_suites
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.pipeline.relearn import requested_attacks
from jaxunlearn.training.scope import make_scope, with_adapters
from jaxunlearn.training.sets import SampleSets
from jaxunlearn.training.tasks import Task, make_tasks

SPLITS = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain90": 3600,
    "retain95": 3800,
    "retain99": 3960,
    "retain_perturbed": 400,
}
"""The number of rows of each TOFU split."""
MEAN, SPREAD, SHORTEST, LONGEST, LABELS = 71, 16, 33, 121, 0.6
"""Tokens of a TOFU row with the Llama-2 tokenizer, and the share of them that are labels."""


def sketch(config: Config, devices: Sequence[Any] | None = None) -> Prepared:
    """Prepares a run as shapes: from its files where this machine has them, else by assumption.

    Args:
      config: the run.
      devices: of the mesh; default: all.

    Returns:
      Prepared, whose layout places nothing; `notes` say what is assumed.

    Raises:
      ValueError, OSError: bad input, as for `run`, or a model or split of unknown size.
    """
    validate(config)
    has_model = config.model is None or user_path(config.model).is_dir()
    has_data = config.data.source == "fictional" or user_path(config.data.source).exists()
    if has_model and has_data:
        # Prepared as usual, but nothing is put on devices.
        prepared = prepare.prepare(config, devices)
        layout = dataclasses.replace(prepared.layout, abstract=True)
        prepared = dataclasses.replace(prepared, layout=layout)
    else:
        prepared = _by_assumption(config, devices, has_model=has_model, has_data=has_data)
    checks.check(prepared)
    requested_suites(config)
    requested_attacks(prepared)
    return prepared


def _by_assumption(
    config: Config, devices: Sequence[Any] | None, *, has_model: bool, has_data: bool
) -> Prepared:
    """Prepares a run whose model or data this machine lacks: samples have assumed lengths."""
    if config.model is None:
        raise ValueError("model: a new model is sized by its data; give a local data.source")
    if config.data.text_key is not None:
        there = {"data.source": has_data, "model": has_model}
        missing = " and ".join(f"a local {key}" for key, is_there in there.items() if not is_there)
        raise ValueError(f"data.text_key: how long the documents are is not known; give {missing}")
    # --- the model's shape, from its folder or its name -------------------------------------------
    mesh, options = subject.make_mesh(config, devices), subject.compute_options(config)
    if has_model:
        model = hf.load_config(subject.model_folder("model", config.model, trains=True), **options)
    else:
        model = sizes.published_shape(config.model, options)
    unlearn_model = with_adapters(config.train, model)
    tasks, sources = make_tasks(config, unlearn_model), subject.open_sources(config)
    # --- samples of assumed lengths; every refusal has the mean length ----------------------------
    samples = _local(config, sources, tasks) if has_data else _published(config, tasks)
    refusals = Refusals(
        [{"question": ""}] * len(samples.forget), [""], lambda *_: _sample(MEAN), config.seed
    )
    return Prepared(
        forget_rows=[],
        retain_rows=[],
        config=config,
        layout=subject.make_layout(config, mesh, model, abstract=True),
        tokenizer=None,
        model=model,
        unlearn_model=unlearn_model,
        scope=make_scope(config.train, unlearn_model),
        initial=lambda: None,
        sources=sources,
        sets=SampleSets(samples.forget, samples.pool, refusals),
        retain_eval=samples.retain_eval,
        finetune=samples.finetune,
        retrain=samples.retrain,
        tasks=tasks,
        notes=(
            f"{config.model}: shape from its {'config.json' if has_model else 'name'}; lengths"
            f" assumed as TOFU's with the Llama-2 tokenizer (mean {MEAN} tokens, {LABELS:.0%} of"
            " them labels)",
            *samples.notes,
        ),
    )


class _Samples(NamedTuple):
    """Samples of assumed lengths, by what they are for, as in `RunRows`."""

    forget: list[Sample]
    retain_eval: list[Sample]
    pool: list[Sample]
    finetune: list[Sample]
    retrain: list[Sample]
    notes: tuple[str, ...] = ()


def _local(config: Config, sources: Sources, tasks: Sequence[Task]) -> _Samples:
    """As many samples as there are rows here."""
    rows = prepare.read_rows(config, sources, tasks)
    return _Samples(
        forget=_assumed(len(rows.forget)),
        retain_eval=_assumed(len(rows.retain_eval)),
        pool=_assumed(len(rows.pool)),
        finetune=_assumed(len(rows.finetune)),
        retrain=_assumed(len(rows.retrain)),
        notes=rows.notes,
    )


def _published(config: Config, tasks: Sequence[Task]) -> _Samples:
    """As many samples as TOFU's splits have."""
    data, spec = config.data, config.finetune
    forget = _split("data.forget", data.forget)
    splits = spec.splits if spec.epochs else ()
    finetune = [sample for name in splits for sample in _split("finetune.splits", name)]
    needs_pool = any(task.reads_retain for task in tasks)
    return _Samples(
        forget=forget,
        retain_eval=_split("data.measured_retain", data.measured_retain),
        pool=_split("data.retain", data.retain) if needs_pool else [],
        finetune=finetune,
        retrain=finetune[len(forget) :] if spec.retrained else [],
        notes=(f"{data.source}: as many rows as TOFU's splits have",),
    )


def _split(key: str, split: str) -> list[Sample]:
    """The samples of a split of TOFU."""
    name, part = part_of(split)
    if name not in SPLITS:
        raise ValueError(
            f"{key}: how many rows {name!r} has is not known; give a local data.source, or one of"
            f" TOFU's splits: {', '.join(SPLITS)}"
        )
    return _assumed(SPLITS[name])[part]


def _assumed(count: int) -> list[Sample]:
    """Samples of about TOFU's lengths, the same at every call."""
    lengths = np.random.default_rng(0).normal(MEAN, SPREAD, count)
    return [_sample(int(n)) for n in np.clip(lengths, SHORTEST, LONGEST)]


def _sample(tokens: int) -> Sample:
    return Sample(np.ones(tokens, np.int32), tokens - int(LABELS * tokens))
