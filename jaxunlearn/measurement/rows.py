"""Makes the rows of a run's tables from measurements; `record.tables` lists the columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.data.packing import unpack
from jaxunlearn.measurement.statistics import Statistics
from jaxunlearn.objectives import Objective
from jaxunlearn.record.tables import TableRows
from jaxunlearn.training.batch import Split

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def g_effect_rows(risk: str, effect: effects.GEffect, risk_value: float, **common) -> TableRows:
    """Rows of the table `g_effect` of one risk: every layer and the total.

    Args:
      risk: "unlearn" or "retain".
      effect: the G-effect by layer; its cosine and the risk's norm may be unknown.
      risk_value: R(theta).
      **common: further columns, the same in all rows.
    """
    total = effect.total()
    names = [*(effect.rows or ()), "total"]
    columns = {
        "layer": names,
        "value": _column(effect.value, total.value, len(names)),
        "cosine": _column(effect.cosine, total.cosine, len(names)),
        "risk_norm": _column(effect.risk_norm, total.risk_norm, len(names)),
        "objective_norm": _column(effect.direction_norm, total.direction_norm, len(names)),
    }
    cells = zip(*columns.values(), strict=True)
    rows = [{"risk": risk, **common, **dict(zip(columns, row, strict=True))} for row in cells]
    rows[-1]["risk_value"] = risk_value
    return rows


def sample_weights(
    objective: Objective,
    stats: Statistics,
    base: Statistics,
    guide: np.ndarray | None = None,
) -> np.ndarray | None:
    """The weights that an objective gives the forget samples or their tokens.

    Args:
      objective: the objective.
      stats: of D_u at theta.
      base: of D_u before unlearning.
      guide: [n, S], the weights that a guided loss takes.

    Returns:
      [n] or [n, S], or None where the objective is no weighted likelihood.
    """
    if objective.weight is None:
        return None
    arrays = {"logp": stats.logp, "ref_logp": base.logp, "mask": stats.mask, "guide": guide}
    names = objective.arrays
    return np.asarray(objective.weight(**{name: jnp.asarray(arrays[name]) for name in names}))


def sample_rows(split: str, stats: Statistics, weights: np.ndarray | None = None) -> TableRows:
    """Rows of the table `samples`."""
    weight = _by_sample_weight(weights, stats.mask)
    strength, logp = stats.extraction_strength, stats.logp.sum(-1, dtype=np.float64)
    return [
        {
            "split": split,
            "sample": i,
            "log_prob": float(logp[i]),
            "tokens": int(stats.tokens[i]),
            "extraction_strength": float(strength[i]),
            "weight": weight[i],
        }
        for i in range(len(logp))
    ]


def confidence_rows(stats: Statistics) -> TableRows:
    """Rows of the table `confidence`: log10 of the mean and of quantiles of 1/p over the labels."""
    inverse = -stats.logp[stats.mask].astype(np.float64) / np.log(10)
    largest = inverse.max()  # the mean of 1/p overflows long before its logarithm does
    mean = largest
    if np.isfinite(largest):
        mean += np.log10(np.mean(10.0 ** (inverse - largest)))
    values = {"mean": mean} | {n: np.quantile(inverse, q) for n, q in QUANTILES.items()}
    return [{"statistic": n, "log10_inverse": float(v)} for n, v in values.items()]


def pg_rows(
    values: Mapping[str, np.ndarray],
    layers: Sequence[str],
    weights: np.ndarray | None,
    mask: np.ndarray,
    **common,
) -> TableRows:
    """Rows of the table `pg_effect`.

    Args:
      values: {risk: [n, len(layers)]} PG-effects of the samples.
      layers: the name of each column: a layer, a tensor, or "total".
      weights: from `sample_weights`.
      mask: [n, S] of the labels.
      **common: further columns.
    """
    weight = _by_sample_weight(weights, mask)
    return [
        common | {"sample": i, "layer": layer, "risk": risk, "value": float(v), "weight": weight[i]}
        for risk, table in values.items()
        for i, row in enumerate(table)
        for layer, v in zip(layers, row, strict=True)
    ]


def token_rows(
    values: Mapping[str, np.ndarray],
    split: Split,
    weights: np.ndarray | None,
    mask: np.ndarray,
    **common,
) -> TableRows:
    """Rows of the table `token_effect`: every label token of every sample.

    Args:
      values: {risk: [n, S]} PG-effects of the label tokens.
      split: D_u, whose label tokens are named.
      weights, mask, common: as in `pg_rows`; a weight by sample counts for each of its tokens.
    """
    by_token = weights if weights is not None and weights.ndim == 2 else None
    weight = _by_sample_weight(weights, mask)
    return [
        common
        | place
        | {
            "risk": risk,
            "value": float(table[i, t]),
            "weight": weight[i] if by_token is None else float(by_token[i, t]),
        }
        for risk, table in values.items()
        for (i, t), place in token_places(split, mask)
    ]


def token_places(
    split: Split, mask: np.ndarray
) -> Iterator[tuple[tuple[int, int], dict[str, int]]]:
    """The columns that say which label token a row is of.

    Args:
      split: the set.
      mask: [n, S] of its labels.

    Yields:
      ((i, t), {"sample", "position", "token"}), sample by sample.
    """
    labels = split.by_sample([np.asarray(unpack(p.label_tokens, p)) for p in split.packed])
    for i, t in zip(*np.nonzero(mask), strict=True):
        yield (i, t), {"sample": int(i), "position": int(t), "token": int(labels[i, t])}


def _column(by_layer: Any, total: Any, length: int) -> list[float | None]:
    """A column of `g_effect`, None throughout where the quantity is unknown."""
    if by_layer is None:
        return [None] * length
    return list(map(float, np.append(trees.on_host(by_layer), trees.on_host(total))))


def _by_sample_weight(weights: np.ndarray | None, mask: np.ndarray) -> list[float | None]:
    """One weight a sample; a token weight is averaged over the labels."""
    if weights is None:
        return [None] * len(mask)
    if weights.ndim == 2:
        return list(weights.sum(-1) / np.maximum(mask.sum(-1), 1))
    return list(weights)
