"""The bytes that a run keeps in memory while a program runs, and those that it leaves on the disk.

Only arrays of the size of what trains are counted: everything else is small compared with them, and
the frozen parameters are an argument of every program. The modules that keep such arrays declare
their number.
"""

import jax
import numpy as np

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.measurement.interval import INTERVAL_TREES, SHARED_TREES
from jaxunlearn.models import sharding
from jaxunlearn.models.decoder import DecoderConfig, abstract_params
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.training.tasks import Task

THETA_0 = 1
"""Arrays of the size of what trains, of the model from which every objective starts."""
MOMENTS = 2
"""Arrays of the size of what trains, of Adam's moments."""


def moments(prepared: Prepared) -> int:
    """Arrays of the size of what trains that an optimiser keeps, at most of the objectives."""
    return max(_moments(task) for task in prepared.tasks)


def _moments(task: Task) -> int:
    """Adam's moments, and the running mean that updates are projected against."""
    return MOMENTS + (task.spare is not None)


def plain_params(prepared: Prepared) -> Tree:
    """The parameters of the model that is fine-tuned, as shapes on the run's mesh."""
    return _on_mesh(prepared.model, prepared)


def sharded_params(prepared: Prepared) -> Tree:
    """The parameters of the model that unlearns, as shapes on the run's mesh."""
    return prepared.scope.as_kept(_on_mesh(prepared.unlearn_model, prepared))


def parts(prepared: Prepared) -> tuple[Tree, Tree]:
    """Those of `sharded_params` that train, and the frozen ones; None where all train."""
    return prepared.scope.split(sharded_params(prepared))


def trainable_bytes(prepared: Prepared) -> int:
    """Bytes on one device of the parameters that train."""
    return device_bytes(parts(prepared)[0])


def device_bytes(params: Tree) -> int:
    """Bytes of sharded parameters on one device."""
    sizes = jax.tree.map(
        lambda x: int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize, params
    )
    return sum(jax.tree.leaves(sizes))


def while_fine_tuning(prepared: Prepared) -> int:
    """Bytes per device that a run keeps during fine-tuning, in addition to the train state."""
    # The retrained model is trained next to theta_0, which is not parked yet.
    return device_bytes(sharded_params(prepared)) if prepared.config.finetune.retrained else 0


def between_measurements(prepared: Prepared) -> int:
    """Bytes per device that a run keeps during a train step, in addition to the train state."""
    return _on_device(prepared, _between(prepared))


def while_measuring(prepared: Prepared) -> int:
    """Bytes per device that a run keeps during a measurement, in addition to theta_t."""
    return _on_device(prepared, THETA_0 + moments(prepared) + _shared(prepared))


def while_counting(prepared: Prepared) -> int:
    """Bytes per device that a run keeps while it computes the statistics of a measurement."""
    # The moments are parked only after the statistics, even where the run offloads.
    kept = moments(prepared) * trainable_bytes(prepared)
    return kept + between_measurements(prepared)


def while_refreshing(prepared: Prepared) -> int:
    """Bytes per device during a refresh of guided weights, in addition to theta_t."""
    return _on_device(prepared, _between(prepared) + moments(prepared))


def risk_gradients(prepared: Prepared) -> int:
    """Bytes per device of grad R(D_r) while a pass over D_u forms the other gradients."""
    return _on_device(prepared, 1 if prepared.config.measure.gradients == "full" else 0)


def host_bytes(prepared: Prepared) -> int:
    """Bytes parked in host memory for one device, at most."""
    if not prepared.config.compute.offload:
        return 0
    # While a measurement runs, both moments and grad R(D_r) are parked instead of the interval's
    # arrays: no more than those. A refresh between measurements parks both and a gradient on top.
    guided = any("guide" in task.needs for task in prepared.tasks)
    more = moments(prepared) + 1 if guided else 0
    count = max(_between(prepared), THETA_0 + moments(prepared) + _shared(prepared)) + more
    return count * trainable_bytes(prepared)


def disk_bytes(prepared: Prepared) -> int:
    """Bytes on disk at most: a state is parameters and the optimiser's arrays in float32.

    They are the checkpoints kept of each objective and the one being written, the fine-tuned models
    and the last state of each fine-tuning.
    """
    config, states = prepared.config, [1 + _moments(task) for task in prepared.tasks]
    params, own = (_bytes(tree) for tree in (plain_params(prepared), parts(prepared)[0]))
    finetuned = bool(config.finetune.epochs) + config.finetune.retrained
    checkpoints = own * sum(states) * config.unlearn.keep_checkpoints
    # The state that is being written is of a fine-tuning, or else of an objective.
    writing = (1 + MOMENTS) * params if finetuned else own * max(states)
    return checkpoints + (2 + MOMENTS) * params * finetuned + writing


def _between(prepared: Prepared) -> int:
    """Arrays of that size that a run keeps between measurements, without its train state."""
    if not prepared.measured_steps:
        return THETA_0
    return THETA_0 + INTERVAL_TREES[prepared.config.measure.gradients] + _shared(prepared)


def _shared(prepared: Prepared) -> int:
    """Arrays of that size that the measurements at theta_0 share among objectives."""
    if not prepared.measured_steps:
        return 0
    reductions = {task.loss.unlearn.reduction for task in prepared.tasks}
    return SHARED_TREES[prepared.config.measure.gradients] * len(reductions)


def _on_device(prepared: Prepared, count: int) -> int:
    """Bytes per device of arrays of that size, none where they are parked on the host."""
    if prepared.config.compute.offload:
        return 0
    return count * trainable_bytes(prepared)


def _on_mesh(model: DecoderConfig, prepared: Prepared) -> Tree:
    shardings = sharding.param_shardings(model, prepared.mesh)
    return trees.with_shardings(abstract_params(model), shardings)


def _bytes(params: Tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
