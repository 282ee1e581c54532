"""The facts of one run, as the questions that claims ask."""

import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn.metrics.relearning import attack_kind

SIX: dict[str, tuple[str, Mapping[str, float]]] = {
    "GA": ("ga", {}),
    "WGA": ("wga", {"alpha": 1.0}),
    "NPO": ("npo", {"beta": 0.1}),
    "TNPO": ("tnpo", {"beta": 1.0}),
    "PO": ("po", {}),
    "RMU": ("rmu", {}),
}
"""The six objectives that are compared, and the hyper-parameters that stand for each."""

SETTLED = 0.05
"""An effect has come to rest when it is below this share of its peak."""


class Missing(LookupError):
    """The run lacks what a claim asks for; the message says what."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """A run, see `collect.collect`."""

    content: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """Updates of unlearning."""
        return max(
            model["result"].get("of_steps", 0) or 0 for model in self.content["models"].values()
        )

    # ----------------------------------------------------------------- which objective

    def find(self, loss: str, term: str | None = None, **settings: Any) -> str:
        """The name of the objective with this loss, retain term and these settings.

        Objectives with a learning rate of their own are left out. Where several are left, as of
        RMU's layers, the middle one is taken.

        Raises:
          Missing: there is none.
        """
        found = []
        for name in self.all_with(loss, term):
            entry = self.entry(name)
            known = {**entry["hyper"], "layer": entry["layer"], "scale": entry["scale"]}
            if all(known.get(key) == value for key, value in settings.items()):
                found.append((entry["layer"] or 0, entry["scale"] or 0, name))
        if not found:
            told = "".join(f", {key} {value:g}" for key, value in settings.items())
            raise Missing(f"no run of {loss}{told}" + (f" with {term}" if term else ""))
        return sorted(found)[len(found) // 2][-1]

    def six(self) -> dict[str, str]:
        """{method: the objective that stands for it}.

        Raises:
          Missing: one of them was not run.
        """
        return {label: self.one(label) for label in SIX}

    def ran(self) -> dict[str, str]:
        """{method: the objective that stands for it}, of those of the six that were run."""
        found = {}
        for label in SIX:
            with contextlib.suppress(Missing):
                found[label] = self.one(label)
        return found

    def one(self, label: str) -> str:
        """The objective that stands for one of the six methods."""
        loss, hyper = SIX[label]
        return self.find(loss, **hyper)

    def all_with(self, loss: str, term: str | None = None) -> list[str]:
        """The objectives with this loss, this retain term and the run's own learning rate."""
        entries = self.content["objectives"].items()
        return [
            name
            for name, entry in entries
            if entry["loss"] == loss and entry["retain_term"] == term and entry["lr"] == self.lr
        ]

    @property
    def lr(self) -> float:
        """The learning rate of most of the objectives, which is the run's own."""
        return statistics.mode(entry["lr"] for entry in self.content["objectives"].values())

    def entry(self, name: str) -> Mapping[str, Any]:
        return self.content["objectives"][name]

    # ----------------------------------------------------------------- effects over steps

    def curve(self, name: str, risk: str = "unlearn", column: str = "value") -> np.ndarray:
        """A column of the total effects at the measured steps; a null is NaN."""
        return np.array(self.entry(name)[risk][column], float)

    def measured(self, name: str) -> np.ndarray:
        """The measured steps."""
        return np.array(self.entry(name)["steps"])

    def peak(self, name: str, risk: str = "unlearn") -> tuple[float, int]:
        """The effect of largest magnitude, and its step."""
        values = self.curve(name, risk)
        at = int(np.nanargmax(np.abs(values)))
        return float(values[at]), int(self.measured(name)[at])

    def ratio(self, name: str) -> float:
        """|e_r| / |e_u|, each at its own peak."""
        return abs(self.peak(name, "retain")[0]) / abs(self.peak(name)[0])

    def settled(self, name: str) -> int | None:
        """The first step after the peak of e_u from which it stays below `SETTLED` of it."""
        values = np.abs(self.curve(name))
        large = np.flatnonzero(values > SETTLED * np.nanmax(values))
        after = int(large[-1]) + 1
        return int(self.measured(name)[after]) if after < len(values) else None

    def shares(self, name: str, at: int | None = None) -> dict[str, float]:
        """The share of every group of layers in e_u; at its peak, or at the at-th measurement."""
        groups = self.entry(name)["unlearn"]["groups"]
        values = self.curve(name)
        at = int(np.nanargmax(np.abs(values))) if at is None else at
        return {group: layers[at] / values[at] for group, layers in groups.items()}

    # ----------------------------------------------------------------- models at the end

    def result(self, model: str, key: str) -> float:
        """A number of `results.json`, such as "forget_nll"."""
        return self.content["models"][model]["result"][key]

    def rise(self, model: str, split: str) -> float:
        """By how much the NLL of a set ("forget", "retain") rose, nats a token."""
        key = f"{split}_nll"
        return self.result(model, key) - self.result("base", key)

    def distance(self, model: str) -> float:
        """|theta_T - theta_0|.

        Raises:
          Missing: the run was stopped, or its last parameters are not stored.
        """
        found = self.content["models"][model].get("distance")
        if found is None:
            raise Missing("no distance")
        return found

    def strongest_attack(self, model: str) -> Mapping[str, Any]:
        """The end of the fine-tuning that brought back most of the forget ES.

        Raises:
          Missing: the model was not attacked.
        """
        of_model = self.content["models"][model]["relearn"]
        attacks = {name: end for name, end in of_model.items() if attack_kind(name).trains_on}
        if not attacks:
            raise Missing("no attack")
        return max(attacks.values(), key=lambda end: end["final_forget_es"])

    def relearned(self, model: str) -> float:
        """The share of the forgotten ES that the strongest attack by few samples brought back.

        Raises:
          Missing: the run has no attack, or nothing was forgotten.
        """
        end = self.strongest_attack(model)["final_forget_es"]
        lost = self.result("base", "forget_es") - self.result(model, "forget_es")
        if lost < 0.01:
            raise Missing("nothing forgotten")
        return (end - self.result(model, "forget_es")) / lost


Studies = Mapping[str, Sequence[Facts]]
"""{study: its runs by seed}."""


def methods(runs: Sequence[Facts]) -> dict[str, list[tuple[Facts, str]]]:
    """{method: the runs that have it, each with the objective that stands for it}."""
    found = [(run, run.ran()) for run in runs]
    pairs = {label: [(run, ran[label]) for run, ran in found if label in ran] for label in SIX}
    return {label: those for label, those in pairs.items() if those}


def load(contents: Sequence[Mapping[str, Any]]) -> Studies:
    """Groups the contents of results by study."""
    ordered = sorted(contents, key=lambda c: (c["study"], c["seed"]))
    grouped = itertools.groupby(ordered, key=lambda c: c["study"])
    return {study: [Facts(content) for content in runs] for study, runs in grouped}
