"""The TOFU metrics: how much is forgotten and retained (Maini et al. 2024, arXiv 2401.06121).

Pure functions of arrays, in float64. An answer's loss `a` is its mean NLL over its label tokens,
EOS included, and P = exp(-a), so P is the geometric mean of its tokens' probabilities.

The truth ratio of an item compares wrong answers with the true one, paraphrased (on real authors
and world facts: as it is): tr = P_wrong / P_true. Over several wrong answers TOFU's paper takes the
arithmetic mean of P_wrong; the published numbers, OpenUnlearning and our default take the geometric
mean, tr = exp(a_true - mean_j a_wrong_j). Everything is computed from log tr, which a collapsed
model, of hundreds of nats per token, neither overflows nor turns into ties.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from jaxunlearn.metrics.definitions import Definition, metric_row, missing_row
from jaxunlearn.metrics.ks import KsTest, ks_test
from jaxunlearn.metrics.tofu_log import NORMALISED, SetLog

Mean = Literal["geometric", "arithmetic"]

UTILITY_SETS = ("retain", "real_authors", "world_facts")
MEASURES = ("probability", "rouge", "truth_ratio")
PARTS = tuple(f"{name}.{measure}" for name in UTILITY_SETS for measure in MEASURES)

_MEANINGS = {
    "truth_ratio.forget": "mean of min(tr, 1/tr)",
    "truth_ratio.utility": "mean of max(0, 1 - tr)",
    "model_utility": "harmonic mean of the nine parts, all on all items",
    "partial_utility": "harmonic mean of those of the nine parts that are named, not TOFU's",
    "forget_quality": "exact two-sample KS p-value of tr against the retain model's",
    "ks_distance": "two-sample KS statistic of tr against the retain model's",
}
DEFINITIONS = {
    "probability": Definition("probability", 1, "mean of exp(-a)"),
    "probability.normalised": Definition("probability.normalised", 1, "mean of P / (P + P_wrong)"),
    "rouge.rougeL_recall": Definition("rouge.rougeL_recall", 1, "mean ROUGE-L recall, stemmed"),
} | {
    f"{name}.{mean}": Definition(f"{name}.{mean}", 1, meaning)
    for name, meaning in _MEANINGS.items()
    for mean in get_args(Mean)
}


def probability(loss: np.ndarray) -> np.ndarray:
    """P = exp(-a), per item.

    Args:
      loss: [n] mean NLL of each answer, nats per token.

    Returns:
      [n] float64.

    Raises:
      ValueError: a loss is NaN.

    >>> probability(np.array([0.0, np.log(4)])).tolist()
    [1.0, 0.25]
    """
    return np.exp(-_losses(loss))


def normalised_probability(loss: np.ndarray, wrong_loss: np.ndarray) -> np.ndarray:
    """P / (P + sum_j P_wrong_j), per item: the share of the true answer among all answers.

    Args:
      loss: [n] mean NLL of each true answer, nats per token.
      wrong_loss: [n, k] mean NLL of its wrong answers.

    Returns:
      [n] float64; 1 / (1 + k) where all are equally probable.

    Raises:
      ValueError: a loss is NaN, or all losses of an item are infinite.

    >>> normalised_probability(np.zeros(1), np.zeros((1, 3))).tolist()
    [0.25]
    """
    logp = -np.concatenate([_losses(loss)[:, None], _losses(wrong_loss)], axis=1)
    largest = logp.max(axis=1, keepdims=True)
    if np.isneginf(largest).any():
        item = int(np.argmax(np.isneginf(largest)))
        raise ValueError(f"item {item}: every answer's loss is infinite; nothing to normalise by")
    share = np.exp(logp - largest)
    return share[:, 0] / share.sum(axis=1)


def log_truth_ratio(
    true_loss: np.ndarray, wrong_loss: np.ndarray, *, mean: Mean = "geometric"
) -> np.ndarray:
    """log tr = log(P_wrong / P_true), per item; above 0 where the wrong answers are more probable.

    Args:
      true_loss: [n] mean NLL of the true answer, nats per token: its paraphrase on the forget and
        retain sets, the answer itself on real authors and world facts.
      wrong_loss: [n, k] mean NLL of its wrong answers.
      mean: over the wrong answers' probabilities: "geometric" (the published numbers) or
        "arithmetic" (the paper's text).

    Returns:
      [n] float64, nats.

    Raises:
      ValueError: an unknown mean, other shapes, a NaN, or losses that are infinite on both sides of
        an item.

    >>> tr = log_truth_ratio(np.log([4.0]), np.log([[2.0, 8.0]]))
    >>> f"{np.exp(tr[0]):.4f}"
    '1.0000'
    >>> f"{np.exp(log_truth_ratio(np.log([4.0]), np.log([[2.0, 8.0]]), mean='arithmetic')[0]):.4f}"
    '1.2500'
    """
    true, wrong = _losses(true_loss), _losses(wrong_loss)
    # Otherwise NumPy would compare every item with every other one.
    if true.ndim != 1 or wrong.ndim != 2 or len(wrong) != len(true) or not wrong.shape[1]:
        raise ValueError(
            f"true_loss {true.shape} and wrong_loss {wrong.shape}: expected [n] and [n, k], k >= 1"
        )
    if mean == "geometric":
        wrong_logp = -wrong.mean(axis=1)
    elif mean == "arithmetic":
        wrong_logp = np.logaddexp.reduce(-wrong, axis=1) - np.log(wrong.shape[1])
    else:
        raise ValueError(f"mean={mean!r}: expected 'geometric' or 'arithmetic'")
    undefined = np.isinf(true) & np.isinf(wrong_logp)
    if undefined.any():
        raise ValueError(
            f"item {int(np.argmax(undefined))}: the losses of the true and of the wrong answers are"
            " infinite; their ratio is undefined"
        )
    return true + wrong_logp


def forget_truth_ratio(log_ratio: np.ndarray) -> float:
    """mean min(tr, 1/tr): 1 where wrong and true answers are equally probable (forget sets).

    >>> f"{forget_truth_ratio(np.log([0.5, 2.0, 1.0])):.4f}"
    '0.6667'
    """
    return float(np.exp(-np.abs(log_ratio)).mean())


def utility_truth_ratio(log_ratio: np.ndarray) -> float:
    """mean max(0, 1 - tr): 1 where wrong answers have no probability (all other sets).

    >>> f"{utility_truth_ratio(np.log([0.25, 2.0])):.4f}"
    '0.3750'
    """
    return float(-np.expm1(np.minimum(log_ratio, 0)).mean())


def model_utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean of the nine parts; 0 if any of them is.

    Args:
      parts: {"retain.probability": .., ..}, see `PARTS`; each in 0..1.

    Returns:
      The model utility, between the smallest and the largest part.

    Raises:
      ValueError: a part is missing, unknown, negative or NaN.

    >>> f"{model_utility(dict.fromkeys(PARTS, 0.6)):.4f}"
    '0.6000'
    """
    if missing := set(PARTS) - parts.keys():
        raise ValueError(f"model utility lacks {', '.join(sorted(missing))}")
    if unknown := parts.keys() - set(PARTS):
        raise ValueError(f"model utility has no part {', '.join(sorted(unknown))}; parts: {PARTS}")
    if bad := {name: value for name, value in parts.items() if not value >= 0}:
        raise ValueError(f"parts of model utility must be 0 or more, but {bad}")
    return _harmonic_mean(parts)


def forget_quality(log_ratio: np.ndarray, retain_log_ratio: np.ndarray) -> KsTest:
    """KS test of the forget set's truth ratios against those of a model that never saw it.

    The null hypothesis is that both come from one distribution, so a large p-value is good, and
    above 0.05 the two cannot be told apart. It depends on the number of items: compare p-values
    of equal n only, or the distance. The test depends on the order of the values alone, so log tr
    gives the same as tr.

    Args:
      log_ratio: [n] log tr of the unlearned model on the forget set.
      retain_log_ratio: [m] log tr of the retain model on the same set.

    Returns:
      KsTest(p_value, distance): the forget quality is the p-value.

    Raises:
      ValueError: a NaN, or no items.

    >>> forget_quality(np.arange(5.0), np.arange(5.0))
    KsTest(p_value=1.0, distance=0.0)
    """
    return ks_test(log_ratio, retain_log_ratio)


def set_metrics(name: str, log: SetLog, *, mean: Mean = "geometric") -> dict[str, float]:
    """The three measures of one set.

    Args:
      name: "forget", "retain", "real_authors" or "world_facts".
      log: of the set.
      mean: see `log_truth_ratio`.

    Returns:
      {"probability", "rouge", "truth_ratio"}; no "rouge" where no text was generated, and the mean
      over those that were.
    """
    if name in NORMALISED:
        likely = normalised_probability(log.answer_loss, log.perturbed_loss)
    else:
        likely = probability(log.answer_loss)
    log_ratio = log_truth_ratio(log.paraphrase_loss, log.perturbed_loss, mean=mean)
    ratio = forget_truth_ratio if name == "forget" else utility_truth_ratio
    measures = {"probability": float(likely.mean())}
    if generated := _generated(log):
        assert log.rougeL is not None
        measures["rouge"] = float(np.nansum(log.rougeL) / generated)
    return measures | {"truth_ratio": ratio(log_ratio)}


def table(
    log: Mapping[str, SetLog],
    retain_log: Mapping[str, SetLog] | None = None,
    *,
    mean: Mean = "geometric",
) -> list[dict[str, Any]]:
    """All metrics of a log, each with its definition's name and version.

    Args:
      log: of the model, from `tofu_log.read_log` or measured.
      retain_log: of a model that never saw the forget set; without it there is no forget quality.
      mean: see `log_truth_ratio`.

    Returns:
      Rows {"metric", "set", "value", "definition", "version"}: those of each set with "items", the
      number they are a mean over; then `model_utility`, or `partial_utility` where a set or some
      of its texts are missing, with the "parts" it is the mean of; then `forget_quality` and
      `ks_distance` where there is a retain log. What cannot be computed has no row.

    Raises:
      ValueError: a retain log, but one of the two logs lacks the forget set, or their forget sets
        differ in size.
    """
    measures = {name: set_metrics(name, set_log, mean=mean) for name, set_log in log.items()}
    rows = [
        metric_row(measure, name, value, DEFINITIONS[_definition(measure, name, mean)], items=items)
        for name, values in measures.items()
        for measure, value in values.items()
        for items in [_generated(log[name]) if measure == "rouge" else len(log[name].answer_loss)]
    ]
    rows += _utility_rows(measures, log, mean)
    if retain_log is not None:
        quality = _forget_quality(log, retain_log, mean)
        for metric, value in zip(("forget_quality", "ks_distance"), quality, strict=True):
            rows.append(metric_row(metric, "forget", value, DEFINITIONS[f"{metric}.{mean}"]))
    return rows


def missing_rows(name: str, reason: str, *, mean: Mean = "geometric") -> list[dict[str, Any]]:
    """The rows of the measures of a set that the data lack.

    Args:
      name: the set, as in `set_metrics`.
      reason: why it is not there.
      mean: see `log_truth_ratio`.
    """
    return [
        missing_row(measure, name, reason, DEFINITIONS[_definition(measure, name, mean)])
        for measure in ("probability", "rouge", "truth_ratio")
    ]


def _utility_rows(
    measures: Mapping[str, Mapping[str, float]], log: Mapping[str, SetLog], mean: Mean
) -> list[dict[str, Any]]:
    """The row of the model utility, or of the partial utility where something is missing."""
    sets = [name for name in UTILITY_SETS if name in measures]
    parts = {f"{n}.{m}": value for n in sets for m, value in measures[n].items()}
    if not parts:
        return []
    whole = all(_generated(log[name]) == len(log[name].answer_loss) for name in sets)
    whole = whole and len(sets) == len(UTILITY_SETS)
    name = "model_utility" if whole else "partial_utility"
    value = (model_utility if whole else _harmonic_mean)(parts)
    return [
        metric_row(name, "+".join(sets), value, DEFINITIONS[f"{name}.{mean}"], parts=list(parts))
    ]


def _harmonic_mean(parts: Mapping[str, float]) -> float:
    """The harmonic mean; 0 if any of the parts is 0."""
    values = np.array(list(parts.values()), np.float64)
    return 0.0 if values.min() == 0 else float(len(values) / np.sum(1 / values))


def _generated(log: SetLog) -> int:
    """The number of items whose text was generated."""
    return 0 if log.rougeL is None else int(np.isfinite(log.rougeL).sum())


def _definition(measure: str, name: str, mean: Mean) -> str:
    """The name of the definition of a measure of a set."""
    if measure == "truth_ratio":
        return f"truth_ratio.{'forget' if name == 'forget' else 'utility'}.{mean}"
    if measure == "rouge":
        return "rouge.rougeL_recall"
    return "probability.normalised" if name in NORMALISED else "probability"


def _forget_quality(
    log: Mapping[str, SetLog], retain_log: Mapping[str, SetLog], mean: Mean
) -> KsTest:
    for which, sets in (("model", log), ("retain model", retain_log)):
        if "forget" not in sets:
            raise ValueError(f"the {which}'s log lacks the set 'forget'; it has {', '.join(sets)}")
    own, other = log["forget"], retain_log["forget"]
    shapes = [np.shape(sets.perturbed_loss) for sets in (own, other)]
    if shapes[0] != shapes[1]:
        items = [f"{n} items with {k} wrong answers" for n, k in shapes]
        raise ValueError(
            f"the set 'forget' has {items[0]}, in the retain model's log {items[1]}: the logs are"
            " of different forget sets"
        )
    return forget_quality(
        *(log_truth_ratio(s.paraphrase_loss, s.perturbed_loss, mean=mean) for s in (own, other))
    )


def _losses(loss: np.ndarray) -> np.ndarray:
    """Losses in float64, none of them NaN."""
    loss = np.asarray(loss, np.float64)
    if np.isnan(loss).any():
        raise ValueError(f"item {int(np.argwhere(np.isnan(loss))[0, 0])}: a loss is NaN")
    return loss
