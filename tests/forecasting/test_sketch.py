"""What a forecast takes for the run: its files where they are here, and the same refusals."""

import dataclasses
import json

import jax
import pytest

from jaxunlearn.config import Objective, schema
from jaxunlearn.forecasting.sketch import sketch
from jaxunlearn.models import hf, sizes
from jaxunlearn.pipeline.prepare import prepare
from tests.models.small_models import TIED, random_params
from tests.pipeline.tiny import TINY, replace

ONE = jax.devices()[:1]
PUBLISHED = "meta-llama/Llama-2-7b-hf"
TOFU = schema.Data(source="locuslab/TOFU", forget="forget05", retain="retain95")


def tofu(model=PUBLISHED, **sections):
    """A run on TOFU, whose files are not here."""
    return replace(dataclasses.replace(TINY, data=TOFU, model=model), **sections)


@pytest.mark.parametrize("make", [replace, tofu], ids=["here", "assumed"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unlearn": {"batch_size": 900}}, r"unlearn\.batch_size: 900 is more than the \d+ samp"),
        ({"objectives": {"ga": Objective(scale=3.0)}}, r"objectives\.ga\.scale: ga does not use"),
        ({"measure": {"steps": (999,)}}, r"measure\.steps: 999 must be in 0\.\.\d+, the run's"),
        (
            {"compute": {"attention": "cudnn", "dtype": "bfloat16"}},
            r"compute\.attention: cudnn needs an NVIDIA GPU",
        ),
        ({"evaluate": {"suites": ("tofo",)}}, r"evaluate\.suites .*: no suite 'tofo'; .*'tofu'"),
        ({"evaluate": {"every": 2}}, r"evaluate\.every: needs one of tofu, memorization in"),
        ({"relearn": {"samples": (900,)}}, r"relearn\.samples .*900"),
    ],
)
def test_a_forecast_refuses_what_the_run_refuses(make, changed, message):
    with pytest.raises(ValueError, match=message):
        sketch(make(**changed), ONE)


def write_splits(folder, **counts):
    """Files of a few rows, all of them different."""
    for split, count in counts.items():
        rows = [{"question": f"{split} {i}?", "answer": f"{i}."} for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


def test_rows_that_are_here_are_counted(tmp_path):
    """Whatever they are called: a split of the name of one of TOFU's may be another."""
    write_splits(tmp_path, forget05=7, mine=9, full=30)
    data = {"source": str(tmp_path), "measured_retain": "mine[:5]", "retain": "mine"}
    run = sketch(tofu(data=data, objectives={"ga": Objective(retain="gd")}), ONE)
    counts = [len(rows) for rows in (run.sets.forget, run.retain_eval, run.sets.retain)]
    assert counts == [7, 5, 4]
    assert len(run.finetune) == 30
    lost = data | {"forget": "forget10"}
    with pytest.raises(FileNotFoundError, match=r"^data\.forget: .*no split 'forget10'.*there are"):
        sketch(tofu(data=lost), ONE)


def test_the_embedded_rows_are_counted():
    run, real = sketch(replace(model=PUBLISHED), ONE), prepare(TINY, ONE)
    for name in ("retain_eval", "finetune"):
        assert len(getattr(run, name)) == len(getattr(real, name))
    assert len(run.sets.forget) == len(real.sets.forget)


def test_the_shape_of_a_model_that_is_here_is_read(tmp_path):
    """Its folder may be called as another model is."""
    folder = tmp_path / "llama-2-7b"
    hf.save_params(folder, random_params(TIED), TIED)
    run = sketch(tofu(model=str(folder)), ONE)
    assert run.model.hidden_size == TIED.hidden_size
    assert run.notes[0].startswith(f"{folder}: shape from its config.json")
    assert sketch(tofu(), ONE).model == sizes.published_shape(PUBLISHED, {})


@pytest.mark.parametrize(
    ("here", "missing"), [(True, "model"), (False, "data.source and a local model")]
)
def test_documents_need_what_is_not_here(tmp_path, here, missing):
    source = str(tmp_path) if here else TOFU.source
    with pytest.raises(ValueError, match=rf"^data\.text_key: .*; give a local {missing}$"):
        sketch(tofu(data={"source": source, "text_key": "text"}), ONE)
