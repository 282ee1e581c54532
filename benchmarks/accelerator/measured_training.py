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
from jaxunlearn.measurement.interval import Measurer
from jaxunlearn.measurement.statistics import Splits
from jaxunlearn.models import decoder, sharding
from jaxunlearn.pipeline.plan import step_batches, task_optimizer
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import Stages
from jaxunlearn.training.feed import StepBatches
from jaxunlearn.training.offload import Offload
from jaxunlearn.training.references import reference_pass
from jaxunlearn.training.schedule import learning_rates, warmup_steps
from jaxunlearn.training.step import Trainer, init_state

START, MEASURE, TRAIN = "theta_0 and its references", "measure", "train"
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
        reached = _train(prepared, Stages(folder), left)
    records = files.records(folder.timings)
    measured, trained = (_parts(records, part) for part in (MEASURE, TRAIN))
    measurements = [record["seconds"] - record["compile_seconds"] for record in measured]
    steps = [
        (record["seconds"] - record["compile_seconds"]) / count
        for record, count in zip(trained, reached, strict=True)
    ]
    whole = {record["stage"]: record["seconds"] for record in records if record["part"] is None}
    return {
        "seconds": sum(whole.values()),
        "compile_seconds": sum(r["compile_seconds"] for r in records if r["part"] is None),
        "steps": f"{sum(reached)} of {prepared.steps}",
        "measurements": f"{len(reached)} of {len(prepared.measured_steps)}",
        "measurement_seconds": median(measurements),
        "longest_measurement_seconds": max(measurements),  # one with PG-effects
        "step_seconds": median(steps),
        "stages": {
            START: whole[START],
            MEASURE: sum(record["seconds"] for record in measured),
            TRAIN: sum(record["seconds"] for record in trained),
        },
        "samples": f"{len(prepared.sets.forget)} + {len(prepared.retain_eval)}",
        "records": records,
    }


def _parts(records: list[Values], part: str) -> list[Values]:
    """The records of a part, one for each interval."""
    return [record for record in records if record["part"] == part]


def _train(prepared: Prepared, stages: Stages, left: Callable[[], float]) -> list[int]:
    """Intervals of a measurement and the steps up to the next, until the end or out of time.

    Each interval is a stage, whose parts are the measurement and the steps.

    Returns:
      The number of steps of each interval that was reached.
    """
    task, offload = prepared.tasks[0], Offload(prepared.config.compute.offload)
    with stages.stage(START):
        feed, measurer, trainer = _start(prepared, stages.folder, offload)
        warmup = warmup_steps(prepared.config.unlearn, len(prepared.sets.forget))
        rates = learning_rates(task.lr, feed.steps, warmup)
        batches = feed.measured(measurer.splits.forget, None)
        stats = measurer.statistics(trainer.params, 0)
    reached: list[int] = []
    bounds = [*prepared.measured_steps, prepared.steps]
    for first, last in itertools.pairwise(bounds):
        if len(reached) > 1 and left() <= 0:
            break
        with stages.stage(f"from step {first}") as stage:
            with stage.part(MEASURE), trainer.parked_moments(offload):
                interval = measurer.open(first, trainer.params, stats, batches, None, rates[first])
            with stage.part(TRAIN):
                trainer.update(feed.step(first, None).batch, rates[first])
                with stage.part(MEASURE, after=trainer.state):
                    interval.after_update(trainer.params)
                for step in range(first + 1, last):
                    trainer.update(feed.step(step, None).batch, rates[step])
                jax.block_until_ready(trainer.state)
            with stage.part(MEASURE):
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
        objective=task.objective,
        term=task.loss.unlearn,
        splits=splits,
        base=splits.statistics(base, prepared.model),
        spec=prepared.config.measure,
        offload=offload,
        folder=folder.path,
        shared={},
    )
    feed = step_batches(prepared, task, references)
    tx = task_optimizer(prepared, task)
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
