"""What relearning came to: the results by model and attack, their tables and the summary."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxunlearn.config import Config
from jaxunlearn.evaluate.relearn import DEFINITIONS, LEAST, steps_to_recover
from jaxunlearn.run import summary, tables
from jaxunlearn.run.attacks import ALL, BENIGN, INT8, Settings

Part = dict[str, Any]

FILE = "relearn.json"
KEPT = "kept"  # less than LEAST was forgotten
HEADLINE = "5"  # the attack that stands for all in a table with other numbers
TABLES = {"records": "relearn.jsonl", "layers": "relearn_layers.jsonl"}


def key(settings: Settings, attack: str, ids: Sequence[int]) -> dict[str, Any]:
    """What a result depends on beside the run: with the same, it is not computed again."""
    versions = {name: found.version for name, found in DEFINITIONS.items()}
    if attack == INT8:
        return {"versions": versions}
    return {"versions": versions, "ids": list(ids), **settings._asdict()}


def part_file(out: Path, model: str, attack: str) -> Path:
    """Where the result of one model under one attack is; names of models hold no dash."""
    return out / "relearn" / f"{model}-{attack}.json"


def read_part(out: Path, model: str, attack: str) -> Part:
    """A result: {"settings", "before", "records", "layers"}."""
    return summary.read_json(part_file(out, model, attack))


def merge(out: Path, config: Config, settings: Settings) -> None:
    """Merges the results of equal settings into tables, and writes their summary.

    Args:
      out: the run's folder.
      config: its configuration.
      settings: the results of others stay where they are, but are in no table.
    """
    parts = _parts(out, config, settings)
    for kind, name in TABLES.items():
        rows = [row for part in parts.values() for row in part[kind]]
        tables.write_text(out / name, "".join(json.dumps(row) + "\n" for row in rows))
    named = {n: d._asdict() for n, d in DEFINITIONS.items()}
    report = {"definitions": named, "settings": settings._asdict(), **summarise(parts)}
    tables.write_json(out / FILE, report)


def read(out: Path) -> dict[str, Any] | None:
    """The summary that `merge` wrote, if it did: as `summarise`, with "settings"."""
    return summary.read_json(out / FILE) if (out / FILE).is_file() else None


def summarise(parts: Mapping[tuple[str, str], Part]) -> dict[str, Any]:
    """Steps to recover of every model under every attack.

    Args:
      parts: by (model, attack); that of `base` under int8 among them.

    Returns:
      {"before": of theta_0, "models": {model: {"forget_nll", "forget_es", "attacks": ..}}}
    """
    models: dict[str, Any] = {}
    for (model, attack), part in parts.items():
        first, last = part["records"][0], part["records"][-1]
        start = {name: first[name] for name in ("forget_nll", "forget_es")}
        entry = models.setdefault(model, start | {"attacks": {}})
        ends = {f"final_{n}": last[n] for n in ("forget_nll", "forget_es", "unseen_es")}
        entry["attacks"][attack] = {
            "samples": first["samples"],
            "whole": _recovery(part, "forget_es"),
            "unseen": _recovery(part, "unseen_es"),
            **ends,
        }
    return {"before": models.pop("base"), "models": models}


def _recovery(part: Part, name: str) -> dict[str, Any] | None:
    """Of all of D_u, or of the samples not shown where there are any."""
    before, by_step = part["before"][name], {r["step"]: r[name] for r in part["records"]}
    if before is None:
        return None
    return steps_to_recover(by_step, before, by_step[0])._asdict()


def _parts(out: Path, config: Config, settings: Settings) -> dict[tuple[str, str], Part]:
    """Results of equal settings: models as configured, attacks from few samples to many."""
    found = {}
    for model in ("base", *config.objectives, "retrained"):
        names = [f.stem.rpartition("-")[2] for f in (out / "relearn").glob(f"{model}-*.json")]
        for attack in sorted(names, key=_rank):
            part = read_part(out, model, attack)
            ids = part["settings"].get("ids", ())
            if part["settings"] == key(settings, attack, ids):
                found[model, attack] = part
    return found


def _rank(attack: str) -> tuple[int, int]:
    named = (ALL, BENIGN, INT8)
    return (named.index(attack) + 1, 0) if attack in named else (0, int(attack))


def figure_tables(out: Path, config: Config, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the figure of relearning is drawn from."""
    meta = {
        "title": config.name,
        "warning": summary.warning(found["before"]),
        "models": [*config.objectives, "retrained"],
        "before": found["before"]["forget_es"],
    }
    table = tables.columns(
        r for r in tables.records(out / TABLES["records"]) if r["attack"] != INT8
    )
    return {"relearn": table, "meta": meta}


def trained(found: Mapping[str, Any]) -> set[str]:
    """The attacks that fine-tune."""
    return {a for model in found["models"].values() for a in model["attacks"]} - {INT8}


def headline(found: Mapping[str, Any]) -> str | None:
    """The attack to show where there is room for one, None where nothing was trained."""
    there = trained(found)
    return HEADLINE if HEADLINE in there else min(there, key=_rank, default=None)


def cell(found: Mapping[str, Any], model: str, attack: str) -> str:
    """Such as "3 (>20)": steps for all of D_u, and for the samples not shown where some are."""
    return _cell(attack, found["models"].get(model, {"attacks": {}})["attacks"].get(attack))


def meaning(attack: str) -> str:
    """What `cell` shows."""
    shown = {ALL: "all forget samples", BENIGN: "data to retain"}.get(
        attack, f"{attack} forget sample{'s' if attack != '1' else ''}"
    )
    text = f"steps of fine-tuning on {shown} until half of the forgotten ES is back"
    return text if attack in (ALL, BENIGN) else f"{text}; in brackets: of the samples not shown"


def drawn(found: Mapping[str, Any], title: str) -> Table:
    """The table of all attacks for the terminal."""
    from rich import box
    from rich.markup import escape

    rows = {"before": found["before"], **found["models"]}
    attacks = sorted({a for row in rows.values() for a in row["attacks"]}, key=_rank)
    table = Table(
        title=escape(f"{title}: steps until half of the forgotten ES is back"),
        caption=(
            f"Of at most {found['settings']['steps']} steps; in brackets: of the samples not shown."
            f" kept: less than {LEAST} ES was forgotten. int8: ES with rounded weights, nothing"
            " trained."
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    heads = [a if a in (ALL, BENIGN) else f"{a} shown" for a in attacks if a != INT8]
    for i, head in enumerate(["model", "NLL", "ES", *heads, "int8 ES"]):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
    for model, row in rows.items():
        cells = [_cell(a, row["attacks"].get(a)) for a in attacks if a != INT8]
        rounded = row["attacks"].get(INT8, {}).get("final_forget_es")
        numbers = [_number(row["forget_nll"]), _number(row["forget_es"])]
        table.add_row(escape(model), *numbers, *cells, _number(rounded))
    return table


def _cell(attack: str, found: Mapping[str, Any] | None) -> str:
    """Such as "3 (>20)": of all of D_u, and of the samples not shown where it shows some."""
    if found is None:
        return "-"
    whole = _steps(found["whole"])
    if attack in (ALL, BENIGN):
        return whole
    unseen = _steps(found["unseen"])
    return KEPT if whole == unseen == KEPT else f"{whole} ({unseen})"


def _steps(found: Mapping[str, Any]) -> str:
    if found["status"] == "nothing forgotten":
        return KEPT
    return f">{found['tried']}" if found["step"] is None else str(found["step"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
