"""The seconds of a forecast: how they follow from a peak, and that a run takes about so long."""

from types import SimpleNamespace

import jax
import pytest

from jaxunlearn.cli import DEMO
from jaxunlearn.config import load
from jaxunlearn.core import files
from jaxunlearn.core.devices import TERA
from jaxunlearn.forecasting import show, speed
from jaxunlearn.forecasting.programs import programs
from jaxunlearn.forecasting.sketch import sketch
from tests.pipeline.tiny import TINY, replace, run


@pytest.fixture(scope="module")
def prepared():
    return sketch(TINY, jax.devices()[:1])


def program(calls, flops):
    return SimpleNamespace(calls=calls, cost=SimpleNamespace(flops=flops))


def test_seconds_are_flops_over_a_share_of_the_peak():
    one, other = program(10, 4e9), program(1, 8e9)
    assert speed.program_seconds(one, 1e10) == pytest.approx(4 / speed.SHARE)
    assert speed.total_seconds([one, other], 1e10) == pytest.approx(4.8 / speed.SHARE)


def test_the_peak_is_stated_or_measured_or_published(prepared):
    assert speed.run_peak(prepared, 2.0, False) == 2.0 * TERA
    assert speed.run_peak(prepared, None, False) is None  # a CPU's is not published
    eight = SimpleNamespace(
        mesh=SimpleNamespace(devices=SimpleNamespace(flat=[None] * 8)), config=prepared.config
    )
    assert speed.run_peak(eight, 2.0, False) == 16.0 * TERA
    with pytest.raises(ValueError, match="--peak, --measure-peak: give one"):
        speed.run_peak(prepared, 2.0, True)


@pytest.mark.parametrize("peak", [0.0, -1.0, float("nan"), float("inf")])
def test_no_peak_is_no_peak(peak):
    with pytest.raises(ValueError, match=r"peak \(--peak\): .* must be a positive number"):
        show.forecast(TINY, peak=peak)


def test_a_measured_peak_is_the_rate_of_a_product_of_the_models_shapes(prepared):
    """A clock that moves a fifth of a second a look: three products in 0.6 seconds."""
    now = iter(0.2 * i for i in range(100))
    model, rows = prepared.model, prepared.layout.split(prepared.sets.forget).packed[0].tokens.size
    flops = 2 * rows * model.hidden_size * model.intermediate_size
    rate = speed.measured_peak(prepared, clock=lambda: next(now))
    assert rate == pytest.approx(2 * flops / 0.6)  # the third look ends it before a third product


def test_the_table_says_what_its_seconds_assume():
    assert "give --peak TFLOPS or --measure-peak" in show._time([], None, 1)
    assert "40% of 0.5 TFLOP/s a device" in show._time([program(2, 1e12)], 1e12, 2)


@pytest.mark.slow
@pytest.mark.cost
def test_the_demo_takes_as_long_as_was_forecast(tmp_path):
    """Within a factor of 2, on the machine whose peak is measured; compilation is not forecast."""
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
    # The machine's speed may drift: it is measured before the run and after it.
    before = speed.measured_peak(forecast)
    run(config, tmp_path / "run", one)
    peak = (before + speed.measured_peak(forecast)) / 2
    predicted = speed.total_seconds(compiled, peak)
    covered = {"train", "measure", "forward", "evaluate"}
    taken = sum(
        record["seconds"] - record["compile_seconds"]
        for record in files.records(tmp_path / "run" / "timings.jsonl")
        if record["part"] in covered
    )
    print(f"predicted {predicted:.2f} s at {peak / TERA:.3f} TFLOP/s, taken {taken:.2f} s")
    assert 0.5 < predicted / taken < 2
