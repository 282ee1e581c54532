"""PG-effect: the G-effect of single samples and tokens.

    PG_D(s) = grad R(D; theta) . grad log p_theta(s)        (arXiv 2502.19301, section 4)

Three ways to the same numbers. `vmap` is the definition: a gradient per sample, then a dot. `jvp`
pushes the vector of log-likelihoods forward along grad R: one pass, no gradient per sample, values
per token for free. `gates` differentiates with respect to a scalar per sample and layer: the whole
table in one reverse pass. In forward passes, for K directions: vmap 3, jvp 1 + 2 K, gates 2 + K.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.effects import layers, probes, trees
from jaxunlearn.effects.forecast import forecast

Tree = Any
By = Literal["sample", "token", "layer", "tensor"]
Method = Literal["auto", "jvp", "gates", "vmap"]
GIVES: dict[str, tuple[str, ...]] = {
    "jvp": ("sample", "token"),
    "gates": ("sample", "layer", "tensor"),
    "vmap": By.__args__,
}


class Choice(NamedTuple):
    """The method that "auto" takes, and why."""

    method: Method
    reason: str


def pg_effect(
    sample_logp_fn: Callable[..., jax.Array],
    params: Tree,
    batches: Iterable[Any],
    directions: Mapping[str, Tree],
    *,
    by: By = "sample",
    method: Method = "auto",
    memory: int | None = None,
    microbatch: int = 8,
    stacked: tuple[str, ...] = layers.STACKED,
) -> dict[str, np.ndarray]:
    """PG-effects of every sample along several directions.

    Args:
      sample_logp_fn: (params, batch) -> [B] or [B, S] log-probabilities, 0 where there is no label;
        for method="gates" also `probe=None`. It is a static argument of a compiled function: pass
        the same object again to reuse the compilation.
      params: mapping of layers (for by="layer" and "tensor"), or any pytree.
      batches: pytrees of one static shape; jvp and gates take packed rows, vmap needs one sequence
        a row (every leaf's leading axis is the sample's).
      directions: {name: tree like params}, such as {"unlearn": grad R(D_u), "retain": grad R(D_r)}.
      by: "sample" [n], "token" [n, S], "layer" [n, layers] (columns: `layers.layer_names`) or
        "tensor" [n, tensors] (columns: `layers.tensor_names`).
      method: see the module; "auto" takes what `choose` says.
      memory: bytes of temporaries that "auto" may use on a device; see `choose`.
      microbatch: samples per vmapped gradient (method="vmap"): memory is microbatch x parameters.

    Returns:
      {name: float32 array with a leading axis over all samples of all batches, in order, empty
      slots included}.

    Raises:
      ValueError: no batches, no directions, or a method that cannot give what `by` asks.
      TypeError: method="gates" and the function has no argument `probe`, or method="jvp" and the
        function holds a `jax.custom_vjp`, such as fused attention, which has no forward mode.
    """
    if not directions:
        raise ValueError("pg_effect needs at least one direction")
    batches = list(batches)
    if not batches:
        raise ValueError("pg_effect needs at least one batch, got none")
    along = tuple(
        jax.tree.map(lambda v, p: v.astype(p.dtype), tree, params) for tree in directions.values()
    )
    if method == "auto":
        method = choose(
            sample_logp_fn, params, batches[0], along, by=by, memory=memory, stacked=stacked
        ).method
    compute = _evaluator(sample_logp_fn, by, method)
    options: dict[str, Any] = dict(fn=sample_logp_fn, by=by, stacked=stacked)
    if method == "vmap":
        options["microbatch"] = microbatch
    try:
        parts = [trees.on_host(compute(params, batch, along, **options)) for batch in batches]
    except TypeError as error:
        if method == "jvp" and _is_reverse_only(error):
            raise TypeError(_no_forward_mode(sample_logp_fn, by)) from error
        raise
    values = np.concatenate(parts, axis=1)
    return dict(zip(directions, values, strict=True))


def choose(
    sample_logp_fn: Callable[..., jax.Array],
    params: Tree,
    batch: Any,
    directions: tuple[Tree, ...],
    *,
    by: By = "sample",
    memory: int | None = None,
    stacked: tuple[str, ...] = layers.STACKED,
) -> Choice:
    """The method that "auto" takes: by what is asked, forward mode and memory.

    Args:
      sample_logp_fn, params, batch, directions, by, stacked: as in `pg_effect`; arrays may be
        abstract.
      memory: bytes of temporaries allowed on a device. For several directions gates need fewer
        FLOPs than jvp, but keep activations: they are taken where the compiler says that those fit.

    Returns:
      Choice.
    """
    gated = probes.accepts(sample_logp_fn)
    if by in ("layer", "tensor"):
        if gated:
            return Choice("gates", f"one reverse pass gives the whole table by {by}")
        return Choice("vmap", f"by {by}, for a function without an argument `probe`")
    options: Any = dict(fn=sample_logp_fn, by=by, stacked=stacked)
    try:
        by_jvp.lower(params, batch, directions, **options)  # raises here, not when traced
    except TypeError as error:
        if not _is_reverse_only(error):
            raise
        if gated and by == "sample":
            return Choice("gates", "the function has a custom_vjp, hence no forward mode")
        return Choice("vmap", "the function has a custom_vjp, hence no forward mode")
    if by == "token":
        return Choice("jvp", "one forward pass gives all tokens")
    if len(directions) == 1 or not gated:
        return Choice("jvp", "one forward pass, no activations kept")
    if memory is None:
        return Choice("jvp", "the least memory; gates need fewer FLOPs, if `memory` allows them")
    needed = forecast(by_gates, params, batch, directions, **options).temp
    sizes = f"{needed / 2**20:.0f} MiB of temporaries, {memory / 2**20:.0f} allowed"
    if needed <= memory:
        return Choice("gates", f"the fewest FLOPs, and they fit: {sizes}")
    return Choice("jvp", f"gates need fewer FLOPs, but do not fit: {sizes}")


def _is_reverse_only(error: TypeError) -> bool:
    return "custom_vjp" in str(error)


def _no_forward_mode(fn: Callable[..., Any], by: By) -> str:
    able = "'vmap'" if by == "token" or not probes.accepts(fn) else "'gates' or 'vmap'"
    return (
        "pg_effect(method='jvp'): the function holds a jax.custom_vjp (fused attention, perhaps),"
        f" which has no forward mode; use method={able}, or attention in plain JAX"
    )


def _evaluator(fn, by: By, method: Method):
    if method not in GIVES:
        raise ValueError(f"pg_effect: unknown method {method!r}; methods: auto, jvp, gates, vmap")
    if by not in GIVES[method]:
        able = [name for name, forms in GIVES.items() if by in forms]
        if not able:
            raise ValueError(f"pg_effect: unknown by={by!r}; one of {', '.join(By.__args__)}")
        raise ValueError(
            f"pg_effect: method {method!r} gives no values by {by!r}; use {' or '.join(able)}"
        )
    if method == "gates":
        probes.require(fn, "pg_effect", "method='jvp' (by sample or token) or method='vmap'")
    return {"jvp": by_jvp, "gates": by_gates, "vmap": by_vmap}[method]


@partial(jax.jit, static_argnames=("fn", "by", "stacked"))
def by_jvp(params, batch, directions, *, fn, by, stacked):
    """Of one batch, [K, B] or [K, B, S]: tangents of the log-likelihoods that share one primal.

    Several directions go along the gates of a probe where the function takes one: stacked as
    tangents of the parameters, they would be a copy of all directions.
    """
    if len(directions) == 1:
        tangents = jax.jvp(lambda p: fn(p, batch), (params,), directions)[1][None]
    elif probes.accepts(fn):
        probe = probes.make(params, directions, stacked=stacked)
        gated = lambda gates: fn(params, batch, probe=probe | {"gates": gates})
        push = lambda tangent: jax.jvp(gated, (probe["gates"],), (tangent,))[1]
        tangents = jax.vmap(push)(probes.basis(probe["gates"]))
    else:
        push = lambda v: jax.jvp(lambda p: fn(p, batch), (params,), (v,))[1]
        tangents = jax.vmap(push)(trees.stack(list(directions)))
    tangents = trees.wide(tangents)
    return tangents.sum(-1) if by == "sample" and tangents.ndim == 3 else tangents


@partial(jax.jit, static_argnames=("fn", "by", "stacked"))
def by_gates(params, batch, directions, *, fn, by, stacked):
    """[K, B] or [K, B, rows]: a sample's gates touch that sample alone, so one sum serves all."""
    samples = jax.eval_shape(fn, params, batch).shape[0]
    rows = "tensor" if by == "tensor" else "layer"
    probe = probes.make(params, directions, samples=samples, by=rows, stacked=stacked)

    def total(gates):
        return trees.wide(fn(params, batch, probe={"directions": directions, "gates": gates})).sum()

    table = layers.to_rows(jax.grad(total)(probe["gates"]), stacked=stacked)  # [rows, K, B]
    return table.sum(0) if by == "sample" else jnp.moveaxis(table, 0, -1)


@partial(jax.jit, static_argnames=("fn", "by", "stacked", "microbatch"))
def by_vmap(params, batch, directions, *, fn, by, stacked, microbatch):
    """[K, B(, S | rows)]: the definition, `microbatch` samples at a time."""

    def one(example):
        example = jax.tree.map(lambda x: x[None], example)
        shape = jax.eval_shape(fn, params, example).shape
        if shape[0] != 1:
            raise ValueError(
                f"pg_effect(method='vmap') needs one sequence a row, but a row holds {shape[0]};"
                " pack one sequence a row, or use jvp or gates"
            )
        if by == "token":
            return _token_dots(lambda p: trees.wide(fn(p, example))[0], params, directions)
        gradient = jax.grad(lambda p: trees.wide(fn(p, example)).sum())(params)
        if by == "sample":
            return jnp.stack([trees.dot(gradient, v) for v in directions])
        rows = (trees.dots(gradient, v, by=by, stacked=stacked) for v in directions)
        return jnp.stack([layers.to_rows(values, stacked=stacked) for values in rows])

    return jnp.moveaxis(jax.lax.map(one, batch, batch_size=microbatch), 0, 1)


def _token_dots(logp_fn, params, directions):
    """[K, S]: a gradient a token, one after the other.

    Not `jax.jacrev`, which maps one reverse pass over the tokens: jaxlib 0.10.2's CPU compiler gets
    that wrong by per cents, and it would hold S gradients at once.
    """
    logp, pull = jax.vjp(logp_fn, params)

    def of_token(weights):
        (gradient,) = pull(weights)
        return jnp.stack([trees.dot(gradient, v) for v in directions])

    return jax.lax.map(of_token, jnp.eye(len(logp), dtype=logp.dtype)).T
