"""PG-effect: the G-effect of single samples and tokens.

    PG_D(s) = grad R(D; theta) . grad log p_theta(s)        (arXiv 2502.19301, section 4)

Three ways to the same numbers. `vmap` is the definition: a gradient per sample, then a dot. `jvp`
pushes the vector of log-likelihoods forward along grad R: one pass, no gradient per sample, values
per token for free. `gates` differentiates with respect to a scalar per sample and layer: the whole
table in one reverse pass.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.effects import layers, probes, trees

Tree = Any
By = Literal["sample", "token", "layer"]
Method = Literal["auto", "jvp", "gates", "vmap"]


def pg_effect(
    sample_logp_fn: Callable[..., jax.Array],
    params: Tree,
    batches: Iterable[Any],
    directions: Mapping[str, Tree],
    *,
    by: By = "sample",
    method: Method = "auto",
    microbatch: int = 8,
    stacked: tuple[str, ...] = layers.STACKED,
) -> dict[str, np.ndarray]:
    """PG-effects of every sample along several directions.

    Args:
      sample_logp_fn: (params, batch) -> [B] or [B, S] log-probabilities, 0 where there is no label;
        for method="gates" also `probe=None`. It is a static argument of a compiled function: pass
        the same object again to reuse the compilation.
      params: mapping of layers (for by="layer"), or any pytree.
      batches: pytrees of one static shape; jvp and gates take packed rows, vmap needs one sequence
        a row (every leaf's leading axis is the sample's).
      directions: {name: tree like params}, such as {"unlearn": grad R(D_u), "retain": grad R(D_r)}.
      by: "sample" [n], "token" [n, S] or "layer" [n, layers] (columns: `layers.layer_names`).
      method: see the module; "auto" takes jvp for samples and tokens, and for layers gates where
        the function has a `probe` and vmap where not.
      microbatch: samples per vmapped gradient (method="vmap"): memory is microbatch x parameters.

    Returns:
      {name: float32 array with a leading axis over all samples of all batches, in order, empty
      slots included}.

    Raises:
      ValueError: no batches, no directions, or a method that cannot give what `by` asks.
      TypeError: method="gates" and the function has no argument `probe`.
    """
    if not directions:
        raise ValueError("pg_effect needs at least one direction")
    method = choose(sample_logp_fn, by) if method == "auto" else method
    compute = _evaluator(sample_logp_fn, by, method)
    trees_ = [
        jax.tree.map(lambda v, p: v.astype(p.dtype), tree, params) for tree in directions.values()
    ]
    options: dict[str, Any] = dict(fn=sample_logp_fn, by=by, stacked=stacked)
    if method == "vmap":
        options["microbatch"] = microbatch
    parts = [np.asarray(compute(params, batch, tuple(trees_), **options)) for batch in batches]
    if not parts:
        raise ValueError("pg_effect needs at least one batch, got none")
    values = np.concatenate(parts, axis=1)
    return dict(zip(directions, values, strict=True))


def choose(sample_logp_fn: Callable[..., jax.Array], by: By) -> Method:
    """The method that "auto" takes: the cheapest that can give what is asked."""
    if by != "layer":
        return "jvp"
    return "gates" if probes.accepts(sample_logp_fn) else "vmap"


def _evaluator(fn, by: By, method: Method):
    allowed = {"jvp": ("sample", "token"), "gates": ("sample", "layer"), "vmap": By.__args__}
    if method not in allowed:
        raise ValueError(f"pg_effect: unknown method {method!r}; methods: auto, jvp, gates, vmap")
    if by not in allowed[method]:
        able = [name for name, forms in allowed.items() if by in forms]
        raise ValueError(
            f"pg_effect: method {method!r} gives no values by {by!r}; use {' or '.join(able)}"
        )
    if method == "gates":
        probes.require(fn, "pg_effect", "method='jvp' (by sample or token) or method='vmap'")
    return {"jvp": by_jvp, "gates": by_gates, "vmap": by_vmap}[method]


@partial(jax.jit, static_argnames=("fn", "by", "stacked"))
def by_jvp(params, batch, directions, *, fn, by, stacked):
    """Of one batch, [K, B] or [K, B, S]: tangents of the log-likelihoods that share one primal."""
    push = lambda v: jax.jvp(lambda p: fn(p, batch), (params,), (v,))[1]
    if len(directions) == 1:
        tangents = push(directions[0])[None]
    else:
        tangents = jax.vmap(push)(trees.stack(list(directions)))
    tangents = trees.wide(tangents)
    return tangents.sum(-1) if by == "sample" and tangents.ndim == 3 else tangents


@partial(jax.jit, static_argnames=("fn", "by", "stacked"))
def by_gates(params, batch, directions, *, fn, by, stacked):
    """[K, B] or [K, B, layers]: a sample's gates touch that sample alone, so one sum serves all."""
    samples = jax.eval_shape(fn, params, batch).shape[0]
    probe = probes.make(params, directions, samples=samples, stacked=stacked)

    def total(gates):
        return trees.wide(fn(params, batch, probe={"directions": directions, "gates": gates})).sum()

    table = layers.to_rows(jax.grad(total)(probe["gates"]), stacked=stacked)  # [layers, K, B]
    return table.sum(0) if by == "sample" else jnp.moveaxis(table, 0, -1)


@partial(jax.jit, static_argnames=("fn", "by", "stacked", "microbatch"))
def by_vmap(params, batch, directions, *, fn, by, stacked, microbatch):
    """[K, B(, S | layers)]: the definition, `microbatch` samples at a time."""

    def one(example):
        example = jax.tree.map(lambda x: x[None], example)
        shape = jax.eval_shape(fn, params, example).shape
        if shape[0] != 1:
            raise ValueError(
                f"pg_effect(method='vmap') needs one sequence a row, but a row holds {shape[0]};"
                " pack one sequence a row, or use jvp or gates"
            )
        if by == "token":
            gradient = jax.jacrev(lambda p: trees.wide(fn(p, example))[0])(params)
            return jnp.stack([_token_dots(gradient, v) for v in directions])
        gradient = jax.grad(lambda p: trees.wide(fn(p, example)).sum())(params)
        if by == "sample":
            return jnp.stack([trees.dot(gradient, v) for v in directions])
        by_layer = (trees.layer_dots(gradient, v, stacked=stacked) for v in directions)
        return jnp.stack([layers.to_rows(values, stacked=stacked) for values in by_layer])

    return jnp.moveaxis(jax.lax.map(one, batch, batch_size=microbatch), 0, 1)


def _token_dots(jacobian, direction):
    pairs = zip(jax.tree.leaves(jacobian), jax.tree.leaves(direction), strict=True)
    return sum(
        jnp.sum(trees.wide(j) * trees.wide(v), axis=tuple(range(1, j.ndim))) for j, v in pairs
    )
