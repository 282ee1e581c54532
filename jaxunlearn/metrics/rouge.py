"""ROUGE of texts against references, by the `rouge-score` package."""

import re
from collections.abc import Sequence

import numpy as np

from jaxunlearn.core.extras import Extra

NO_WORDS = "no reference has a word that ROUGE counts, of letters a-z and digits"
"""Why there is no ROUGE of texts in another script."""


def rouge(
    generated: Sequence[str], references: Sequence[str], *, stem: bool = True
) -> dict[str, np.ndarray]:
    """ROUGE-1 and ROUGE-L of every text against its own reference.

    Recall is the share of the reference's words that the text contains (ROUGE-L: in order), F1 the
    harmonic mean of recall and precision. Recall alone does not punish an answer that never ends,
    as an untrained or broken model's does not. Words are runs of a-z and 0-9 in lower case: where
    a reference in another script has none, nothing can be said of any text.

    Args:
      generated: the texts of the model.
      references: the true texts, one for each.
      stem: compare words by their Porter stems, as TOFU and OpenUnlearning do; MUSE does not.

    Returns:
      {"rouge1_recall", "rougeL_recall", "rougeL_f1"}, each [n] float64 in 0..1, NaN where the
      reference has no word.

    Raises:
      ValueError: not as many texts as references.
      ModuleNotFoundError: `rouge-score` is not installed; names the extra.

    >>> scores = rouge(["She was born in Lima."], ["Born in Lima, she writes."])
    >>> [f"{values[0]:.2f}" for values in scores.values()]
    ['0.80', '0.60', '0.60']
    """
    with Extra("evaluate"):
        from rouge_score.rouge_scorer import RougeScorer

    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} texts, but {len(references)} references")
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)
    scores = [scorer.score(r, g) for r, g in zip(references, generated, strict=True)]
    each = {
        "rouge1_recall": [score["rouge1"].recall for score in scores],
        "rougeL_recall": [score["rougeL"].recall for score in scores],
        "rougeL_f1": [score["rougeL"].fmeasure for score in scores],
    }
    words = np.array([re.search("[a-z0-9]", text.lower()) is not None for text in references], bool)
    return {
        name: np.where(words, np.array(values, np.float64), np.nan) for name, values in each.items()
    }
