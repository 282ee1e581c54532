"""Reads the evaluation logs of OpenUnlearning, `TOFU_EVAL.json`.

A log is {metric: {"agg_value": number, "value_by_index": {index of an item: {..}}}}, as the code of
locuslab/open-unlearning at commit d3d7cf9 (23 December 2025) writes it. Of the metrics of a set
these hold losses, the mean NLL of an answer in nats per token, EOS included:

| metric | an item is | of |
|---|---|---|
| `SET_Q_A_Prob` | {"avg_loss": number, "prob"} | the answer |
| `SET_Q_A_PARA_Prob` | the same | its paraphrase; forget and retain alone |
| `SET_Q_A_PERT_Prob` | {"avg_loss": [numbers], "prob"} | the wrong answers |
| `SET_Q_A_ROUGE` | {"rouge1_recall", "rougeL_recall", ..} | the generated text |

SET is forget, retain, ra (real authors) or wf (world facts). Its metrics `SET_truth_ratio` are
computed from these losses, and so they are not read.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import numpy as np

from jaxunlearn.core import typed
from jaxunlearn.metrics.set_log import SetLog, is_number

FILE = "TOFU_EVAL.json"
SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
"""OpenUnlearning's names of the sets."""
PARAPHRASED = ("forget", "retain")
"""Sets whose answers have a paraphrase."""
ANSWER, PARAPHRASE, WRONG, ROUGE = (
    "{}_Q_A_Prob",
    "{}_Q_A_PARA_Prob",
    "{}_Q_A_PERT_Prob",
    "{}_Q_A_ROUGE",
)
_VALUES = "value_by_index"


class _Metric(TypedDict):
    """A metric, as far as it is read."""

    value_by_index: NotRequired[dict[str, dict[str, Any]]]


class _Recall(TypedDict):
    """The scores of a generated text, as far as they are read."""

    rougeL_recall: NotRequired[float]
    rouge1_recall: NotRequired[float]


def is_log(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object is such a log: some entry has one of the two keys of a metric."""
    return any(
        isinstance(entry, dict) and entry.keys() & {_VALUES, "agg_value"}
        for entry in document.values()
    )


def read(document: Mapping[str, Any], where: str) -> dict[str, SetLog]:
    """Reads a log.

    Args:
      document: the JSON object.
      where: its file, for messages.

    Returns:
      {"forget", "retain", "real_authors", "world_facts": SetLog}, the sets with the losses of all
      answers, items in the order of their indices.

    Raises:
      ValueError: no set has all its losses, or a bad entry; names the metric and the index.
    """
    logs, lacking = {}, []
    for name, short in SETS.items():
        needed = [ANSWER, *([PARAPHRASE] if name in PARAPHRASED else []), WRONG]
        absent = [key for form in needed if (key := form.format(short)) not in document]
        lacking += absent
        if not absent:
            logs[name] = _read_set(document, name, where)
    if not logs:
        raise ValueError(
            f"{where}: a log of OpenUnlearning that lacks {', '.join(lacking[:3])}; evaluate with"
            " forget_quality, which writes them"
        )
    return logs


def _read_set(document: Mapping[str, Any], name: str, where: str) -> SetLog:
    short = SETS[name]
    answers = _items(document, ANSWER.format(short), where)
    paraphrases = answers
    if name in PARAPHRASED:
        paraphrases = _items(document, PARAPHRASE.format(short), where)
    wrong = _items(document, WRONG.format(short), where)
    for form, items in ((PARAPHRASE, paraphrases), (WRONG, wrong)):
        if odd := answers.keys() ^ items.keys():
            raise ValueError(
                f"{where}: {ANSWER.format(short)} and {form.format(short)} have different items:"
                f" index {min(odd)} is in one of them alone"
            )
    widths = {len(losses) for losses in wrong.values()}
    if len(widths) != 1:
        raise ValueError(f"{where}: {WRONG.format(short)}: expected equally many answers, {widths}")
    indices = sorted(answers)
    column = lambda items: np.array([items[i] for i in indices], np.float64)
    scores = _scores(document, ROUGE.format(short), where)
    for index, entry in scores.items():
        typed.check(entry, _Recall, f"{where}: {ROUGE.format(short)}: index {index}")
    recall = lambda key: np.array([scores.get(i, {}).get(key, np.nan) for i in indices], np.float64)
    return SetLog(
        answer_loss=column(answers).mean(-1),
        paraphrase_loss=column(paraphrases).mean(-1),
        perturbed_loss=column(wrong),
        rougeL=recall("rougeL_recall") if scores else None,
        rouge1=recall("rouge1_recall") if scores else None,
    )


def _items(document: Mapping[str, Any], metric: str, where: str) -> dict[int, list[float]]:
    """{index: the losses of its answers} of a metric; one answer is a list of one."""
    found = {}
    for index, entry in _scores(document, metric, where).items():
        loss = entry.get("avg_loss")
        losses = loss if isinstance(loss, list) else [loss]
        if not losses or not all(is_number(value) for value in losses):
            raise ValueError(
                f"{where}: {metric}: index {index}: expected the number or numbers of avg_loss, got"
                f" {loss!r}"
            )
        found[index] = losses
    if not found:
        raise ValueError(f"{where}: {metric}: expected {_VALUES} with an entry for every item")
    return found


def _scores(document: Mapping[str, Any], metric: str, where: str) -> dict[int, dict[str, Any]]:
    """{index: entry} of a metric, empty where the log does not have it."""
    content = document.get(metric, {})
    typed.check(content, _Metric, f"{where}: {metric}")
    try:
        return {int(index): entry for index, entry in content.get(_VALUES, {}).items()}
    except ValueError as error:
        raise ValueError(
            f"{where}: {metric}: expected {_VALUES} {{'0': {{..}}, ..}}: {error}"
        ) from error
