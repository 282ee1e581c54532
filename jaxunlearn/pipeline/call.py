"""Unlearning by one call from Python, on rows and models in memory as well as on names.

The call makes a configuration and runs it as `jaxunlearn run` does; there is no second pipeline.
"""

import contextlib
import dataclasses
import inspect
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxunlearn.config import DEMO, Config, ConfigError, Prompt, load, override
from jaxunlearn.core.paths import user_path
from jaxunlearn.data.rows import row_key
from jaxunlearn.pipeline import memory, outcome, recipe
from jaxunlearn.pipeline.outcome import Result
from jaxunlearn.pipeline.subject import columns_of
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import report

WHERE = "unlearn"
FORGET, RETAIN, MEASURED = "forget", "retain", "measured_retain"
"""The splits of rows from memory."""

MESH = ("compute.data", "compute.fsdp", "compute.tensor")
"""The keys of a mesh, in the order of its axes."""


def unlearn(
    model: Any,
    forget: Any,
    retain: Any,
    objective: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] = "npo",
    *,
    measured_retain: Any = None,
    source: str | Path | None = None,
    hyper: Mapping[str, bool | float] | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    measure_every: int | None = None,
    prompt: str | Mapping[str, Any] | None = None,
    mesh: tuple[int, int, int] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    debug_nans: bool = False,
    console: Console | None = None,
    devices: Sequence[Any] | None = None,
    **overrides: Any,
) -> Result:
    """Unlearns rows, and measures what that does to the rows to retain.

    Everything is computed as `jaxunlearn.run` computes it. The model and the tables of every
    objective are in memory at the end; where that is too much, use `jaxunlearn.run`.

    Args:
      model: a folder or hub name with safetensors; (params, `DecoderConfig`, tokenizer); or None
        for a new small model, which is fine-tuned on both sets first. That one, its fine-tuning and
        its schedule of unlearning are those of `jaxunlearn demo`, unless `overrides` say otherwise.
      forget: the rows to forget D_u: a list of rows, or a table of `datasets`, `pyarrow` or
        `pandas`. A row has a question and an answer, messages, or a text. With `source`, the name
        of a split.
      retain: the rows to retain, likewise.
      objective: the name of an objective; {name: its settings, the fields of `Objective`}, such as
        {"npo": {"hyper": {"beta": 0.5}, "retain": "gd"}}; or several names.
      measured_retain: the rows D_r on which retention is measured, from which no retain term or
        guide draws (a new model is fine-tuned on them too). Default: of rows, the first half of
        `retain`; of a source, its split retain_perturbed.
      source: where splits that are named come from: "fictional", a folder or a hub name.
      hyper: hyper-parameters, where `objective` is one name.
      lr: peak learning rate, the key `unlearn.lr`.
      epochs: passes over the rows to forget, the key `unlearn.epochs`.
      batch_size: rows to forget of a batch, the key `unlearn.batch_size`; default: 16, 4 for a
        new model, or all rows where they are fewer. That of fine-tuning is chosen likewise.
      measure_every: steps between two measurements of the G-effect, the key `measure.every`.
      prompt: how questions are written, the key `data.prompt`, such as "chat".
      mesh: devices along the axes (data, fsdp, tensor).
      out: the run's folder, in which the run goes on where it stopped; default: a temporary one,
        which is gone when the call is over.
      overwrite: whether another run in `out` is removed first, and nothing but its own files.
      debug_nans: whether a training that diverges takes a step again without compilation, to name
        the operation that first makes a value that is not finite.
      console: where progress and tables go; default: nowhere.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.
      **overrides: any other keys of a configuration, as mappings, such as finetune={"epochs": 5},
        or as dotted paths, such as **{"finetune.epochs": 5}.

    Returns:
      Result.

    Raises:
      ValueError, OSError: bad input; names the row or the key. Nothing was written.
      FloatingPointError: fine-tuning diverged.
    """
    if jax.process_count() > 1:
        raise ValueError(f"{WHERE}: works in one process; use jaxunlearn.run for several")
    shorthands = {
        "unlearn.lr": lr,
        "unlearn.epochs": epochs,
        "unlearn.batch_size": batch_size,
        "measure.every": measure_every,
        "data.prompt": prompt,
        **_mesh_keys(mesh),
    }
    settings = {key: value for key, value in shorthands.items() if value is not None}
    settings |= {"objectives": _objectives(objective, hyper), **_checked(overrides, settings)}
    names = [p.name for p in inspect.signature(unlearn).parameters.values()]
    base = override(_base(model), settings, WHERE, names[:-1])  # the last stands for all others
    sets = {FORGET: forget, RETAIN: retain, MEASURED: measured_retain}
    with _folder(out) as folder:
        before = set(folder.memory.glob("*"))
        try:
            if source is None:
                keys = _rows(sets, base, folder)
            else:
                keys = _names(sets, source, learned=model is None)
            start = memory.model_path(model, folder.memory)
            # What the caller says goes before what follows from the rows.
            config = override(_base(model), {"model": start, **keys}, WHERE)
            config = override(config, settings, WHERE)
            options = {"overwrite": overwrite, "debug_nans": debug_nans}
            run = recipe.begin(config, folder.path, devices, **options)
        except BaseException as error:
            memory.remove(set(folder.memory.glob("*")) - before)
            if isinstance(error, ValueError) and error.args:
                error.args = (memory.name_rows(str(error), folder.memory), *error.args[1:])
            raise
        pages = partial(report.write_report, print_tables=False)
        recipe.execute(run, console, write_report=pages)
        named = start if isinstance(model, str | Path) else None
        return outcome.read(run.prepared, folder, stays=out is not None, source=named)


def _base(model: Any) -> Config:
    """The configuration that the caller's settings override; it has no objectives."""
    config = dataclasses.replace(Config(), objectives={})
    if model is not None:
        return config
    # A new model knows nothing before it is fine-tuned, and the demo says how.
    demo = load(DEMO)
    # In small batches, as a few rows would otherwise make too few steps to be learned.
    finetune = dataclasses.replace(
        demo.finetune, retrained=False, batch_size=demo.unlearn.batch_size
    )
    return dataclasses.replace(
        config, new_model=demo.new_model, finetune=finetune, unlearn=demo.unlearn
    )


def _checked(overrides: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses keys that have an argument of their own, or that `settings` holds already."""
    given = set(settings)
    if isinstance(settings.get("data.prompt"), str):
        given.add(f"data.prompt.{Prompt.BARE}")  # which is what a word alone says
    for key, value in overrides.items():
        below = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else [key]
        if twice := [name for name in (key, *below) if name in given]:
            raise ConfigError(f"{WHERE}: {twice[0]}: is given twice, also by its short name")
        if key.partition(".")[0] in ("objectives", "model"):
            argument = key.partition(".")[0].removesuffix("s")
            raise ConfigError(f"{WHERE}: {key}: give it as the argument {argument!r}")
    return overrides


def _mesh_keys(mesh: Sequence[int] | None) -> dict[str, int]:
    """The keys of a mesh."""
    if mesh is None:
        return {}
    if not isinstance(mesh, Sequence) or len(mesh) != len(MESH):
        raise ConfigError(f"{WHERE}: mesh: {mesh} must be three numbers, {', '.join(MESH)}")
    return dict(zip(MESH, mesh, strict=True))


def _objectives(
    objective: Any, hyper: Mapping[str, bool | float] | None
) -> dict[str, Mapping[str, Any] | None]:
    """The section `objectives` of a configuration."""
    if isinstance(objective, str):
        name = objective.rpartition(":")[2]  # a function of one's own is `module:NAME`
        return {name: {"loss": objective, "hyper": hyper or {}}}
    if hyper is not None:
        raise ConfigError(
            f"{WHERE}: hyper: is for one objective that is named; of others write"
            " {NAME: {'hyper': {..}}}"
        )
    if isinstance(objective, Mapping):
        return dict(objective)
    if isinstance(objective, list | tuple) and all(isinstance(name, str) for name in objective):
        names = [name.rpartition(":")[2] for name in objective]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                f"{WHERE}: objective: two are called {twice[0]!r}; give them names of their own:"
                " {NAME: {'loss': ..}}"
            )
        return {name: {"loss": loss} for name, loss in zip(names, objective, strict=True)}
    raise ConfigError(
        f"{WHERE}: objective: expected a name, several names, or {{NAME: settings}}, got"
        f" {objective!r}; a function of your own is named, as 'module:NAME' ('__main__:NAME' where"
        " it is defined in a notebook)"
    )


def _names(sets: Mapping[str, Any], source: str | Path, *, learned: bool) -> dict[str, Any]:
    """The keys of the splits of a source; `learned` says whether the model learns them first."""
    for name, split in sets.items():
        if not isinstance(split, str) and not (name == MEASURED and split is None):
            raise ConfigError(
                f"{WHERE}: {name}: expected the name of a split of {source}, got"
                f" {type(split).__name__}; rows in memory need no source"
            )
    keys = {f"data.{name}": split for name, split in sets.items() if split is not None}
    splits = {"finetune.splits": list(dict.fromkeys(keys.values()))} if learned else {}
    return {"data.source": str(source), **keys, **splits}


def _rows(sets: Mapping[str, Any], config: Config, folder: RunFolder) -> dict[str, Any]:
    """Writes rows from memory into the run's folder; returns the keys that name them."""
    columns, splits = columns_of(config.data), {}
    for name, rows in sets.items():
        if rows is None and name == MEASURED:
            continue
        if isinstance(rows, str):
            raise ConfigError(
                f"{WHERE}: {name}: {rows!r} is the name of a split; name its source too, such as"
                " source='locuslab/TOFU', or give the rows"
            )
        splits[name], columns = memory.split_rows(name, rows, columns)
    # Retain terms must not draw what retention is measured on. Rows to forget, which a run drops
    # from both, do not count: one half could be of them alone.
    forgotten = set(map(row_key, splits[FORGET]))
    kept = [i for i, row in enumerate(splits[RETAIN]) if row_key(row) not in forgotten]
    if MEASURED not in splits and not kept:
        raise ConfigError(f"{WHERE}: retain: every row is also in forget; give other rows")
    half = kept[math.ceil(len(kept) / 2) - 1] + 1 if kept else 0
    return {
        "data.source": str(memory.write_rows(folder.memory, splits, columns)),
        "data.text_key": columns.text,
        "data.forget": FORGET,
        "data.retain": RETAIN,
        "data.measured_retain": MEASURED if MEASURED in splits else f"{RETAIN}[:{half}]",
        "finetune.splits": list(splits),
        # A batch holds at most all rows.
        "unlearn.batch_size": min(config.unlearn.batch_size, len(splits[FORGET])),
        "finetune.batch_size": min(config.finetune.batch_size, sum(map(len, splits.values()))),
    }


@contextlib.contextmanager
def _folder(out: str | Path | None) -> Iterator[RunFolder]:
    """The folder of the run: the one that is named, or a temporary one."""
    if out is not None:
        path = user_path(out).absolute()
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file; out must name a folder")
        yield RunFolder(path)
        return
    with tempfile.TemporaryDirectory(prefix="jaxunlearn-") as path:
        yield RunFolder(Path(path) / "run")
