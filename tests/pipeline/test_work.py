"""The work that timings count, against the programs that a forecast compiles."""

import jax
import pytest

from jaxunlearn.config import Objective
from jaxunlearn.core import files
from jaxunlearn.forecasting import programs
from jaxunlearn.forecasting.sketch import sketch
from jaxunlearn.pipeline.recipe import REFERENCES
from tests.pipeline.tiny import replace, run

BY = ("sample", "layer", "tensor")
ONE = jax.devices()[:1]


def timings(out):
    return {(r["stage"], r["part"]): r for r in files.records(out / "timings.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("gradients", ["full", "gates"])
def test_needed_flops_are_those_of_the_programs_without_waste(tmp_path, gradients):
    """Padding, masked scores and repeated heads are all that the programs compute on top."""
    config = replace(
        data={"measured_retain": "holdout"},
        objectives={"npo": Objective(retain="gd")},
        measure={"gradients": gradients, "pg_by": BY},
    )
    run(config, tmp_path / "run")
    records = timings(tmp_path / "run")
    executed = {p.name: p.calls * p.cost.flops for p in programs.programs(sketch(config, ONE))}
    fine_tuning, references, step = (
        executed.pop(name) for name in ("fine-tuning step", "reference pass", "npo: step")
    )
    executed.pop("fine-tuning: statistics")  # its timings have no count
    measuring = sum(executed.values())
    pairs = {
        "base": (records["base", "train"], fine_tuning),
        REFERENCES: (records[REFERENCES, "forward"], references),
        "train": (records["npo", "train"], step),
        "measure": (records["npo", "measure"], measuring),
    }
    for name, (record, flops) in pairs.items():
        assert 0.55 < record["flops"] / flops <= 1.0, (name, record["flops"] / flops)
        assert record["tokens"] > 0


@pytest.mark.slow
def test_an_objective_is_charged_what_it_reads(tmp_path):
    """po reads no original answers while it trains; rmu runs the blocks up to its layer alone."""
    objectives = {"ga": Objective(), "po": Objective(), "rmu": Objective(layer=1)}
    measure = {"every": 0, "pg_steps": (), "token_steps": ()}
    config = replace(finetune={"epochs": 0}, objectives=objectives, measure=measure)
    run(config, tmp_path / "run")
    records = timings(tmp_path / "run")
    flops = {name: records[name, "train"]["flops"] for name in objectives}
    assert flops["rmu"] < flops["ga"] / 2
    assert 0 < flops["po"] < 2 * flops["ga"]
