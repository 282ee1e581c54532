"""Relearning: attacks the unlearned models of a run, and records how soon they recover.

The result of each model under each attack is a file, written as a whole. A result that was made
with the same settings is not computed again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxunlearn.config import RANGES, Config, check_number, load
from jaxunlearn.core import files, hosts, progress
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.core.names import check_list
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.core.trees import Tree
from jaxunlearn.evaluation.attacks import ROUNDING, Attack, AttackContext, make_attacks
from jaxunlearn.measurement import statistics
from jaxunlearn.metrics import relearning
from jaxunlearn.metrics.relearning import Count, Settings
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.prepare import Prepared, make_stages, prepare
from jaxunlearn.pipeline.resume import check_finished
from jaxunlearn.record import attack_results, manifest
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.record.lock import locked
from jaxunlearn.record.stages import Stage, Stages
from jaxunlearn.reporting import report
from jaxunlearn.training.offload import Offload


class RelearnRequest(NamedTuple):
    """A checked request for attacks, made by `request`.

    Attributes:
      settings: how they fine-tune.
      counts: numbers of forget samples to fine-tune on, one attack each.
      benign: whether to fine-tune on samples of D_r too.
    """

    settings: Settings
    counts: tuple[int, ...]
    benign: bool


# ------------------------------------------------------------------------------- the command


def relearn(
    run: str | Path,
    *,
    only: Sequence[str] = (),
    samples: Sequence[Count] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    benign: bool | None = None,
    mesh: tuple[int, int, int] | None = None,
    console: Console | None = None,
    devices: Sequence[Any] | None = None,
    interrupts: Interrupts | None = None,
) -> None:
    """Attacks the finished objectives of a run, and its retrained model where it has one.

    Args:
      run: the run's folder, which also gets the results.
      only: objectives; default: all that are finished.
      samples: forget samples to fine-tune on, in one attack each, or "all"; default: the
        configuration's, and where it names none those of 1, 5, 20 that are fewer than all, and all.
      steps: of fine-tuning, without warm-up or decay; default: the configuration's.
      lr: its learning rate; default: the configuration's, or else that of unlearning.
      benign: also fine-tune on samples of D_r; default: as the configuration says.
      mesh: (data, fsdp, tensor), where it is not the run's.
      console: for progress and the table; default: nothing is printed.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.
      interrupts: whether it is asked to stop; default: it never is.

    Raises:
      Stopped: it was asked to stop; what is attacked stays, the rest follows when it is called
        again.
      ValueError, OSError: bad arguments, no such run, or nothing finished; nothing was written.
    """
    console, folder = console or quiet_console(), RunFolder(user_path(run))
    config = stored.on_mesh(stored.configuration(folder), mesh)
    names = _names(folder, config, only)
    prepared = prepare(config, devices, unlearns=False)
    say(console, *prepared.notes)
    requested = request(config, len(prepared.sets.forget), samples, steps, lr, benign)
    with locked(folder), jax.set_mesh(prepared.mesh):
        check_finished(folder, prepared, console, without=[manifest.RELEARNING])
        stages = make_stages(prepared, folder, console, interrupts=interrupts)
        attack_models(prepared, folder, requested, names, stages)
    if hosts.is_first():
        report.report_relearning(folder.path, config, console)


def request(
    config: Config,
    forget: int,
    samples: Sequence[Count] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    benign: bool | None = None,
) -> RelearnRequest:
    """Makes a request from arguments, and from the configuration where an argument is missing.

    Args:
      config: of the run.
      forget: samples of D_u.
      samples: how many of them to show, in one attack each, or "all"; default: the configuration's,
        and where it names none those of 1, 5, 20 that are fewer than all, and all.
      steps: of fine-tuning, without warm-up or decay.
      lr: its learning rate; default: that of unlearning, which is fine enough to tell models apart.
      benign: also fine-tune on samples of D_r.

    Raises:
      ValueError: names the key and the flag that are wrong.
    """
    spec = config.relearn
    size = (config.finetune if config.finetune.epochs else config.unlearn).batch_size
    rate = config.unlearn.lr if spec.lr is None else spec.lr
    settings = Settings(
        spec.steps if steps is None else steps, rate if lr is None else lr, batch_size=size
    )
    check_number("relearn.steps (--steps)", RANGES["relearn.steps"], settings.steps)
    check_number("relearn.lr (--lr)", RANGES["relearn.lr"], settings.lr)
    # A configuration that only asks for the benign attack gets no attack on forget samples.
    benign = spec.benign if benign is None else benign
    numbers = samples or spec.samples or (() if benign else None)
    return RelearnRequest(settings, tuple(relearning.counts(numbers, forget)), benign)


# ------------------------------------------------------------------------------- a stage of a run


def requested_attacks(prepared: Prepared) -> RelearnRequest | None:
    """The attacks that a run ends with, None where its configuration asks for none.

    Raises:
      ValueError: more samples to show than there are to forget, or bad settings.
    """
    config = prepared.config
    if not config.relearn.samples and not config.relearn.benign:
        return None
    return request(config, len(prepared.sets.forget))


def relearn_finished(prepared: Prepared, folder: RunFolder, stages: Stages) -> None:
    """Attacks the models of a run whose objectives are done, where its configuration asks for it.

    Args:
      prepared: the run.
      folder: its folder.
      stages: times the attacks, and shows progress.
    """
    requested, names = requested_attacks(prepared), stored.finished(folder, prepared.config)
    if requested is not None and names:
        attack_models(prepared, folder, requested, names, stages)


# ------------------------------------------------------------------------------- attacking


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Runs the attacks that have no result yet, and writes their results.

    Attributes:
      prepared: the run.
      folder: its folder.
      stages: times the attacks, and shows progress.
      context: the inputs that all attacks share.
    """

    prepared: Prepared
    folder: RunFolder
    stages: Stages
    context: AttackContext

    def attack_all(self, name: str, attacks: Sequence[Attack]) -> None:
        """Runs every attack on one model that has no result yet."""
        missing = [attack for attack in attacks if not self.is_done(name, attack)]
        if not missing:
            return
        with self.stages.stage(f"relearn {name}") as stage:
            with stage.part("load"):
                parked = self.context.offload.away(self.load(name))
            for attack in missing:
                self.attack(name, attack, parked, stage)

    def attack(self, name: str, attack: Attack, parked: Tree, stage: Stage, **extra: Any) -> None:
        """Runs an attack and writes its result, with further entries if there are any."""
        label, steps = f"{name} {attack.name}", self.context.settings.steps
        self.stages.interrupts.check(f"before the attack {label}")
        with progress.bar(self.stages.console, label, steps) as bar:
            result = attack.run(self.context, name, parked, bar.advance, stage)
        settings = {"settings": self.settings(attack)}
        part = settings | result._asdict() | extra
        file = self.folder.attack(name, attack.name)
        stage_name = manifest.attack_on(name, attack.name)
        manifest.open_stage(self.folder, stage_name)
        files.write_json(file, part)
        manifest.seal(self.folder, stage_name, [file], redo=file)

    def is_done(self, name: str, attack: Attack) -> bool:
        """Whether the result is there, made with equal settings; the first process decides."""
        file, run = self.folder.attack(name, attack.name), self.folder.path
        read = lambda: attack_results.read_part(run, name, attack.name)
        return hosts.agreed(file.is_file() and read()["settings"] == self.settings(attack))

    def settings(self, attack: Attack) -> dict[str, Any]:
        """The settings that a result depends on, apart from the model."""
        return attack_results.key(self.context.settings, attack.name, attack.ids)

    def load(self, name: str) -> Tree:
        """The parameters of a model."""
        return stored.stage_params(self.folder, self.prepared, name)


def attack_models(
    prepared: Prepared,
    folder: RunFolder,
    requested: RelearnRequest,
    names: Sequence[str],
    stages: Stages,
) -> None:
    """Computes the missing results, and merges all results into tables and a summary.

    Args:
      prepared: the run.
      folder: its folder.
      requested: from `request`.
      names: finished objectives; the retrained model is attacked too where there is one.
      stages: times the attacks, and shows progress.
    """
    settings = requested.settings
    # --- the model before unlearning, with which the others are compared --------------------------
    runner = _Runner(prepared, folder, stages, _context(prepared, settings))
    runner = _with_base(runner)

    # --- every model under every attack -----------------------------------------------------------
    attacks = make_attacks(runner.context, requested.counts, requested.benign)
    say(
        stages.console,
        f"relearning: {settings.steps} steps of AdamW at lr {settings.lr:g}, batches of at most"
        f" {settings.batch_size}",
    )
    retrained = [RETRAINED] if folder.model(RETRAINED).is_dir() else []
    for name in [*names, *retrained]:
        runner.attack_all(name, attacks)

    # --- the tables -------------------------------------------------------------------------------
    if hosts.is_first():
        # The folder's objectives: this start may have run some of them alone.
        attack_results.write_tables(folder, load(folder.config), settings)
    hosts.wait("relearning is done")


def _context(prepared: Prepared, settings: Settings) -> AttackContext:
    """The inputs that all attacks share, without the strengths before unlearning."""
    config, forget = prepared.config, prepared.sets.forget
    return AttackContext(
        model=prepared.model,
        layout=prepared.layout,
        seed=config.seed,
        settings=settings,
        offload=Offload(config.compute.offload),
        forget_samples=forget,
        retain_samples=prepared.retain_eval,
        forget=prepared.layout.split(forget),
        base_strength=np.zeros(len(forget)),
    )


def _with_base(runner: _Runner) -> _Runner:
    """The runner with the extraction strengths before unlearning.

    They are stored with the result of rounding that model, which shows the effect of int8 alone.
    """
    if not runner.is_done(BASE, ROUNDING):
        with runner.stages.stage(f"relearn {BASE}") as stage:
            context, params = runner.context, runner.load(BASE)
            with stage.part("evaluate"):
                stats = statistics.statistics(params, context.forget, context.model)
            strength = stats.extraction_strength
            rounder = _with_strength(runner, strength)
            parked = context.offload.away(params)
            del params  # the parked ones are enough
            rounder.attack(BASE, ROUNDING, parked, stage, sample_es=strength.tolist())
    hosts.wait("the model before unlearning is measured")
    part = attack_results.read_part(runner.folder.path, BASE, ROUNDING.name)
    if len(part.get("sample_es", ())) != len(runner.context.forget_samples):
        file = runner.folder.attack(BASE, ROUNDING.name)
        raise ValueError(f"{file}: sample_es: expected a number for every forget sample; remove it")
    return _with_strength(runner, np.array(part["sample_es"]))


def _with_strength(runner: _Runner, strength: np.ndarray) -> _Runner:
    context = dataclasses.replace(runner.context, base_strength=strength)
    return dataclasses.replace(runner, context=context)


def _names(folder: RunFolder, config: Config, only: Sequence[str]) -> list[str]:
    """The objectives to attack.

    Raises:
      ValueError: no such objective.
      FileNotFoundError: one that is not finished, or none is.
    """
    check_list("only (--only)", only)
    for name in only:
        if name not in config.objectives:
            stored.check_name(folder, config, name)
            raise ValueError(f"--only: {name!r} is no objective; `{RETRAINED}` is always compared")
        stored.final_step(folder, name)
    names = [*dict.fromkeys(only)] or [*stored.finished(folder, config)]
    if not names:
        for name in config.objectives:
            stored.final_step(folder, name)  # says why the first one has no final model
    return names
