"""Settings that make a run fit a device, found by compiling its programs."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from jaxunlearn.config import Config
from jaxunlearn.forecasting.programs import Program, learning, measuring, programs, training
from jaxunlearn.forecasting.sketch import sketch

GIB = 2**30
REMATS = ("none", "dots", "full")
"""The values of `compute.remat` in the order in which they are tried, the fewest FLOPs first."""
FEWEST_TOKENS = 1024
"""The smallest `compute.batch_tokens` that is tried."""


def advise(config: Config, memory: float, current: Iterable[Program]) -> list[str]:
    """Says whether a run fits a device, or which settings make it fit.

    Settings are tried in the order of what they cost: first what the train steps recompute, then
    smaller batches in passes over a set, then measurements that form no risk gradient. "Fits" is
    said only of settings with which every program of the forecast has been compiled and fits.

    Args:
      config: the run.
      memory: GiB of one device.
      current: the programs of the run as it is configured.

    Returns:
      Sentences.
    """
    limit = memory * GIB
    # --- the run as it is configured --------------------------------------------------------------
    over = [program.name for program in current if program.total_bytes > limit]
    if not over:
        return [f"fits {memory:g} GiB as it is"]
    lines = [f"does not fit {memory:g} GiB: {', '.join(over)}"]
    # --- the train steps: recompute more of the forward pass --------------------------------------
    remats = [_with(config, compute={"remat": remat}) for remat in REMATS]
    config_with_remat = next((c for c in remats if _steps_fit(c, limit)), None)
    if config_with_remat is None:
        return [*lines, "no compute.remat makes a step fit: raise compute.fsdp or compute.tensor"]
    # --- everything else: smaller batches, then no risk gradients; the cheap check comes first ----
    for candidate in _candidates(config_with_remat):
        prepared = sketch(candidate)
        if _fits(measuring(prepared), limit) and _fits(programs(prepared), limit):
            return [*lines, f"fits with {_settings(config, candidate)}"]
    return [
        *lines,
        f"compute.remat: {config_with_remat.compute.remat} makes the steps fit, but neither a"
        " smaller compute.batch_tokens nor measure.gradients: gates makes all else fit: raise"
        " compute.fsdp or compute.tensor, or set compute.offload or measure.every: 0",
    ]


def _candidates(config: Config) -> Iterator[Config]:
    """Settings to try for measurements, the cheapest in time first."""
    sizes = [config.compute.batch_tokens]
    while sizes[-1] > FEWEST_TOKENS:
        sizes.append(sizes[-1] // 2)
    for gradients in dict.fromkeys((config.measure.gradients, "gates")):
        for tokens in sizes:
            compute, measure = {"batch_tokens": tokens}, {"gradients": gradients}
            yield _with(config, compute=compute, measure=measure)


def _steps_fit(config: Config, limit: float) -> bool:
    """Whether every train step fits, of fine-tuning and of all objectives."""
    prepared = sketch(config)
    steps = [p for p in learning(prepared) if p.name == "fine-tuning step"]
    return _fits([*steps, *training(prepared, prepared.tasks)], limit)


def _fits(compiled: Iterable[Program], limit: float) -> bool:
    return all(program.total_bytes <= limit for program in compiled)


def _settings(config: Config, candidate: Config) -> str:
    """The keys that a candidate changes, as they are written in a configuration."""
    changes = []
    for section in ("compute", "measure"):
        old, new = getattr(config, section), getattr(candidate, section)
        for field in dataclasses.fields(old):
            value = getattr(new, field.name)
            if value != getattr(old, field.name):
                changes.append(f"{section}.{field.name}: {value}")
    return ", ".join(changes)


def _with(config: Config, **sections: Mapping[str, str | int]) -> Config:
    """A configuration with some keys of some sections changed."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **keys) for name, keys in sections.items()
    }
    return dataclasses.replace(config, **changed)
