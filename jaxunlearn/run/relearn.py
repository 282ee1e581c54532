"""Would it learn again? Fine-tunes the unlearned models of a run, and follows what comes back.

A result of one model under one attack is a file of its own, written whole: what is there with the
same settings is not computed again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console

from jaxunlearn import effects
from jaxunlearn.config import Config
from jaxunlearn.effects import trees
from jaxunlearn.evaluate import relearn as relearn_lib
from jaxunlearn.run import attacks as attacks_lib
from jaxunlearn.run import closing, hosts, measure, models, progress, relearned, tables
from jaxunlearn.run import step as step_lib
from jaxunlearn.run.assess_sets import TWIN
from jaxunlearn.run.attacks import Attack, Count, Settings
from jaxunlearn.run.feed import make_split
from jaxunlearn.run.losses import FineTuning, Risk
from jaxunlearn.run.measure import Split, Statistics
from jaxunlearn.run.offload import Offload
from jaxunlearn.run.prepare import Prepared, prepare
from jaxunlearn.run.relearned import INT8

Tree = Any


class Request(NamedTuple):
    """Which attacks to make, checked."""

    settings: Settings
    counts: tuple[int, ...]  # of forget samples, an attack each
    benign: bool


class Bench(NamedTuple):
    """What all models share."""

    prepared: Prepared
    out: Path
    console: Console
    settings: Settings
    tx: optax.GradientTransformation
    offload: Offload
    forget: Split  # D_u
    before: np.ndarray = np.zeros(0)  # [n] extraction strength of theta_0


def relearn(
    run: Path,
    console: Console,
    *,
    only: Sequence[str] = (),
    samples: Sequence[Count] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    benign: bool | None = None,
    mesh: tuple[int, int, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> None:
    """Attacks the finished objectives of a run, and its yardstick where it has one.

    Args:
      run: the run's folder; results go to its `relearn`, the tables beside its own.
      console: where progress and the table go.
      only: these of its objectives alone; default: all that are finished.
      samples: as `request`, like the three that follow.
      mesh: (data, fsdp, tensor), where it is not the run's.
      devices: of the mesh; default: all.

    Raises:
      ValueError, FileNotFoundError: bad arguments, no such run, or nothing finished; nothing was
        written.
    """
    config = models.on_mesh(models.configuration(run), mesh)
    names = _names(run, config, only)
    prepared = prepare(config, devices)
    asked = request(config, len(prepared.forget), samples, steps, lr, benign)
    with jax.set_mesh(prepared.mesh):
        attack_models(prepared, run, asked, names, console)
    if hosts.is_first():
        closing.show_relearning(run, config, console)


def request(
    config: Config,
    forget: int,
    samples: Sequence[Count] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    benign: bool | None = None,
) -> Request:
    """Which attacks to make: what is given, else what the configuration says.

    Args:
      config: of the run.
      forget: samples of D_u.
      samples: how many of them to show, in one attack each, or "all"; default: the configuration's,
        and where it names none those of 1, 5, 20 that are fewer than all, and all.
      steps: of fine-tuning, without warm-up or decay.
      lr: its learning rate; default: that of unlearning, which is fine enough to tell models apart.
      benign: also fine-tune on data to retain.

    Raises:
      ValueError: names the key and the flag that are wrong.
    """
    spec = config.relearn
    size = (config.finetune if config.finetune.epochs else config.unlearn).batch_size
    rate = config.unlearn.lr if spec.lr is None else spec.lr
    settings = Settings(
        spec.steps if steps is None else steps, rate if lr is None else lr, batch_size=size
    )
    if settings.steps < 1:
        raise ValueError(f"relearn.steps (--steps): {settings.steps} must be at least 1")
    if not settings.lr > 0:
        raise ValueError(f"relearn.lr (--lr): {settings.lr} must be positive")
    benign = spec.benign if benign is None else benign
    named = samples or spec.samples or (() if spec.benign else None)
    return Request(settings, tuple(attacks_lib.counts(named, forget)), benign)


def attack_models(
    prepared: Prepared, run: Path, asked: Request, names: Sequence[str], console: Console
) -> None:
    """Computes what is missing, and merges it into the run's tables and `relearn.json`.

    Args:
      prepared: the run.
      run: its folder.
      asked: from `request`.
      names: finished objectives; the yardstick is always attacked where there is one.
      console: for progress.
    """
    config, settings = prepared.config, asked.settings
    forget = make_split(prepared, prepared.forget, {})
    attacks = [attacks_lib.on_forget(prepared, forget, count, settings) for count in asked.counts]
    attacks += [attacks_lib.on_retain(prepared, settings)] if asked.benign else []
    tx = step_lib.optimizer(optax.constant_schedule(settings.lr))
    offload = Offload(config.compute.offload)
    bench = Bench(prepared, run, console, settings, tx, offload, forget)
    bench = bench._replace(before=_before(bench))
    console.print(
        f"relearning: {settings.steps} steps of AdamW at lr {settings.lr:g}, batches of at most"
        f" {settings.batch_size}",
        highlight=False,
    )
    for name in [*names, *([TWIN] if (run / TWIN).is_dir() else [])]:
        _attack_all(bench, name, attacks)
    if hosts.is_first():
        relearned.merge(run, config, settings)
    hosts.wait("relearning is done")


def _names(run: Path, config: Config, only: Sequence[str]) -> list[str]:
    """The objectives to attack."""
    for name in only:
        if name not in config.objectives:
            models.check_name(run, config, name)
            raise ValueError(f"--only: {name!r} is no objective; `retrained` is always compared")
        models.final_step(run, name)
    names = [*dict.fromkeys(only)] or [*models.finished(run, config)]
    if not names:
        raise FileNotFoundError(
            f"{run}: no objective is finished; run the configuration to its end"
        )
    return names


def _before(bench: Bench) -> np.ndarray:
    """[n] extraction strength of theta_0; its rounding tells what int8 alone does."""
    if not _is_done(bench, "base", INT8, ()):
        params = models.stage_params(bench.out, bench.prepared, "base")
        found = measure.statistics(params, bench.forget, bench.prepared.model)
        strength = found.extraction_strength
        part = _rounding(bench._replace(before=strength), "base", params)
        _write(bench, "base", INT8, (), part | {"sample_es": strength.tolist()})
    hosts.wait("theta_0 is known")
    return np.array(relearned.read_part(bench.out, "base", INT8)["sample_es"])


def _attack_all(bench: Bench, name: str, attacks: Sequence[Attack]) -> None:
    """One model under every attack that is not done."""
    todo = [a for a in attacks if not _is_done(bench, name, a.name, a.ids)]
    rounds = not _is_done(bench, name, INT8, ())
    if not todo and not rounds:
        return
    with tables.timed(bench.out, f"relearn {name}"):
        waiting = bench.offload.away(models.stage_params(bench.out, bench.prepared, name))
        for attack in todo:
            part = _fine_tuning(bench, name, waiting, attack)
            _write(bench, name, attack.name, attack.ids, part)
        if rounds:
            part = _rounding(bench, name, bench.offload.back(waiting))
            _write(bench, name, INT8, (), part)


def _fine_tuning(bench: Bench, name: str, waiting: Tree, attack: Attack) -> dict[str, Any]:
    """Records of the steps evaluated, and the effect by layer at each."""
    prepared, offload, settings = bench.prepared, bench.offload, bench.settings
    loss, evaluated = FineTuning(prepared.model), relearn_lib.evaluated_steps(settings.steps)
    records, layers = [], []
    state = step_lib.init(offload.fresh(waiting), bench.tx)
    with progress.bar(bench.console, f"{name} {attack.name}", settings.steps) as bar:
        for step in range(settings.steps + 1):
            if step in evaluated:
                moments = offload.away(state.opt_state)
                state = state._replace(opt_state=None)
                record, by_layer = _evaluation(bench, name, attack, step, state.params)
                records.append(record)
                layers += by_layer
                state = state._replace(opt_state=offload.back(moments))
                bar.advance(step, nll=record["forget_nll"], es=record["forget_es"])
            if step < settings.steps:
                batch = prepared.place({"retain": {"packed": attack.batch(step)}})
                state, _ = step_lib.train_step(state, batch, loss=loss, tx=bench.tx)
    return _part(bench, attack.unseen(bench.forget.samples), records, layers)


def _evaluation(
    bench: Bench, name: str, attack: Attack, step: int, params: Tree
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a step, and its rows by layer."""
    found = measure.statistics(params, bench.forget, bench.prepared.model)
    unseen = attack.unseen(bench.forget.samples)
    record = _record(name, attack.name, len(attack.ids), step, found, unseen)
    total, by_layer = _effect(bench, params, attack)
    common = {"model": name, "attack": attack.name, "step": step}
    return record | total, [common | row for row in by_layer]


def _effect(
    bench: Bench, params: Tree, attack: Attack
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """grad R(D_u) . grad L of the fine-tuning loss over the samples shown: total, by layer."""
    risk_fn = Risk(bench.prepared.model, "token_mean")
    risk = effects.dataset_gradient(risk_fn, params, bench.forget.placed)
    own = risk
    if attack.shown is not bench.forget:
        own = effects.dataset_gradient(risk_fn, params, attack.shown.placed)
    total = effects.between(risk.direction, own.direction, by="total")
    found = effects.between(risk.direction, own.direction)
    columns = [trees.on_host(x).tolist() for x in found[:4]]
    keys = ("value", "cosine", "risk_norm", "loss_norm")
    by_layer = [
        {"layer": layer} | dict(zip(keys, numbers, strict=True))
        for layer, *numbers in zip(found.rows or (), *columns, strict=True)
    ]
    value, cosine = (float(trees.on_host(x)) for x in total[:2])
    return {"loss": float(own.value), "effect": value, "cosine": cosine}, by_layer


def _rounding(bench: Bench, name: str, params: Tree) -> dict[str, Any]:
    """Records of a model (step 0) and of its weights in int8 (step 1)."""
    unseen = np.ones(bench.forget.samples, bool)
    shardings = jax.tree.map(lambda x: x.sharding, params)
    rounded = jax.jit(relearn_lib.int8_rounded, out_shardings=shardings)
    found = [
        measure.statistics(p, bench.forget, bench.prepared.model) for p in (params, rounded(params))
    ]
    records = [_record(name, INT8, 0, step, stats, unseen) for step, stats in enumerate(found)]
    return _part(bench, unseen, records, [])


def _record(
    model: str, attack: str, samples: int, step: int, found: Statistics, unseen: np.ndarray
) -> dict[str, Any]:
    rest = Statistics(*(x[unseen] for x in found)) if unseen.any() else None
    return {
        "model": model,
        "attack": attack,
        "samples": samples,
        "step": step,
        "forget_nll": found.nll,
        "forget_es": _mean(found.extraction_strength),
        "unseen_nll": rest.nll if rest else None,
        "unseen_es": _mean(rest.extraction_strength) if rest else None,
    }


def _part(
    bench: Bench, unseen: np.ndarray, records: list[dict], layers: list[dict]
) -> dict[str, Any]:
    before = {
        "forget_es": _mean(bench.before),
        "unseen_es": _mean(bench.before[unseen]) if unseen.any() else None,
    }
    return {"before": before, "records": records, "layers": layers}


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))


def _is_done(bench: Bench, model: str, attack: str, ids: Sequence[int]) -> bool:
    """Whether the result is there, made with the same settings."""
    wanted = relearned.key(bench.settings, attack, ids)
    there = relearned.part_file(bench.out, model, attack).is_file()
    return hosts.agreed(
        there and relearned.read_part(bench.out, model, attack)["settings"] == wanted
    )


def _write(bench: Bench, model: str, attack: str, ids: Sequence[int], part: dict) -> None:
    settings = {"settings": relearned.key(bench.settings, attack, ids)}
    tables.write_json(relearned.part_file(bench.out, model, attack), settings | part)
