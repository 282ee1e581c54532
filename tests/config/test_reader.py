"""The configuration: defaults, YAML in and out, and errors that name file, line and key."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxunlearn.config import (
    Config,
    ConfigError,
    Data,
    FineTune,
    Measure,
    Objective,
    check_readable,
    reader,
    schema,
    validate,
)

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = [*sorted((ROOT / "configs").rglob("*.yaml")), ROOT / "jaxunlearn" / "demo.yaml"]


def write(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_reads(path):
    assert reader.load(path).name == path.stem


def test_a_dumped_configuration_reads_back(tmp_path):
    config = Config(
        objectives={
            "ga": Objective(),
            "mine": Objective(
                loss="npo", hyper={"beta": 1.0}, retain="my.terms:kept", retain_hyper={"a": 2.0}
            ),
        },
        measure=schema.Measure(
            steps=(0, 3), layer_cuts=(1, 2), gradients="gates", pg_by=("token", "layer")
        ),
        data=schema.Data(
            question_key="prompt",
            prompt=schema.Prompt(
                "chat", "Be brief.", "1 May 2026", (schema.Example("1?", "One."),)
            ),
        ),
        evaluate=schema.Evaluate(
            suites=("tofu", "uwc"),
            generate="all",
            every=5,
            splits=schema.Splits(holdout="unseen", real_authors_perturbed="people"),
        ),
        relearn=schema.Relearn(samples=(5, "all"), benign=True),
    )
    assert reader.load(write(tmp_path, reader.dump(config))) == config


def test_a_guide_reads_and_is_checked(tmp_path):
    text = "objectives:\n  guided:\n    guide: {every: 3, by: sample}\n"
    (spec,) = reader.load(write(tmp_path, text)).objectives.values()
    assert spec.guide == schema.Guide(every=3, by="sample", penalty=3.0)
    with pytest.raises(ConfigError, match=r"a.yaml:3: 'objectives.guided.guide.by' must be one of"):
        reader.load(write(tmp_path, text.replace("sample", "samples")))


def test_a_prompt_is_a_style_or_a_mapping(tmp_path):
    read = lambda text: reader.load(write(tmp_path, text)).data.prompt
    assert read("data: {prompt: chat}\n") == schema.Prompt("chat")
    assert read("data:\n  prompt: {style: chat, system: Hi}\n") == schema.Prompt("chat", "Hi")
    examples = "data: {prompt: {examples: [{question: '1?', answer: One.}]}}\n"
    assert read(examples).examples == (schema.Example("1?", "One."),)


def test_values(tmp_path):
    text = (
        "unlearn: {lr: 1e-4, clip_norm: 1}\nobjectives:\n  ga:\n"
        "  rmu: {hyper: {per_dim: true}, unit_norm: true}\nfinetune: {splits: [a, b]}\n"
    )
    config = reader.load(write(tmp_path, text))
    assert config.unlearn.lr == 1e-4 and config.unlearn.clip_norm == 1.0
    assert list(config.objectives) == ["ga", "rmu"] and config.objectives["ga"] == Objective()
    assert config.objectives["rmu"].hyper == {"per_dim": True}
    assert config.finetune.splits == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nunlearn:\n  lrr: 1\n",
            "a.yaml:3: unknown key 'unlearn.lrr'.*perhaps you meant 'lr'",
        ),
        ("unlern: {}\n", "a.yaml:1: unknown key 'unlern'.*perhaps you meant 'unlearn'"),
        ("unlearn: {lr: fast}\n", "a.yaml:1: 'unlearn.lr' must be a number, not 'fast'"),
        ("seed: 1.5\n", "'seed' must be a whole number, not '1.5'"),
        ("seed:\n", "'seed' must be a whole number"),
        ("compute: {dtype: bf16}\n", "must be one of float32, bfloat16, not 'bf16'"),
        ("measure: {pg_steps: 5}\n", "'measure.pg_steps' must be a list"),
        ("measure: {layer_cuts: [1]}\n", "a list of 2 values, not 1"),
        ("objectives: [ga]\n", "'objectives' must be a mapping"),
        ("seed: 1\nseed: 2\n", "a.yaml:2: key 'seed' is given twice"),
        ("finetune: {retrained: maybe}\n", "must be true or false, not 'maybe'"),
        ("evaluate: {suites: tofu}\n", "'evaluate.suites' must be a list"),
        (
            "name: a\nobjectives: {npo: {reduction: token_men}}\n",
            "a.yaml:2: 'objectives.npo.reduction' must be one of .*meant 'token_mean'",
        ),
        (
            "evaluate: {generate: most}\n",
            "'evaluate.generate' must be a whole number, not 'most'; or write all",
        ),
        ("relearn: {samples: [1, some]}\n", "'relearn.samples' must be a whole number.* write all"),
        ("a: [\n", "not valid YAML"),
        ("", "empty"),
        ("- 1\n", "must be a mapping"),
        ("? [a, b]\n: 1\n", "a.yaml:1: a key of the file must be text"),
        ("unlearn:\n  ? {a: b}\n  : 1\n", "a.yaml:2: a key of 'unlearn' must be text"),
        ("measure: {gradients: gate}\n", "must be one of full, gates, .*meant 'gates'"),
        ("measure: {pg_by: [samples]}\n", "must be one of sample, token, layer, tensor, "),
        ("objectives: {npo: {retain_hyper: {a: b}}}\n", "retain_hyper.a' must be a number"),
        ("train:\n  lora: {}\n", "a.yaml:2: train.lora: is empty; give rank, or start"),
        ("data: {prompt: chta}\n", "'data.prompt' must be one of tofu, chat, .*meant 'chat'"),
        ("data: {prompt: [chat]}\n", "'data.prompt' must be a mapping"),
        ("data:\n  prompt: {sytem: a}\n", "a.yaml:2: unknown key 'data.prompt.sytem'"),
        ("data: {prompt: {style: 3}}\n", "'data.prompt.style' must be one of tofu, chat"),
        (
            "data:\n  prompt:\n    examples:\n    - {question: Who}\n",
            "a.yaml:4: 'data.prompt.examples' must have the key 'answer'",
        ),
    ],
)
def test_errors_name_file_line_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        reader.load(write(tmp_path, text))


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: not UTF-8"):
        reader.load(tmp_path / "a.yaml")


def test_a_file_in_the_home_folder_with_a_byte_order_mark(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfname: mine\n")
    assert reader.load("~/a.yaml").name == "mine"


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read"):
        reader.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_model": None}, "configuration:.*'new_model' must be a mapping"),
        ({"seed": 1.5}, "configuration:.*'seed' must be a whole number, not '1.5'"),
        ({"data": Data(source="a", prompt="alpaca")}, "'data.prompt' must be one of"),
        ({"data": Data(prompt="chat")}, "data.prompt: 'chat' would be read back as {"),
        ({"model": object()}, "configuration: model: a value of type object cannot be a setting"),
        ({"objectives": {1: Objective(), "a": object()}}, "objectives.a: a value of type object"),
    ],
)
def test_a_configuration_that_could_not_be_read_back_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_readable(dataclasses.replace(Config(), **changes))


@pytest.mark.parametrize("value", ["inf", ".inf", "-.INF", ".nan", "nan"])
def test_numbers_without_end_are_read_and_refused_by_their_key(tmp_path, value):
    """As YAML spells them and as Python does; a configuration from Python may hold them too."""
    config = reader.load(write(tmp_path, f"unlearn: {{clip_norm: {value}}}"))
    check_readable(config)
    with pytest.raises(
        ConfigError, match=r"unlearn\.clip_norm: \S+ must be a finite number; leave"
    ):
        validate(config)


def test_numbers_and_paths_of_other_types_are_written_as_plain_ones():
    config = Config(model=pathlib.Path("a"), unlearn=schema.Unlearn(lr=np.float32(0.5)))
    check_readable(config)
    assert reader.dump(config) == reader.dump(Config(model="a", unlearn=schema.Unlearn(lr=0.5)))


def test_lists_in_the_place_of_tuples_do_no_harm():
    check_readable(Config(measure=Measure(pg_steps=[1, 2]), finetune=FineTune(splits=["full"])))
    check_readable(Config())
    check_readable(Config(measure=Measure(pg_steps=[1, 2]), finetune=FineTune(warmup_epochs=0)))


def test_a_value_that_changes_when_it_is_read_back_is_named():
    with pytest.raises(ConfigError, match=r"^objectives\.npo: None would be read back as \{"):
        check_readable(Config(objectives={"npo": None}))
