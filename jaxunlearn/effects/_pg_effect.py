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
from jaxunlearn.effects import _checks, _probes, _rounding, _rows
from jaxunlearn.effects._cost import estimate_cost
from jaxunlearn.effects._grouping import BY_PATH, Grouping
from jaxunlearn.effects._precision import Precision, products
from jaxunlearn.effects._trainable import Trainable, combine, partition

By = Literal["sample", "token", "layer", "tensor"]
Method = Literal["auto", "jvp", "gates", "vmap"]
GIVES: dict[str, tuple[By, ...]] = {
    "jvp": ("sample", "token"),
    "gates": ("sample", "layer", "tensor"),
    "vmap": get_args(By),
}
"""What each method can give."""
_NAMES = "pg_effect", "effects.programs.pg_by_jvp, pg_by_gates or pg_by_vmap"
"""The function and the programs behind it, for messages."""


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
    trainable: Trainable = None,
    precision: Precision = "highest",
) -> dict[str, np.ndarray]:
    """PG-effects of every sample along several directions.

    Args:
      sample_logp_fn: (params, batch) -> [B] or [B, S] log-probabilities, 0 where there is no label;
        for method="gates" also `probe=None`. It is a static argument of a compiled function: pass
        the same object again to reuse the compilation.
      params: pytree of arrays; a mapping whose keys are layers where a `probe` is used.
      batches: pytrees of one static shape; jvp and gates take packed rows, vmap needs one sequence
        a row (every leaf's leading axis is the sample's). On a mesh with explicit axes vmap copies
        the samples to every device.
      directions: {name: tree like params}, such as {"unlearn": grad R(D_u), "retain": grad R(D_r)};
        None at frozen leaves. jvp and gates round them to the parameters' own types; long ones are
        scaled for parameters in float16.
      by: "sample" [n], "token" [n, S], "layer" [n, layers] (columns: `layer_names`) or "tensor"
        [n, tensors] (columns: `tensor_names`).
      method: see the module; "auto" takes what `choose_pg_method` says.
      memory: bytes of temporaries that "auto" may use on a device; see `choose_pg_method`.
      microbatch: samples per vmapped gradient (method="vmap"): memory is microbatch x parameters.
      grouping: how leaves form rows, and which leaves are stacked over layers; by default rows
        follow from the paths of leaves and nothing is stacked. A model that scans its layers needs
        it wherever a `probe` is used, also by sample.
      trainable: which leaves take part, see `Trainable`; by default all of a floating type. For
        method="gates" the function gets a probe whose directions are None at frozen leaves, which
        not every model reads; "auto" takes another method where leaves are frozen.
      precision: of the float32 products whose function states none, see `Precision`.

    Returns:
      {name: float32 array [all samples of all batches, ...], in order, empty slots included}.

    Raises:
      ValueError: no batches, no directions, one that is not like the parameters, log-probabilities
        of another shape, another `by` or `method`, a method that cannot give what `by` asks, a
        grouping that does not fit the parameters, another precision, `microbatch` below 1, batches
        whose tokens differ in number, or a function with a `probe` that it does not read.
      TypeError: method="gates" and the function has no argument `probe`, or method="jvp" and the
        function holds a `jax.custom_vjp`, such as fused attention, which has no forward mode; one
        batch instead of several, one direction instead of a mapping, or a call under `jax.jit`.
    """
    _checks.check_choice("pg_effect", "by", by, get_args(By))
    _checks.check_choice("pg_effect", "method", method, get_args(Method))
    if microbatch < 1:
        raise ValueError(f"pg_effect: microbatch={microbatch} must be 1 or more")
    _checks.check_host(*_NAMES, params, directions)
    batches = list(_checks.each_batch(*_NAMES, batches))
    if not batches:
        raise ValueError("pg_effect needs at least one batch, got none")
    chosen, frozen = partition(params, trainable)
    _check_directions("pg_effect", directions, chosen, frozen)
    if method == "auto":
        options: dict[str, Any] = dict(by=by, memory=memory, grouping=grouping)
        options |= dict(trainable=trainable, precision=precision)
        method = choose_pg_method(sample_logp_fn, params, batches[0], directions, **options).method
    compute = _evaluator(sample_logp_fn, by, method)
    options = dict(fn=sample_logp_fn, by=by, grouping=grouping, frozen=frozen)
    options |= {"microbatch": microbatch} if method == "vmap" else {}
    with products(precision):
        along = tuple(directions.values())
        compute = partial(compute, chosen, **options)
        try:
            values = _over_batches(compute, batches, along, sample_logp_fn, by, method)
        except (AttributeError, TypeError):
            # Looked for after the fact: a trace of its own takes seconds for a large model.
            _checks.check_one_array(jax.eval_shape(sample_logp_fn, params, batches[0]))
            raise
    return dict(zip(directions, values, strict=True))


def _check_directions(
    caller: str, directions: Mapping[str, Tree], params: Tree, frozen: Tree
) -> None:
    if not isinstance(directions, Mapping):
        raise TypeError(
            f"{caller}: directions is a {type(directions).__name__}; give a mapping of names to"
            " trees like the parameters, such as {'retain': gradient}"
        )
    if not directions:
        raise ValueError(f"{caller} needs at least one direction")
    for name, tree in directions.items():
        try:
            _checks.check_direction(f"directions[{name!r}]", tree, params, frozen)
        except ValueError as error:
            if jax.tree.structure(directions) != jax.tree.structure(params):
                raise
            hint = "directions looks like the parameters; give {'retain': gradient}"
            raise ValueError(f"{caller}: {hint}, a mapping of names to such trees") from error


def _over_batches(
    compute: Callable[..., jax.Array],
    batches: Sequence[Any],
    directions: tuple[Tree, ...],
    fn: Callable[..., jax.Array],
    by: By,
    method: Method,
) -> np.ndarray:
    """The results of all batches, joined along their samples."""

    def of_batch(batch: Any) -> np.ndarray:
        values = compute(batch, directions)
        _checks.check_results(*_NAMES, values)
        return trees.on_host(values)

    try:
        parts = [of_batch(batch) for batch in batches]
    except TypeError as error:
        # JAX's own message names neither the cause nor a way out.
        if method == "jvp" and _is_reverse_only(error):
            raise TypeError(_no_forward_mode(fn, by)) from error
        raise
    lengths = sorted({part.shape[2] for part in parts}) if by == "token" else []
    if len(lengths) > 1:
        raise ValueError(
            f"pg_effect(by='token'): batches with {' and '.join(map(str, lengths))} tokens a sample"
            " have no table in common; pad them to one number, or call it for each"
        )
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
    trainable: Trainable = None,
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
      trainable: as in `pg_effect`.
      precision: as in `pg_effect`.

    Returns:
      PgChoice.

    Raises:
      ValueError, TypeError: as in `pg_effect`.
    """
    _checks.check_choice("choose_pg_method", "by", by, get_args(By))
    params, frozen = partition(params, trainable)
    _check_directions("choose_pg_method", directions, params, frozen)
    gated = _probes.accepts(sample_logp_fn) and frozen is None
    if by in ("layer", "tensor"):
        return _choose_by_rows(params, frozen, by, grouping, gated)
    options: Any = dict(fn=sample_logp_fn, by=by, grouping=grouping)
    along = tuple(directions.values())
    try:
        # JAX refuses a function without forward mode when it lowers it, not when it traces it.
        with products(precision):
            pg_by_jvp.lower(params, batch, along, frozen=frozen, **options)
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


def _choose_by_rows(
    params: Tree, frozen: Tree, by: By, grouping: Grouping, gated: bool
) -> PgChoice:
    """The choice for values by layer or tensor, which forward mode cannot give."""
    if frozen is not None:
        return PgChoice("vmap", f"by {by}, and not every model can gate a part of its leaves")
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
    if by not in GIVES[method]:
        able = [name for name, forms in GIVES.items() if by in forms]
        raise ValueError(
            f"pg_effect: method {method!r} gives no values by {by!r}; use {' or '.join(able)}"
        )
    if method == "gates":
        _probes.require(fn, "pg_effect", "method='jvp' (by sample or token) or method='vmap'")
    return {"jvp": pg_by_jvp, "gates": pg_by_gates, "vmap": pg_by_vmap}[method]


@partial(jax.jit, static_argnames=("fn", "by", "grouping"))
def pg_by_jvp(params, batch, directions, frozen=None, *, fn, by, grouping):
    """PG-effects of one batch in forward mode: tangents of the log-likelihoods.

    Args:
      params: pytree of arrays, along which the directions go.
      batch: one pytree of packed rows.
      directions: K trees like `params`; rounded to its types, which forward mode takes.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.
      fn: `sample_logp_fn` of `pg_effect`.
      by: "sample" or "token".
      grouping: says which leaves are stacked over layers, for a function with a `probe`.

    Returns:
      [K, B], or [K, B, S] by token, float32 or wider.
    """
    _checks.check_choice("pg_by_jvp", "by", by, GIVES["jvp"])
    directions, restore = _rounding.rounded(directions, params)
    push = lambda v: jax.jvp(lambda p: fn(combine(p, frozen), batch), (params,), (v,))[1]
    if len(directions) == 1:
        # One direction is one plain tangent of the parameters.
        tangents = push(directions[0])[None]
    elif _probes.accepts(fn) and frozen is None:
        # Several directions share one forward pass: vmap over tangents does not map what does not
        # depend on them. As tangents of the parameters they would have to be stacked, a copy of all
        # directions; as tangents of K gates each layer reads its own directions where they are.
        probe = _probes.make(params, directions, grouping=grouping)
        _probes.check_read(fn, params, batch, probe, "one direction at a time, or method='vmap'")
        gated = lambda gates: fn(params, batch, probe=probe | {"gates": gates})
        push = lambda tangent: jax.jvp(gated, (probe["gates"],), (tangent,))[1]
        tangents = jax.vmap(push)(_probes.basis(probe["gates"]))
    else:
        # Without gates the copy is the price of sharing the forward pass.
        tangents = jax.vmap(push)(trees.stack(list(directions)))
    if tangents.dtype == jax.dtypes.float0:
        raise TypeError("pg_effect: sample_logp_fn returns whole numbers, which have no derivative")
    tangents = restore(trees.wide(tangents))
    _checks.check_log_probs(tangents.shape[1:], batch)
    return tangents.sum(-1) if by == "sample" and tangents.ndim == 3 else tangents


@partial(jax.jit, static_argnames=("fn", "by", "grouping"))
def pg_by_gates(params, batch, directions, frozen=None, *, fn, by, grouping):
    """PG-effects of one batch by a reverse pass with respect to gates.

    Args:
      params: mapping of layers, along which the directions go.
      batch: one pytree of packed rows.
      directions: K trees like `params`; rounded to its types.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.
      fn: `sample_logp_fn` of `pg_effect`, with an argument `probe`.
      by: "sample", "layer" or "tensor".
      grouping: how leaves form rows, and which leaves are stacked over layers.

    Returns:
      [K, B], or [K, B, rows], float32 or wider.
    """
    _checks.check_choice("pg_by_gates", "by", by, GIVES["gates"])
    directions, restore = _rounding.rounded(directions, params)
    whole = combine(params, frozen)
    shape = jax.eval_shape(fn, whole, batch).shape
    _checks.check_log_probs(shape, batch)
    samples = shape[0]
    rows: _rows.By = "tensor" if by == "tensor" else "layer"
    probe = _probes.make(params, directions, samples=samples, by=rows, grouping=grouping)
    _probes.check_rows(params, by, grouping)
    _probes.check_read(fn, params, batch, probe, "method='vmap'", frozen=frozen)

    # A sample's gates touch that sample alone, so the gradient of the sum over samples holds the
    # derivative of each.
    def total(gates):
        return trees.wide(fn(whole, batch, probe={"directions": directions, "gates": gates})).sum()

    gates = jax.grad(total)(probe["gates"])
    table = _probes.to_rows(gates, params, by, grouping)  # [rows, K, B]
    return restore(table.sum(0) if by == "sample" else jnp.moveaxis(table, 0, -1))


@partial(jax.jit, static_argnames=("fn", "by", "grouping", "microbatch"))
def pg_by_vmap(params, batch, directions, frozen=None, *, fn, by, grouping, microbatch):
    """PG-effects of one batch by the definition: a gradient per sample, then dots.

    Args:
      params: pytree of arrays, of which the gradients are taken.
      batch: one pytree whose leaves have a leading axis over samples, one sequence a row.
      directions: K trees like `params`, of any floating types.
      frozen: the leaves that `params` lacks, see `partition`; None where it has all.
      fn: `sample_logp_fn` of `pg_effect`.
      by: "sample", "token", "layer" or "tensor".
      grouping: how leaves form rows, and which leaves are stacked over layers.
      microbatch: samples whose gradients are formed at a time.

    Returns:
      [K, B], [K, B, S] by token, or [K, B, rows], float32 or wider.
    """
    _checks.check_choice("pg_by_vmap", "by", by, GIVES["vmap"])
    _checks.check_samples(batch)

    def one(example):
        # The function takes batches: a sample is a batch of one.
        example = jax.tree.map(lambda x: x[None], example)
        logp = lambda p: trees.wide(fn(combine(p, frozen), example))
        shape = jax.eval_shape(logp, params).shape
        _checks.check_log_probs(shape, example)
        if shape[0] != 1:
            raise ValueError(
                f"pg_effect(method='vmap') needs one sequence a row, but a row holds {shape[0]};"
                " pack one sequence a row, or use jvp or gates"
            )
        if by == "token":
            return _token_dots(lambda p: logp(p)[0], params, directions)
        gradient = jax.grad(lambda p: logp(p).sum())(params)
        if by == "sample":
            return jnp.stack([trees.dot(gradient, v) for v in directions])
        rows = (_rows.layer_dots(gradient, v, by=by, grouping=grouping) for v in directions)
        return jnp.stack(list(rows))

    batch = jax.tree.map(trees.whole_leading_axis, batch)
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
