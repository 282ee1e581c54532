"""The configuration of a run: its schema, its reader, overrides, and the check of its values."""

from jaxunlearn.config.overrides import override
from jaxunlearn.config.reader import DEMO, check_readable, differences, dump, load, only
from jaxunlearn.config.schema import (
    Compute,
    Config,
    ConfigError,
    Data,
    Evaluate,
    Example,
    Fictional,
    FineTune,
    Guide,
    Measure,
    NewModel,
    Objective,
    Prompt,
    Relearn,
    Splits,
    Unlearn,
)
from jaxunlearn.config.sweep import sweep
from jaxunlearn.config.train import Lora, Train
from jaxunlearn.config.validate import RANGES, between, check_distinct, check_number, validate

__all__ = [
    "DEMO",
    "RANGES",
    "Compute",
    "Config",
    "ConfigError",
    "Data",
    "Evaluate",
    "Example",
    "Fictional",
    "FineTune",
    "Guide",
    "Lora",
    "Measure",
    "NewModel",
    "Objective",
    "Prompt",
    "Relearn",
    "Splits",
    "Train",
    "Unlearn",
    "between",
    "check_distinct",
    "check_number",
    "check_readable",
    "differences",
    "dump",
    "load",
    "only",
    "override",
    "sweep",
    "validate",
]
