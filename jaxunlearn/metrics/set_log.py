"""The results of a model on one set of TOFU, as logs of any format hold them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold; losses may be infinite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class SetLog:
    """The results of a model on one set of n items with k wrong answers each.

    Attributes:
      answer_loss: [n] mean NLL of the answer, nats per token.
      paraphrase_loss: [n] the same of its paraphrase (of the answer where the set has none).
      perturbed_loss: [n, k] the same of the wrong answers.
      rougeL: [n] ROUGE-L recall of the generated text, NaN where there is none; None where no text
        was generated, and so with the fields that follow where they are not recorded.
      rouge1: [n] the same by ROUGE-1.
      answer_tokens: [n] label tokens of the answer.
      paraphrase_tokens: [n] the same of the paraphrase.
      perturbed_tokens: [n, k] the same of the wrong answers.
      texts: n (prompt, generated text, answer), None where there is no text.
    """

    answer_loss: np.ndarray
    paraphrase_loss: np.ndarray
    perturbed_loss: np.ndarray
    rougeL: np.ndarray | None = None
    rouge1: np.ndarray | None = None
    answer_tokens: np.ndarray | None = None
    paraphrase_tokens: np.ndarray | None = None
    perturbed_tokens: np.ndarray | None = None
    texts: list[tuple[str, str, str] | None] | None = None
