"""The recipes of docs/extending.md work, one by one and all in one run."""

import dataclasses
import functools
import importlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxunlearn import objectives
from jaxunlearn.config import Config, reader, schema
from jaxunlearn.core import files, names
from jaxunlearn.evaluation import attacks, memorization, suites
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics import relearning
from jaxunlearn.models import hf
from jaxunlearn.objectives import ascent, signature
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import evaluation_table
from jaxunlearn.reporting.figures import draw
from jaxunlearn.training import arrays, batch, losses
from jaxunlearn.training.batch import Batch, Rows
from jaxunlearn.training.tasks import Task, make_task
from tests.models.small_models import UNTIED, pack, random_params, random_sequences
from tests.pipeline.tiny import replace, run
from tests.recipes import PAGE, RECIPES, ROOT, blocks, install, objectives_of


@pytest.fixture
def added(monkeypatch, tmp_path):
    """Returns a function that installs recipes for one test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return functools.partial(install, patch=monkeypatch, folder=tmp_path)


def task_of(recipe: int, name: str) -> Task:
    """The task of an objective of a recipe's configuration, for a small model."""
    return make_task(name, schema.Objective(**objectives_of(recipe)[name]), UNTIED, Config())


@pytest.fixture(scope="module")
def forget() -> Rows:
    return Rows(pack(random_sequences([9, 5, 12, 7], 32)))


@pytest.fixture(scope="module")
def retain() -> Rows:
    return Rows(pack(random_sequences([6, 11, 8], 32, seed=1)))


def answers(rows: Rows) -> list[np.ndarray]:
    """log p of the labels of every sequence, one array each."""
    logp = np.asarray(losses.TokenLogProbs(UNTIED)(random_params(UNTIED), rows), np.float64)
    return [values[of] for values, of in zip(logp, np.asarray(rows.mask), strict=True) if of.any()]


# ---------------------------------------------------------------------------- recipe by recipe


def test_every_recipe_has_code_and_a_row_in_the_table_of_contents():
    assert list(RECIPES) == list(range(1, 9))
    for number in RECIPES:
        assert blocks(number, "python") and f"](#{number}-" in PAGE
    for file in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        place = ROOT if file.startswith(("jaxunlearn/", "tests/")) else ROOT / "jaxunlearn"
        reporting = ROOT / "jaxunlearn/reporting"
        homes = (place, reporting, ROOT / "jaxunlearn/models")
        assert any((home / file).exists() for home in homes), file


class TestObjective:
    def test_the_weight_is_that_of_the_gradient(self, added):
        added(1, only="my_objectives.py")
        objective = task_of(1, "fading").objective
        assert objective.hyper == (("half", 0.05),)
        logp, mask = jnp.log(jnp.array([[0.9, 0.01, 0.5]])), jnp.array([[True, True, False]])
        slope = jax.grad(lambda x: objective.loss(logp=x, mask=mask).sum())(logp)
        np.testing.assert_allclose(slope, objective.weight(logp=logp, mask=mask), rtol=1e-6)
        np.testing.assert_allclose(slope, [[0.9 / 0.95, 0.01 / 0.06, 0]], rtol=1e-6)

    def test_the_function_alone_has_no_weight_and_no_token_mean(self, added):
        added(1, only="my_objectives.py")
        names.search_working_directory("my_objectives:fading")
        function = objectives.get("my_objectives:fading")
        assert function.weight is None
        with pytest.raises(ValueError, match="sequence_sum"):
            function.check_reduction("token_mean")

    def test_as_a_row_of_the_registry(self, added, monkeypatch):
        added(1, only="my_objectives.py")
        module = importlib.import_module("my_objectives")
        for name in ("fading", "fading_weight"):  # "move both functions to a module of objectives"
            monkeypatch.setattr(ascent, name, getattr(module, name), raising=False)
        added(1, only="jaxunlearn/objectives/registry.py")
        assert "fading" in objectives.names()
        objectives.get("fading", half=0.2).check_reduction("token_mean")


def test_a_new_array_reaches_the_loss(added, forget):
    added(2)
    task = task_of(2, "early")
    term, constants = task.loss.unlearn, batch.Constants(hyper=task.hyper)
    total, count = term(random_params(UNTIED), Batch(forget, constants=constants))
    expected = sum((0.8 ** np.arange(len(logp)) * logp).sum() for logp in answers(forget))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 4
    read = arrays.SOURCES["place"].read(
        arrays.LossInputs(term, random_params(UNTIED), Batch(forget), with_logp=False)
    )
    assert read.dtype == signature.ARRAYS["place"].dtype


class TestRetainTerm:
    def test_the_loss_is_what_the_formula_says(self, added, forget, retain):
        added(3)
        task = task_of(3, "kept")
        constants = batch.Constants(hyper=task.hyper, retain_weight=task.retain_weight)
        rows = Batch(forget, retain, constants=constants)
        loss, metrics = task.loss(random_params(UNTIED), rows)
        ascent_loss = np.concatenate(answers(forget)).mean()
        hinge = np.maximum(-np.concatenate(answers(retain)) - 0.25, 0).mean()
        np.testing.assert_allclose(metrics["retain_loss"], hinge, rtol=1e-5)
        np.testing.assert_allclose(loss, ascent_loss + 2 * hinge, rtol=1e-5)

    def test_without_a_definition_it_is_averaged_over_sequences(self, added):
        added(3)
        spec = schema.Objective("ga", reduction="token_mean", retain="my_retain:hinge")
        assert make_task("kept", spec, UNTIED, Config()).retain.reduction == "sequence_sum"
        assert task_of(3, "kept").retain.reduction == "token_mean"


def test_a_metric_is_a_row_of_every_set(added):
    added(4)
    correct = np.array([[True, False], [False, True], [True, True]])
    rows = memorization.teacher_forced_rows("retain", correct, np.ones((3, 2), bool))
    (row,) = [row for row in rows if row["metric"] == "first_label"]
    assert row["definition"] == "first_label.labels" and row["version"] == 1
    assert row["value"] == pytest.approx(2 / 3) and row["items"] == 3
    assert row["definition"] in suites.all_definitions()


def test_a_suite_is_one_of_all_and_a_column(added):
    added(5)
    assert "weakest" in suites.select_suites(["all"])
    row = {"metric": "weakest_label", "set": "forget", "value": 0.25, "definition": "weakest_label"}
    table = evaluation_table.evaluation_table({"npo": {"weakest": {"results": [row]}}})
    assert table.columns == ("model", "weakest label") and table.rows == [("npo", "0.250")]
    assert table.captions == (
        "weakest label: mean probability of an answer's least probable label",
    )


class TestAttack:
    def test_it_is_always_made(self, added):
        added(6)
        (rounding, mine) = attacks.make_attacks(None, (), benign=False)
        assert (rounding.name, mine.name, mine.ids) == ("int8", "bfloat16", ())
        x = jnp.linspace(0.1, 1, 50)
        cast = x.astype(jnp.bfloat16).astype(x.dtype)
        assert (x != cast).any()
        np.testing.assert_array_equal(jax.jit(mine.change)({"w": x})["w"], cast)

    def test_its_name_must_be_in_the_table(self, added):
        with pytest.raises(ValueError, match="bfloat16"):
            relearning.attack_order("bfloat16")
        added(6)
        order = sorted(["bfloat16", "int8", "5"], key=relearning.attack_order)
        assert order == ["5", "int8", "bfloat16"]


TOKEN_EFFECT = {
    "sample": [0, 1, 0, 1, 0, 1],
    "weight": [1.0] * 6,
    "step": [0, 0, 2, 2, 2, 2],
    "objective": ["npo"] * 6,
    "position": [0, 1, 0, 1, 0, 1],
    "risk": ["unlearn"] * 4 + ["unlearn", "retain"],
    "value": [9.0, 9.0, 1.0, 2.0, 3.0, 9.0],
}


class TestFigure:
    def test_it_is_drawn_from_its_table(self, added, tmp_path):
        added(7)
        names = [f.name for f in draw.draw_all({"token_effect": TOKEN_EFFECT}, tmp_path / "f")]
        assert names[0] == "token_place.png"
        ax = draw.FIGURES["token_place"]({"token_effect": TOKEN_EFFECT}).axes[0]
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 2], [1, 2]])
        assert draw.FIGURES["token_place"]({}) is None

    def test_what_was_measured_and_is_no_number_is_counted(self, added):
        added(7)
        columns = TOKEN_EFFECT | {"value": [9.0, 9.0, 1.0, float("nan"), 3.0, 9.0]}
        ax = draw.FIGURES["token_place"]({"token_effect": columns}).axes[0]
        assert [text.get_text() for text in ax.texts] == ["1 non-finite not drawn"]


class TestFamily:
    @pytest.fixture
    def folder(self, tmp_path):
        """A Llama whose files are renamed to those of the made-up family."""
        folder = tmp_path / "alpaca"
        hf.save_params(folder, random_params(UNTIED), UNTIED)
        raw = json.loads((folder / "config.json").read_text())
        raw["ffn_hidden_size"] = raw.pop("intermediate_size")
        raw |= {"model_type": "alpaca", "architectures": ["AlpacaForCausalLM"]}
        for key in ("attention_bias", "mlp_bias"):
            del raw[key]
        (folder / "config.json").write_text(json.dumps(raw))
        tensors = load_file(folder / "model.safetensors")
        tensors["model.final_norm.weight"] = tensors.pop("model.norm.weight")
        save_file(tensors, folder / "model.safetensors")
        return folder

    def test_round_trip(self, added, folder, tmp_path):
        with pytest.raises(ValueError, match="'alpaca' is not supported"):
            hf.load_config(folder)
        added(8)
        config = hf.load_config(folder)
        assert config == dataclasses.replace(UNTIED, family="alpaca")
        params = hf.load_params(folder, config)
        jax.tree.map(np.testing.assert_array_equal, params, random_params(UNTIED))
        hf.save_params(tmp_path / "again", params, config)
        for name in ("config.json", "model.safetensors"):
            again = tmp_path / "again" / name
            read = (
                load_file if name.endswith("safetensors") else lambda f: json.loads(f.read_text())
            )
            mine, theirs = read(again), read(folder / name)
            assert mine.keys() == theirs.keys()
            jax.tree.map(np.testing.assert_array_equal, mine, theirs)

    def test_a_key_without_default_must_be_there_and_unknown_ones_are_refused(self, added, folder):
        added(8)
        raw = json.loads((folder / "config.json").read_text())
        for changed, problem in (
            (raw | {"intermediate_size": 24}, "unknown key 'intermediate_size'"),
            ({k: raw[k] for k in raw if k != "ffn_hidden_size"}, "ffn_hidden_size .* is missing"),
        ):
            (folder / "config.json").write_text(json.dumps(changed))
            with pytest.raises(ValueError, match=problem):
                hf.load_config(folder)


# ---------------------------------------------------------------------------- all in one run

CONFIG = replace(
    finetune={"epochs": 0},
    unlearn={"epochs": 1, "batch_size": 3, "warmup_epochs": 0},
    objectives={},
    measure={"steps": (0,), "pg_steps": (0,), "token_steps": (0,)},
    evaluate={"suites": ("memorization", "weakest")},
    relearn={"samples": (1,), "steps": 1},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A tiny run with everything installed, its configuration read from YAML."""
    folder = tmp_path_factory.mktemp("extended")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        install(1, patch, folder, only="my_objectives.py")
        for recipe in range(2, 8):
            install(recipe, patch, folder)
        mine = {name: spec for n in (1, 2, 3) for name, spec in objectives_of(n).items()}
        plain = yaml.safe_load(reader.dump(CONFIG))
        text = yaml.safe_dump(plain | {"objectives": mine}, sort_keys=False)
        (folder / "config.yaml").write_text(text)
        run(reader.load(folder / "config.yaml"), folder / "run", report=True)
    return folder / "run"


@pytest.fixture(scope="module")
def before(finished) -> statistics.Statistics:
    """What the model before unlearning says of the forget set."""
    prepared = prepare(replace(CONFIG, objectives={"ga": schema.Objective()}), jax.devices()[:1])
    with jax.set_mesh(prepared.mesh):
        params = stored.stage_params(RunFolder(finished), prepared, "base")
        split = prepared.layout.split(prepared.sets.forget)
        return statistics.statistics(params, split, prepared.model)


@pytest.mark.slow
class TestRun:
    def test_the_weights_are_in_the_table_of_samples(self, finished, before):
        found = columns_where(finished, "samples", objective="fading", split="forget", step=0)
        p = np.exp(before.logp.astype(np.float64))
        weight = np.where(before.mask, p / (p + 0.05), 0).sum(-1) / before.tokens
        np.testing.assert_allclose(found["weight"], weight, rtol=1e-4)

    def test_all_losses_are_recorded(self, finished, before):
        records = files.records(finished / "metrics.jsonl")
        first = {r["objective"]: r for r in records if r.get("step") == 0 and "unlearn_loss" in r}
        assert list(first) == ["fading", "early", "kept"]
        place = np.cumsum(before.mask, -1) - 1
        early = (before.mask * 0.8**place * before.logp).sum(-1).mean()
        np.testing.assert_allclose(first["early"]["unlearn_loss"], early, rtol=1e-4)
        assert first["kept"]["retain_loss"] > 0 and "retain_loss" not in first["early"]

    def test_the_metric_and_the_suite_are_in_the_evaluation(self, finished, before):
        record = json.loads((finished / "evaluation.json").read_text())
        assert record["definitions"]["first_label.labels"]["version"] == 1
        assert "smallest p" in record["definitions"]["weakest_label"]["meaning"]
        assert list(record["models"]) == ["base", "fading", "early", "kept"]
        (row,) = record["models"]["base"]["weakest"]["results"]
        lowest = np.where(before.mask, before.logp, 0).min(-1)
        assert row["value"] == pytest.approx(np.exp(lowest).mean(), rel=1e-4)
        rows = record["models"]["base"]["memorization"]["results"]
        sets = [row["set"] for row in rows if row["metric"] == "first_label"]
        assert sets[0] == "forget" and "retain" in sets
        assert "weakest label" in (finished / "summary.md").read_text()

    def test_the_attack_has_a_result_for_every_objective(self, finished):
        for name in ("fading", "early", "kept"):
            part = json.loads((finished / "relearn" / f"{name}-bfloat16.json").read_text())
            assert [record["step"] for record in part["records"]] == [0, 1]
            losses_of = [record["forget_nll"] for record in part["records"]]
            assert losses_of[0] != losses_of[1]
            np.testing.assert_allclose(*losses_of, rtol=1e-2)
        report = json.loads((finished / "relearn.json").read_text())
        assert set(report["models"]["early"]["attacks"]) == {"1", "int8", "bfloat16"}
        assert report["definitions"]["relearning.bfloat16"]["version"] == 1

    def test_the_figure_shows_the_numbers_of_the_table(self, finished, added):
        assert (finished / "figures" / "token_place.png").read_bytes()[:4] == b"\x89PNG"
        added(7)
        content = tables.read(finished, "token_effect")
        axes = draw.FIGURES["token_place"]({"token_effect": content}).axes
        for name, ax in zip(("fading", "early", "kept"), axes, strict=True):
            mine = columns_where(finished, "token_effect", objective=name, risk="unlearn")
            place, value = (np.array(mine[key]) for key in ("position", "value"))
            means = [value[place == x].mean() for x in range(place.max() + 1)]
            np.testing.assert_allclose(ax.lines[0].get_ydata(), means)


def columns_where(out: pathlib.Path, table: str, **equal) -> dict[str, list]:
    content = tables.read(out, table)
    rows = range(len(content["step"]))
    keep = [i for i in rows if all(content[key][i] == x for key, x in equal.items())]
    return {key: [column[i] for i in keep] for key, column in content.items()}
