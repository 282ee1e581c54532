"""What a run reads before it starts: all that it needs, and nothing that it does not."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.config import ConfigError, Objective, schema
from jaxunlearn.core import files
from jaxunlearn.models import decoder, hf
from jaxunlearn.pipeline import finetune as finetune_stage
from jaxunlearn.pipeline import inputs
from jaxunlearn.pipeline.checks import check
from jaxunlearn.pipeline.evaluate import evaluate
from jaxunlearn.pipeline.finetune import check_start, has_learned
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.pipeline.subject import _random_params, open_sources
from jaxunlearn.record import texts
from jaxunlearn.record.folder import RunFolder, is_run
from tests.models.small_models import TIED, random_params
from tests.pipeline.tiny import TINY, replace, run


def prepared(**sections):
    return prepare(replace(**sections), jax.devices()[:1])


def test_the_random_models_of_all_seeds_are_one_compiled_program():
    first, second = (prepared(seed=seed) for seed in (0, 1))
    _random_params.cache_clear()
    models = [run.initial() for run in (first, second, first)]
    assert _random_params.cache_info().misses == 1
    same = jax.tree.map(np.array_equal, models[0], models[1])
    assert not all(jax.tree.leaves(same))
    jax.tree.map(np.testing.assert_array_equal, models[0], models[2])


def test_a_run_that_does_not_fine_tune_needs_no_fine_tuning_split():
    run = prepared(finetune={"epochs": 0, "splits": ("no_such_split",)})
    assert run.finetune == [] and run.retrain == []
    with pytest.raises(FileNotFoundError, match="no_such_split"):
        prepared(finetune={"epochs": 1, "splits": ("no_such_split",)})


def test_the_retrained_models_data_are_encoded_only_if_there_is_one():
    assert prepared(finetune={"epochs": 1}).retrain == []
    run = prepared(finetune={"epochs": 1, "retrained": True})
    forget = {sample.tokens.tobytes() for sample in run.sets.forget}
    retrain = {sample.tokens.tobytes() for sample in run.retrain}
    assert retrain and not retrain & forget
    assert len(run.retrain) == len(run.finetune) - len(run.sets.forget)


def test_the_pool_holds_no_row_that_retention_is_measured_on():
    run = prepared(objectives={"ga": Objective(retain="gd")}, data={"measured_retain": "holdout"})
    measured = {sample.tokens.tobytes() for sample in run.retain_eval}
    assert run.sets.retain
    assert not measured & {sample.tokens.tobytes() for sample in run.sets.retain}


def test_steps_of_pg_effects_that_are_never_reached_are_noted():
    steps = prepared().steps
    note = f"measure.pg_steps: {steps} beyond the last step of the run, {steps - 1}"
    assert note in prepared(measure={"pg_steps": (0, steps), "token_steps": ()}).notes
    assert not any(
        "pg_steps" in text for text in prepared(measure={"pg_steps": (0,), "token_steps": ()}).notes
    )
    assert not any("pg_steps" in text for text in prepared().notes)  # the default, whatever it is
    suites = {"suites": ("memorization",)}
    for every, noted in ((steps - 1, False), (steps, True)):
        notes = prepared(evaluate=suites | {"every": every}).notes
        assert any(text.startswith(f"evaluate.every: {every}, but") for text in notes) == noted


def test_rows_to_forget_are_in_no_set_to_retain():
    run = prepared(objectives={"ga": Objective(retain="gd")}, data={"retain": "full"})
    forget = {sample.tokens.tobytes() for sample in run.sets.forget}
    assert not forget & {sample.tokens.tobytes() for sample in run.sets.retain}
    count = len(forget)
    assert f"data.retain (full): {count} rows of the forget set left out" in run.notes
    measured = prepared(data={"measured_retain": "full"})
    assert not forget & {sample.tokens.tobytes() for sample in measured.retain_eval}
    assert f"data.measured_retain (full): {count} rows of the forget set left out" in measured.notes
    with pytest.raises(ValueError, match="measured_retain: every row of 'forget' is also in data"):
        prepared(data={"measured_retain": "forget"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    run = prepared()
    params = run.initial()
    params["blocks"]["up"]["kernel"] = params["blocks"]["up"]["kernel"].at[1, 0, 0].set(value)
    hf.save_params(tmp_path / "model", params, run.model, tokenizer=run.tokenizer)
    broken = prepared(model=str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"weights of blocks\.up\.kernel are not all finite"):
        broken.initial()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    run = prepared()
    small = dataclasses.replace(run.model, vocab_size=300)
    params = decoder.init_params(jax.random.key(0), small)
    hf.save_params(tmp_path / "model", params, small, tokenizer=run.tokenizer)
    with pytest.raises(ValueError, match=r"data.forget .*: token \d+ .* is beyond the model's voc"):
        prepared(model=str(tmp_path / "model"))


def test_every_split_is_read_once(monkeypatch):
    run = prepared()
    assert run.sources.require("full", "finetune.splits") is not None
    first = run.sources.find("forget")
    assert run.sources.find("forget") == first


@pytest.mark.parametrize(
    ("strengths", "patience", "stops"),
    [
        ([0.1, 0.2], None, False),
        ([0.1], 1, False),
        ([0.1, 0.2], 1, False),
        ([0.2, 0.2], 1, True),
        ([0.1, 0.3, 0.3, 0.305], 2, True),
        ([0.1, 0.3, 0.3, 0.32], 2, False),
    ],
)
def test_patience_waits_for_a_rise_of_the_forget_es(strengths, patience, stops):
    log = [{"forget_es": es, "forget_nll": 1.0, "retain_nll": 1.0} for es in strengths]
    assert has_learned(log, replace(finetune={"patience": patience}).finetune) is stops


def test_fine_tuning_stops_at_its_target_on_both_sets():
    spec = replace(finetune={"target_nll": 0.5}).finetune
    record = {"forget_es": 0.1, "forget_nll": 0.4, "retain_nll": 0.6}
    assert not has_learned([record], spec)
    assert has_learned([record | {"retain_nll": 0.4}], spec)


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_a_starting_point_that_is_not_finite_ends_the_run(split):
    numbers = {"forget_nll": 1.0, "retain_nll": 1.0}
    check_start(numbers, "unlearning", "take another model")
    with pytest.raises(FloatingPointError, match=f"NLL on the {split} set is nan"):
        check_start(numbers | {f"{split}_nll": float("nan")}, "unlearning", "take another model")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"unlearn": {"epochs": 1, "batch_size": 3}}, "unlearn"),
        ({"finetune": {"epochs": 1, "batch_size": 12}}, "finetune"),
    ],
)
def test_a_schedule_that_never_moves_is_refused(changed, key):
    run = prepared(**changed)
    with pytest.raises(ValueError, match=rf"{key}\.warmup_epochs: 1.0 leaves .* 0 in all 1 steps"):
        check(run)
    still = {name: values | {"warmup_epochs": 0.0} for name, values in changed.items()}
    check(prepared(**still))


def test_the_schedule_of_the_retrained_model_is_checked_too():
    """It has fewer samples, here none but those of a warm-up, whose first rate is 0."""
    schedule = {"epochs": 1, "batch_size": 6, "warmup_epochs": 1.0}  # 12 samples, 9 without D_u
    check(prepared(finetune=schedule))
    run = prepared(finetune=schedule | {"retrained": True})
    with pytest.raises(ValueError, match=r"finetune\.warmup_epochs: .* in all 1 steps with 9 "):
        check(run)


def test_the_retrained_model_sees_its_samples_as_often_as_the_base_model_saw_its_own(tmp_path):
    folder = RunFolder(tmp_path)
    numbers = {"objective": "base", "forget_nll": 1.0, "forget_es": 0.1, "retain_nll": 1.0}
    for step in (0, 12, 40):
        files.append(folder.metrics, numbers | {"step": step})
    run = prepared(finetune={"epochs": 20})
    run = dataclasses.replace(run, finetune=4 * run.finetune)  # 40 of 240 steps of 4
    plan = finetune_stage.plan_finetuning(run, run.finetune[:30])
    assert (len(run.finetune), plan.steps) == (48, 150)
    assert finetune_stage._last_as_base(run, folder, plan) == 25
    files.append(folder.metrics, numbers | {"step": 240})
    assert finetune_stage._last_as_base(run, folder, plan) == 150
    folder.metrics.unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: holds no evaluation of the base model"):
        finetune_stage._last_as_base(run, folder, plan)


def test_more_steps_than_can_be_planned_are_refused():
    with pytest.raises(ConfigError, match=r"unlearn\.epochs: 1000000000 must be in 1\.\.10000000"):
        prepared(unlearn={"epochs": 10**9})
    many = prepared(unlearn={"epochs": 10**7})  # each of several steps
    with pytest.raises(ValueError, match=r"unlearn\.epochs: 10000000 make .* steps of 2 samples"):
        check(many)


def test_a_warm_up_longer_than_the_run_is_no_error():
    check(prepared(unlearn={"epochs": 2, "warmup_epochs": 10.0}))


# ------------------------------------------------------------------------------- anyone's data

# The answers of the embedded data are documents here.
FREE_TEXT = {"text_key": "answer", "chunk_tokens": 24}


def write_embedded(folder, rename, *splits):
    """The embedded splits as files, with columns of other names."""
    sources = open_sources(TINY)
    for split in splits:
        rows = [
            {rename.get(key, key): row[key] for key in row}
            for row in sources.require(split, "test")
        ]
        lines = "".join(files.to_json(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def test_the_names_of_columns_change_nothing(tmp_path, monkeypatch):
    """The same rows under other names make the same samples; the source may be in `~`."""
    rename = {"question": "prompt", "answer": "gold", "perturbed_answer": "wrong"}
    monkeypatch.setenv("HOME", str(tmp_path))
    splits = ("forget", "retain", "retain_perturbed", "full")
    for folder, names in (("renamed", rename), ("plain", {})):
        (tmp_path / folder).mkdir()
        write_embedded(tmp_path / folder, names, *splits)
    keys = {f"{key}_key": name for key, name in rename.items()}
    renamed = prepared(data={"source": "~/renamed", **keys})
    plain = prepared(data={"source": str(tmp_path / "plain")})
    assert inputs.digests(renamed) == inputs.digests(plain)
    assert renamed.forget_rows == plain.forget_rows
    with pytest.raises(ValueError, match=r"^data\.forget: .*forget\.jsonl:1: no key 'question'"):
        prepared(data={"source": "~/renamed"})


def test_free_text_is_packed_in_chunks_of_documents():
    run = prepared(data=FREE_TEXT)
    documents = open_sources(run.config).require("forget", "data.forget")
    assert [set(row) for row in documents] == [{"text", "document"}] * len(documents)
    ids = [row["document"] for row in run.forget_rows]
    assert len(ids) == len(run.sets.forget) > len(documents) == len(set(ids))
    assert all(s.first_label == 1 and len(s.tokens) <= 24 for s in run.sets.forget)
    eos = run.tokenizer.eos_token_id
    assert sum(s.tokens[-1] == eos for s in run.sets.forget) == len(documents)
    longer = prepared(data=FREE_TEXT | {"chunk_tokens": None})
    assert len(longer.sets.forget) == len(documents)
    # Other chunks are other data: a run does not go on with them.
    changed = inputs.changed(inputs.digests(run), inputs.digests(longer))
    assert "data.forget" in changed and "data.measured_retain" in changed
    with pytest.raises(ValueError, match=r"data\.chunk_tokens: 97 is over the model's context"):
        prepared(data=FREE_TEXT | {"chunk_tokens": 97})


@pytest.mark.parametrize("name", ["po", "dpo"])
def test_objectives_with_other_answers_need_questions(name):
    message = rf"^objectives\.mine: {name} needs questions with other answers, and free text"
    with pytest.raises(ValueError, match=message):
        prepared(data=FREE_TEXT, objectives={"mine": Objective(loss=name)})


def test_a_prompt_is_part_of_the_digests_of_a_run(tmp_path):
    run = prepared()
    run.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    hf.save_params(tmp_path / "model", run.initial(), run.model, tokenizer=run.tokenizer)
    digests = {}
    for system in (None, "Be brief.", "Be short."):
        prompt = schema.Prompt("chat", system=system)
        found = prepared(model=str(tmp_path / "model"), data={"prompt": prompt})
        digests[system] = inputs.digests(found)["data.forget"]
    assert len(set(digests.values())) == 3


def test_a_run_on_free_text(tmp_path):
    """All stages: it learns documents, forgets some of them chunk by chunk, and is evaluated."""
    config = replace(
        data=FREE_TEXT,
        objectives={"ga": Objective()},
        finetune={"epochs": 1},
        unlearn={"epochs": 1, "warmup_epochs": 0},
        measure={"every": 0},
        evaluate={"suites": ("tofu", "memorization")},
    )
    run(config, tmp_path / "run")
    record = files.read_json(RunFolder(tmp_path / "run").evaluation)["models"]["ga"]
    reasons = {row["reason"] for row in record["tofu"]["results"]}
    assert reasons == {"free text (data.text_key) has no questions"}
    assert any(row["value"] is not None for row in record["memorization"]["results"])
    written = [text for text in texts.read(tmp_path / "run") if text.split == "forget"]
    rows = prepare(config, jax.devices()[:1]).forget_rows
    assert [text.question for text in written] == [f"document {row['document']}" for row in rows]
    first = "".join(text.answer for text in written if text.question == "document 0")
    assert first == rows[0]["text"]


def test_a_run_is_no_model(tmp_path):
    (tmp_path / "config.yaml").write_text("name: earlier")
    with pytest.raises(
        ValueError, match=r"^model: .* is a run; .*jaxunlearn export .* folder base$"
    ):
        prepare(replace(model=str(tmp_path)), jax.devices()[:1])


def test_a_model_beside_another_is_no_run_either(tmp_path):
    """As --base and --retrained, also where a folder holds the seeds of a run."""
    seed = tmp_path / "seed-0"
    seed.mkdir()
    (seed / "config.yaml").write_text("name: earlier")
    model = tmp_path / "model"
    hf.save_params(model, random_params(TIED), TIED)
    for name in ("base", "retrained"):
        for run_folder in (tmp_path, seed):
            with pytest.raises(ValueError, match=rf"^{name} \(--{name}\): .* is a run; "):
                evaluate(model, **{name: run_folder}, out=tmp_path / "out")


def test_a_folder_with_a_models_configuration_is_a_model(tmp_path):
    """Whatever else is in it: some models come with a config.yaml of their own."""
    for name in ("config.yaml", "config.json"):
        (tmp_path / name).write_text("{}")
    assert not is_run(tmp_path)


def test_a_kernel_that_the_device_lacks_is_refused():
    config = replace(compute={"attention": "cudnn", "dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r"compute\.attention: cudnn needs an NVIDIA GPU.* a cpu"):
        check(prepare(config, jax.devices()[:1]))
