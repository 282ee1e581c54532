"""Unlearning in language models on JAX, and why it works or fails, seen through gradients.

The packages are a library: `objectives` has losses (arrays in, loss out), `effects` the gradient
effects of any function of a parameter pytree, `models` and `data` what a run feeds them with, and
`metrics` what models are evaluated by. The functions do what the command line does:

    config = jaxunlearn.load_config("configs/demo_guided.yaml")
    jaxunlearn.run(config, "runs/guided")
    jaxunlearn.relearn("runs/guided", samples=[5])
    jaxunlearn.evaluate("somebody/model", config=config)

They print nothing unless they are given a `rich.console.Console`. Everything here is imported when
it is used first.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxunlearn import data, effects, metrics, models, objectives
    from jaxunlearn.config.reader import load as load_config
    from jaxunlearn.config.schema import Config
    from jaxunlearn.forecasting.show import forecast
    from jaxunlearn.pipeline.call import unlearn
    from jaxunlearn.pipeline.checkpoint_effects import checkpoint_effects
    from jaxunlearn.pipeline.evaluate import evaluate
    from jaxunlearn.pipeline.export import export
    from jaxunlearn.pipeline.recipe import run
    from jaxunlearn.pipeline.relearn import relearn
    from jaxunlearn.reporting.report import write_report as report

__version__ = "0.1.0"
__all__ = [
    "Config",
    "checkpoint_effects",
    "data",
    "effects",
    "evaluate",
    "export",
    "forecast",
    "load_config",
    "metrics",
    "models",
    "objectives",
    "relearn",
    "report",
    "run",
    "unlearn",
]
_PACKAGES = ("data", "effects", "metrics", "models", "objectives")
# Where each name is: module, and the name there.
_HOMES = {
    "Config": ("config.schema", "Config"),
    "checkpoint_effects": ("pipeline.checkpoint_effects", "checkpoint_effects"),
    "evaluate": ("pipeline.evaluate", "evaluate"),
    "export": ("pipeline.export", "export"),
    "forecast": ("forecasting.show", "forecast"),
    "load_config": ("config.reader", "load"),
    "relearn": ("pipeline.relearn", "relearn"),
    "report": ("reporting.report", "write_report"),
    "run": ("pipeline.recipe", "run"),
    "unlearn": ("pipeline.call", "unlearn"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used first (PEP 562)."""
    if name in _PACKAGES:
        return importlib.import_module(f"jaxunlearn.{name}")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        value = getattr(importlib.import_module(f"jaxunlearn.{module}"), attribute)
        globals()[name] = value  # the next use finds it without this function
        return value
    raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
