"""Gradient effects: the derivative of a scalar along a direction in parameter space.

Everything here takes functions and pytrees and knows no model, tokenizer or optimiser. A `Grouping`
says how the leaves of a parameter pytree form the rows of results by layer, `trainable=` which of
them take part (`partition` and `combine` do the same by hand). The compiled programs themselves are
in `jaxunlearn.effects.programs`.
"""

from jaxunlearn.effects._cost import Cost, count_flops, estimate_cost
from jaxunlearn.effects._g_effect import GEffect, g_effect, g_effect_between, g_effects_of
from jaxunlearn.effects._gradients import Gradient, dataset_gradient, dataset_gradients
from jaxunlearn.effects._grouping import (
    BY_LEAF,
    BY_PATH,
    Group,
    Grouping,
    layer_names,
    tensor_names,
)
from jaxunlearn.effects._pg_effect import PgChoice, choose_pg_method, pg_effect
from jaxunlearn.effects._precision import Precision
from jaxunlearn.effects._projection import spare_update
from jaxunlearn.effects._rows import layer_dots
from jaxunlearn.effects._trainable import Trainable, combine, partition
from jaxunlearn.effects._weights import guide_weights

__all__ = [
    "BY_LEAF",
    "BY_PATH",
    "Cost",
    "GEffect",
    "Gradient",
    "Group",
    "Grouping",
    "PgChoice",
    "Precision",
    "Trainable",
    "choose_pg_method",
    "combine",
    "count_flops",
    "dataset_gradient",
    "dataset_gradients",
    "estimate_cost",
    "g_effect",
    "g_effect_between",
    "g_effects_of",
    "guide_weights",
    "layer_dots",
    "layer_names",
    "partition",
    "pg_effect",
    "spare_update",
    "tensor_names",
]
