"""The main job, top to bottom: learn, unlearn, measure, record, evaluate.

Every stage leaves something whole in the run's folder and is skipped when it is there already, so a
run that was interrupted goes on where it stopped. Data, substitutes and targets are pure functions
of (seed, step): nothing else has to be restored.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn.data import packing
from jaxunlearn.run import afterwards, closing, hosts, measure, summary, tables
from jaxunlearn.run.assess_sets import Exam
from jaxunlearn.run.checks import check
from jaxunlearn.run.feed import make_split, reference_pass
from jaxunlearn.run.learn import learn
from jaxunlearn.run.offload import Offload
from jaxunlearn.run.prepare import Prepared, prepare
from jaxunlearn.run.unlearn import Bench, unlearn


def run(
    config: config_lib.Config,
    out: Path,
    console: Console,
    devices: Sequence[Any] | None = None,
) -> None:
    """Runs a configuration, or goes on with it where `out` holds a part of it."""
    execute(begin(config, out, devices), out, console)


def begin(config: config_lib.Config, out: Path, devices: Sequence[Any] | None = None) -> Prepared:
    """Checks everything that can be wrong with the input, then opens the run's folder.

    Args:
      config: what to do.
      out: the run's folder: absent, empty, or an earlier part of this very run.
      devices: the devices of the mesh; default: all.

    Raises:
      ValueError, FileNotFoundError: bad input; nothing was written.
    """
    prepared = prepare(config, devices)
    check(prepared)
    afterwards.check(prepared, out)
    if hosts.is_first():
        _open(out, config)
    hosts.wait("the folder is open")
    return prepared


def execute(prepared: Prepared, out: Path, console: Console, *, profile: int = 0) -> None:
    """Learns, unlearns, measures, evaluates and reports.

    Args:
      prepared: from `begin`.
      out: the folder it opened.
      console: where progress and the summary go.
      profile: steps of the first objective to trace into `out`/profile, after two that warm up.

    Raises:
      CheckpointError: the folder's checkpoints are of another model.
    """
    for note in prepared.notes:
        console.print(note, markup=False, highlight=False)
    with jax.set_mesh(prepared.mesh):
        suites = afterwards.exam(prepared, out)
        _stages(prepared, out, console, profile, suites)
        afterwards.follow(prepared, out, suites, console)
    if hosts.is_first():
        closing.finish(out, console)
    hosts.wait("the run is done")


def _stages(
    prepared: Prepared, out: Path, console: Console, profile: int, suites: Exam | None
) -> None:
    plain = {
        "forget": make_split(prepared, prepared.forget, {}),
        "retain": make_split(prepared, prepared.measured, {}),
    }
    for name, split in plain.items():
        rows, width = split.packed[0].tokens.shape
        share = packing.real_token_share(split.packed)
        console.print(
            f"{name}: {split.samples} samples in {len(split.packed)} batches of {rows} x {width}"
            f" tokens, {share:.1%} real",
            highlight=False,
        )
    results: dict[str, Any] = {}
    base = learn(prepared, out, "base", prepared.finetune, plain, console)
    before = measure.evaluate(base, plain, prepared.model)
    results["before"] = summary.evaluation(*before)
    summary.warn_if_little_to_forget(results["before"], console)
    if prepared.config.finetune.retrained:
        twin = learn(prepared, out, "retrained", prepared.retrain, plain, console)
        results["retrained"] = summary.evaluation(*measure.evaluate(twin, plain, prepared.model))
        del twin
    if suites is not None and prepared.config.evaluate.every:
        afterwards.yardsticks(prepared, suites, console)
    references = reference_pass(prepared, base, out / "reference")
    forget = make_split(prepared, prepared.forget, references.forget)
    offload = Offload(prepared.config.compute.offload)
    waiting = offload.away(base)
    del base
    bench = Bench(
        prepared,
        out,
        console,
        offload,
        waiting,
        references,
        forget,
        plain["retain"],
        before,
        {},
        suites,
    )
    for task in prepared.tasks:
        traced = profile if task is prepared.tasks[0] else 0
        results[task.name] = unlearn(bench, task, traced)
    tables.merge(out, [task.name for task in prepared.tasks])
    tables.write_json(out / "evaluation.json", summary.DEFINITIONS | {"models": results})


def _open(out: Path, config: config_lib.Config) -> None:
    """Makes the run's folder, or checks that it holds this very run.

    Raises:
      ValueError: the folder holds another run; names the first key that differs.
    """
    file = out / "config.yaml"
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: not empty and no run of ours (there is no config.yaml)")
        tables.write_text(file, config_lib.dump(config))
        return
    found = config_lib.load(file)
    if found != config:
        key, old, new = next(_differences(dataclasses.asdict(found), dataclasses.asdict(config)))
        raise ValueError(
            f"{file}: the folder holds a run with {key} = {old!r}, this one has {new!r};"
            " choose another --out, or give the same configuration to resume"
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".strip("."))
    elif old != new:
        yield key, old, new
