"""Gradient effects: the derivative of a scalar along a direction in parameter space.

Everything here takes functions and pytrees and knows no model, tokenizer or optimiser.
"""

from jaxunlearn.effects.directions import Gradient as Gradient
from jaxunlearn.effects.directions import dataset_gradient as dataset_gradient
from jaxunlearn.effects.directions import dataset_gradients as dataset_gradients
from jaxunlearn.effects.forecast import Forecast as Forecast
from jaxunlearn.effects.forecast import flops as flops
from jaxunlearn.effects.forecast import forecast as forecast
from jaxunlearn.effects.g_effect import GEffect as GEffect
from jaxunlearn.effects.g_effect import between as between
from jaxunlearn.effects.g_effect import g_effect as g_effect
from jaxunlearn.effects.g_effect import objective_effects as objective_effects
from jaxunlearn.effects.guide import guide as guide
from jaxunlearn.effects.layers import groups as groups
from jaxunlearn.effects.layers import layer_names as layer_names
from jaxunlearn.effects.layers import tensor_names as tensor_names
from jaxunlearn.effects.pg_effect import Choice as Choice
from jaxunlearn.effects.pg_effect import choose as choose
from jaxunlearn.effects.pg_effect import pg_effect as pg_effect
from jaxunlearn.effects.projection import spare as spare
from jaxunlearn.effects.trees import dots as dots
