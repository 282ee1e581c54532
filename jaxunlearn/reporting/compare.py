"""Runs compared: seeds of one configuration joined, objectives ranked at equal retention."""

import dataclasses
import functools
import json
import math
import os
import statistics
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.config import Config
from jaxunlearn.config import differences as differences_of
from jaxunlearn.core import files
from jaxunlearn.core.names import numbered
from jaxunlearn.metrics.relearning import attack_kind
from jaxunlearn.record import attack_results, shapes, tables
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.record.shapes import PLACES
from jaxunlearn.reporting import evaluation_table, relearn_table, summary
from jaxunlearn.reporting.terminal import TextTable, shown_name, three_decimals

DRAWS = 2000
"""Bootstrap samples of an interval."""

RANKING = "ranking at equal retention"
UWC = ("uwc", "uwc_extraction_strength")


class Member(NamedTuple):
    """A finished run.

    Attributes:
      folder: its folder.
      config: its configuration.
      models: the results of every model.
      evaluation: {model: {suite: {"results": rows}}}.
      attacks: the summary of relearning, if any.
      effects: the table `g_effect`.
      layer_groups: {group: its layers} of those that have effects.
      inputs: the digests of what it read, by the keys that name it; none in old runs.
    """

    folder: Path
    config: Config
    models: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    attacks: Mapping[str, Any] | None
    effects: Mapping[str, Sequence[Any]]
    layer_groups: Mapping[str, Sequence[str]]
    inputs: Mapping[str, str]


class Comparison(NamedTuple):
    """Runs grouped by their configurations, of which seeds are repeats.

    Attributes:
      groups: {name of a configuration: its runs by seed}.
      tables: (title, table) in the order of the page.
      out: the folder of the page, from which it links to the runs' own.
    """

    groups: Mapping[str, Sequence[Member]]
    tables: Sequence[tuple[str, TextTable]]
    out: Path

    @property
    def runs(self) -> list[Member]:
        """All of them, group by group."""
        return [member for members in self.groups.values() for member in members]

    def link(self, run: Member) -> str:
        """Where the page of a run is, seen from the comparison's; empty where it has none."""
        page = RunFolder(run.folder).html
        if not page.exists():
            return ""
        return urllib.parse.quote(os.path.relpath(page, self.out).replace(os.sep, "/"))


def read(run: Path) -> Member:
    """Reads what is compared of a run.

    Raises:
      FileNotFoundError: there is no finished run.
    """
    return member(run, *summary.read_run(run), tables.read(run, "g_effect"))


def member(
    run: Path, models: Mapping[str, Any], config: Config, effects: Mapping[str, Sequence[Any]]
) -> Member:
    """The same of a run whose results, configuration and table `g_effect` are read already."""
    inputs = RunFolder(run).inputs
    return Member(
        folder=run,
        config=config,
        models=models,
        evaluation=evaluation_table.read(run)["models"],
        attacks=attack_results.read(run),
        effects=effects,
        layer_groups=summary.layer_groups(config, effects["layer"]),
        inputs=files.read_json(inputs, shapes.Digests) if inputs.exists() else {},
    )


def compare(members: Sequence[Member], out: Path) -> Comparison:
    """Groups runs and makes their tables.

    Args:
      members: the runs.
      out: the folder for which the comparison is made.
    """
    groups = grouped(members)
    made = [("models", models_table(groups)), (RANKING, ranking(groups))]
    differing = differences(groups)
    if differing.rows:
        made.append(("what the configurations differ in", differing))
    return Comparison(groups, [(title, table) for title, table in made if table.rows], out)


def grouped(members: Sequence[Member]) -> dict[str, list[Member]]:
    """Runs by configuration, of which seeds are repeats; equal names get a number.

    Repeats need not have the same objectives, but one that both have is the same in both. A second
    run of a seed is no repeat.
    """
    repeats: list[list[Member]] = []
    for member in members:
        found = (group for group in repeats if all(_is_repeat(member, other) for other in group))
        if (group := next(found, None)) is None:
            repeats.append([member])
        else:
            group.append(member)
    groups: dict[str, list[Member]] = {}
    for found in repeats:
        label = numbered(found[0].config.name, groups, "{} ({})")
        groups[label] = sorted(found, key=lambda member: member.config.seed)
    return groups


def labelled(groups: Mapping[str, Sequence[Member]]) -> Iterator[tuple[str, str, list[Member]]]:
    """(label, model, runs that have it) of every model of every group, in order.

    The label says of an objective that diverged where it stopped: its numbers are those of the last
    state before, which nothing may have been forgotten in.
    """
    for group, members in groups.items():
        for name in dict.fromkeys(name for member in members for name in member.models):
            having = [member for member in members if name in member.models]
            shown = shown_name(name) + _stopped([member.models[name] for member in having])
            yield shown if len(groups) == 1 else f"{group}: {shown}", name, having


def _stopped(results: Sequence[Mapping[str, Any]]) -> str:
    """Says how many of the runs of a model stopped before their last step, if any did."""
    early = [r["steps"] for r in results if summary.stopped(r)]
    if not early:
        return ""
    return f" (stopped at {early[0]})" if len(results) == 1 else f" ({len(early)} stopped early)"


# --------------------------------------------------------------------------- tables


def models_table(groups: Mapping[str, Sequence[Member]]) -> TextTable:
    """Every model: NLL and ES of both sets, UWC, relearning; mean and deviation over seeds."""
    metrics: dict[str, Callable[[Member, str], float | None]] = {
        "forget NLL": lambda member, name: member.models[name]["forget_nll"],
        "forget ES": lambda member, name: member.models[name]["forget_es"],
        "retain NLL": lambda member, name: member.models[name]["retain_nll"],
        "retain ES": lambda member, name: member.models[name]["retain_es"],
        "|e_r / e_u|": harm_ratio,
        "UWC ES": uwc_strength,
        "ES relearned": lambda member, name: None,  # set for each row
    }
    rows, shares = [], []
    for label, name, members in labelled(groups):
        metrics["ES relearned"] = functools.partial(relearned, attack=_attack(members))
        values = [[metric(member, name) for member in members] for metric in metrics.values()]
        rows.append((label, str(len(members)), *map(_spread, values)))
        shares += [_share(known, each) for each in values if (known := _known(each))]
    filled = [i for i in range(2, 2 + len(metrics)) if any(row[i] != "-" for row in rows)]
    keep = (0, 1, *filled)
    columns = ("model", "seeds", *metrics)
    notes = (
        "Mean ± standard deviation over seeds. |e_r / e_u|: the sizes of the total G-effects at the"
        " last measured step, harm over removal where both are negative. UWC ES: forget ES where"
        f" 95 % of the retain ES is kept. ES relearned: forget ES after {_attacks(groups)}."
        + _explained(shares),
    )
    return TextTable(
        tuple(columns[i] for i in keep), [tuple(row[i] for i in keep) for row in rows], notes
    )


class Tried(NamedTuple):
    """An attack with its settings: results of others are of something else.

    Attributes:
      name: of the attack.
      settings: the number of steps, the learning rate and the batch size.
    """

    name: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        steps, lr = self.settings["steps"], self.settings["lr"]
        return f"{steps} steps of fine-tuning on {attack_kind(self.name).trains_on} at {lr:g}"


def _tried(member: Member) -> Tried | None:
    """The attack on a run that tables show."""
    attacks = member.attacks
    if attacks is None or (name := relearn_table.headline(attacks)) is None:
        return None
    return Tried(name, attacks["settings"])


def _attack(members: Sequence[Member]) -> Tried | None:
    """The attack that a row is of: that of its first run that was attacked."""
    return next((tried for member in members if (tried := _tried(member)) is not None), None)


def _attacks(groups: Mapping[str, Sequence[Member]]) -> str:
    """What `relearned` is measured after, in words."""
    tried = [_attack(having) for _, _, having in labelled(groups)]
    return " or ".join(dict.fromkeys(map(str, filter(None, tried)))) or "attacks"


def ranking(groups: Mapping[str, Sequence[Member]]) -> TextTable:
    """Objectives by UWC ES, with bootstrap intervals over samples; empty where none has it."""
    found: list[tuple[str, np.ndarray, dict[Any, Any]]] = []
    shares = []
    for label, name, members in labelled(groups):
        scores = [(member, uwc_samples(member, name)) for member in members]
        measured = [(member, by_sample) for member, by_sample in scores if by_sample]
        if measured and name not in (BASE, RETRAINED):
            # Samples are drawn, each with the mean over its seeds.
            values = np.mean([by_sample for _, by_sample in measured], axis=0)
            shares.append(_share(measured, members))
            of_runs = {_samples_of(member): np.array(each) for member, each in measured}
            found.append((label + shares[-1], values, of_runs))
    found.sort(key=lambda entry: entry[1].mean())
    rows = []
    for place, (label, values, of_runs) in enumerate(found, 1):
        # The same samples and seeds, so that what they have in common does not blur the difference.
        shared = [run for run in found[0][2] if run in of_runs] if place > 1 else []
        apart = [of_runs[run] - found[0][2][run] for run in shared]
        behind = _interval(np.mean(apart, axis=0), signed=True) if shared else "-"
        rows.append((str(place), label, _interval(values), behind))
    notes = (
        "UWC ES: forget ES of the mixture with the model before unlearning that keeps 95 % of the"
        f" retain ES; less is better. In brackets: 95 %, {DRAWS} bootstrap samples of the forget"
        " set, the same ones for both of a difference, which is taken over the seeds that both"
        " have, and not between other samples. An objective is behind the first where the bracket"
        " lies above 0." + _explained(shares),
    )
    return TextTable(("place", "objective", "UWC ES", "more than the first"), rows, notes)


def _interval(values: np.ndarray, *, signed: bool = False) -> str:
    mean, low, high = (f"{v:+.3f}" if signed else three_decimals(v) for v in interval(values))
    return f"{mean} [{low}, {high}]"


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of values by sample, and its 95 % bootstrap interval.

    >>> [round(x, 2) for x in interval(np.array([0.0, 1.0] * 50))]
    [0.5, 0.4, 0.6]
    """
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def differences(groups: Mapping[str, Sequence[Member]]) -> TextTable:
    """The keys in which the groups' configurations differ; `null` where a group lacks one."""
    by_group = {
        label: {name: spec for member in members for name, spec in member.config.objectives.items()}
        for label, members in groups.items()
    }
    shared = set.intersection(*map(set, by_group.values()))
    flat = {}
    for label, members in groups.items():
        # Of an objective that another group lacks, only that it is there.
        objectives = {
            name: dataclasses.asdict(spec) if name in shared else True
            for name, spec in by_group[label].items()
        }
        flat[label] = dict(_flat(_plain(members[0].config) | {"objectives": objectives}))
    keys = dict.fromkeys(key for entries in flat.values() for key in entries)
    rows = []
    for key in keys:
        values = [json.dumps(entries.get(key)) for entries in flat.values()]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return TextTable(("key", *flat), rows)


# --------------------------------------------------------------------------- numbers of a run


def harm_ratio(member: Member, model: str) -> float | None:
    """|e_r / e_u| at the last measured step of an objective; None where e_u is 0 or unknown."""
    totals: dict[str, float | None] = {}  # later steps come later
    columns = (member.effects.get(k, ()) for k in ("objective", "layer", "risk", "value"))
    for objective, layer, risk, value in zip(*columns, strict=True):
        if objective == model and layer == "total":
            totals[risk] = value
    removal, harm = totals.get("unlearn"), totals.get("retain")
    if not removal or harm is None or not math.isfinite(harm / removal):
        return None
    return abs(harm / removal)


def uwc_strength(member: Member, model: str) -> float | None:
    """The forget ES of a model at equal retention."""
    row = _uwc_row(member, model)
    return None if row is None else row["value"]


def _samples_of(member: Member) -> tuple[int, Any]:
    """The seed and the forget set of a run; equal ones can be compared sample by sample."""
    return member.config.seed, member.inputs.get("data.forget", member.config.data)


def uwc_samples(member: Member, model: str) -> list[float] | None:
    """The same by sample; None in runs of earlier versions."""
    row = _uwc_row(member, model)
    return None if row is None else row.get("by_sample")


def relearned(member: Member, model: str, *, attack: Tried | None) -> float | None:
    """The forget ES after an attack; None where the run was attacked with other settings."""
    attacks = member.attacks
    if attack is None or attacks is None or attacks["settings"] != attack.settings:
        return None
    found = attacks["models"].get(model, {}).get("attacks", {}).get(attack.name)
    return None if found is None else found["final_forget_es"]


def _uwc_row(member: Member, model: str) -> Mapping[str, Any] | None:
    suite, metric = UWC
    results = member.evaluation.get(model, {}).get(suite, {}).get("results", [])
    return next((r for r in results if r["metric"] == metric and r["value"] is not None), None)


def _spread(values: Sequence[float | None]) -> str:
    """Mean and deviation of the seeds that have a number, and how many have where some lack it."""
    known = _known(values)
    if not known:
        return "-"
    text = three_decimals(statistics.fmean(known))
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.3f}"
    return text + _share(known, values)


def _known(values: Sequence[float | None]) -> list[float]:
    """The numbers of the seeds that have one."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _share(some: Sequence[Any], every: Sequence[Any]) -> str:
    """Says how many of the seeds there are, where some are missing."""
    return f" ({len(some)} of {len(every)})" if len(some) < len(every) else ""


def _explained(shares: Iterable[str]) -> str:
    """The sentence of a caption on the results of `_share`, where one of them says something."""
    share = next(filter(None, shares), "").strip()
    return (
        f' "{share}": the other seeds have no such number, as where they diverged.' if share else ""
    )


# --------------------------------------------------------------------------- configurations


def _plain(config: Config) -> dict[str, Any]:
    """The configuration without what may differ between repeats."""
    keys = dataclasses.asdict(config)
    return {key: keys[key] for key in keys if key not in ("seed", "objectives")}


def _is_repeat(one: Member, other: Member) -> bool:
    """Whether two runs are seeds of one configuration, on the same data and model."""
    first, second = one.config, other.config
    shared = first.objectives.keys() & second.objectives.keys()
    digests = one.inputs.keys() & other.inputs.keys()
    # What was read from another place and is the same has only moved.
    moved = {key for key, digest in PLACES.items() if digest in digests}
    return (
        first.seed != second.seed
        and not any(key not in moved for key, *_ in differences_of(_plain(first), _plain(second)))
        and all(one.inputs[key] == other.inputs[key] for key in digests)
        and all(first.objectives[name] == second.objectives[name] for name in shared)
    )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}".lstrip("."))
    else:
        yield key, value
