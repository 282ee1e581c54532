"""What is measured at one theta, and the rows of tables it becomes."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import effects
from jaxunlearn.data.packing import Packed, unpack
from jaxunlearn.effects import layers, trees
from jaxunlearn.evaluate import memorization
from jaxunlearn.models import llama
from jaxunlearn.objectives import catalogue
from jaxunlearn.run import batches as batches_lib
from jaxunlearn.run.losses import Risk, RiskAndObjective, Term, TokenLogProbs
from jaxunlearn.run.offload import Offload

Tree = Any
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


class Split(NamedTuple):
    """A set of samples as batches, on the devices and on the host."""

    placed: list[Tree]  # what the model reads: {"packed": Packed, references}
    packed: list[Packed]  # numpy
    samples: int

    def by_sample(self, values: Sequence[Any]) -> np.ndarray:
        return batches_lib.by_sample(values, self.packed, self.samples)


class Statistics(NamedTuple):
    """Teacher-forced statistics of a set, by sample."""

    logp: np.ndarray  # [n, S] float32, 0 off the labels
    correct: np.ndarray  # [n, S] bool
    mask: np.ndarray  # [n, S] bool

    @property
    def tokens(self) -> np.ndarray:
        return self.mask.sum(-1)

    @property
    def nll(self) -> float:
        """Mean NLL over all label tokens, nats."""
        return float(-self.logp.sum(dtype=np.float64) / self.mask.sum())

    @property
    def extraction_strength(self) -> np.ndarray:
        return np.asarray(memorization.extraction_strength(self.correct, self.mask))

    @property
    def exact_memorization(self) -> np.ndarray:
        return np.asarray(memorization.exact_memorization(self.correct, self.mask))


class Measurement(NamedTuple):
    """What the unlearning split says at one theta."""

    risk: effects.Gradient  # R(D_u)
    objective: effects.Gradient  # L_u


def statistics(params: Tree, split: Split, model: llama.LlamaConfig) -> Statistics:
    """Log-probability and argmax of every label of a set."""
    found = [label_statistics(params, rows["packed"], model=model) for rows in split.placed]
    masks = [packed.mask.reshape(-1, packed.mask.shape[-1]) for packed in split.packed]
    logp, correct = (split.by_sample([f[i] for f in found]) for i in (0, 1))
    return Statistics(logp, correct.astype(bool), split.by_sample(masks))


def evaluate(
    params: Tree, splits: Mapping[str, Split], model: llama.LlamaConfig
) -> tuple[Statistics, Statistics]:
    """Statistics of D_u ("forget") and D_r ("retain")."""
    return (
        statistics(params, splits["forget"], model),
        statistics(params, splits["retain"], model),
    )


def retain_gradient(params: Tree, retain: Split, risk: Risk) -> effects.Gradient:
    """grad R(D_r)."""
    return effects.dataset_gradient(risk, params, retain.placed)


def measure(params: Tree, term: Term, paired: list[Tree]) -> Measurement:
    """grad R(D_u) and grad L_u(D_u) from one forward pass.

    Args:
      term: the objective.
      paired: batches of {"forget": rows, ..} over all of D_u.
    """
    found = effects.dataset_gradients(RiskAndObjective(term), params, paired)
    risk = found["risk"]
    return Measurement(risk, found["objective"] if "objective" in found else _negative(risk))


def g_effect_rows(
    name: str,
    risk: effects.Gradient,
    objective: effects.Gradient,
    reduction: str,
    lr: float,
) -> list[dict[str, Any]]:
    """Rows of the table `g_effect` of one risk: every layer and the total.

    Args:
      name: "unlearn" or "retain".
    """
    common = {"risk": name, "reduction": reduction, "estimator": "exact", "lr": lr}
    by_layer = effects.between(risk.direction, objective.direction)
    total = effects.between(risk.direction, objective.direction, by="total")
    columns = [
        np.append(trees.on_host(a), trees.on_host(b))
        for a, b in zip(by_layer[:4], total[:4], strict=True)
    ]
    keys = ("value", "cosine", "risk_norm", "objective_norm")
    rows = [
        common | {"layer": layer} | dict(zip(keys, map(float, numbers), strict=True))
        for layer, *numbers in zip([*(by_layer.rows or ()), "total"], *columns, strict=True)
    ]
    rows[-1]["risk_value"] = float(risk.value)
    return rows


def predicted(
    gradients: Mapping[str, effects.Gradient], new: Tree, old: Tree, offload: Offload
) -> dict[tuple[str, str], float]:
    """grad R(theta) . (new - old), by risk and layer: the first-order change of the risks.

    Args:
      gradients: of the risks at `old`, as they wait.
      new: parameters.
      old: parameters, as they wait; one tensor at a time comes back.
    """
    changes = {}
    for risk, gradient in gradients.items():
        values = trees.on_host(layers.to_rows(_moved_dots(gradient.direction, new, old, offload)))
        names = effects.layer_names(new)
        changes |= {(risk, name): float(v) for name, v in zip(names, values, strict=True)}
        changes[risk, "total"] = float(values.sum())
    return changes


def _moved_dots(gradient: Tree, new: Tree, old: Tree, offload: Offload) -> dict[str, jax.Array]:
    """{layer: gradient . (new - old)}, as `trees.dots`."""

    def one(key: str) -> jax.Array:
        leaves = zip(*(jax.tree.leaves(tree[key]) for tree in (gradient, new, old)), strict=True)
        keep = 1 if key in layers.STACKED else 0
        dots = [_moved_dot(offload.back(g), n, offload.back(o), keep=keep) for g, n, o in leaves]
        return jnp.sum(jnp.stack(dots), axis=0)

    return {key: one(key) for key in new}


def sample_weights(
    loss: catalogue.Objective,
    logp: np.ndarray,
    ref_logp: np.ndarray | None,
    mask: np.ndarray,
    guide: np.ndarray | None = None,
) -> np.ndarray | None:
    """The weights an objective gives its samples or tokens, by sample.

    Args:
      loss: the objective.
      logp: [n, S], as all that follow.
      ref_logp: of the reference.
      mask: of the labels.
      guide: weights that the loss is given, where it takes any.

    Returns:
      [n] or [n, S], or None where the objective is no weighted likelihood.
    """
    if loss.weight is None:
        return None
    given = {"logp": logp, "ref_logp": ref_logp, "mask": mask, "guide": guide}
    return np.asarray(loss.weight(**{name: jnp.asarray(given[name]) for name in loss.arrays}))


def sample_rows(
    split: str, found: Statistics, weights: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Rows of the table `samples`."""
    weight = _by_sample_weight(weights, found.mask)
    strength, logp = found.extraction_strength, found.logp.sum(-1, dtype=np.float64)
    return [
        {
            "split": split,
            "sample": i,
            "log_prob": float(logp[i]),
            "tokens": int(found.tokens[i]),
            "extraction_strength": float(strength[i]),
            "weight": weight[i],
        }
        for i in range(len(logp))
    ]


def confidence_rows(found: Statistics) -> list[dict[str, Any]]:
    """Rows of the table `confidence`: mean and quantiles of log10 (1/p) over the label tokens."""
    inverse = -found.logp[found.mask].astype(np.float64) / np.log(10)
    largest = inverse.max()  # the mean of 1/p overflows long before its logarithm does
    mean = largest + np.log10(np.mean(10.0 ** (inverse - largest)))
    values = {"mean": mean} | {n: np.quantile(inverse, q) for n, q in QUANTILES.items()}
    return [{"statistic": n, "log10_inverse": float(v)} for n, v in values.items()]


def token_effects(
    params: Tree, model: llama.LlamaConfig, forget: Split, risks: Mapping[str, effects.Gradient]
) -> dict[str, np.ndarray]:
    """PG-effects of every label token along the gradients of risks, [n, S] each."""
    directions = {risk: gradient.direction for risk, gradient in risks.items()}
    # Fused attention has no forward mode.
    logp = TokenLogProbs(dataclasses.replace(model, attention="xla"))
    values = effects.pg_effect(logp, params, forget.placed, directions, by="token", method="jvp")
    sizes = [packed.sample_ids.size for packed in forget.packed]
    return {
        risk: forget.by_sample(np.split(value, np.cumsum(sizes)[:-1]))
        for risk, value in values.items()
    }


def pg_rows(
    params: Tree,
    model: llama.LlamaConfig,
    forget: Split,
    risks: Mapping[str, effects.Gradient],
    weights: np.ndarray | None,
    stats: Statistics,
    *,
    reduction: str,
    tokens: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the tables `pg_effect` and (where `tokens`) `token_effect`."""
    by_token = token_effects(params, model, forget, risks)
    common = {"reduction": reduction, "estimator": "exact"}
    weight = _by_sample_weight(weights, stats.mask)
    samples = [
        common
        | {"sample": i, "layer": "total", "risk": risk, "value": float(v), "weight": weight[i]}
        for risk, table in by_token.items()
        for i, v in enumerate(table.sum(-1, dtype=np.float64))
    ]
    if not tokens:
        return samples, []
    labels = _label_tokens(forget)
    of_token = weights if weights is not None and weights.ndim == 2 else None
    positions = [
        common
        | {
            "sample": int(i),
            "position": int(t),
            "token": int(labels[i, t]),
            "risk": risk,
            "value": float(table[i, t]),
            "weight": weight[i] if of_token is None else float(of_token[i, t]),
        }
        for risk, table in by_token.items()
        for i, t in zip(*np.nonzero(stats.mask), strict=True)
    ]
    return samples, positions


def _label_tokens(split: Split) -> np.ndarray:
    return split.by_sample([np.asarray(unpack(p.label_tokens, p)) for p in split.packed])


def _by_sample_weight(weights: np.ndarray | None, mask: np.ndarray) -> list[float | None]:
    """One weight a sample; a token weight is averaged over the labels."""
    if weights is None:
        return [None] * len(mask)
    if weights.ndim == 2:
        return list(weights.sum(-1) / np.maximum(mask.sum(-1), 1))
    return list(weights)


@partial(jax.jit, static_argnames="model")
def label_statistics(params, packed, *, model):
    labels = llama.forward(params, packed, model, head=llama.label_statistics).labels
    return unpack(labels["logp"], packed), unpack(labels["correct"], packed)


@partial(jax.jit, static_argnames="keep")
def _moved_dot(gradient, new, old, *, keep):
    wide = trees.wide
    product = wide(gradient) * (wide(new) - wide(old))
    return jnp.sum(product, axis=tuple(range(keep, product.ndim)))


@jax.jit
def _negative(tree):
    return jax.tree.map(jnp.negative, tree)
