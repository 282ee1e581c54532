"""A run of which only shapes are known: all that a forecast needs, nothing downloaded or placed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config import Config
from jaxunlearn.data import packing
from jaxunlearn.models import known
from jaxunlearn.run import prepare
from jaxunlearn.run.prepare import Prepared

# TOFU with the Llama-2 tokenizer: rows of a split, and tokens and labels of a row.
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
MEAN, SPREAD, SHORTEST, LONGEST, LABELS = 71, 16, 33, 121, 0.6


def sketch(config: Config, devices: Sequence[Any] | None = None) -> Prepared:
    """A run of which only shapes are known: from its files where they are here, else assumed.

    Args:
      config: the run.
      devices: of the mesh; default: all.

    Returns:
      Prepared; `notes` say what is assumed.

    Raises:
      ValueError, FileNotFoundError: as `prepare`, or a model or split of unknown size.
    """
    has_model = config.model is None or Path(config.model).expanduser().is_dir()
    has_data = config.data.source == "fictional" or Path(config.data.source).exists()
    if has_model and has_data:
        return dataclasses.replace(prepare.prepare(config, devices), sketched=True)
    if config.model is None:
        raise ValueError("model: a new model is sized by its data; give a local data.source")
    mesh = prepare.make_mesh(config, devices)
    model = known.shape(config.model, prepare.compute_options(config))
    data, spec = config.data, config.finetune
    forget, finetune = _assumed(data.forget), [s for n in spec.splits for s in _assumed(n)]
    specs = config.objectives.items()
    tasks = tuple(prepare.make_task(name, spec, model, config) for name, spec in specs)
    stand_in = _sequence(MEAN)
    return Prepared(
        config=config,
        mesh=mesh,
        tokenizer=None,
        model=model,
        initial=lambda: None,
        forget=forget,
        retain=_assumed(data.retain) if any(task.reads_retain for task in tasks) else [],
        measured=_assumed(data.measured_retain),
        finetune=finetune,
        retrain=finetune[len(forget) :] if spec.retrained else [],
        refusals=prepare.Refusals(
            [{"question": ""}] * len(forget), [""], lambda *_: stand_in, config.seed
        ),
        tasks=tasks,
        notes=(
            f"{config.model}: shape from its name; lengths assumed as TOFU's with the Llama-2"
            f" tokenizer (mean {MEAN} tokens, {LABELS:.0%} of them labels)",
        ),
        sketched=True,
    )


def _assumed(split: str) -> list[packing.Sequence]:
    if split not in SPLITS:
        raise ValueError(
            f"{split}: how many rows it has is not known; give a local data.source, or one of"
            f" TOFU's splits: {', '.join(SPLITS)}"
        )
    draw = np.random.default_rng(0).normal(MEAN, SPREAD, SPLITS[split])
    return [_sequence(int(n)) for n in np.clip(draw, SHORTEST, LONGEST)]


def _sequence(tokens: int) -> packing.Sequence:
    return packing.Sequence(np.ones(tokens, np.int32), tokens - int(LABELS * tokens))
