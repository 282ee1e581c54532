"""docs/data.md: its configurations can be used, and it names every key of the data."""

import dataclasses
import json
import pathlib
import re

import pytest

from jaxunlearn.config import Config, reader, schema, validate
from jaxunlearn.data import load_split
from jaxunlearn.data.formats import FORMATS

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
def test_its_configurations_can_be_used(text):
    config = reader.loads(text, "docs/data.md")
    validate(config)
    assert config != Config() and reader.loads(reader.dump(config), "again") == config


def test_its_conversation_can_be_read(tmp_path):
    (line,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    (tmp_path / "forget.jsonl").write_text(line)
    (row,) = load_split(tmp_path, "forget")
    assert [row["question"], row["answer"]] == ["Who wrote it?", "Ana Ruiz."]
    assert row["history"] == json.loads(line)["messages"][:1]


def test_it_names_every_key_and_format():
    named = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S))
    data = [field.name for field in dataclasses.fields(schema.Data)]
    keys = [key for key in data if key.endswith("_key") or key == "chunk_tokens"]
    splits = [field.name for field in dataclasses.fields(schema.Splits)]
    prompt = [field.name for field in dataclasses.fields(schema.Prompt)]
    formats = [f"NAME{suffix}" for suffix in FORMATS]
    assert not {*keys, *splits, *prompt, *formats} - set(named)
    defaults = schema.Data()
    for key in keys:
        default = getattr(defaults, key)
        assert default is None or f"| `{key}` | `{default}` |" in PAGE
    assert f"`{schema.Prompt().date}`" in PAGE
