"""A forecast is the run's own programs, compiled for shapes: what it says of sizes must add up."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import TINY

from jaxunlearn import config as config_lib
from jaxunlearn.models import architecture, known
from jaxunlearn.run import advice, forecast
from jaxunlearn.run.sketch import MEAN, sketch

SEVEN = config_lib.Config(
    name="seven",
    model="meta-llama/Llama-2-7b-hf",
    compute=config_lib.Compute(dtype="bfloat16", remat="full", fsdp=8),
    data=config_lib.Data(source="locuslab/TOFU", forget="forget05", retain="retain95"),
    objectives={"npo": config_lib.Objective()},
)


def parameters(config):
    return sum(x.size for x in jax.tree.leaves(architecture.abstract_params(config)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616),
        ("locuslab/tofu_ft_llama2-7b", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
    ],
)
def test_published_sizes(name, count):
    assert parameters(known.shape(name, {})) == count


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"pythia.*known: llama-2-7b"):
        known.shape("EleutherAI/pythia-1b", {})
    lost = dataclasses.replace(SEVEN.data, forget="forget07")
    with pytest.raises(ValueError, match=r"forget07.*local data.source.*forget05"):
        sketch(dataclasses.replace(SEVEN, data=lost))


@pytest.fixture(scope="module")
def config():
    objectives = {"npo": config_lib.Objective(), "po": config_lib.Objective(retain="gd")}
    return dataclasses.replace(TINY, objectives=objectives)


@pytest.fixture(scope="module")
def prepared(config):
    return sketch(config, jax.devices()[:1])


@pytest.fixture(scope="module")
def found(prepared):
    return list(forecast.programs(prepared))


@pytest.mark.slow
def test_every_program_of_the_run_is_there(found, prepared):
    names = [program.name for program in found]
    assert names == [
        "fine-tuning step",
        "reference pass",
        "npo: step",
        "po: step",
        "statistics",
        "grad R(D_r)",
        "grad R(D_u), grad L of npo",
        "PG-effects (jvp)",
    ]
    assert all(program.cost.flops > 0 and program.calls > 0 for program in found)


@pytest.mark.slow
def test_a_train_step_takes_parameters_and_two_moments(found, prepared):
    size = 4 * parameters(prepared.model)
    (step,) = (program for program in found if program.name == "npo: step")
    batch = step.cost.arguments - 3 * size
    assert 0 < batch < 0.1 * size
    # The new state takes the old one's place, but for the metrics.
    assert 0 <= step.cost.output - step.cost.alias < 1024
    # theta_0, theta_t, the gradients of both risks, and that of R(D_r) at theta_0.
    assert step.beside == 5 * size and step.moment == step.cost.peak + step.beside


@pytest.mark.slow
def test_a_pg_pass_costs_five_forwards(found):
    by_name = {program.name: program for program in found}
    forward = next(p for name, p in by_name.items() if name == "reference pass")
    assert by_name["PG-effects (jvp)"].cost.flops == 5 * forward.cost.flops


@pytest.fixture(scope="module")
def guided(config):
    """Refreshes before steps 0, 2 and 4."""
    spec = config_lib.Objective(guide=config_lib.Guide(every=2))
    data = dataclasses.replace(config.data, measured_retain="holdout")
    objectives = {"npo": config.objectives["npo"], "guided": spec}
    changed = dataclasses.replace(config, data=data, objectives=objectives)
    return sketch(changed, jax.devices()[:1])


def test_refreshes_of_guided_weights_are_programs(guided, prepared):
    assert not list(forecast.guiding(prepared))
    found, size = list(forecast.guiding(guided)), 4 * parameters(guided.model)
    assert [(program.name, program.calls) for program in found] == [
        ("guide: grad R(retain)", 3),
        ("guide: grad R(D_u)", 3),
        ("guide: PG-effects (jvp)", 3),
    ]
    # theta_0, theta_t, three gradients, two moments; then the gradient before.
    assert [program.beside // size for program in found] == [7, 8, 7]


@pytest.mark.slow
def test_programs_of_a_guided_objective_compile(guided):
    (_, step) = forecast.training(guided, guided.tasks)
    assert all(program.cost.flops > 0 for program in (step, *forecast.guiding(guided)))


@pytest.mark.slow
def test_advice_says_what_fits(config, found, monkeypatch, prepared):
    monkeypatch.setattr(advice, "sketch", lambda *_: prepared)
    (fits, method) = advice.advise(config, 4.0, found)
    assert fits == "fits 4 GiB as it is" and method.startswith("PG-effects by sample: gates")
    lines = advice.advise(config, 1e-6, found)
    assert lines[0].startswith("does not fit 1e-06 GiB: ")
    assert lines[-1].startswith("no compute.remat makes a step fit")


@pytest.mark.slow
def test_the_table_names_kinds_and_the_worst_moment(config, found, prepared, monkeypatch):
    monkeypatch.setattr(advice, "sketch", lambda *_: prepared)
    monkeypatch.setattr(forecast, "programs", lambda _: found)
    text = io.StringIO()
    advice.show(config, Console(file=text, width=80))
    assert "…" not in text.getvalue()
    for word in ("args", "temp", "peak", "beside", "TFLOP", "worst moment", "the CPU compiler's"):
        assert word in text.getvalue()


@pytest.mark.slow
@pytest.mark.cost
def test_seven_billion_on_eight_devices():
    """Nothing is downloaded or allocated; parameters and moments are 12 bytes each, over eight."""
    prepared = sketch(SEVEN)
    assert "assumed" in prepared.notes[0]
    (step,) = forecast.training(prepared, prepared.tasks)
    count = parameters(prepared.model)
    np.testing.assert_allclose(step.cost.arguments, 12 * count / 8, rtol=1e-3)
    assert step.cost.temp < 8 * 2**30
    real = 16 * MEAN
    assert 1.0 < step.cost.flops / (6 * count * real) < 1.7
