"""Metrics: pure functions of arrays or texts; every number carries its definition."""

from jaxunlearn.metrics.definitions import Definition, metric_row, missing_row
from jaxunlearn.metrics.ks import KsTest, ks_test
from jaxunlearn.metrics.membership import gradient_norms, scores
from jaxunlearn.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    generated_extraction_strength,
    split_answers,
    verbatim_rouge,
)
from jaxunlearn.metrics.privacy import Auc, auc, auc_interval, privleak
from jaxunlearn.metrics.relearning import Recovery, int8_rounded, steps_to_recover
from jaxunlearn.metrics.tofu import (
    forget_quality,
    forget_truth_ratio,
    log_truth_ratio,
    model_utility,
    normalised_probability,
    probability,
    utility_truth_ratio,
)
from jaxunlearn.metrics.tofu_log import SetLog, read_log, write_log
from jaxunlearn.metrics.uwc import Calibration, calibrate, mix

__all__ = [
    "Auc",
    "Calibration",
    "Definition",
    "KsTest",
    "Recovery",
    "SetLog",
    "auc",
    "auc_interval",
    "calibrate",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "forget_truth_ratio",
    "generated_extraction_strength",
    "gradient_norms",
    "int8_rounded",
    "ks_test",
    "log_truth_ratio",
    "metric_row",
    "missing_row",
    "mix",
    "model_utility",
    "normalised_probability",
    "privleak",
    "probability",
    "read_log",
    "scores",
    "split_answers",
    "steps_to_recover",
    "utility_truth_ratio",
    "verbatim_rouge",
    "write_log",
]
