"""The steps and measurements of one objective, timed by stage, without checkpoints.

A run saves its state at each measured step: for a 7B model 75 GiB each, which a lent machine has no
disk for. Everything else is what a run does, by the same functions.
"""

import dataclasses
import itertools
from collections.abc import Callable
from statistics import median

import jax
import numpy as np

from benchmarks.accelerator.ledger import Values
from benchmarks.pg_way import DoesNotFit
from jaxunlearn.core import files
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import order
from jaxunlearn.measurement.interval import Measurer
from jaxunlearn.measurement.statistics import Splits
from jaxunlearn.models import decoder, sharding
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.pipeline.unlearn import step_batches, task_optimizer
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.steps import timed
from jaxunlearn.training.feed import StepBatches
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.references import reference_pass
from jaxunlearn.training.schedule import lr_schedule
from jaxunlearn.training.step import Trainer, init_state

START, STEPS, MEASURED = "theta_0 and its references", "steps", "measurement"
FLOAT_BYTES = 4
STATE_TREES = 4  # parameters, two moments and a gradient: what a step holds at least


def train(sketched: Prepared, folder: RunFolder, left: Callable[[], float]) -> Values:
    """Trains the first objective from random weights, and measures where its configuration says.

    Args:
      sketched: from `sketch`: shapes and samples, nothing placed.
      folder: for the references, the tables and the timings; it is emptied of timings.
      left: the seconds that are left. No further interval is begun where it is 0.

    Returns:
      Seconds by stage, and the intervals that were reached.

    Raises:
      DoesNotFit: parameters, moments and a gradient are more than the device has.
    """
    _require_state(sketched)
    folder.timings.unlink(missing_ok=True)
    folder.path.mkdir(parents=True, exist_ok=True)
    layout = dataclasses.replace(sketched.layout, abstract=False)
    prepared = dataclasses.replace(sketched, layout=layout)
    with jax.set_mesh(prepared.mesh):
        reached = _train(prepared, folder, left)
    each = [sum(parts) for parts in zip(*[iter(_seconds(folder, MEASURED))] * 3, strict=True)]
    steps = [sum(parts) for parts in zip(*[iter(_seconds(folder, STEPS))] * 2, strict=True)]
    # The first interval compiles the steps, and the first with PG-effects those.
    compiling = 2 if len(each) > 2 else len(each) - 1
    of_step = [s / n for s, n in zip(steps, reached, strict=True)]
    stages = {stage: _seconds(folder, stage) for stage in (START, MEASURED, STEPS)}
    return {
        "seconds": sum(map(sum, stages.values())),
        "steps": f"{sum(reached)} of {prepared.steps}",
        "measurements": f"{len(each)} of {len(prepared.measured_steps)}",
        "measurement_seconds": median(each[compiling:]),
        "step_seconds": median(of_step[compiling:]),
        "stages": {stage: sum(seconds) for stage, seconds in stages.items()},
        "each_measurement": each,
        "each_interval_of_steps": steps,
        "samples": f"{len(prepared.sets.forget)} + {len(prepared.retain_eval)}",
    }


def _seconds(folder: RunFolder, stage: str) -> list[float]:
    """The seconds of every record of a stage."""
    records = files.records(folder.timings)
    return [record["seconds"] for record in records if record["stage"] == stage]


def _train(prepared: Prepared, folder: RunFolder, left: Callable[[], float]) -> list[int]:
    """Intervals of a measurement and the steps up to the next, until the end or out of time.

    Each interval has three records of a measurement and two of steps.

    Returns:
      The number of steps of each interval that was reached.
    """
    task, offload = prepared.tasks[0], Offload(prepared.config.compute.offload)
    with timed(folder.path, START):
        feed, measurer, trainer = _start(prepared, folder, offload)
    batches = feed.measured(measurer.splits.forget, None)
    reached: list[int] = []
    stats = measurer.statistics(trainer.params, 0)
    bounds = [*prepared.measured_steps, prepared.steps]
    for first, last in itertools.pairwise(bounds):
        if len(reached) > 1 and left() <= 0:
            break
        with timed(folder.path, MEASURED), trainer.parked_moments(offload):
            interval = measurer.open(first, trainer.params, stats, batches, None, task.lr)
        with timed(folder.path, STEPS):
            trainer.update(feed.step(first, None).batch)
            jax.block_until_ready(trainer.state)
        with timed(folder.path, MEASURED):
            interval.after_update(trainer.params)
        with timed(folder.path, STEPS):
            for step in range(first + 1, last):
                trainer.update(feed.step(step, None).batch)
            jax.block_until_ready(trainer.state)
        with timed(folder.path, MEASURED):
            stats = measurer.statistics(trainer.params)
            interval.close(last, trainer.params, stats)
        del interval  # its gradients make room for the next ones
        reached.append(last - first)
    return reached


def _start(
    prepared: Prepared, folder: RunFolder, offload: Offload
) -> tuple[StepBatches, Measurer, Trainer]:
    """Random weights, what objectives read of them, the batches and the state."""
    task, layout, spec = prepared.tasks[0], prepared.layout, prepared.config.unlearn
    base = _random(prepared)
    references = reference_pass(
        base,
        [task],
        prepared.sets,
        layout=layout,
        model=prepared.model,
        unlearn=spec,
        folder=folder,
    )
    splits = Splits(
        layout.split(prepared.sets.forget, references.forget), layout.split(prepared.retain_eval)
    )
    measurer = Measurer(
        name=task.name,
        term=task.loss.unlearn,
        splits=splits,
        base=splits.statistics(base, prepared.model),
        spec=prepared.config.measure,
        offload=offload,
        folder=folder.path,
        shared={},
    )
    feed = step_batches(prepared, task, references)
    per_epoch = order.num_steps(len(prepared.sets.forget), spec.batch_size, 1)
    lr = lr_schedule(task.lr, feed.steps, round(spec.warmup_epochs * per_epoch))
    tx = task_optimizer(prepared, task, lr)
    return feed, measurer, Trainer(init_state(base, tx), task.loss, tx)


def _random(prepared: Prepared) -> Tree:
    """Random parameters, made on the device."""
    params = decoder.init_params(jax.random.key(0), prepared.model)
    return jax.device_put(params, sharding.param_shardings(prepared.model, prepared.mesh))


def _require_state(prepared: Prepared) -> None:
    """Raises DoesNotFit before the minutes that it takes to find out."""
    stats = jax.devices()[0].memory_stats()
    leaves = jax.tree.leaves(decoder.abstract_params(prepared.model))
    needed = STATE_TREES * FLOAT_BYTES * sum(int(np.prod(leaf.shape)) for leaf in leaves)
    if stats and needed > stats["bytes_limit"]:
        raise DoesNotFit(
            f"parameters, moments and a gradient are {needed / 1e9:.0f} GB, the device has"
            f" {stats['bytes_limit'] / 1e9:.0f}"
        )
