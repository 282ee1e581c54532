"""A run of seconds, from fine-tuning to the tables.

The section "truth" runs it here and as `python -m benchmarks.accelerator.tiny_run DIR`, kills that
process, and starts its run again.
"""

import sys
from pathlib import Path

import jax

from jaxunlearn import config
from jaxunlearn.config import Config, Objective
from jaxunlearn.pipeline import recipe

CONFIG = Config(
    name="tiny",
    new_model=config.NewModel(
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        context=96,
        vocab_size=400,
    ),
    data=config.Data(fictional=config.Fictional(authors=4, questions=4, forget_share=0.25)),
    finetune=config.FineTune(epochs=2, batch_size=4, lr=1e-2, evaluate_every=1),
    unlearn=config.Unlearn(epochs=20, batch_size=2, lr=1e-3),
    objectives={"npo": Objective(hyper={"beta": 0.5})},
    measure=config.Measure(every=10, pg_steps=(10,)),
)


def run(folder: Path) -> None:
    """Runs on one device, or goes on with what the folder holds."""
    recipe.run(CONFIG, folder, devices=jax.devices()[:1])


if __name__ == "__main__":
    run(Path(sys.argv[1]))
