"""The text table of relearning attacks, and the data of their figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.config import Config
from jaxunlearn.core import files
from jaxunlearn.metrics.relearning import INT8, LEAST, attack_kind, evaluated_steps
from jaxunlearn.record import shapes
from jaxunlearn.record.attack_results import fine_tuning_attacks
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.reporting import summary
from jaxunlearn.reporting.terminal import TextTable, shown_name, three_decimals

HEADLINE = "5"
"""The attack to show where a table has room for one."""

NOTHING_FORGOTTEN = "kept"
"""The cell of a model that forgot less than `LEAST`, and so has nothing to recover."""


def figure_tables(run: Path, config: Config, attacks: Mapping[str, Any]) -> dict[str, Any]:
    """The table and the meta data that the figure of relearning is drawn from.

    Args:
      run: the run's folder.
      config: its configuration.
      attacks: from `record.attack_results.read`.
    """
    base = attacks["models"][BASE]
    meta = {
        "title": f"{config.name}, seed {config.seed}",
        "warning": summary.warning(base),
        "models": [*config.objectives, RETRAINED],
        "before": base["forget_es"],
    }
    names = fine_tuning_attacks(attacks)
    records = files.records(RunFolder(run).relearn_records, shapes.AttackRow)
    return {"relearn": files.columns(r for r in records if r["attack"] in names), "meta": meta}


def headline(attacks: Mapping[str, Any]) -> str | None:
    """`HEADLINE`, or another attack where that was not made; None where nothing was fine-tuned."""
    names = fine_tuning_attacks(attacks)
    return HEADLINE if HEADLINE in names else next(iter(names), None)


def cell(attacks: Mapping[str, Any], model: str, attack: str) -> str:
    """The steps that a model took to recover under an attack.

    Such as "3 (>20)": 3 steps for all of D_u, and more than the 20 that were tried for the samples
    that the attack does not show.

    Args:
      attacks: from `record.attack_results.read`.
      model: its key; a dash is shown for one that was not attacked.
      attack: its name.
    """
    return _cell(attack, attacks["models"].get(model, {"attacks": {}})["attacks"].get(attack))


def stride(attacks: Mapping[str, Any]) -> int:
    """The steps from one evaluation of an attack to the next."""
    return evaluated_steps(attacks["settings"]["steps"])[1]


def _every(attacks: Mapping[str, Any]) -> str:
    """Says how often attacks were evaluated, if it was not after every step."""
    steps = stride(attacks)
    return "" if steps == 1 else f", evaluated every {steps} steps"


def meaning(attacks: Mapping[str, Any], attack: str) -> str:
    """The caption of a column that shows one attack."""
    kind = attack_kind(attack)
    text = f"steps of fine-tuning on {kind.trains_on} until half of the forgotten ES is back"
    text += _every(attacks)
    return f"{text}; in brackets: of the samples not shown" if kind.shows_some else text


def relearn_table(attacks: Mapping[str, Any]) -> TextTable:
    """One row per model, one column per attack.

    Args:
      attacks: from `record.attack_results.read`.
    """
    names = fine_tuning_attacks(attacks)
    heads = [f"{name} shown" if attack_kind(name).shows_some else name for name in names]
    rows = []
    for model, entry in attacks["models"].items():
        start = [three_decimals(entry[key]) for key in ("forget_nll", "forget_es")]
        cells = [_cell(name, entry["attacks"].get(name)) for name in names]
        rounded = entry["attacks"].get(INT8, {}).get("final_forget_es")
        rows.append((shown_name(model), *start, *cells, three_decimals(rounded)))
    note = (
        f"Of at most {attacks['settings']['steps']} steps{_every(attacks)}; in brackets: of the"
        " samples not shown."
        f" {NOTHING_FORGOTTEN}: less than {LEAST} ES was forgotten. int8: ES with rounded weights,"
        " nothing trained."
    )
    return TextTable(("model", "NLL", "ES", *heads, "int8 ES"), rows, (note,))


def _cell(attack: str, result: Mapping[str, Any] | None) -> str:
    """The steps for all of D_u and, in brackets, for the samples not shown, where there are any."""
    if result is None:
        return "-"
    whole = _steps(result["whole"])
    if not attack_kind(attack).shows_some:
        return whole
    unseen = _steps(result["unseen"])
    nothing = whole == unseen == NOTHING_FORGOTTEN
    return NOTHING_FORGOTTEN if nothing else f"{whole} ({unseen})"


def _steps(recovery: Mapping[str, Any]) -> str:
    if recovery["status"] == "nothing forgotten":
        return NOTHING_FORGOTTEN
    if recovery["status"] == "diverged":
        return "diverged"
    return f">{recovery['tried']}" if recovery["step"] is None else str(recovery["step"])
