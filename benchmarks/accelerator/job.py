"""Section job: whole runs, in seconds by stage."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import jax

from benchmarks.accelerator import measured_training, tiny_run
from benchmarks.accelerator.inputs import SMOLLM2, Setting
from benchmarks.accelerator.ledger import NoMaterial, Row, Values
from jaxunlearn import config
from jaxunlearn.config import Config, Objective
from jaxunlearn.core import files
from jaxunlearn.forecasting.sketch import sketch
from jaxunlearn.pipeline import recipe
from jaxunlearn.record.folder import RunFolder

COLUMNS = {
    "seconds": ("s", "seconds"),
    "compile_seconds": ("compiling s", "seconds"),
    "wall_seconds": ("wall s", "seconds"),
    "steps": ("steps", "text"),
    "measurements": ("measurements", "text"),
    "measurement_seconds": ("s/measurement", "seconds"),
    "longest_measurement_seconds": ("the longest", "seconds"),
    "step_seconds": ("s/step", "seconds"),
    "stages": ("stages", "stages"),
}
OBJECTIVES = ("ga", "wga", "npo", "tnpo", "po", "rmu")
REHEARSED = ("ga", "npo")
SUITES = ("tofu", "memorization", "uwc")
LARGE_CONFIG = Path(__file__).parents[2] / "configs" / "tofu_forget05_llama2_7b_h200.yaml"


def rows(setting: Setting) -> list[Row]:
    """One run of SmolLM2, an objective a row, and the 7B between its first two."""
    names = REHEARSED if setting.rehearsal else OBJECTIVES
    objectives = [
        Row(f"{SMOLLM2}, TOFU forget05: {name}", partial(objective, setting, name))
        for name in names
    ]
    seven = Row("llama-2-7b, TOFU forget05: npo", partial(large, setting))
    last = Row(f"{SMOLLM2}, TOFU forget05: evaluation", partial(evaluation, setting))
    return [objectives[0], seven, *objectives[1:], last]


def objective(setting: Setting, name: str) -> Values:
    """The run with one more objective; the first also fine-tunes and caches the references."""
    return _stages(setting, config.only(_run_config(setting), [name]))


def evaluation(setting: Setting) -> Values:
    """The suites, on all models of the run."""
    suites = ("memorization",) if setting.rehearsal else SUITES
    has_rouge = importlib.util.find_spec("rouge_score") is not None
    evaluate = config.Evaluate(suites=suites, generate=40 if has_rouge else 0)
    values = _stages(setting, dataclasses.replace(_run_config(setting), evaluate=evaluate))
    return values | {"generated": has_rouge}


def large(setting: Setting) -> Values:
    """62 steps and 13 measurements of one objective, as far as the section's time goes."""
    setting.kept.drop()
    run = config.only(config.load(LARGE_CONFIG), ["npo"])
    if setting.rehearsal:
        run = dataclasses.replace(
            run,
            model=None,
            new_model=tiny_run.CONFIG.new_model,
            compute=dataclasses.replace(run.compute, width_step=8, dtype="float32"),
            data=tiny_run.CONFIG.data,
            unlearn=dataclasses.replace(run.unlearn, batch_size=2),
        )
    folder = RunFolder(setting.work / "job_large")
    return measured_training.train(sketch(run), folder, setting.left)


def _stages(setting: Setting, run: Config) -> Values:
    """Runs, and returns the stages that the run's folder has more than before."""
    folder = RunFolder(setting.work / "job")
    before = len(files.records(folder.timings))
    start = setting.left()
    recipe.run(run, folder.path, devices=jax.devices()[:1])
    records = files.records(folder.timings)[before:]
    stages = {record["stage"]: record for record in records if record["part"] is None}
    return {
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "compile_seconds": sum(stage["compile_seconds"] for stage in stages.values()),
        "wall_seconds": start - setting.left(),
        "stages": {name: stage["seconds"] for name, stage in stages.items()},
        "records": records,
    }


def _run_config(setting: Setting) -> Config:
    """The paper's schedule on TOFU, or a tiny one on embedded data."""
    names = REHEARSED if setting.rehearsal else OBJECTIVES
    if setting.rehearsal:
        return Config(
            name="job",
            new_model=tiny_run.CONFIG.new_model,
            data=tiny_run.CONFIG.data,
            finetune=config.FineTune(epochs=1, batch_size=4, lr=1e-2, evaluate_every=1),
            unlearn=config.Unlearn(epochs=2, batch_size=2, lr=1e-3),
            objectives={name: Objective() for name in names},
            measure=config.Measure(every=2, pg_steps=(2,)),
        )
    tofu = setting.material.find("tofu")
    if tofu is None:
        raise NoMaterial("TOFU is not in the pack")
    attention = "cudnn" if setting.gpu else "xla"
    return Config(
        name="job",
        model=str(setting.model_folder),
        compute=config.Compute(dtype="bfloat16", attention=attention, width_step=128),
        data=config.Data(
            source=str(tofu),
            forget="forget05",
            retain="retain95",
            measured_retain="retain_perturbed",
            prompt=config.Prompt(style="chat"),
        ),
        finetune=config.FineTune(
            splits=("forget05", "retain_perturbed"), epochs=5, lr=1e-4, evaluate_every=5
        ),
        unlearn=config.Unlearn(lr=1e-5),
        objectives={name: Objective() for name in names},
        measure=config.Measure(every=5, pg_steps=(5, 10, 15), token_steps=(10,)),
    )
