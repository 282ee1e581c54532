"""A run small enough for tests: four fictional authors, one small Llama."""

import dataclasses

import jax

from jaxunlearn.config import Config, Objective, dump, schema
from jaxunlearn.pipeline import recipe
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import RunFolder

TINY = Config(
    name="tiny",
    new_model=schema.NewModel(
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        context=96,
        vocab_size=400,
    ),
    data=schema.Data(fictional=schema.Fictional(authors=4, questions=3, forget_share=0.25)),
    finetune=schema.FineTune(epochs=2, batch_size=4, lr=1e-2, evaluate_every=1),
    unlearn=schema.Unlearn(epochs=4, batch_size=2, lr=1e-3),
    objectives={"ga": Objective(), "npo": Objective(hyper={"beta": 0.5})},
    measure=schema.Measure(every=2, pg_steps=(2, 4), token_steps=(2,)),
)


def replace(config: Config = TINY, **sections) -> Config:
    """`config` with some fields of some sections changed: replace(unlearn={"lr": 1.0})."""
    values = {
        name: dataclasses.replace(getattr(config, name), **value)
        if dataclasses.is_dataclass(getattr(config, name))
        else value
        for name, value in sections.items()
    }
    return dataclasses.replace(config, **values)


def run(config: Config, out, devices=None, *, report=False) -> None:
    """Runs to the end, quietly, on one device unless told otherwise.

    Without a report, which takes half of so small a run, unless the test reads it.
    """
    recipe.run(config, out, devices=devices or jax.devices()[:1], report=report)


def reconfigure(out, config: Config) -> None:
    """Gives a run's folder another configuration, as if it had been begun with it."""
    folder = RunFolder(out)
    folder.config.write_text(dump(config))
    manifest.seal(folder, manifest.CONFIGURATION, [folder.config])
