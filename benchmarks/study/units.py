"""The same effects in other units, and which comparisons of objectives survive the change."""

import itertools
from collections.abc import Callable

import numpy as np

from benchmarks.study.facts import Facts, Studies
from benchmarks.study.texts import table
from jaxunlearn import objectives

Curve = Callable[[Facts, str, str], np.ndarray]
"""(run, objective, risk) -> the curve in a unit; negative removes or harms."""


def _per_token(run: Facts, name: str, risk: str) -> np.ndarray:
    """As the official code reduces: the risk by token, and the loss where it is a sum of tokens."""
    labels = run.content["labels"]
    values = run.curve(name, risk) / labels["forget" if risk == "unlearn" else "retain"]
    # A loss that is no sum over tokens stays the mean over sequences there too. The tokens of PO's
    # own answers are not in the results: it is divided by those of the forget set.
    by_token = objectives.get(run.entry(name)["loss"]).per_token
    return values / labels["forget"] if by_token else values


def _by_sgd(run: Facts, name: str, risk: str) -> np.ndarray:
    """Minus the predicted change of the risk by a step of SGD at the step's learning rate."""
    return run.curve(name, risk) * np.array(run.entry(name)["rates"])


UNITS: dict[str, Curve] = {
    "dot product, per sequence": lambda run, name, risk: run.curve(name, risk),
    "dot product, per token": _per_token,
    "cosine": lambda run, name, risk: run.curve(name, risk, "cosine"),
    "predicted change, SGD": _by_sgd,
    "predicted change, AdamW": lambda run, name, risk: -run.curve(name, risk, "update_effect"),
}
"""What an effect can be measured in."""


def peak(values: np.ndarray) -> float:
    """The value of largest magnitude."""
    return float(values[np.nanargmax(np.abs(values))])


def tables(studies: Studies) -> str:
    """For each study, the order of the six and their |e_r| / |e_u| in every unit; first seed."""
    return "\n\n".join(
        f"`{study}`, seed {runs[0].content['seed']}:\n\n{_table(runs[0])}\n\n{survivors(runs[0])}"
        for study, runs in studies.items()
    )


def _table(run: Facts) -> str:
    rows = []
    for unit, curve in UNITS.items():
        removal, ratio = _peaks(run, curve), _ratios(run, curve)
        order = " > ".join(sorted(removal, key=lambda k: -removal[k]))
        rows.append([unit, order, *(f"{r:.2g}" for r in ratio.values())])
    titles = (f"{k}: harm / removal" for k in run.ran())
    return table(["unit", "order by peak removal", *titles], rows)


def survivors(run: Facts) -> str:
    """The comparisons that come out the same in every unit, in words."""
    peaks = [_peaks(run, curve) for curve in UNITS.values()]
    ratios = [_ratios(run, curve) for curve in UNITS.values()]
    pairs = list(itertools.combinations(run.ran(), 2))
    same = [
        f"{a} > {b}" if peaks[0][a] > peaks[0][b] else f"{b} > {a}"
        for a, b in pairs
        if len({p[a] > p[b] for p in peaks}) == 1
    ]
    sides = [k for k in run.ran() if len({r[k] > 1 for r in ratios}) == 1]
    return (
        f"{len(same)} of {len(pairs)} comparisons of peak removal are the same in all units"
        f" ({'; '.join(same) or 'none'}); harm and removal stand in the same order in all units"
        f" for {', '.join(sides) or 'none'}."
    )


def _peaks(run: Facts, curve: Curve) -> dict[str, float]:
    """The largest removal of every method: minus the effect on D_u, 0 where it never removes."""
    return {label: _most(curve(run, name, "unlearn")) for label, name in run.ran().items()}


def _ratios(run: Facts, curve: Curve) -> dict[str, float]:
    """The magnitude of the peak on D_r over that on D_u."""
    return {
        label: abs(peak(curve(run, name, "retain"))) / abs(peak(curve(run, name, "unlearn")))
        for label, name in run.ran().items()
    }


def _most(values: np.ndarray) -> float:
    return max(0.0, float(-np.nanmin(values)))
