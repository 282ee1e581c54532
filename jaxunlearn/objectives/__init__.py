"""Unlearning objectives: pure functions of arrays, one loss a sequence, all minimised.

Losses on log-probabilities take [B, S] and return [B]; those on logits and hidden states return one
loss a position. Nothing here knows a model, a tokenizer or an optimiser. `get` and `get_retain`
find them by name, and those of your own as `my_package.my_module:NAME`.
"""

from jaxunlearn.objectives.ascent import (
    ga,
    ga_weight,
    guided,
    guided_weight,
    satimp,
    satimp_weight,
    wga,
    wga_weight,
)
from jaxunlearn.objectives.batches import (
    BatchLoss,
    LabelLogProbs,
)
from jaxunlearn.objectives.catalogue import (
    Description,
    Hyper,
    describe,
)
from jaxunlearn.objectives.distillation import (
    ceu,
    undial,
)
from jaxunlearn.objectives.likelihood import (
    REDUCTIONS,
    reduce_losses,
    token_log_probs,
)
from jaxunlearn.objectives.preference import (
    npo,
    npo_weight,
    simnpo,
    simnpo_weight,
    tnpo,
    tnpo_weight,
    wtnpo,
    wtnpo_weight,
)
from jaxunlearn.objectives.registry import (
    Definition,
    Objective,
    get,
    get_retain,
    names,
    retain_names,
)
from jaxunlearn.objectives.representation import (
    rmu,
    rmu_target,
)
from jaxunlearn.objectives.retain import (
    gd,
    kl,
    rr,
)
from jaxunlearn.objectives.substitute import (
    dpo,
    po,
)

__all__ = [
    "REDUCTIONS",
    "BatchLoss",
    "Definition",
    "Description",
    "Hyper",
    "LabelLogProbs",
    "Objective",
    "ceu",
    "describe",
    "dpo",
    "ga",
    "ga_weight",
    "gd",
    "get",
    "get_retain",
    "guided",
    "guided_weight",
    "kl",
    "names",
    "npo",
    "npo_weight",
    "po",
    "reduce_losses",
    "retain_names",
    "rmu",
    "rmu_target",
    "rr",
    "satimp",
    "satimp_weight",
    "simnpo",
    "simnpo_weight",
    "tnpo",
    "tnpo_weight",
    "token_log_probs",
    "undial",
    "wga",
    "wga_weight",
    "wtnpo",
    "wtnpo_weight",
]
