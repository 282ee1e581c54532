"""One objective from theta_0 to its last step, measured on the way."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxunlearn.data import order
from jaxunlearn.effects import Gradient
from jaxunlearn.objectives import retain
from jaxunlearn.run import assess_steps, hosts, measure, progress, summary, tables
from jaxunlearn.run import step as step_lib
from jaxunlearn.run.assess_sets import Exam
from jaxunlearn.run.checkpoint import open_checkpoints
from jaxunlearn.run.feed import Feed, References
from jaxunlearn.run.guide import guidance
from jaxunlearn.run.losses import Risk
from jaxunlearn.run.measure import Split, Statistics
from jaxunlearn.run.offload import Offload
from jaxunlearn.run.prepare import Prepared, Task, measured_steps

Tree = Any
Shared = dict[Risk, Any]
WARM = 2  # steps before a trace


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all objectives of a run share."""

    prepared: Prepared
    out: Path
    console: Console
    offload: Offload
    base: Tree  # theta_0 as it waits, never donated
    references: References
    forget: Split  # D_u
    retain: Split  # D_r
    before: tuple[Statistics, Statistics]  # of theta_0, on D_u and D_r
    start: Shared  # grad R(D_r) at theta_0, by risk, as it waits: it serves all objectives
    suites: Exam | None = None  # to evaluate with, at steps of unlearning too where asked


@dataclasses.dataclass
class Interval:
    """What a measurement needs until the next one."""

    step: int
    rows: list[dict[str, Any]]
    gradients: Mapping[str, Gradient]  # of the risks, as they wait
    params: Tree  # theta_t, as it waits
    risks: dict[str, float]


def unlearn(bench: Bench, task: Task, profile: int = 0) -> dict[str, Any]:
    """One objective from theta_0 to its last step, measured on the way.

    Args:
      bench: what all objectives share.
      task: the objective.
      profile: so many steps are traced into the run's `profile`, after WARM ones.

    Returns:
      Its evaluation after the last step.
    """
    prepared, out = bench.prepared, bench.out
    result_file = out / "objectives" / task.name / "result.json"
    if hosts.agreed(result_file.exists()):
        return summary.read_json(result_file)
    feed = Feed(prepared, task, bench.references)
    spec, steps = prepared.config.unlearn, feed.steps
    per_epoch = order.num_steps(len(prepared.forget), spec.batch_size, 1)
    lr = step_lib.schedule(task.lr, steps, round(spec.warmup_epochs * per_epoch))
    rates = np.asarray(lr(np.arange(steps))).tolist()
    tx = step_lib.optimizer(
        lr, weight_decay=spec.weight_decay, clip_norm=spec.clip_norm, spare=task.spare
    )
    measured = measured_steps(prepared.config, steps)
    evaluated = assess_steps.evaluated_steps(prepared.config, steps)
    log = tables.StepLog(out / "metrics.jsonl", task.name)
    saved_at = measured or range(0, steps, per_epoch)
    guided = guidance(prepared, task, bench.forget, bench.before[0].mask, out, bench.offload)
    with (
        open_checkpoints(
            out / "objectives" / task.name / "checkpoints", keep=spec.keep_checkpoints
        ) as checkpoints,
        progress.bar(bench.console, task.name, steps, checkpoints.latest or 0) as bar,
        tables.timed(out, task.name),
    ):
        state = step_lib.init(bench.offload.fresh(bench.base), tx)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        first = int(state.step)
        tables.cut_back(out / "metrics.jsonl", task.name, first)
        tables.drop_parts(out, task.name, first)
        guide = guided.kept(first)
        paired = feed.measured(bench.forget, guide) if measured else []
        interval: Interval | None = None
        traced = range(first + WARM, min(first + WARM + profile, steps))
        trace = _Trace(out / "profile", traced)
        for step in range(first, steps):
            trace.at(step, state)
            if step in saved_at:
                log.flush()  # a checkpoint's step has all records before it
                if not log.finite:
                    break
            if step in guided.steps:
                moments = bench.offload.away(state.opt_state)
                state = state._replace(opt_state=None)
                guide = guided.refresh(step, state.params)
                state = state._replace(opt_state=bench.offload.back(moments))
                paired = feed.measured(bench.forget, guide) if measured else []
            if step in measured:
                stats = _statistics(bench, state.params, step)
                _close(bench, task, interval, step, state.params, stats)
                interval = None  # its gradients make room for the next
                checkpoints.save(step, state)
                moments = bench.offload.away(state.opt_state)
                state = state._replace(opt_state=None)
                interval = _measure(
                    bench, task, paired, guide, step, state.params, stats, rates[step]
                )
                state = state._replace(opt_state=bench.offload.back(moments))
            elif step in saved_at:
                checkpoints.save(step, state)
            if step in evaluated and bench.suites is not None:
                state = assess_steps.evaluate(bench.suites, bench.offload, task.name, step, state)
            batch, tokens, share = feed.step(step, guide)
            state, metrics = step_lib.train_step(
                state, batch, loss=task.loss, tx=tx, accumulate=spec.accumulate
            )
            if interval is not None and interval.step == step:
                _look_back(bench, task, interval, state.params)
            fed = {"lr": rates[step], "tokens": tokens, "real_token_share": share}
            log.add(step, metrics | fed)
            bar.advance(step + 1, tokens, loss=log.last.get("loss"), **_shown(interval))
            if not log.finite:
                break  # the last checkpoint is from before, and stays
        trace.at(steps, state)
        log.flush()
        if log.finite and int(state.step) == steps:
            checkpoints.save(steps, state)
        stats = _statistics(bench, state.params, None)
        _close(bench, task, interval, int(state.step), state.params, stats)
    result = summary.evaluation(*stats) | {"steps": int(state.step), "of_steps": steps}
    tables.write_json(result_file, result)
    hosts.wait(f"{task.name} is done")
    return result


class _Trace:
    """Traces some steps of the loop with jax.profiler."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._on = folder, steps, False

    def at(self, step: int, state: Tree) -> None:
        """Starts or stops before a step."""
        wanted = step in self._steps
        if wanted == self._on:
            return
        jax.block_until_ready(state)
        if wanted:
            jax.profiler.start_trace(str(self._folder))
        else:
            jax.profiler.stop_trace()
        self._on = wanted


def _measure(
    bench: Bench,
    task: Task,
    paired: list[Tree],
    guide: np.ndarray | None,
    step: int,
    params: Tree,
    stats: tuple[Statistics, Statistics],
    lr: float,
) -> Interval:
    """Effects at theta_t; writes the tables by sample, and keeps the rows that need the future."""
    term, model, out, offload = task.loss.term, bench.prepared.model, bench.out, bench.offload
    retain = _retain_gradient(bench, Risk(model, term.reduction), step, params)
    found = measure.measure(params, term, paired)
    rows = measure.g_effect_rows("unlearn", found.risk, found.objective, term.reduction, lr)
    risks = {"unlearn": found.risk, "retain": offload.back(retain)}
    rows += measure.g_effect_rows("retain", risks["retain"], found.objective, term.reduction, lr)
    del found  # the objective's gradient makes room for what follows
    forget, kept = stats
    ref_logp = bench.before[0].logp
    weights = measure.sample_weights(term.loss, forget.logp, ref_logp, forget.mask, guide)
    write = lambda table, rows: tables.write_part(out, table, task.name, step, rows)
    sample_rows = measure.sample_rows("forget", forget, weights)
    write("samples", sample_rows + measure.sample_rows("retain", kept))
    write("confidence", measure.confidence_rows(forget))
    spec = bench.prepared.config.measure
    if step in spec.pg_steps:
        samples, positions = measure.pg_rows(
            params,
            model,
            bench.forget,
            risks,
            weights,
            forget,
            reduction=term.reduction,
            tokens=step in spec.token_steps,
        )
        write("pg_effect", samples)
        if positions:
            write("token_effect", positions)
    waiting = {"unlearn": offload.away(risks.pop("unlearn")), "retain": retain}
    return Interval(step, rows, waiting, offload.copied(params), _risks(stats, term.reduction))


def _retain_gradient(bench: Bench, risk: Risk, step: int, params: Tree) -> Gradient:
    """grad R(D_r) as it waits; at step 0 all objectives share theta_0."""
    if step == 0 and risk in bench.start:
        return bench.start[risk]
    found = bench.offload.away(measure.retain_gradient(params, bench.retain, risk))
    if step == 0:
        bench.start[risk] = found
    return found


def _look_back(bench: Bench, task: Task, interval: Interval, params: Tree) -> None:
    """What the update just applied was foretold to do to the risks, and what it did."""
    foretold = measure.predicted(interval.gradients, params, interval.params, bench.offload)
    after = _risks(_statistics(bench, params, None), task.loss.term.reduction)
    for row in interval.rows:
        row["update_effect"] = foretold[row["risk"], row["layer"]]
        if row["layer"] == "total":
            row["step_change"] = after[row["risk"]] - interval.risks[row["risk"]]


def _close(
    bench: Bench,
    task: Task,
    interval: Interval | None,
    step: int,
    params: Tree,
    stats: tuple[Statistics, Statistics],
) -> None:
    """Completes and writes a measurement when the next one (or the end) is reached."""
    if interval is None:
        return
    foretold = measure.predicted(interval.gradients, params, interval.params, bench.offload)
    now = _risks(stats, task.loss.term.reduction)
    for row in interval.rows:
        row["interval_steps"] = step - interval.step
        row["interval_predicted"] = foretold[row["risk"], row["layer"]]
        if row["layer"] == "total":
            row["interval_change"] = now[row["risk"]] - interval.risks[row["risk"]]
    tables.write_part(bench.out, "g_effect", task.name, interval.step, interval.rows)


def _statistics(bench: Bench, params: Tree, step: int | None) -> tuple[Statistics, Statistics]:
    """Of D_u and D_r; at step 0 all objectives share theta_0."""
    if step == 0:
        return bench.before
    splits = {"forget": bench.forget, "retain": bench.retain}
    return measure.evaluate(params, splits, bench.prepared.model)


def _risks(stats: tuple[Statistics, Statistics], reduction: str) -> dict[str, float]:
    """R(D_u) and R(D_r), summed over samples in float64 on the host."""
    risks = {}
    for name, found in zip(("unlearn", "retain"), stats, strict=True):
        losses = np.asarray(retain.gd(jnp.asarray(found.logp), jnp.asarray(found.mask)), np.float64)
        if reduction == "token_mean":
            risks[name] = float(losses.sum() / found.mask.sum())
        else:
            per = losses / np.maximum(found.tokens, 1) if reduction == "sequence_mean" else losses
            risks[name] = float(per.sum() / (found.tokens > 0).sum())
    return risks


def _shown(interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {}
    totals = {row["risk"]: row["value"] for row in interval.rows if row["layer"] == "total"}
    return {"e_u": totals["unlearn"], "e_r": totals["retain"]}
