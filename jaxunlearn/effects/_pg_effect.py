"""PG-effect: the G-effect of single samples and tokens.

    PG_D(s) = grad R(D; theta) . grad log p_theta(s)        (arXiv 2502.19301, section 4)

Three ways to the same numbers. `vmap` is the definition: a gradient per sample, then a dot. `jvp`
pushes the vector of log-likelihoods forward along grad R: one pass, no gradient per sample, values
per token for free. `gates` differentiates with respect to a scalar per sample and layer: the whole
table in one reverse pass. In forward passes, for K directions: vmap 3, jvp 1 + 2 K, gates 2 + K.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.effects import _checks, _probes, _rows
from jaxunlearn.effects._cost import estimate_cost
from jaxunlearn.effects._grouping import BY_PATH, Grouping
from jaxunlearn.effects._precision import Precision, products

By = Literal["sample", "token", "layer", "tensor"]
Method = Literal["auto", "jvp", "gates", "vmap"]
GIVES: dict[str, tuple[By, ...]] = {
    "jvp": ("sample", "token"),
    "gates": ("sample", "layer", "tensor"),
    "vmap": get_args(By),
}
"""What each method can give."""


class PgChoice(NamedTuple):
    """The method that "auto" takes, and why.

    Attributes:
      method: "jvp", "gates" or "vmap".
      reason: a line for people.
    """

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
    grouping: Grouping = BY_PATH,
    precision: Precision = "highest",
) -> dict[str, np.ndarray]:
    """PG-effects of every sample along several directions.

    Args:
      sample_logp_fn: (params, batch) -> [B] or [B, S] log-probabilities, 0 where there is no label;
        for method="gates" also `probe=None`. It is a static argument of a compiled function: pass
        the same object again to reuse the compilation.
      params: pytree of arrays; a mapping whose keys are layers where a `probe` is used.
      batches: pytrees of one static shape; jvp and gates take packed rows, vmap needs one sequence
        a row (every leaf's leading axis is the sample's).
      directions: {name: tree like params}, such as {"unlearn": grad R(D_u), "retain": grad R(D_r)}.
      by: "sample" [n], "token" [n, S], "layer" [n, layers] (columns: `layer_names`) or "tensor"
        [n, tensors] (columns: `tensor_names`).
      method: see the module; "auto" takes what `choose_pg_method` says.
      memory: bytes of temporaries that "auto" may use on a device; see `choose_pg_method`.
      microbatch: samples per vmapped gradient (method="vmap"): memory is microbatch x parameters.
      grouping: how leaves form rows, and which leaves are stacked over layers; by default rows
        follow from the paths of leaves and nothing is stacked. A model that scans its layers needs
        it wherever a `probe` is used, also by sample.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      {name: float32 array [all samples of all batches, ...], in order, empty slots included}.

    Raises:
      ValueError: no batches, no directions, one that is not like the parameters, log-probabilities
        of another shape, a method that cannot give what `by` asks, a grouping that does not fit the
        parameters, or another precision.
      TypeError: method="gates" and the function has no argument `probe`, or method="jvp" and the
        function holds a `jax.custom_vjp`, such as fused attention, which has no forward mode.
    """
    if not directions:
        raise ValueError("pg_effect needs at least one direction")
    batches = list(batches)
    if not batches:
        raise ValueError("pg_effect needs at least one batch, got none")
    directions = _as_tangents(directions, params)
    if method == "auto":
        options: dict[str, Any] = dict(by=by, memory=memory, grouping=grouping, precision=precision)
        method = choose_pg_method(sample_logp_fn, params, batches[0], directions, **options).method
    options = dict(fn=sample_logp_fn, by=by, grouping=grouping)
    if method == "vmap":
        options["microbatch"] = microbatch
    compute = partial(_evaluator(sample_logp_fn, by, method), params, **options)
    with products(precision):
        along = tuple(directions.values())
        values = _over_batches(compute, batches, along, sample_logp_fn, by, method)
    return dict(zip(directions, values, strict=True))


def _as_tangents(directions: Mapping[str, Tree], params: Tree) -> dict[str, Tree]:
    """The directions in the parameters' own types, which jax.jvp takes."""
    for name, tree in directions.items():
        _checks.check_like(f"directions[{name!r}]", tree, params)
    return {
        name: jax.tree.map(lambda v, p: v.astype(p.dtype), tree, params)
        for name, tree in directions.items()
    }


def _over_batches(
    compute: Callable[..., jax.Array],
    batches: Sequence[Any],
    directions: tuple[Tree, ...],
    fn: Callable[..., jax.Array],
    by: By,
    method: Method,
) -> np.ndarray:
    """The results of all batches, joined along their samples."""
    try:
        parts = [trees.on_host(compute(batch, directions)) for batch in batches]
    except TypeError as error:
        # JAX's own message names neither the cause nor a way out.
        if method == "jvp" and _is_reverse_only(error):
            raise TypeError(_no_forward_mode(fn, by)) from error
        raise
    return np.concatenate(parts, axis=1)


def choose_pg_method(
    sample_logp_fn: Callable[..., jax.Array],
    params: Tree,
    batch: Any,
    directions: Mapping[str, Tree],
    *,
    by: By = "sample",
    memory: int | None = None,
    grouping: Grouping = BY_PATH,
    precision: Precision = "highest",
) -> PgChoice:
    """The method that "auto" takes: by what is asked, forward mode and memory.

    Args:
      sample_logp_fn: as in `pg_effect`.
      params: as in `pg_effect`; leaves may be `jax.ShapeDtypeStruct`.
      batch: one of the batches, or its shapes.
      directions: as in `pg_effect`, or their shapes.
      by: as in `pg_effect`.
      memory: bytes of temporaries allowed on a device. For several directions gates need fewer
        FLOPs than jvp, but keep activations: they are taken where the compiler says that those fit.
      grouping: as in `pg_effect`.
      precision: as in `pg_effect`.

    Returns:
      PgChoice.

    Raises:
      ValueError: another precision.
    """
    gated = _probes.accepts(sample_logp_fn)
    if by in ("layer", "tensor"):
        return _choose_by_rows(params, by, grouping, gated)
    options: Any = dict(fn=sample_logp_fn, by=by, grouping=grouping)
    along = tuple(directions.values())
    try:
        # JAX refuses a function without forward mode when it lowers it, not when it traces it.
        with products(precision):
            pg_by_jvp.lower(params, batch, along, **options)
    except TypeError as error:
        if not _is_reverse_only(error):
            raise
        if gated and by == "sample":
            return PgChoice("gates", "the function has a custom_vjp, hence no forward mode")
        return PgChoice("vmap", "the function has a custom_vjp, hence no forward mode")
    if by == "token":
        return PgChoice("jvp", "one forward pass gives all tokens")
    if len(along) == 1 or not gated:
        return PgChoice("jvp", "one forward pass, no activations kept")
    if memory is None:
        return PgChoice("jvp", "the least memory; gates need fewer FLOPs, if `memory` allows them")
    # The compiler's own figure: activations depend on remat and sharding, which only it knows.
    with products(precision):
        needed = estimate_cost(pg_by_gates, params, batch, along, **options).temp
    sizes = f"{needed / 2**20:.0f} MiB of temporaries, {memory / 2**20:.0f} allowed"
    if needed <= memory:
        return PgChoice("gates", f"the fewest FLOPs, and they fit: {sizes}")
    return PgChoice("jvp", f"gates need fewer FLOPs, but do not fit: {sizes}")


def _choose_by_rows(params: Tree, by: By, grouping: Grouping, gated: bool) -> PgChoice:
    """The choice for values by layer or tensor, which forward mode cannot give."""
    if not gated:
        return PgChoice("vmap", f"by {by}, for a function without an argument `probe`")
    if by == "layer" and not _probes.rows_are_keys(params, grouping):
        return PgChoice("vmap", "the rows by layer are not the keys of the parameters")
    return PgChoice("gates", f"one reverse pass gives the whole table by {by}")


def _is_reverse_only(error: TypeError) -> bool:
    return "custom_vjp" in str(error)


def _no_forward_mode(fn: Callable[..., Any], by: By) -> str:
    able = "'vmap'" if by == "token" or not _probes.accepts(fn) else "'gates' or 'vmap'"
    return (
        "pg_effect(method='jvp'): the function holds a jax.custom_vjp (fused attention, perhaps),"
        f" which has no forward mode; use method={able}, or attention in plain JAX"
    )


def _evaluator(fn: Callable[..., Any], by: By, method: Method) -> Callable[..., jax.Array]:
    """The compiled function of a method, once it is known to give what is asked."""
    if method not in GIVES:
        raise ValueError(f"pg_effect: unknown method {method!r}; methods: auto, jvp, gates, vmap")
    if by not in GIVES[method]:
        able = [name for name, forms in GIVES.items() if by in forms]
        if not able:
            raise ValueError(f"pg_effect: unknown by={by!r}; one of {', '.join(get_args(By))}")
        raise ValueError(
            f"pg_effect: method {method!r} gives no values by {by!r}; use {' or '.join(able)}"
        )
    if method == "gates":
        _probes.require(fn, "pg_effect", "method='jvp' (by sample or token) or method='vmap'")
    return {"jvp": pg_by_jvp, "gates": pg_by_gates, "vmap": pg_by_vmap}[method]


@partial(jax.jit, static_argnames=("fn", "by", "grouping"))
def pg_by_jvp(params, batch, directions, *, fn, by, grouping):
    """PG-effects of one batch in forward mode: tangents of the log-likelihoods.

    Args:
      params: pytree of arrays.
      batch: one pytree of packed rows.
      directions: K trees like `params`, of its types.
      fn: `sample_logp_fn` of `pg_effect`.
      by: "sample" or "token".
      grouping: says which leaves are stacked over layers, for a function with a `probe`.

    Returns:
      [K, B], or [K, B, S] by token, float32 or wider.
    """
    if len(directions) == 1:
        # One direction is one plain tangent of the parameters.
        tangents = jax.jvp(lambda p: fn(p, batch), (params,), directions)[1][None]
    elif _probes.accepts(fn):
        # Several directions share one forward pass: vmap over tangents does not map what does not
        # depend on them. As tangents of the parameters they would have to be stacked, a copy of all
        # directions; as tangents of K gates each layer reads its own directions where they are.
        probe = _probes.make(params, directions, grouping=grouping)
        gated = lambda gates: fn(params, batch, probe=probe | {"gates": gates})
        push = lambda tangent: jax.jvp(gated, (probe["gates"],), (tangent,))[1]
        tangents = jax.vmap(push)(_probes.basis(probe["gates"]))
    else:
        # Without gates the copy is the price of sharing the forward pass.
        push = lambda v: jax.jvp(lambda p: fn(p, batch), (params,), (v,))[1]
        tangents = jax.vmap(push)(trees.stack(list(directions)))
    tangents = trees.wide(tangents)
    _checks.check_log_probs(tangents.shape[1:])
    return tangents.sum(-1) if by == "sample" and tangents.ndim == 3 else tangents


@partial(jax.jit, static_argnames=("fn", "by", "grouping"))
def pg_by_gates(params, batch, directions, *, fn, by, grouping):
    """PG-effects of one batch by a reverse pass with respect to gates.

    Args:
      params: mapping of layers.
      batch: one pytree of packed rows.
      directions: K trees like `params`.
      fn: `sample_logp_fn` of `pg_effect`, with an argument `probe`.
      by: "sample", "layer" or "tensor".
      grouping: how leaves form rows, and which leaves are stacked over layers.

    Returns:
      [K, B], or [K, B, rows], float32 or wider.
    """
    shape = jax.eval_shape(fn, params, batch).shape
    _checks.check_log_probs(shape)
    samples = shape[0]
    rows: _rows.By = "tensor" if by == "tensor" else "layer"
    probe = _probes.make(params, directions, samples=samples, by=rows, grouping=grouping)

    # A sample's gates touch that sample alone, so the gradient of the sum over samples holds the
    # derivative of each.
    def total(gates):
        return trees.wide(fn(params, batch, probe={"directions": directions, "gates": gates})).sum()

    gates = jax.grad(total)(probe["gates"])
    table = _probes.to_rows(gates, params, by, grouping)  # [rows, K, B]
    return table.sum(0) if by == "sample" else jnp.moveaxis(table, 0, -1)


@partial(jax.jit, static_argnames=("fn", "by", "grouping", "microbatch"))
def pg_by_vmap(params, batch, directions, *, fn, by, grouping, microbatch):
    """PG-effects of one batch by the definition: a gradient per sample, then dots.

    Args:
      params: pytree of arrays.
      batch: one pytree whose leaves have a leading axis over samples, one sequence a row.
      directions: K trees like `params`.
      fn: `sample_logp_fn` of `pg_effect`.
      by: "sample", "token", "layer" or "tensor".
      grouping: how leaves form rows, and which leaves are stacked over layers.
      microbatch: samples whose gradients are formed at a time.

    Returns:
      [K, B], [K, B, S] by token, or [K, B, rows], float32 or wider.
    """

    def one(example):
        # The function takes batches: a sample is a batch of one.
        example = jax.tree.map(lambda x: x[None], example)
        shape = jax.eval_shape(fn, params, example).shape
        _checks.check_log_probs(shape)
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
        rows = (_rows.layer_dots(gradient, v, by=by, grouping=grouping) for v in directions)
        return jnp.stack(list(rows))

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
