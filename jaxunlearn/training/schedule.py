"""The steps of a run: their number, and those at which effects or suites are measured."""

import numpy as np
import optax

from jaxunlearn.config import Config, FineTune, Measure, Unlearn
from jaxunlearn.data import order


def unlearning_steps(config: Config, samples: int) -> int:
    """Updates of an unlearning run over `samples` forget samples."""
    return order.num_steps(samples, config.unlearn.batch_size, config.unlearn.epochs)


def measured_steps(config: Config, steps: int) -> tuple[int, ...]:
    """The steps at which effects are measured, each before its update."""
    measure = config.measure
    if measure.steps is None and not measure.every:
        return ()
    regular = range(0, steps, measure.every) if measure.steps is None else measure.steps
    return tuple(sorted({s for s in (*regular, *measure.pg_steps) if s < steps}))


def late_pg_steps(config: Config, steps: int) -> tuple[int, ...]:
    """The steps of `measure.pg_steps` that a run does not reach; the default ones may be beyond."""
    measure = config.measure
    if measure.pg_steps == Measure().pg_steps or not measured_steps(config, steps):
        return ()
    return tuple(step for step in measure.pg_steps if step >= steps)


def evaluated_steps(config: Config, steps: int) -> range:
    """The steps at which suites are measured during unlearning, each before its update.

    Step 0 is the model before unlearning and the last state the result: both are evaluated anyway.

    >>> from jaxunlearn.config import Config, Evaluate
    >>> list(evaluated_steps(Config(evaluate=Evaluate(every=20)), 60))
    [20, 40]
    """
    every = config.evaluate.every
    return range(every, steps, every) if every else range(0)


def fine_tuning_evaluations(spec: FineTune, samples: int) -> list[int]:
    """The steps before which fine-tuning measures both sets; the last is the number of steps.

    >>> from jaxunlearn.config import FineTune
    >>> fine_tuning_evaluations(FineTune(epochs=3, batch_size=4, evaluate_every=2), 8)
    [0, 4, 6]
    """
    per_epoch, steps = (order.num_steps(samples, spec.batch_size, n) for n in (1, spec.epochs))
    return [*range(0, steps, per_epoch * spec.evaluate_every), steps]


def epochs_of_step(step: int, batch_size: int, samples: int) -> np.ndarray:
    """The epoch that each sample of a step's batch belongs to, [batch_size]."""
    return np.arange(step * batch_size, (step + 1) * batch_size) // samples


def warmup_steps(spec: FineTune | Unlearn, samples: int) -> int:
    """The steps of a training on so many samples in which the learning rate rises."""
    return round(spec.warmup_epochs * order.num_steps(samples, spec.batch_size, 1))


def learning_rates(lr: float, steps: int, warmup: int) -> list[float]:
    """The rate of each step: linear warm-up from 0 over `warmup` steps, then linear decay to 0.

    >>> learning_rates(1.0, 4, 2)
    [0.0, 0.5, 1.0, 0.5]
    """
    up = optax.linear_schedule(0.0, lr, max(warmup, 1))
    down = optax.linear_schedule(lr, 0.0, max(steps - warmup, 1))
    schedule = optax.join_schedules([up, down], [warmup]) if warmup else down
    return np.asarray(schedule(np.arange(steps))).tolist()
