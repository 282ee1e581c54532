"""The results of relearning attacks: a file per model and attack, merged into tables and a summary.

Each result is written as a whole. A result that was made with the same settings is not computed
again; one that was made with other settings stays on disk, but is in no table.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.config import Config
from jaxunlearn.core import files
from jaxunlearn.metrics.relearning import (
    DEFINITIONS,
    Settings,
    attack_kind,
    attack_order,
    is_attack,
    steps_to_recover,
)
from jaxunlearn.record import manifest, shapes
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder

Part = dict[str, Any]


# --------------------------------------------------------------------------- attacks


def fine_tuning_attacks(summary: Mapping[str, Any]) -> list[str]:
    """The attacks of a summary that fine-tune, in the order of `metrics.relearning.attack_order`.

    Args:
      summary: from `read` or `summarise`.
    """
    names = {attack for model in summary["models"].values() for attack in model["attacks"]}
    return sorted((a for a in names if attack_kind(a).trains_on), key=attack_order)


# --------------------------------------------------------------------------- results


def key(settings: Settings, attack: str, ids: Sequence[int]) -> dict[str, Any]:
    """The settings of a result: with equal ones, a result on disk can be used again.

    Args:
      settings: how the attack fine-tunes; rounding does not depend on them.
      attack: its name.
      ids: the samples it shows.
    """
    versions = {name: definition.version for name, definition in DEFINITIONS.items()}
    if attack_kind(attack).trains_on is None:
        return {"versions": versions}
    return {"versions": versions, "ids": list(ids), **settings._asdict()}


def read_part(run: Path, model: str, attack: str) -> Part:
    """The result of one model under one attack.

    Returns:
      {"settings": from `key`, "before": {"forget_es", "unseen_es"} of the model before unlearning,
      "records": a row for each evaluated step, "layers": a row for each layer at each such step}.
    """
    file = RunFolder(run).attack(model, attack)
    part = files.read_json(file, shapes.AttackPart)
    if not any(record["step"] == 0 for record in part["records"]):
        raise ValueError(f"{file}: records: expected one of step 0")
    return part


# --------------------------------------------------------------------------- tables


def write_tables(folder: RunFolder, config: Config, settings: Settings) -> None:
    """Merges the results that were made with some settings into tables, and writes a summary.

    Args:
      folder: of the run.
      config: its configuration.
      settings: results of other settings stay on disk, but are in no table. Where the model before
        unlearning has no result with these, there are no tables.
    """
    manifest.open_stage(folder, manifest.RELEARNING)
    parts = _parts(folder.path, config, settings)
    tables = [folder.relearn, folder.relearn_records, folder.relearn_layers]
    if not any(model == BASE for model, _ in parts):
        # All others are compared with the model before unlearning, whose result was removed.
        for file in tables:
            file.unlink(missing_ok=True)
        return
    for kind, file in (("records", folder.relearn_records), ("layers", folder.relearn_layers)):
        rows = [row for part in parts.values() for row in part[kind]]
        files.write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    definitions = {name: definition._asdict() for name, definition in DEFINITIONS.items()}
    summary = {"definitions": definitions, "settings": settings._asdict(), **summarise(parts)}
    files.write_json(folder.relearn, summary)
    manifest.seal(folder, manifest.RELEARNING, tables, redo=folder.relearn)


def read(run: Path) -> dict[str, Any] | None:
    """The summary that `write_tables` wrote, None where there is none.

    Returns:
      What `summarise` returns, with "definitions" and "settings".
    """
    file = RunFolder(run).relearn
    if not file.is_file():
        return None
    summary = files.read_json(file, shapes.Attacks)
    if (steps := summary["settings"]["steps"]) < 1:
        raise ValueError(f"{file}: settings.steps: expected at least 1, got {steps}")
    if BASE not in summary["models"]:
        raise ValueError(f"{file}: models: no model {BASE!r}")
    for name, model in summary["models"].items():
        for attack in model["attacks"]:
            if not is_attack(attack):
                raise ValueError(f"{file}: models.{name}.attacks: no attack is called {attack!r}")
    return summary


def summarise(parts: Mapping[tuple[str, str], Part]) -> dict[str, Any]:
    """Summarises how soon each model recovers under each attack.

    Args:
      parts: results by (model, attack).

    Returns:
      {"models": {model: {"forget_nll", "forget_es", "attacks": {attack: {"samples": how many it
      shows, "whole" and "unseen": `metrics.relearning.Recovery` of all of D_u and of the samples
      that it does not show, "final_forget_nll", "final_forget_es", "final_unseen_es"}}}}}.
      The model before unlearning is `BASE`; it is rounded, but not fine-tuned.
    """
    models: dict[str, Any] = {}
    for (model, attack), part in parts.items():
        first, last = part["records"][0], part["records"][-1]
        start = {name: first[name] for name in ("forget_nll", "forget_es")}
        entry = models.setdefault(model, start | {"attacks": {}})
        ends = {f"final_{name}": last[name] for name in ("forget_nll", "forget_es", "unseen_es")}
        entry["attacks"][attack] = {
            "samples": first["samples"],
            "whole": _recovery(part, "forget_es"),
            "unseen": _recovery(part, "unseen_es"),
            **ends,
        }
    return {"models": models}


def _recovery(part: Part, name: str) -> dict[str, Any] | None:
    """Steps to recover of an extraction strength; None where it is over no samples."""
    before, by_step = part["before"][name], {r["step"]: r[name] for r in part["records"]}
    if before is None:
        return None
    return steps_to_recover(by_step, before, by_step[0])._asdict()


def _parts(run: Path, config: Config, settings: Settings) -> dict[tuple[str, str], Part]:
    """The results of equal settings: models as configured, attacks by `attack_order`."""
    parts = {}
    for model in (BASE, *config.objectives, RETRAINED):
        for attack in sorted(_attacks_of(run, model), key=attack_order):
            part = read_part(run, model, attack)
            ids = part["settings"].get("ids", ())
            if part["settings"] == key(settings, attack, ids):
                parts[model, attack] = part
    return parts


def _attacks_of(run: Path, model: str) -> list[str]:
    """The attacks on a model that have a result; files of other names are not ours."""
    names = [file.stem.rpartition("-") for file in RunFolder(run).attacks.glob("*.json")]
    return [attack for name, _, attack in names if name == model and is_attack(attack)]
