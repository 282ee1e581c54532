"""A sentence for every objective, with the numbers that it rests on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn.metrics.relearning import attack_kind
from jaxunlearn.record import attack_results
from jaxunlearn.record.folder import BASE, RETRAINED
from jaxunlearn.reporting import relearn_table, summary

REMOVED, KEPT = 0.5, 0.9
"""Shares of an ES: at most half of the forget ES that could go is left, 90 % of the retain ES."""

NEAR = 0.05
"""The difference of two forget ES that passes for none."""


class Verdict(NamedTuple):
    """What became of one objective.

    Attributes:
      name: the objective's.
      removed: whether at least half of what could be forgotten is; None without a number.
      retained: whether at least 90 % of the retain ES is left; None without a number.
      sentence: both in words, with relearning and the retrained model where they were measured.
    """

    name: str
    removed: bool | None
    retained: bool | None
    sentence: str


def verdict(name: str, models: Mapping[str, Any], attacks: Mapping[str, Any] | None) -> Verdict:
    """Judges one objective.

    Args:
      name: the objective's.
      models: the results of all models (`results.json`).
      attacks: the summary of relearning, where there is one.
    """
    result, base = models[name], models[BASE]
    if summary.stopped(result):
        stopped = f"Stopped after step {result['steps']} of {result['of_steps']}: it diverged."
        broken = result.get("diverged", {})
        if broken.get("layer"):
            stopped += (
                f" One update later {broken['layer']} is the first layer whose output is not"
                f" finite, and sample {broken['sample']} the first of {broken['samples']}."
            )
        if broken.get("operation"):
            stopped += f" Taken again: {broken['operation']}."
        return Verdict(name, None, None, stopped)
    floor = models[RETRAINED]["forget_es"] if RETRAINED in models else 0.0
    left = _share(result["forget_es"] - floor, base["forget_es"] - floor)
    kept = _share(result["retain_es"], base["retain_es"])
    parts = []
    if left is None:
        parts.append("There was nothing to forget")
    else:
        removed = f"forget ES {base['forget_es']:.2f} to {result['forget_es']:.2f}"
        parts.append(f"{'Removed' if left <= REMOVED else 'Hardly removed'} ({removed})")
        if RETRAINED in models:
            parts[-1] += f", {_against(result['forget_es'] - floor)} ({floor:.2f})"
    if kept is not None:
        word = "retained" if kept >= KEPT else "harmed what should stay"
        parts.append(f"{word} (retain ES {base['retain_es']:.2f} to {result['retain_es']:.2f})")
    relearned = _relearned(name, attacks)
    if relearned:
        parts.append(relearned)
    return Verdict(
        name,
        None if left is None else left <= REMOVED,
        None if kept is None else kept >= KEPT,
        "; ".join(parts) + ".",
    )


def _against(more: float) -> str:
    """The forget ES in words, by what it is more than that of the retrained model."""
    if abs(more) <= NEAR:
        return "about what a model has that never saw it"
    return f"{'more' if more > 0 else 'less'} than a model has that never saw it"


def _share(value: float, of: float) -> float | None:
    """A share; None where there is nothing to have a share of."""
    return None if of < 0.01 else value / of


def _relearned(name: str, attacks: Mapping[str, Any] | None) -> str:
    """What the attack that fine-tunes on the fewest forget samples brought back.

    Where there was none, the attack on data to retain.
    """
    if attacks is None:
        return ""
    found = attacks["models"].get(name, {}).get("attacks", {})
    order = attack_results.fine_tuning_attacks(attacks)
    attack = next((attack for attack in order if attack in found), None)
    if attack is None:
        return ""
    first = found[attack]
    step, tried = first["whole"]["step"], first["whole"]["tried"]
    on = f"fine-tuning on {attack_kind(attack).trains_on}"
    if first["whole"]["status"] == "nothing forgotten":
        return ""
    if first["whole"]["status"] == "diverged":
        return f"{on} breaks it after {tried} step{'s' * (tried != 1)}"
    if step is None:
        return f"{tried} steps of {on} do not bring half of it back"
    # Where not every step was evaluated, it may have come back some steps before.
    at_most = "at most " if relearn_table.stride(attacks) > 1 else ""
    return (
        f"{at_most}{step} step{'s' * (step != 1)} of {on} bring{'s' * (step == 1)} half of it back"
    )
