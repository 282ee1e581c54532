"""Every number has a range, and values that do not go together are refused by name."""

import dataclasses
import math
import pathlib
import typing

import pytest

from jaxunlearn.config import (
    Config,
    ConfigError,
    Lora,
    Objective,
    Train,
    load,
    schema,
    validate,
)
from jaxunlearn.config.reader import only
from jaxunlearn.config.validate import RANGES

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "jaxunlearn" / "demo.yaml"]


def numbers(kind, key=""):
    """The keys of the schema whose values are, or hold, numbers."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        return {k for name in fields for k in numbers(hints[name], f"{key}.{name}".strip("."))}
    if typing.get_origin(kind) is dict:
        return numbers(typing.get_args(kind)[1], f"{key}.*")
    if typing.get_origin(kind) is typing.Literal:
        return set()
    if kind in (int, float):
        return {key}
    return {k for part in typing.get_args(kind) for k in numbers(part, key)}


def test_every_number_of_the_schema_has_a_range():
    assert numbers(Config) == set(RANGES)


def change(section, **values):
    """The default configuration with some values of a section changed."""
    config = Config()
    if section == "objectives":
        return dataclasses.replace(config, objectives={"npo": Objective(**values)})
    if section == "guide":
        return change("objectives", guide=schema.Guide(**values))
    if section == "lora":
        return change("train", lora=Lora(**{"rank": 4} | values))
    if section == "fictional":
        return change("data", fictional=schema.Fictional(**values))
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


KEYS = {
    "guide": "objectives.npo.guide",
    "objectives": "objectives.npo",
    "fictional": "data.fictional",
    "lora": "train.lora",
}
NAN, INFINITY = math.nan, math.inf
BAD = [
    ("new_model", "hidden_size", (0, -8), "be in 1.."),
    ("new_model", "intermediate_size", (0,), "be in 1.."),
    ("new_model", "num_layers", (0,), "be in 1.."),
    ("new_model", "num_heads", (0,), "be in 1.."),
    ("new_model", "num_kv_heads", (0, -1), "be in 1.."),
    ("new_model", "context", (0,), "be in 1.."),
    ("new_model", "vocab_size", (0, 258), "be in 259.."),
    ("compute", "batch_tokens", (0, -1), "be in 1.."),
    ("compute", "width_step", (0,), "be in 1.."),
    ("compute", "data", (0, -1, 10**9), "in 1..16384"),
    ("compute", "fsdp", (0, 16385), "in 1..16384"),
    ("compute", "tensor", (0, 16385), "in 1..16384"),
    ("fictional", "authors", (0, 1), "be in 2..1000000"),
    ("fictional", "questions", (0, 21), "in 1..20"),
    ("fictional", "forget_share", (0.0, 1.0, -0.5, 1.5), "between 0 and 1"),
    ("finetune", "epochs", (-1,), "be in 0..10000000"),
    ("finetune", "batch_size", (0,), "at least 1"),
    ("finetune", "lr", (0.0, -1e-5), "positive"),
    ("finetune", "warmup_epochs", (-1.0,), "be in 0..10000000"),
    ("finetune", "weight_decay", (-0.1,), "not be negative"),
    ("finetune", "evaluate_every", (0, -5), "at least 1"),
    ("finetune", "target_nll", (0.0, -1.0), "positive"),
    ("finetune", "patience", (0, -1), "at least 1"),
    ("unlearn", "epochs", (0, -1), "be in 1.."),
    ("unlearn", "batch_size", (0,), "at least 1"),
    ("unlearn", "lr", (0.0, -1e-5), "positive"),
    ("unlearn", "warmup_epochs", (-0.5,), "be in 0..10000000"),
    ("unlearn", "weight_decay", (-0.1,), "not be negative"),
    ("unlearn", "accumulate", (0, -2), "at least 1"),
    ("unlearn", "keep_checkpoints", (0,), "be in 1.."),
    ("unlearn", "clip_norm", (0.0, -1.0), "positive"),
    ("lora", "rank", (0, -4), "be in 1.."),
    ("lora", "alpha", (0.0, -8.0), "positive"),
    ("objectives", "layer", (-1,), "not be negative"),
    ("objectives", "scale", (0.0, -5.0), "positive"),
    ("objectives", "lr", (0.0, -1e-5), "positive"),
    ("guide", "every", (0,), "at least 1"),
    ("guide", "penalty", (-1.0,), "not be negative"),
    ("guide", "power", (-1.0,), "not be negative"),
    ("measure", "every", (-1,), "not be negative"),
    ("measure", "steps", ((0, -1),), "-1 must not be negative"),
    ("measure", "pg_steps", ((5, -2),), "-2 must not be negative"),
    ("measure", "token_steps", ((-5,),), "-5 must not be negative"),
    ("measure", "layer_cuts", ((-1, 2),), "-1 must not be negative"),
    ("evaluate", "generate", (-1,), "not be negative"),
    ("evaluate", "recite", (-1,), "not be negative"),
    ("evaluate", "every", (-1,), "not be negative"),
    ("relearn", "samples", ((5, 0), (-1,)), "at least 1"),
    ("relearn", "steps", (0,), "be in 1.."),
    ("relearn", "lr", (0.0, -1.0), "positive"),
]
FLOATS = [
    ("finetune", "lr"),
    ("finetune", "warmup_epochs"),
    ("finetune", "weight_decay"),
    ("finetune", "target_nll"),
    ("unlearn", "lr"),
    ("unlearn", "warmup_epochs"),
    ("unlearn", "weight_decay"),
    ("unlearn", "clip_norm"),
    ("fictional", "forget_share"),
    ("lora", "alpha"),
    ("objectives", "gamma"),
    ("objectives", "retain_weight"),
    ("objectives", "scale"),
    ("objectives", "lr"),
    ("guide", "penalty"),
    ("guide", "power"),
    ("relearn", "lr"),
]


@pytest.mark.parametrize(
    ("section", "field", "value", "words"),
    [(section, field, value, words) for section, field, values, words in BAD for value in values],
)
def test_a_number_out_of_its_range_is_named(section, field, value, words):
    with pytest.raises(ConfigError) as error:
        validate(change(section, **{field: value}))
    message = str(error.value)
    assert message.startswith(f"{KEYS.get(section, section)}.{field}: ")
    assert words in message
    assert isinstance(value, tuple) or f": {value} must " in message


@pytest.mark.parametrize(
    ("section", "field"),
    [
        *(("new_model", f"num_{name}") for name in ("layers", "heads", "kv_heads")),
        *(("new_model", name) for name in ("hidden_size", "intermediate_size", "context")),
        ("new_model", "vocab_size"),
        ("compute", "batch_tokens"),
        ("compute", "width_step"),
        ("finetune", "epochs"),
        ("finetune", "warmup_epochs"),
        ("unlearn", "epochs"),
        ("unlearn", "warmup_epochs"),
        ("unlearn", "keep_checkpoints"),
        ("relearn", "steps"),
    ],
)
def test_a_size_that_no_memory_holds_is_refused_at_once(section, field):
    with pytest.raises(ConfigError, match=rf"^{section}\.{field}: 10{{18}} must be in \d+..\d"):
        validate(change(section, **{field: 10**18}))


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(("section", "field"), FLOATS)
def test_numbers_are_finite(section, field, value):
    with pytest.raises(ConfigError, match=rf"{field}: {value} must be a finite number"):
        validate(change(section, **{field: value}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(name=""), "name: '' must not be empty"),
        (Config(objectives={}), "objectives: there are none"),
        (Config(objectives={"base": Objective(loss="ga")}), "objectives.base: names are letters"),
        (Config(objectives={"before": Objective(loss="ga")}), "objectives.before: names"),
        (Config(objectives={"retrained": Objective(loss="ga")}), "objectives.retrained: names"),
        (Config(objectives={"a/b": Objective(loss="ga")}), "objectives.a/b: names are letters"),
        (Config(objectives={"a-b": Objective(loss="ga")}), "objectives.a-b: names are letters"),
        (Config(objectives={"": Objective(loss="ga")}), "objectives.: names are letters"),
        (change("objectives", hyper={"beta": NAN}), "objectives.npo.hyper.beta: nan must be a"),
        (
            change("objectives", retain="gd", retain_hyper={"a": INFINITY}),
            "objectives.npo.retain_hyper.a: inf must be a finite number",
        ),
        (
            change("objectives", retain="kll"),
            "objectives.npo.retain: 'kll' must be one of gd, kl, rr, or .*; perhaps you meant 'kl'",
        ),
        (
            change("objectives", retain_hyper={"a": 1.0}),
            "objectives.npo.retain_hyper: needs a retain term",
        ),
        (change("objectives", spare="total"), "objectives.npo.spare: needs a retain term to spare"),
        (change("unlearn", batch_size=16, accumulate=3), "unlearn.accumulate: 3 does not divide"),
        (change("finetune", retrained=True), "finetune.retrained: needs finetune.epochs"),
        (change("finetune", epochs=1, splits=()), "finetune.splits: there are none"),
        (change("compute", attention="cudnn"), "compute.attention: cudnn needs compute.dtype"),
        (change("measure", token_steps=(7,)), "measure.token_steps: 7 is not one of measure.pg"),
        (change("new_model", num_heads=3), "new_model.num_heads: 3 must divide .*, 128"),
        (change("new_model", num_kv_heads=3), "new_model.num_kv_heads: 3 must divide .*, 4"),
        (change("new_model", hidden_size=12), "heads of width 3, which must be even"),
    ],
)
def test_values_that_do_not_go_together(config, message):
    with pytest.raises(ConfigError, match=f"^.*{message}"):
        validate(config)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(model="a/b", new_model=schema.NewModel(num_heads=3)),
        Config(objectives={"my_npo.2": Objective(loss="npo", layer=0, gamma=-1.0)}),
        change("objectives", retain="kl", spare="layer", retain_weight=0.0),
        change("objectives", retain="my_terms:kept", retain_hyper={"a": 1.0, "flag": True}),
        change("objectives", loss="my_losses:mine", hyper={"beta": -1.0}),
        change("finetune", epochs=3, patience=1, target_nll=0.1, warmup_epochs=0.0, retrained=True),
        change("unlearn", accumulate=4, clip_norm=0.5, weight_decay=0.1),
        change("guide", penalty=0.0, power=0.0, every=1),
        change("measure", every=0, pg_steps=(), steps=()),
        change("measure", steps=(0, 7), token_steps=(5,), layer_cuts=(0, 0), gradients="gates"),
        change("evaluate", every=5, suites=("all",), generate=0, recite="all"),
        change("relearn", samples=("all", 1), steps=1, benign=True),
        change("compute", attention="cudnn", dtype="bfloat16", fsdp=8),
    ],
)
def test_good_values_pass(config):
    assert validate(config) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        ("../../x", "must be the name of a folder"),
        ("a\\b", "must be the name of a folder"),
        ("..", "must be the name of a folder"),
        ("\x1b[31mred", "must be the name of a folder"),
        ("é" * 80, "of 160 bytes, must have at most 150"),
    ],
)
def test_names_become_those_of_folders(name, message):
    """A run was once written beside its folder, and an objective failed after fine-tuning."""
    with pytest.raises(ConfigError, match=f"^name: .*{message}"):
        validate(Config(name=name))
    with pytest.raises(ConfigError, match=r"^objectives\."):
        validate(Config(objectives={name: Objective(loss="ga")}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(path):
    assert validate(load(path)) is None


def test_every_key_has_a_help_text():
    import ast
    import inspect

    module = ast.parse(inspect.getsource(schema))
    for node in (n for n in module.body if isinstance(n, ast.ClassDef)):
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert text, f"{node.name}.{field.target.id} has no docstring"


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_fits_64_bits(seed):
    with pytest.raises(ConfigError, match=r"^seed: -?\d+ must be in 0\.\.9223372036854775807"):
        validate(dataclasses.replace(Config(), seed=seed))


@pytest.mark.parametrize(
    ("section", "key", "remedy"),
    [
        ("unlearn", "clip_norm", r"leave it out \(null\) for no clipping"),
        ("finetune", "target_nll", r"leave it out \(null\) to train all epochs"),
    ],
)
def test_infinity_is_no_way_to_ask_for_no_limit(section, key, remedy):
    changed = dataclasses.replace(getattr(Config(), section), **{key: math.inf})
    config = dataclasses.replace(Config(), **{section: changed})
    with pytest.raises(ConfigError, match=rf"^{section}\.{key}: inf .*; {remedy}$"):
        validate(config)


@pytest.mark.parametrize("key", ["model", "data.source"])
def test_an_empty_path_is_not_the_working_directory(key):
    """As of a variable of the shell that is not set."""
    data = dataclasses.replace(Config().data, source="") if key == "data.source" else Config().data
    model = "" if key == "model" else None
    config = dataclasses.replace(Config(), model=model, data=data)
    with pytest.raises(ConfigError, match=rf"^{key}: '' must not be empty; leave it out"):
        validate(config)


def test_one_string_is_no_list_of_names():
    with pytest.raises(ConfigError, match="'ga' is one string; give a list"):
        only(dataclasses.replace(Config(), objectives={"ga": Objective()}), "ga")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer_key": ""}, r"data\.answer_key: '' must not be empty"),
        ({"answer_key": "question"}, r"data\.answer_key: 'question' is data\.question_key already"),
        ({"text_key": ""}, r"data\.text_key: '' must not be empty"),
        ({"text_key": "text", "chunk_tokens": 1}, r"data\.chunk_tokens: 1 must be in 2\.\."),
        ({"chunk_tokens": 8}, r"data\.chunk_tokens: is for free text; set data\.text_key"),
        (
            {"text_key": "text", "prompt": schema.Prompt("chat")},
            r"data\.prompt: free text \(data\.text_key\) has no questions to write",
        ),
        (
            {"prompt": schema.Prompt(system="Hi.")},
            r"data\.prompt\.system: needs data\.prompt\.style: chat",
        ),
        ({"prompt": schema.Prompt(date="today")}, r"data\.prompt\.date: needs data\.prompt\.style"),
        (
            {"prompt": schema.Prompt(examples=(schema.Example("a", "b"),))},
            r"data\.prompt\.examples: needs data\.prompt\.style: chat",
        ),
        (
            {"prompt": schema.Prompt("chat", examples=(schema.Example("a", " "),))},
            r"data\.prompt\.examples\[0\]\.answer: must not be empty",
        ),
    ],
)
def test_columns_and_prompts_without_sense_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        validate(change("data", **values))


def test_columns_and_prompts_that_go_together():
    validate(change("data", text_key="answer", chunk_tokens=8))
    validate(
        change("data", prompt=schema.Prompt("chat", "Hi.", examples=(schema.Example("a", "b"),)))
    )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Train(lora=Lora(alpha=8.0)), r"train\.lora\.alpha: needs train\.lora\.rank"),
        (Train(lora=Lora(targets=("q",))), r"train\.lora\.targets: needs train\.lora\.rank"),
        (Train(lora=Lora(rank=2), only=("norm",)), r"train\.only: with train\.lora the adapters"),
        (Train(lora=Lora(start="folder")), r"train\.lora\.start: needs the model"),
        (Train(frozen_dtype="bfloat16"), r"train\.frozen_dtype: nothing is frozen"),
        (Train(only=("norm", "(")), r"train\.only: '\(' is no regular expression: missing"),
    ],
)
def test_what_trains_is_said_once(train, message):
    with pytest.raises(ConfigError, match=message):
        validate(dataclasses.replace(Config(), train=train))


def test_an_adapter_is_of_the_model_as_it_is():
    config = dataclasses.replace(Config(), model="a/b", train=Train(lora=Lora(start="folder")))
    validate(config)
    trained = dataclasses.replace(config, finetune=schema.FineTune(epochs=1))
    with pytest.raises(ConfigError, match=r"train\.lora\.start: .*set finetune\.epochs: 0"):
        validate(trained)


def test_what_trains_in_words():
    assert Train().words is None
    lora = Lora(rank=8, targets=("q_proj", "v", "q"))
    assert Train(lora=lora).words == (
        "LoRA adapters of rank 8 on q, v; all else is frozen, in float32"
    )
    start = Train(lora=Lora(start="folder"), frozen_dtype="bfloat16")
    assert start.words == "LoRA adapters from folder; all else is frozen, in bfloat16"
    assert Train(only=("norm", "down")).words.startswith("the parameters norm, down; all else")


def test_a_misspelt_matrix_is_named(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("train:\n  lora: {rank: 4, targets: [q, dwn_proj]}\n")
    message = r"config\.yaml:2: 'train\.lora\.targets' must be one of q, .*meant 'down_proj'"
    with pytest.raises(ConfigError, match=message):
        load(file)
