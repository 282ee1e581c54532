"""Membership inference: scores of how likely a text was in the training data.

Every score is **larger for a text that looks more like a member**. With n label tokens, log p_i of
the i-th, and a = -mean log p_i:

| attack | score | reference |
|---|---|---|
| `loss` | -a | Yeom et al. 2018 |
| `zlib` | -a / bytes of the text compressed by zlib | Carlini et al. 2021 |
| `min_k` | mean of the lowest max(1, floor(k n)) of log p_i | Shi et al. 2023, 2310.16789 |
| `min_k_plus_plus` | the same of (log p_i - mu_i) / sigma_i | Zhang et al. 2024, 2404.02936 |
| `min_k_no_eos`, `min_k_plus_plus_no_eos` | both without the last label | OpenUnlearning |
| `reference` | a under the reference model - a | Carlini et al. 2021 |
| `gradient_norm` | -norm of the gradient of a | 2402.17012 |
| `gradient_norm_tensors` | -mean of its tensors' norms, a without the last label | OpenUnlearning |

mu_i and sigma_i are the mean and standard deviation of log p(v) over v ~ p, the model's own
prediction at the position (`label_moments`).

OpenUnlearning's attacks return the opposite of these scores and call the texts held out positive,
so its AUC is ours. Its min-k, min-k++ and gradient norm leave EOS out, which is the last label, and
the latter is a mean over tensors: those attacks are here under names of their own. Early versions
had the score of the gradient norm the wrong way round.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxunlearn import effects
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree

SHARE = 0.4
"""The share of a text's tokens that min-k and min-k++ average over."""
LEAST_SIGMA = 1e-3
"""Smaller values of sigma are replaced by this one, as in OpenUnlearning."""


def loss_score(logp: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """-mean NLL; larger is more like a member.

    Args:
      logp: [n, S] log p of the labels.
      mask: [n, S] bool, True on labels.

    Returns:
      [n] float64, nats per token.

    Raises:
      ValueError: a text without labels.

    >>> loss_score(np.array([[-1.0, -3.0, 0.0]]), np.array([[True, True, False]])).tolist()
    [-2.0]
    """
    return np.where(mask, logp, 0).sum(-1, dtype=np.float64) / _tokens(mask)


def zlib_score(logp: np.ndarray, mask: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """-mean NLL per byte of the compressed text; larger is more like a member.

    Args:
      logp: [n, S].
      mask: [n, S] bool.
      texts: the n texts that the labels spell, without special tokens.

    Returns:
      [n] float64.
    """
    sizes = [len(zlib.compress(text.encode("utf-8"))) for text in texts]
    if len(sizes) != len(logp):
        raise ValueError(f"{len(sizes)} texts, but log-probabilities of {len(logp)}")
    return loss_score(logp, mask) / np.array(sizes)


def min_k_score(logp: np.ndarray, mask: np.ndarray, *, k: float = SHARE) -> np.ndarray:
    """Mean of the lowest log p; larger is more like a member.

    Args:
      logp: [n, S].
      mask: [n, S] bool.
      k: the share of the labels that counts, at least one label.

    Returns:
      [n] float64.

    Raises:
      ValueError: k outside 0..1, or a text without labels.

    >>> min_k_score(np.array([[-1.0, -4.0, -2.0, -0.5]]), np.ones((1, 4), bool), k=0.5).tolist()
    [-3.0]
    """
    if not 0 < k <= 1:
        raise ValueError(f"k={k} must be in (0, 1]")
    count = np.maximum((_tokens(mask) * k).astype(int), 1)
    lowest = np.sort(np.where(mask, np.asarray(logp, np.float64), np.inf), axis=1)
    counts = np.arange(lowest.shape[1]) < count[:, None]
    scores = np.where(counts, lowest, 0).sum(-1) / count
    # NaN sorts behind what fills the rows up, and would not count.
    return np.where(np.isnan(lowest).any(-1), np.nan, scores)


def min_k_plus_plus_score(
    logp: np.ndarray,
    mu: np.ndarray,
    sigma: np.ndarray,
    mask: np.ndarray,
    *,
    k: float = SHARE,
) -> np.ndarray:
    """Mean of the lowest (log p - mu) / sigma; larger is more like a member.

    Args:
      logp, mu, sigma: [n, S], from `label_moments`; sigma counts as 1e-3 where it is smaller.
      mask: [n, S] bool.
      k: as in `min_k_score`.

    Returns:
      [n] float64, in standard deviations.
    """
    # Off the labels sigma is 0 and log p is arbitrary: neither must reach a division.
    logp, mu, sigma = (np.where(mask, x, 0).astype(np.float64) for x in (logp, mu, sigma))
    return min_k_score((logp - mu) / np.maximum(sigma, LEAST_SIGMA), mask, k=k)


def reference_score(logp: np.ndarray, ref_logp: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The reference model's mean NLL minus the model's; larger is more like a member.

    Args:
      logp: [n, S].
      ref_logp: [n, S], of a model that saw none of the texts.
      mask: [n, S] bool.

    Returns:
      [n] float64, nats per token.

    Raises:
      ValueError: shapes that differ, or a text without labels.
    """
    if np.shape(ref_logp) != np.shape(logp):
        raise ValueError(f"logp {np.shape(logp)} and ref_logp {np.shape(ref_logp)} differ")
    return loss_score(logp, mask) - loss_score(ref_logp, mask)


def gradient_norm_score(norms: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """-norm of the gradient of the mean NLL; larger is more like a member.

    Args:
      norms: [n] norms of grad log p(s), of the sum over labels: from `gradient_norms`.
      mask: [n, S] bool.

    Returns:
      [n] float64.

    Raises:
      ValueError: not one norm a text, or a text without labels.
    """
    tokens = _tokens(mask)
    if np.shape(norms) != tokens.shape:
        raise ValueError(f"norms {np.shape(norms)}: expected one a text, {tokens.shape}")
    return -np.asarray(norms, np.float64) / tokens


def without_last_label(mask: Any) -> Any:
    """[n, S] bool, True on all labels of each text but the last, which is EOS at an answer's end.

    >>> without_last_label(np.array([[False, True, True, False], [False, True, False, False]]))
    array([[False,  True, False, False],
           [False, False, False, False]])
    """
    return mask & (mask.cumsum(-1) < mask.sum(-1, keepdims=True))


def gradient_norms(
    sample_logp_fn: Callable[..., jax.Array],
    params: Tree,
    batches: Iterable[Any],
    *,
    tensors: effects.Grouping | None = None,
    microbatch: int = 8,
) -> np.ndarray:
    """The norm of grad log p(s) of every sample.

    Args:
      sample_logp_fn: (params, batch) -> [B] or [B, S] log-probabilities, 0 where there is no label.
        It is a static argument of a compiled function: pass the same object again to reuse the
        compilation.
      params: any pytree; leaves that are of no floating type, such as counters, stay as they are.
      batches: pytrees of one static shape, one sequence a row (every leaf's leading axis is the
        sample's).
      tensors: which leaves are stacks of layers: then the result is the mean over tensors of the
        norm of each, a stack having one a layer. None: the norm of all parameters together.
      microbatch: gradients held at a time; memory is microbatch x parameters.

    Returns:
      [n] float32 over all rows of all batches, in order; 0 for an empty row.

    Raises:
      ValueError: no batches, or a row that holds several sequences.
      TypeError: one batch in place of several.
    """
    if isinstance(batches, Mapping):
        raise TypeError("gradient_norms: batches is one batch; pass a list of batches")
    norms = [
        trees.on_host(
            _norms(params, batch, fn=sample_logp_fn, tensors=tensors, microbatch=microbatch)
        )
        for batch in batches
    ]
    if not norms:
        raise ValueError("gradient_norms needs at least one batch, got none")
    return np.concatenate(norms)


def scores(
    logp: np.ndarray,
    mask: np.ndarray,
    *,
    texts: Sequence[str] | None = None,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
    ref_logp: np.ndarray | None = None,
    norms: np.ndarray | None = None,
    tensor_norms: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The scores of all attacks whose inputs are given.

    Args:
      logp: [n, S] log p of the labels.
      mask: [n, S] bool.
      texts: for `zlib`.
      moments: (mu, sigma), each [n, S], for `min_k_plus_plus`.
      ref_logp: [n, S], for `reference`.
      norms: [n], for `gradient_norm`.
      tensor_norms: [n], for `gradient_norm_tensors`: means over tensors, of the labels but the
        last, see `gradient_norms` and `without_last_label`.

    Returns:
      {attack: [n] float64}.
    """
    by_attack = {"loss": loss_score(logp, mask), "min_k": min_k_score(logp, mask)}
    by_attack["min_k_no_eos"] = _without_last(partial(min_k_score, logp), mask)
    if texts is not None:
        by_attack["zlib"] = zlib_score(logp, mask, texts)
    if moments is not None:
        plus_plus = partial(min_k_plus_plus_score, logp, *moments)
        by_attack["min_k_plus_plus"] = plus_plus(mask)
        by_attack["min_k_plus_plus_no_eos"] = _without_last(plus_plus, mask)
    if ref_logp is not None:
        by_attack["reference"] = reference_score(logp, ref_logp, mask)
    if norms is not None:
        by_attack["gradient_norm"] = gradient_norm_score(norms, mask)
    if tensor_norms is not None:
        of_norms = partial(gradient_norm_score, tensor_norms)
        by_attack["gradient_norm_tensors"] = _without_last(of_norms, mask)
    return by_attack


def _without_last(score: Callable[[np.ndarray], np.ndarray], mask: np.ndarray) -> np.ndarray:
    """[n] the score of a mask without the last labels; 0 for a text that has no other label."""
    rest = without_last_label(mask)
    others = rest.any(-1)
    # A score refuses a text without labels: such a one is scored whole, and its number not used.
    return np.where(others, score(np.where(others[:, None], rest, mask)), 0)


@partial(jax.jit, static_argnames=("fn", "tensors", "microbatch"))
def _norms(params, batch, *, fn, tensors, microbatch):
    trainable, frozen = effects.partition(params)

    def norm_of(example):
        example = jax.tree.map(lambda x: x[None], example)
        rows = jax.eval_shape(fn, params, example).shape[0]
        if rows != 1:
            raise ValueError(
                f"gradient_norms needs one sequence a row, but a row holds {rows}; pack one "
                "sequence a row"
            )
        logp = lambda p: trees.wide(fn(effects.combine(p, frozen), example)).sum()
        gradient = jax.grad(logp)(trainable)
        if tensors is None:
            return trees.norm(gradient)
        rows = effects.g_effect_between(gradient, gradient, by="tensor", grouping=tensors)
        return rows.direction_norm.mean()

    return jax.lax.map(norm_of, batch, batch_size=microbatch)


def _tokens(mask: np.ndarray) -> np.ndarray:
    """[n] the number of labels of each text; raises where it is 0."""
    tokens = np.asarray(mask).sum(-1)
    if not tokens.all():
        raise ValueError(
            f"text {int(np.argmin(tokens))} has no labels, hence no score; leave it out"
        )
    return tokens
