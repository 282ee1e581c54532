"""The seconds of a forecast: how they follow from a peak, and that a run takes about so long."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from jaxunlearn.cli import DEMO
from jaxunlearn.config import load
from jaxunlearn.core import files
from jaxunlearn.core.devices import TERA
from jaxunlearn.forecasting import show, speed
from jaxunlearn.forecasting.programs import programs, training
from jaxunlearn.forecasting.sketch import sketch
from tests.pipeline.tiny import TINY, replace, run


@pytest.fixture(scope="module")
def prepared():
    return sketch(TINY, jax.devices()[:1])


def program(calls, flops):
    return SimpleNamespace(calls=calls, cost=SimpleNamespace(flops=flops))


def test_seconds_are_flops_over_a_share_of_the_peak(prepared):
    one, other = program(10, 4e9), program(1, 8e9)
    stated = speed.stated_speed(prepared, 0.01)
    assert stated.seconds(one) == pytest.approx(4 / speed.SHARE)
    assert stated.total_seconds([one, other]) == pytest.approx(4.8 / speed.SHARE)
    assert stated.basis == "if programs reach 40% of 0.01 TFLOP/s a device"


def test_the_peak_is_of_one_device_and_a_cpu_has_none(prepared):
    assert speed.stated_speed(prepared, None) is None
    devices = SimpleNamespace(flat=[None] * 8)
    eight = SimpleNamespace(mesh=SimpleNamespace(devices=devices), config=prepared.config)
    assert speed.stated_speed(eight, 2.0).flops == pytest.approx(speed.SHARE * 16.0 * TERA)


@pytest.mark.parametrize("peak", [0.0, -1.0, float("nan"), float("inf")])
def test_no_peak_is_no_peak(peak):
    with pytest.raises(ValueError, match=r"peak \(--peak\): .* must be a positive number"):
        show.forecast(TINY, peak=peak)
    with pytest.raises(ValueError, match=r"--peak\), measure \(--measure\): give one"):
        show.forecast(TINY, peak=1.0, measure=True)


def test_a_speed_is_measured_by_a_train_step(prepared):
    """A clock that moves a fifth of a second a look: three steps in 0.6 seconds."""
    (step, *_) = training(prepared, prepared.tasks)
    now = iter(0.2 * i for i in range(100))
    idle = dataclasses.replace(step, name="rmu: step")
    idle.__dict__["cost"] = dataclasses.replace(step.cost, flops=0)  # which is computed once
    measured = speed.measured_speed([idle, step], clock=lambda: next(now))
    assert measured.flops == pytest.approx(3 * step.cost.flops / 0.6)
    assert "of 'ga: step', measured here" in measured.basis
    assert speed.measured_speed([idle]) is None


def test_the_output_says_what_its_seconds_assume():
    assert "--peak TFLOPS, or --measure" in show._time([], None)
    line = show._time([program(2, 1e12)], speed.Speed(1e12, "if all goes well"))
    assert line == "seconds: 2 in all, if all goes well"


@pytest.mark.nightly
@pytest.mark.cost
def test_the_demo_takes_as_long_as_was_forecast(tmp_path):
    """Within a factor of 2, on the machine whose speed is measured; compilation is not forecast."""
    config = load(DEMO)
    config = replace(
        config,
        objectives={name: config.objectives[name] for name in ("npo", "tnpo")},
        finetune={"epochs": 12, "target_nll": None, "retrained": False},
        unlearn={"epochs": 6},
        measure={"pg_steps": (20,)},
        evaluate={"suites": ()},
        relearn={"samples": ()},
    )
    one = jax.devices()[:1]
    forecast = sketch(config, one)
    compiled = list(programs(forecast))
    step = next(program for program in compiled if program.name == "npo: step")
    # The machine's speed may drift: it is measured before the run and after it.
    before = speed.measured_speed([step]).flops
    run(config, tmp_path / "run", one)
    flops = (before + speed.measured_speed([step]).flops) / 2
    predicted = speed.Speed(flops, "").total_seconds(compiled)
    covered = {"train", "measure", "forward", "evaluate"}
    taken = sum(
        record["seconds"] - record["compile_seconds"]
        for record in files.records(tmp_path / "run" / "timings.jsonl")
        if record["part"] in covered
    )
    print(f"predicted {predicted:.2f} s at {flops / TERA:.3f} TFLOP/s, taken {taken:.2f} s")
    assert 0.5 < predicted / taken < 2
