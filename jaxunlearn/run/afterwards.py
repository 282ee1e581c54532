"""What a run ends with, where its configuration asks: its models evaluated, and taught again."""

from pathlib import Path

import jax
from rich.console import Console

from jaxunlearn.run import assess, assess_steps, models, relearn
from jaxunlearn.run.assess_sets import BEFORE, TWIN, Exam
from jaxunlearn.run.prepare import Prepared


def check(prepared: Prepared, out: Path) -> None:
    """Finds before the first computation what would stop the run at its end.

    Raises:
      ValueError, FileNotFoundError: the first thing found.
    """
    spec = prepared.config.evaluate
    if spec.every < 0:
        raise ValueError(f"evaluate.every: {spec.every} must not be negative")
    if spec.every and not set(spec.suites) & set(assess_steps.ON_THE_WAY):
        wanted = ", ".join(assess_steps.ON_THE_WAY)
        raise ValueError(f"evaluate.every: needs one of {wanted} in evaluate.suites")
    with jax.set_mesh(prepared.mesh):
        exam(prepared, out)
    if _teaches(prepared):
        relearn.request(prepared.config, len(prepared.forget))


def exam(prepared: Prepared, out: Path) -> Exam | None:
    """The suites that the configuration names, None where it names none."""
    if not prepared.config.evaluate.suites:
        return None
    asked = assess.request(prepared.config)
    return assess.exam(prepared, out, asked, prepared.config.finetune.retrained)


def yardsticks(prepared: Prepared, suites: Exam, console: Console) -> None:
    """Measures the models that those on the way are compared with."""
    twin = prepared.config.finetune.retrained
    assess.measure_models(suites, [*([TWIN] if twin else []), BEFORE], console)


def follow(prepared: Prepared, out: Path, suites: Exam | None, console: Console) -> None:
    """Evaluates the models of a run whose objectives are done, and teaches them again."""
    config = prepared.config
    done = models.finished(out, config)
    if suites is not None:
        names = assess.models_of(config, config.finetune.retrained, done)
        assess.measure_models(suites, names, console)
    if _teaches(prepared) and done:
        asked = relearn.request(config, len(prepared.forget))
        relearn.attack_models(prepared, out, asked, done, console)


def _teaches(prepared: Prepared) -> bool:
    spec = prepared.config.relearn
    return bool(spec.samples) or spec.benign
