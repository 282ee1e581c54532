"""Overrides from Python: nested or dotted, in any plain type, and errors that name the key."""

import enum
import pathlib

import numpy as np
import pytest

from jaxunlearn.config import Config, ConfigError, Example, Objective, Prompt, override


def test_nested_and_dotted_keys_say_the_same():
    nested = override(Config(), {"unlearn": {"lr": 0.5}, "data": {"prompt": {"date": "x"}}}, "w")
    dotted = override(Config(), {"unlearn.lr": 0.5, "data.prompt.date": "x"}, "w")
    assert nested == dotted
    assert nested.unlearn.lr == 0.5 and nested.unlearn.epochs == Config().unlearn.epochs
    assert override(Config(), {}, "w") == Config()


def test_a_later_key_goes_before_an_earlier_one():
    assert override(Config(), {"unlearn": {"lr": 0.5}, "unlearn.lr": 0.25}, "w").unlearn.lr == 0.25


def test_values_of_other_types_become_plain_ones():
    values = {
        "unlearn.lr": np.float32(0.5),
        "unlearn.epochs": np.int64(3),
        "measure.steps": (0, 2),
        "data.source": pathlib.Path("a/b"),
        "model": enum.StrEnum("Model", {"SMALL": "owner/small"}).SMALL,
        "data.prompt": "chat",
        "objectives": {"npo": Objective(hyper={"beta": 2.0}), "ga": None},
    }
    config = override(Config(objectives={}), values, "w")
    assert config.unlearn.lr == 0.5 and config.unlearn.epochs == 3
    assert config.model == "owner/small" and type(config.model) is str
    assert config.measure.steps == (0, 2) and config.data.source == "a/b"
    assert config.data.prompt == Prompt("chat")
    assert config.objectives == {"npo": Objective(hyper={"beta": 2.0}), "ga": Objective()}


def test_lists_replace_lists_and_mappings_are_merged():
    prompt = {"style": "chat", "examples": [{"question": "a", "answer": "b"}]}
    config = override(Config(), {"data": {"prompt": prompt}}, "w")
    assert config.data.prompt.examples == (Example("a", "b"),)
    assert override(config, {"data.prompt.examples": []}, "w").data.prompt == Prompt("chat")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"unlern": {}}, "w: unknown key 'unlern'; .*perhaps you meant 'unlearn'"),
        ({"unlearn": {"lrr": 1}}, "w: unknown key 'unlearn.lrr'; .*perhaps you meant 'lr'"),
        ({"unlearn.lrr": 1}, "w: unknown key 'unlearn.lrr'; .*perhaps you meant 'lr'"),
        ({"weight_decay": 1}, r"write finetune=\{'weight_decay': ..\} or unlearn=\{"),
        ({"unlearn": 3}, "w: 'unlearn' must be a mapping"),
        ({"unlearn.lr": "fast"}, "'unlearn.lr' must be a number, not 'fast'"),
        ({"unlearn.lr": object()}, "w: unlearn.lr: a value of type object cannot be a setting"),
        ({"seed.x": 1}, "'seed' must be a whole number"),
    ],
)
def test_a_bad_override_is_named(values, words):
    with pytest.raises(ConfigError, match=words):
        override(Config(), values, "w")
