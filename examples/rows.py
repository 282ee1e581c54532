"""What the examples share: rows to forget and to retain, and the table that each prints."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

VOCABULARY, LENGTH = 16, 8


def batches() -> dict[str, dict[str, jax.Array]]:
    """Two batches of random tokens [rows, LENGTH]; answers are the last four of each row."""
    keys = jax.random.split(jax.random.key(0))
    mask = np.zeros((4, LENGTH - 1), bool)  # of the tokens but the first, which nothing predicts
    mask[:, -4:] = True
    return {
        name: {"tokens": jax.random.randint(key, (4, LENGTH), 0, VOCABULARY), "mask": mask}
        for name, key in zip(("unlearn", "retain"), keys, strict=True)
    }


def show(
    layers: Sequence[str], e: Mapping[str, float], pg: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Prints effects on both risks.

    Args:
      layers: names of the rows by layer.
      e: {risk: G-effect of the objective}.
      pg: {"sample" | "token" | "layer": {risk: PG-effects [samples, ..]}}.
    """
    line = lambda name, unlearn, retain: print(f"{name:<28} {unlearn:>10.4f} {retain:>10.4f}")
    of = lambda by, *place: (pg[by][risk][place] for risk in ("unlearn", "retain"))
    print(f"{'effect on the risk of':<28} {'unlearn':>10} {'retain':>10}")
    line("e of gradient ascent", e["unlearn"], e["retain"])
    for i in range(len(pg["sample"]["unlearn"])):
        line(f"sample {i}", *of("sample", i))
    for i in range(LENGTH - 5, LENGTH - 1):
        line(f"sample 0, token {i + 1}", *of("token", 0, i))
    for i, name in enumerate(layers):
        line(f"sample 0, {name}", *of("layer", 0, i))
