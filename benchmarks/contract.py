"""Every loss of the catalogue on a tiny Llama, in every way, next to the definition in float64.

The derivative of each sample's loss along a direction must not depend on how the samples are laid
out, where they are placed, or how it is computed. The test of the contract and the benchmark of a
card compare the same values.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import effects
from jaxunlearn.core.trees import Tree, norm
from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import Packed, unpack
from jaxunlearn.models import decoder
from jaxunlearn.objectives import registry

MODEL = decoder.DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    context=32,
)
BLOCKS = effects.Grouping(stacked=decoder.STACKED)
LOSSES = {name: registry.get(name) for name in registry.names()} | {
    name: registry.get_retain(name) for name in registry.retain_names()
}
NAMES = tuple(LOSSES)
LENGTHS = (9, 14, 5, 11, 7, 16, 8, 12)
SCALE_TOLERANCE = 1e-5  # of norm of direction x norm of gradient, in float32
_pg_effect = functools.partial(effects.pg_effect, grouping=BLOCKS)


class Trees(NamedTuple):
    """The parameters of the comparison.

    Attributes:
      params: theta.
      reference: of the model before unlearning.
      direction: like `params`.
      constants: the reference's unembedding, and the target of `rmu`.
    """

    params: Tree
    reference: Tree
    direction: Tree
    constants: Tree


class Oracle(NamedTuple):
    """The definition in float64.

    Attributes:
      exact: [samples, losses], the derivatives along the direction.
      scale: [samples, losses], norm of the direction x norm of the gradient.
    """

    exact: np.ndarray
    scale: np.ndarray


@dataclasses.dataclass(frozen=True)
class SampleLosses:
    """(params, rows) -> [B, losses]: every loss of the catalogue on every sample."""

    model: decoder.DecoderConfig
    names: tuple[str, ...] = NAMES

    def __call__(self, params, rows, probe=None):
        packed = rows["packed"]
        names = [n for n in self.names if "logits" in LOSSES[n].arrays]
        reference = rows["constants"]

        def head(logits, labels, hidden):
            arrays = {"logits": logits, "labels": labels}
            arrays["ref_logits"] = decoder.head_logits(reference, hidden, self.model)
            wide = {n: self._apply(n, arrays) for n in names}
            return wide | {"logp": decoder.label_log_probs(logits, labels)}

        out = decoder.forward(
            params,
            packed,
            self.model,
            head=head,
            head_inputs=(rows["ref_hidden"],),
            tap=1,
            probe=probe,
        )
        mask = packed.mask.reshape(-1, packed.mask.shape[-1])
        logp = unpack(out.labels["logp"], packed)
        ref_logp = unpack(rows["ref_logp"], packed)
        arrays = {"logp": logp, "ref_logp": ref_logp, "mask": mask}
        arrays |= {f"substitute_{k}": v for k, v in arrays.items()}
        # Not those of the originals: a loss of their difference would have no derivative.
        arrays["substitute_logp"], arrays["substitute_ref_logp"] = logp / 2, ref_logp - 1
        arrays |= {
            "hidden": out.hidden,
            "ref_hidden": rows["ref_hidden"],
            "target": reference["target"],
            "guide": jnp.exp(ref_logp),
        }
        return jnp.stack([self._of(n, arrays, out.labels, packed) for n in self.names], -1)

    def _apply(self, name, arrays):
        return LOSSES[name].loss(**{array: arrays[array] for array in LOSSES[name].arrays})

    def _of(self, name, arrays, labels, packed):
        if "logits" in LOSSES[name].arrays:
            return unpack(labels[name], packed).sum(-1)
        losses = self._apply(name, arrays)
        return unpack(losses, packed).sum(-1) if "hidden" in LOSSES[name].arrays else losses


def make_sequences() -> list[planning.Sample]:
    """Samples of LENGTHS."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, MODEL.vocab_size, n).astype(np.int32) for n in LENGTHS]
    return [planning.Sample(t, 2 + i % 3) for i, t in enumerate(tokens)]


def make_trees() -> Trees:
    """Parameters that are far from those of a new model, and a random direction."""
    keys = jax.random.split(jax.random.key(0), 4)
    params, reference = (decoder.init_params(key, MODEL) for key in keys[:2])
    noisy = lambda x: x + 0.2 * jax.random.normal(jax.random.fold_in(keys[3], x.size), x.shape)
    params, reference = jax.tree.map(noisy, (params, reference))
    direction = jax.tree.map(
        lambda p: jax.random.normal(jax.random.fold_in(keys[2], p.size), p.shape), params
    )
    constants = {"lm_head": reference["lm_head"], "target": jax.random.uniform(keys[3], (16,))}
    return Trees(params, reference, direction, constants)


def layout(sequences: Sequence[planning.Sample], kind: str) -> Packed:
    """The samples as rows, one a row ("padded") or several ("packed")."""
    if kind == "padded":
        return packing.padded(sequences)
    plan = planning.plan_dataset(sequences, rows=8, width=24, max_width=32)
    (packed,) = packing.dataset_batches(sequences, plan)
    return packed


def make_rows(packed: Packed, trees: Trees) -> dict[str, Any]:
    """The rows with the reference's own values, which move with their samples."""
    out = decoder.forward(trees.reference, packed, MODEL)
    rows = {"packed": jax.tree.map(jnp.asarray, packed), "ref_logp": out.labels}
    return rows | {"ref_hidden": out.final_hidden}


def in_order(values: np.ndarray, packed: Packed) -> np.ndarray:
    """[B, ..] of slots -> of samples."""
    ids = np.asarray(packed.sample_ids).reshape(-1)
    out = np.zeros((len(LENGTHS), *values.shape[1:]), values.dtype)
    out[ids[ids >= 0]] = values[ids >= 0]
    return out


def with_constants(fn: Callable, constants: Tree) -> Callable:
    """Constants are closed over: vmap maps the rows alone."""

    def losses(params, rows, probe=None):
        return fn(params, rows | {"constants": constants}, probe)

    return losses


def oracle(
    sequences: Sequence[planning.Sample], trees: Trees, names: tuple[str, ...] = NAMES
) -> Oracle:
    """The definition (`vmap`) in float64 on padded rows, on the default device."""
    packed = layout(sequences, "padded")
    rows = make_rows(packed, trees)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(
            lambda x: (
                jnp.asarray(np.asarray(x), jnp.float64)
                if jnp.issubdtype(x.dtype, jnp.floating)
                else jnp.asarray(np.asarray(x))
            ),
            tree,
        )
        params, direction, rows, constants = map(
            wide, (trees.params, trees.direction, rows, trees.constants)
        )
        model = dataclasses.replace(MODEL, dtype="float64")
        fn = with_constants(SampleLosses(model, names), constants)
        exact = _pg_effect(fn, params, [rows], {"v": direction}, by="token", method="vmap")["v"]

        def norms(example):
            row = jax.tree.map(lambda x: x[None], example)
            jacobian = jax.jacrev(lambda p: fn(p, row)[0])(params)
            square = lambda x: jnp.sum(x**2, axis=tuple(range(1, x.ndim)))
            return jnp.sqrt(sum(square(leaf) for leaf in jax.tree.leaves(jacobian)))

        gradient_norms = np.asarray(jax.jit(lambda rows: jax.lax.map(norms, rows))(rows))
        direction_norm = float(norm(direction))
    return Oracle(np.asarray(exact), direction_norm * gradient_norms)


def by_definition_or_jvp(
    rows: Tree, trees: Trees, model: decoder.DecoderConfig, method: str, names=NAMES
) -> list[np.ndarray]:
    """[slots, losses] by "jvp" or "vmap", three times: along one direction and as either of two.

    Forward mode takes another way with several directions than with one.
    """
    fn = with_constants(SampleLosses(model, names), trees.constants)
    along = functools.partial(
        _pg_effect, fn, trees.params, [rows], by="token", method=method, precision=model.precision
    )
    double = {"v": trees.direction, "w": jax.tree.map(lambda x: -2 * x, trees.direction)}
    both, one = along(double), along({"v": trees.direction})
    return [both["v"], both["w"] / -2, one["v"]]


def by_gates(
    rows: Tree, trees: Trees, model: decoder.DecoderConfig, names=NAMES
) -> list[np.ndarray]:
    """[slots, losses]: gates give one number a sample, so each loss in turn, by one program."""
    losses = with_constants(SampleLosses(model, names), trees.constants)
    options = {"by": "layer", "method": "gates", "precision": model.precision}

    def chosen(params, rows, probe=None):
        return losses(params, rows["rows"], probe) @ rows["choice"]

    by_loss = []
    for choice in np.eye(len(names), dtype=np.float32):
        batch = {"rows": rows, "choice": choice}
        table = _pg_effect(chosen, trees.params, [batch], {"v": trees.direction}, **options)
        assert table["v"].shape[1] == len(effects.layer_names(trees.params, grouping=BLOCKS))
        by_loss.append(table["v"].sum(-1))
    return [np.stack(by_loss, -1)]


def relative_errors(found: np.ndarray, truth: Oracle) -> np.ndarray:
    """[losses]: the largest |difference| over the scale, among the samples."""
    error = np.abs(found - truth.exact) / np.where(truth.scale > 0, truth.scale, 1)
    return error.max(0)
