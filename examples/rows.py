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
    layers: Sequence[str],
    e: Mapping[str, float],
    by_sample: Mapping[str, np.ndarray],
    by_token: Mapping[str, np.ndarray],
    by_layer: Mapping[str, np.ndarray],
) -> None:
    """Prints effects on both risks.

    Args:
      layers: names of the rows by layer.
      e: {risk: G-effect of the objective}.
      by_sample: {risk: PG-effects [samples]}.
      by_token: {risk: PG-effects [samples, tokens]}.
      by_layer: {risk: PG-effects [samples, layers]}.
    """
    line = lambda name, unlearn, retain: print(f"{name:<28} {unlearn:>10.4f} {retain:>10.4f}")
    print(f"{'effect on the risk of':<28} {'unlearn':>10} {'retain':>10}")
    line("e of gradient ascent", e["unlearn"], e["retain"])
    for i, pair in enumerate(zip(by_sample["unlearn"], by_sample["retain"], strict=True)):
        line(f"sample {i}", *pair)
    for i in range(LENGTH - 5, LENGTH - 1):
        line(f"sample 0, token {i + 1}", by_token["unlearn"][0, i], by_token["retain"][0, i])
    for i, name in enumerate(layers):
        line(f"sample 0, {name}", by_layer["unlearn"][0, i], by_layer["retain"][0, i])
