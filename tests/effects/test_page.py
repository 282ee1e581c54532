"""The code of docs/effects.md on rows and on parts of the parameters does what the page says."""

import pathlib
import re

import jax
import jax.numpy as jnp

from jaxunlearn import effects

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "effects.md").read_text()
PARAMS = {
    "layers": [{"attn": jnp.ones((2, 2)), "mlp": jnp.ones(2)}] * 2,
    "lora_a": jnp.ones(2),
    "lora_b": jnp.ones((2, 2)),
}


def lines_of(section):
    """The lines of the last block of code of a section."""
    text = PAGE[PAGE.index(f"## {section}\n") :]
    text = text[: text.index("\n## ", 1)]
    return re.findall(r"```python\n(.*?)```", text, re.S)[-1].strip().split("\n")


def test_groupings():
    found = [
        effects.layer_names(PARAMS, grouping=eval(line, {"effects": effects}))
        for line in lines_of("Rows by layer")
    ]
    tensors = ["layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"]
    assert found == [
        ["attn", "mlp", "rest"],
        ["layers", "lora_a", "lora_b"],
        [*tensors, "lora_a", "lora_b"],
    ]


def test_parts_of_the_parameters():
    found = []
    for line in lines_of("A part of the parameters"):
        names = {"jax": jax, "params": PARAMS}
        exec(line, names)
        found.append(effects.tensor_names(PARAMS, trainable=names["trainable"]))
    lora = ["lora_a", "lora_b"]
    assert found == [lora, lora, ["layers.0.attn", "layers.1.attn", "lora_b"]]
