"""The bytes that a run keeps in memory while a program runs, and those that it leaves on the disk.

Only parameter-sized arrays are counted: everything else is small compared with them. The modules
that keep such arrays declare their number.
"""

import jax
import numpy as np

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.measurement.interval import INTERVAL_TREES, SHARED_TREES
from jaxunlearn.models import sharding
from jaxunlearn.models.decoder import abstract_params
from jaxunlearn.pipeline.prepare import Prepared

THETA_0 = 1
"""Parameter-sized arrays of the model before unlearning, from which every objective starts."""
MOMENTS = 2
"""Parameter-sized arrays of Adam's moments."""


def sharded_params(prepared: Prepared) -> Tree:
    """The parameters as shapes on the run's mesh."""
    shardings = sharding.param_shardings(prepared.model, prepared.mesh)
    return trees.with_shardings(abstract_params(prepared.model), shardings)


def device_bytes(params: Tree) -> int:
    """Bytes of sharded parameters on one device."""
    sizes = jax.tree.map(
        lambda x: int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize, params
    )
    return sum(jax.tree.leaves(sizes))


def between_measurements(prepared: Prepared) -> int:
    """Bytes per device that a run keeps during a train step, in addition to the train state."""
    return _on_device(prepared, _between(prepared))


def while_measuring(prepared: Prepared) -> int:
    """Bytes per device that a run keeps during a measurement, in addition to theta_t."""
    return _on_device(prepared, THETA_0 + MOMENTS + _shared(prepared))


def while_counting(prepared: Prepared) -> int:
    """Bytes per device that a run keeps while it computes the statistics of a measurement."""
    # The moments are parked only after the statistics, even where the run offloads.
    moments = MOMENTS * device_bytes(sharded_params(prepared))
    return moments + between_measurements(prepared)


def while_refreshing(prepared: Prepared) -> int:
    """Bytes per device during a refresh of guided weights, in addition to theta_t."""
    return _on_device(prepared, _between(prepared) + MOMENTS)


def risk_gradients(prepared: Prepared) -> int:
    """Bytes per device of grad R(D_r) while a pass over D_u forms the other gradients."""
    return _on_device(prepared, 1 if prepared.config.measure.gradients == "full" else 0)


def host_bytes(prepared: Prepared) -> int:
    """Bytes parked in host memory for one device, at most."""
    if not prepared.config.compute.offload:
        return 0
    # While a measurement runs, both moments and grad R(D_r) are parked instead of the interval's
    # arrays: no more than those. A refresh between measurements parks both and a gradient on top.
    more = MOMENTS + 1 if any("guide" in task.needs for task in prepared.tasks) else 0
    count = max(_between(prepared), THETA_0 + MOMENTS + _shared(prepared)) + more
    return count * device_bytes(sharded_params(prepared))


def disk_bytes(prepared: Prepared) -> int:
    """Bytes on disk at most: a state is parameters and both moments in float32.

    They are the checkpoints kept of each objective and the one being written, the fine-tuned models
    and the last state of each fine-tuning.
    """
    config, tasks = prepared.config, len(prepared.tasks)
    leaves = jax.tree.leaves(abstract_params(prepared.model))
    params = sum(x.size * x.dtype.itemsize for x in leaves)
    finetuned = bool(config.finetune.epochs) + config.finetune.retrained
    states = tasks * config.unlearn.keep_checkpoints + finetuned + 1
    return params * (3 * states + finetuned)


def _between(prepared: Prepared) -> int:
    """Parameter-sized arrays that a run keeps between measurements, without its train state."""
    if not prepared.measured_steps:
        return THETA_0
    return THETA_0 + INTERVAL_TREES[prepared.config.measure.gradients] + _shared(prepared)


def _shared(prepared: Prepared) -> int:
    """Parameter-sized arrays that the measurements at theta_0 share among objectives."""
    if not prepared.measured_steps:
        return 0
    reductions = {task.loss.unlearn.reduction for task in prepared.tasks}
    return SHARED_TREES[prepared.config.measure.gradients] * len(reductions)


def _on_device(prepared: Prepared, count: int) -> int:
    """Bytes per device of parameter-sized arrays, none where they are parked on the host."""
    if prepared.config.compute.offload:
        return 0
    return count * device_bytes(sharded_params(prepared))
