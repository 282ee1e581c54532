"""Unlearning objectives: pure functions of arrays, one loss a sequence, all minimised.

Losses on log-probabilities take [B, S] and return [B]; those on logits and hidden states return one
loss a position. Nothing here knows a model, a tokenizer or an optimiser.
"""

from jaxunlearn.objectives import catalogue as catalogue
from jaxunlearn.objectives.ascent import ga as ga
from jaxunlearn.objectives.ascent import ga_weight as ga_weight
from jaxunlearn.objectives.ascent import guided as guided
from jaxunlearn.objectives.ascent import guided_weight as guided_weight
from jaxunlearn.objectives.ascent import satimp as satimp
from jaxunlearn.objectives.ascent import satimp_weight as satimp_weight
from jaxunlearn.objectives.ascent import wga as wga
from jaxunlearn.objectives.ascent import wga_weight as wga_weight
from jaxunlearn.objectives.catalogue import Objective as Objective
from jaxunlearn.objectives.distillation import ceu as ceu
from jaxunlearn.objectives.distillation import undial as undial
from jaxunlearn.objectives.likelihood import REDUCTIONS as REDUCTIONS
from jaxunlearn.objectives.likelihood import reduce as reduce
from jaxunlearn.objectives.likelihood import token_log_probs as token_log_probs
from jaxunlearn.objectives.preference import npo as npo
from jaxunlearn.objectives.preference import npo_weight as npo_weight
from jaxunlearn.objectives.preference import simnpo as simnpo
from jaxunlearn.objectives.preference import simnpo_weight as simnpo_weight
from jaxunlearn.objectives.preference import tnpo as tnpo
from jaxunlearn.objectives.preference import tnpo_weight as tnpo_weight
from jaxunlearn.objectives.preference import wtnpo as wtnpo
from jaxunlearn.objectives.preference import wtnpo_weight as wtnpo_weight
from jaxunlearn.objectives.representation import rmu as rmu
from jaxunlearn.objectives.representation import rmu_target as rmu_target
from jaxunlearn.objectives.retain import gd as gd
from jaxunlearn.objectives.retain import kl as kl
from jaxunlearn.objectives.retain import rr as rr
from jaxunlearn.objectives.substitute import dpo as dpo
from jaxunlearn.objectives.substitute import po as po
