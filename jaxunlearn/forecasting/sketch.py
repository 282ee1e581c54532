"""Prepares a run for a forecast: only its shapes are known, nothing is downloaded or placed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxunlearn.config import Config, validate
from jaxunlearn.core.paths import user_path
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.refusals import Refusals
from jaxunlearn.data.sources import part_of
from jaxunlearn.models import sizes
from jaxunlearn.pipeline import prepare, subject
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.training.scope import make_scope, with_adapters
from jaxunlearn.training.sets import SampleSets
from jaxunlearn.training.tasks import make_tasks

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
      ValueError, OSError: as `prepare`, or a model or split of unknown size.
    """
    validate(config)
    # --- with all files at hand the run is prepared as usual, but nothing is put on devices -------
    has_model = config.model is None or user_path(config.model).is_dir()
    has_data = config.data.source == "fictional" or user_path(config.data.source).exists()
    if has_model and has_data:
        prepared = prepare.prepare(config, devices)
        layout = dataclasses.replace(prepared.layout, abstract=True)
        return dataclasses.replace(prepared, layout=layout)
    if config.model is None:
        raise ValueError("model: a new model is sized by its data; give a local data.source")
    if config.data.text_key is not None:
        raise ValueError(
            "data.text_key: how long the documents are is not known; give a local"
            " data.source and a local model"
        )
    # --- the model's shape, from its name ---------------------------------------------------------
    mesh = subject.make_mesh(config, devices)
    model = sizes.published_shape(config.model, subject.compute_options(config))
    data, spec = config.data, config.finetune
    unlearn_model = with_adapters(config.train, model)
    tasks = make_tasks(config, unlearn_model)
    # --- samples of assumed lengths; every refusal has the mean length ----------------------------
    forget = _assumed(data.forget)
    finetune = [s for name in spec.splits for s in _assumed(name)] if spec.epochs else []
    refusals = Refusals(
        [{"question": ""}] * len(forget), [""], lambda *_: _sample(MEAN), config.seed
    )
    needs_pool = any(task.reads_retain for task in tasks)
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
        sources=subject.open_sources(config),
        sets=SampleSets(forget, _assumed(data.retain) if needs_pool else [], refusals),
        retain_eval=_assumed(data.measured_retain),
        finetune=finetune,
        retrain=finetune[len(forget) :] if spec.retrained else [],
        tasks=tasks,
        notes=(
            f"{config.model}: shape from its name; lengths assumed as TOFU's with the Llama-2"
            f" tokenizer (mean {MEAN} tokens, {LABELS:.0%} of them labels)",
        ),
    )


def _assumed(split: str) -> list[Sample]:
    """Samples of about TOFU's lengths, the same at every call."""
    name, rows = part_of(split)
    if name not in SPLITS:
        raise ValueError(
            f"{split}: how many rows it has is not known; give a local data.source, or one of"
            f" TOFU's splits: {', '.join(SPLITS)}"
        )
    lengths = np.random.default_rng(0).normal(MEAN, SPREAD, SPLITS[name])
    return [_sample(int(n)) for n in np.clip(lengths, SHORTEST, LONGEST)[rows]]


def _sample(tokens: int) -> Sample:
    return Sample(np.ones(tokens, np.int32), tokens - int(LABELS * tokens))
