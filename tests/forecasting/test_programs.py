"""A forecast is the run's own programs, compiled for shapes: what it says of sizes must add up."""

import collections
import dataclasses
import io
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.config import Lora, load, schema
from jaxunlearn.effects import _g_effect, _gradients, _pg_effect
from jaxunlearn.forecasting import advice, programs, resident, show
from jaxunlearn.forecasting.sketch import MEAN, sketch
from jaxunlearn.measurement import statistics
from jaxunlearn.models import decoder, sizes
from jaxunlearn.training import references, step
from tests.pipeline.tiny import TINY, replace, run

ROOT = pathlib.Path(__file__).parents[2]
SEVEN = schema.Config(
    name="seven",
    model="meta-llama/Llama-2-7b-hf",
    compute=schema.Compute(dtype="bfloat16", remat="full", fsdp=8),
    data=schema.Data(source="locuslab/TOFU", forget="forget05", retain="retain95"),
    objectives={"npo": schema.Objective()},
)


def parameters(config):
    return sum(x.size for x in jax.tree.leaves(decoder.abstract_params(config)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616),
        ("locuslab/tofu_ft_llama2-7b", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
    ],
)
def test_published_sizes(name, count):
    assert parameters(sizes.published_shape(name, {})) == count


def test_no_code_is_imported_unasked(tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text("raise RuntimeError('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for spec in ({"loss": "somebodys:mine"}, {"loss": "ga", "retain": "somebodys:mine"}):
        config = dataclasses.replace(TINY, objectives={"mine": schema.Objective(**spec)})
        with pytest.raises(ValueError, match=r"^objectives\.mine\.\w+: somebodys:mine is code"):
            show.forecast(config)
        with pytest.raises(ValueError, match="it ran"):
            show.forecast(config, own_code=True)


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"pythia.*known: llama-2-7b"):
        sizes.published_shape("EleutherAI/pythia-1b", {})
    text = dataclasses.replace(SEVEN.data, text_key="text")
    with pytest.raises(ValueError, match=r"data\.text_key: how long the documents"):
        sketch(dataclasses.replace(SEVEN, data=text))
    lost = dataclasses.replace(SEVEN.data, forget="forget07")
    with pytest.raises(ValueError, match=r"forget07.*local data.source.*forget05"):
        sketch(dataclasses.replace(SEVEN, data=lost))


@pytest.fixture(scope="module")
def config():
    objectives = {"npo": schema.Objective(), "po": schema.Objective(retain="gd")}
    return dataclasses.replace(TINY, objectives=objectives)


@pytest.fixture(scope="module")
def prepared(config):
    return sketch(config, jax.devices()[:1])


@pytest.fixture(scope="module")
def compiled(prepared):
    return list(programs.programs(prepared))


@pytest.mark.slow
def test_every_program_of_the_run_is_there(compiled, prepared):
    names = [program.name for program in compiled]
    assert names == [
        "fine-tuning step",
        "fine-tuning: statistics",
        "reference pass",
        "npo: step",
        "po: step",
        "statistics",
        "grad R(D_r)",
        "grad R(D_u), grad L of npo",
        "PG-effects (jvp)",
    ]
    assert all(program.cost.flops > 0 and program.calls > 0 for program in compiled)


@pytest.mark.slow
def test_a_train_step_takes_parameters_and_two_moments(compiled, prepared):
    size = 4 * parameters(prepared.model)
    (train,) = (program for program in compiled if program.name == "npo: step")
    batch = train.cost.arguments - 3 * size
    assert 0 < batch < 0.1 * size
    # The new state takes the old one's place, but for the metrics.
    assert 0 <= train.cost.output - train.cost.alias < 1024
    # theta_0, theta_t, the gradients of both risks, and that of R(D_r) at theta_0.
    assert train.resident_bytes == 5 * size
    assert train.total_bytes == train.cost.peak + train.resident_bytes


@pytest.mark.slow
def test_a_pg_pass_costs_five_forwards(compiled):
    by_name = {program.name: program for program in compiled}
    forward = next(p for name, p in by_name.items() if name == "reference pass")
    assert by_name["PG-effects (jvp)"].cost.flops == 5 * forward.cost.flops


@pytest.fixture(scope="module")
def guided(config):
    """Refreshes before steps 0, 2 and 4."""
    spec = schema.Objective(guide=schema.Guide(every=2))
    data = dataclasses.replace(config.data, measured_retain="holdout")
    objectives = {"npo": config.objectives["npo"], "guided": spec}
    changed = dataclasses.replace(config, data=data, objectives=objectives)
    return sketch(changed, jax.devices()[:1])


def test_refreshes_of_guided_weights_are_programs(guided, prepared):
    assert not list(programs.guiding(prepared))
    refresh, size = list(programs.guiding(guided)), 4 * parameters(guided.model)
    assert [(program.name, program.calls) for program in refresh] == [
        ("guide: grad R(retain)", 3),
        ("guide: grad R(D_u)", 3),
        ("guide: PG-effects (jvp)", 3),
    ]
    # theta_0, theta_t, three gradients, two moments; then the gradient before.
    assert [program.resident_bytes // size for program in refresh] == [7, 8, 7]


@pytest.mark.slow
def test_programs_of_a_guided_objective_compile(guided):
    (_, step) = programs.training(guided, guided.tasks)
    assert all(program.cost.flops > 0 for program in (step, *programs.guiding(guided)))


@pytest.mark.slow
def test_fits_is_said_of_what_was_compiled(config, compiled, monkeypatch, prepared):
    monkeypatch.setattr(advice, "sketch", lambda *_: prepared)
    assert advice.advise(config, 4.0, compiled) == ["fits 4 GiB as it is"]
    lines = advice.advise(config, 1e-6, compiled)
    assert lines[0].startswith("does not fit 1e-06 GiB: ")
    assert lines[-1].startswith("no compute.remat makes a step fit")


class Fake:
    """A program of a size that its configuration decides."""

    def __init__(self, name, size):
        self.name, self.total_bytes = name, size * advice.GIB


@pytest.fixture
def fake(monkeypatch):
    """Programs whose sizes are given by functions of the configuration."""

    def install(steps, measurements, learning=lambda config: 0):
        sketch_of = lambda config: SimpleNamespace(config=config, tasks=())
        monkeypatch.setattr(advice, "sketch", sketch_of)
        measure = lambda p: [Fake("measure", measurements(p.config))]
        monkeypatch.setattr(advice, "training", lambda p, _: [Fake("step", steps(p.config))])
        monkeypatch.setattr(advice, "measuring", measure)
        learn = lambda p: [Fake("fine-tuning step", learning(p.config))]
        monkeypatch.setattr(advice, "learning", learn)
        every = lambda p: [*advice.learning(p), *advice.training(p, ()), *advice.measuring(p)]
        monkeypatch.setattr(advice, "programs", every)

    return install


def test_advice_tries_the_cheapest_first_and_checks_everything(config, fake):
    steps = lambda c: {"none": 9, "dots": 5, "full": 3}[c.compute.remat]
    fake(steps, lambda c: c.compute.batch_tokens / 4096)
    current = [Fake("step", 9)]
    assert advice.advise(config, 6, current)[-1] == "fits with compute.remat: dots"
    assert advice.advise(config, 4, current)[-1] == "fits with compute.remat: full"
    fake(steps, lambda c: c.compute.batch_tokens / 2048)
    fits = "fits with compute.remat: dots, compute.batch_tokens: 8192"
    assert advice.advise(config, 6, current)[-1] == fits


def test_advice_turns_to_gates_where_no_batch_is_small_enough(config, fake):
    measurements = lambda c: 9 if c.measure.gradients == "full" else c.compute.batch_tokens / 8192
    fake(lambda c: 1, measurements)
    line = advice.advise(config, 6, [Fake("measure", 9)])[-1]
    assert line == "fits with measure.gradients: gates"


def test_fine_tuning_counts_too(config, fake):
    """The steps of the objectives fit, fine-tuning does not: nothing is said to fit."""
    fake(lambda c: 1, lambda c: 1, learning=lambda c: 9)
    assert advice.advise(config, 6, [Fake("fine-tuning step", 9)])[-1].startswith(
        "no compute.remat"
    )


@pytest.mark.slow
def test_the_table_names_kinds_and_the_most_at_once(config, compiled, prepared, monkeypatch):
    monkeypatch.setattr(show, "sketch", lambda *_: prepared)
    monkeypatch.setattr(show, "programs", lambda _: compiled)
    text = io.StringIO()
    assert show.forecast(config, console=Console(file=text, width=80)) == compiled
    assert "…" not in text.getvalue()
    words = ("args", "temp", "peak", "resident", "total", "TFLOP", "most at once", "not covered")
    for word in (*words, "the CPU compiler's"):
        assert word in text.getvalue()


HOMES = {
    "train_step": step,
    "label_references": references,
    "label_statistics": statistics,
    "gradient_sums": _gradients,
    "g_by_gates": _g_effect,
    "pg_by_jvp": _pg_effect,
    "pg_by_gates": _pg_effect,
}
"""The modules from which a run calls its compiled functions."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"finetune": {"retrained": True, "epochs": 3, "evaluate_every": 2}},
        {"finetune": {"epochs": 0}, "measure": {"gradients": "gates", "pg_by": ("layer",)}},
        {"finetune": {"epochs": 0}, "measure": {"every": 0}},
    ],
    ids=["fine-tuned", "gates", "unmeasured"],
)
def test_calls_are_those_of_an_instrumented_run(config, tmp_path, monkeypatch, changed):
    """Every compiled function of the loop is counted, and called as often as it was forecast."""
    calls = collections.Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name, module in HOMES.items():
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    config = replace(config, **changed)
    run(config, tmp_path / "run")
    expected = collections.Counter()
    for program in programs.programs(sketch(config, jax.devices()[:1])):
        expected[program.function.__name__] += program.calls
    assert calls == expected


def test_gated_measurements_have_their_own_programs(config):
    """Risk gradients are formed for PG-effects alone, and none is kept between measurements."""
    measure = dataclasses.replace(config.measure, gradients="gates", pg_by=("layer", "tensor"))
    gated = sketch(dataclasses.replace(config, measure=measure), jax.devices()[:1])
    names = [program.name for program in programs.measuring(gated)]
    assert names == [
        "statistics",
        "grad L of npo",
        "G-effect on R(D_u) (gates)",
        "G-effect on R(D_r) (gates)",
        "grad R(D_u)",
        "grad R(D_r)",
        "PG-effects (jvp)",
        "PG-effects by layer (gates)",
        "PG-effects by tensor (gates)",
    ]
    size = resident.device_bytes(resident.sharded_params(gated))
    assert resident.between_measurements(gated) == 2 * size  # theta_0 and theta_t
    # theta_0 and both moments; the second gradient is formed next to the first.
    of_risks = [p for p in programs.measuring(gated) if p.name.startswith("grad R")]
    assert [program.resident_bytes // size for program in of_risks] == [3, 4]


def test_statistics_are_taken_in_runs_that_measure_nothing(config):
    """Of theta_0, of each final model, and while fine-tuning, next to its moments and theta_0."""
    changed = {"measure": {"every": 0}, "finetune": {"retrained": True, "epochs": 3}}
    unmeasured = sketch(replace(config, **changed), jax.devices()[:1])
    (of_both,) = programs.measuring(unmeasured)
    size = resident.device_bytes(resident.sharded_params(unmeasured))
    assert (of_both.name, of_both.resident_bytes) == ("statistics", 3 * size)
    step, tuning, _ = programs.learning(unmeasured)
    assert (tuning.name, tuning.resident_bytes) == ("fine-tuning: statistics", 3 * size)
    assert step.resident_bytes == size
    # Before each epoch and after the last, of two models, and once more of the retrained one.
    assert tuning.calls * (1 + 2) == of_both.calls * (2 * 4 + 1)


@pytest.mark.slow
@pytest.mark.cost
def test_seven_billion_on_eight_devices():
    """Nothing is downloaded or allocated; parameters and moments are 12 bytes each, over eight."""
    prepared = sketch(SEVEN)
    assert "assumed" in prepared.notes[0]
    (step,) = programs.training(prepared, prepared.tasks)
    count = parameters(prepared.model)
    np.testing.assert_allclose(step.cost.arguments, 12 * count / 8, rtol=1e-3)
    assert step.cost.temp < 8 * 2**30
    real = 16 * MEAN
    assert 1.0 < step.cost.flops / (6 * count * real) < 1.7


@pytest.mark.parametrize("memory", [0.0, -16.0, float("nan"), float("inf")])
def test_no_memory_is_no_memory(config, memory):
    with pytest.raises(ValueError, match=r"memory \(--memory\): .* must be a positive number"):
        show.forecast(config, memory=memory)


# ---- a part of the parameters -------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(config):
    """Adapters on a model that is wide beside them."""
    sizes = dataclasses.replace(config.new_model, hidden_size=64, intermediate_size=96)
    lora = schema.Train(lora=Lora(rank=2), frozen_dtype="bfloat16")
    objectives = {"npo": config.objectives["npo"]}
    changed = dataclasses.replace(config, new_model=sizes, train=lora, objectives=objectives)
    return sketch(changed, jax.devices()[:1])


def test_only_what_trains_is_kept_in_several_copies(adapted):
    whole = parameters(adapted.model)
    own, frozen = 4 * (parameters(adapted.unlearn_model) - whole), 2 * whole
    assert [resident.device_bytes(part) for part in resident.parts(adapted)] == [own, frozen]
    assert resident.device_bytes(resident.plain_params(adapted)) == 2 * frozen
    # theta_0, theta_t, the gradients of both risks, and that of R(D_r) at theta_0.
    assert resident.between_measurements(adapted) == 5 * own
    assert resident.while_measuring(adapted) == 4 * own
    # Fine-tuning writes whole states; the objective's are small.
    assert resident.disk_bytes(adapted) == 3 * own + 4 * 2 * frozen + 3 * 2 * frozen


def test_the_gradient_that_updates_spare_is_kept_with_the_moments(config):
    spare = dataclasses.replace(config.objectives["npo"], retain="gd", spare="total")
    objectives = {"ga": schema.Objective(), "npo": spare}
    unlearn = dataclasses.replace(config.unlearn, keep_checkpoints=2)
    changed = dataclasses.replace(config, unlearn=unlearn, objectives=objectives)
    found = sketch(changed, jax.devices()[:1])
    own, fine_tuned = resident.trainable_bytes(found), bool(config.finetune.epochs)
    state = step.abstract_state(
        resident.parts(found)[0], programs.task_optimizer(found, found.tasks[1])
    )
    assert resident.device_bytes(state) == pytest.approx(4 * own, rel=1e-3)
    alone = dataclasses.replace(changed, objectives={"ga": schema.Objective()})
    plain = sketch(alone, jax.devices()[:1])
    assert resident.while_measuring(found) - resident.while_measuring(plain) == own
    assert resident.while_counting(found) - resident.while_counting(plain) == own
    # Two checkpoints of each objective, and the state that is being written.
    more = resident.disk_bytes(found) - resident.disk_bytes(plain)
    assert more == (2 * 4 + (0 if fine_tuned else 1)) * own


@pytest.mark.nightly
def test_programs_of_a_run_with_adapters_compile(adapted):
    compiled = {program.name: program for program in programs.programs(adapted)}
    own, frozen = (resident.device_bytes(part) for part in resident.parts(adapted))
    train = compiled["npo: step"]
    batch = train.cost.arguments - 3 * own - frozen
    assert 0 < batch < 0.1 * frozen
    assert 0 <= train.cost.output - train.cost.alias < 1024
    assert train.total_bytes == train.cost.peak + 5 * own
    gradients = compiled["grad R(D_u), grad L of npo"]
    assert gradients.cost.output < 3 * own
    assert all(program.cost.flops > 0 for program in compiled.values())
    # Beside the forward pass one product a matrix, and two in attention and of each adapter: with a
    # gradient of every matrix it would be three forward passes.
    forward = compiled["statistics"].cost.flops
    assert 2 * forward < compiled["grad R(D_r)"].cost.flops < 2.5 * forward


@pytest.mark.nightly
def test_llama_8b_with_adapters_fits_40_gib():
    """By the CPU's compiler, which takes more temporaries than a card's (docs/scale.md)."""
    file = ROOT / "configs" / "tofu_forget05_llama31_8b_lora_40gb.yaml"
    compiled = {p.name: p for p in programs.programs(sketch(load(file), jax.devices()[:1]))}
    assert max(program.total_bytes for program in compiled.values()) < 40 * 2**30
    own, frozen = 41_943_040 * 4, 8_030_261_248 * 2
    step = compiled["tnpo: step"]
    assert 0 < step.cost.arguments - 3 * own - frozen < 2**20
    # Gradients of the frozen matrices alone would take 15 GiB.
    assert step.cost.temp < 3 * 2**30
