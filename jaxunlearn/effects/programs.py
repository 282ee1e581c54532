"""The compiled programs behind the effects, for those who compile, time or forecast them.

`pg_effect`, `g_effect` and `dataset_gradients` check their arguments, call one of these programs a
batch, and add up. Each is a `jax.jit` function of one batch, so it has `.lower` and takes
`jax.ShapeDtypeStruct`; functions and groupings are static keyword arguments. Parameters come as the
two trees of `effects.partition`: `params`, the leaves with respect to which is differentiated, and
`frozen`, the others, None where there are none.

| program | what it computes | behind |
|---|---|---|
| `gradient_sums` | running sums, counts and gradients of losses | `dataset_gradients` |
| `g_by_gates` | a risk's derivative along one direction, by layer | `g_effect(method="gates")` |
| `g_by_jvp` | derivatives of several losses along one direction | `g_effects_of` |
| `pg_by_jvp` | PG-effects by sample or token, forward mode | `pg_effect(method="jvp")` |
| `pg_by_gates` | PG-effects by sample or layer, reverse mode | `pg_effect(method="gates")` |
| `pg_by_vmap` | PG-effects by the definition | `pg_effect(method="vmap")` |

`SingleLoss` makes one loss the set of losses that `gradient_sums` takes, `zero_sums` the zeros to
which it adds the first of several batches, `make_probe` the zero gates that a model reads, and
`cost_of_compiled` reads off what a compiled program needs.
"""

from jaxunlearn.effects._cost import cost_of_compiled
from jaxunlearn.effects._g_effect import g_by_gates, g_by_jvp
from jaxunlearn.effects._gradients import LossesFn, LossFn, SingleLoss, gradient_sums, zero_sums
from jaxunlearn.effects._pg_effect import GIVES, pg_by_gates, pg_by_jvp, pg_by_vmap
from jaxunlearn.effects._probes import make as make_probe

__all__ = [
    "GIVES",
    "LossFn",
    "LossesFn",
    "SingleLoss",
    "cost_of_compiled",
    "g_by_gates",
    "g_by_jvp",
    "gradient_sums",
    "make_probe",
    "pg_by_gates",
    "pg_by_jvp",
    "pg_by_vmap",
    "zero_sums",
]
