"""The summary of a run: one row per model, recomputed from the run's results and tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from jaxunlearn.config import reader, schema
from jaxunlearn.core import files
from jaxunlearn.core.progress import say
from jaxunlearn.models import decoder
from jaxunlearn.record import manifest, shapes, tables
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.reporting.terminal import TextTable, shown_name, three_decimals, two_digits

LOW_FORGET_ES = 0.3
"""A model with a lower forget ES has hardly memorised the forget set."""

COLUMNS = (
    "objective",
    "forget NLL",
    "forget ES",
    "retain NLL",
    "retain ES",
    "peak e_u (step)",
    "peak e_r (step)",
    "time [s]",
)


def stopped(result: Mapping[str, Any]) -> bool:
    """Whether a model diverged: its numbers are those of the last state before."""
    return result.get("steps") != result.get("of_steps")


def warning(base: Mapping[str, float | None]) -> str | None:
    """A warning for every figure, where the model has hardly memorised the forget set.

    Args:
      base: the results of the model before unlearning.
    """
    # A model that broke has no strength.
    if base["forget_es"] is None or base["forget_es"] >= LOW_FORGET_ES:
        return None
    return f"little to forget: the starting model's forget ES is {base['forget_es']:.2f}"


def print_starting_point(base: Mapping[str, float], console: Console) -> None:
    """Prints the results of the model before unlearning, and the warning if there is one."""
    say(
        console,
        f"before unlearning: forget NLL {base['forget_nll']:.3f}, ES {base['forget_es']:.3f};"
        f" retain NLL {base['retain_nll']:.3f}, ES {base['retain_es']:.3f}",
    )
    if text := warning(base):
        say(console, f"warning: {text}", style="yellow")


def read_run(run: Path) -> tuple[dict[str, Any], schema.Config]:
    """The results of every model of a finished run, and its configuration.

    Raises:
      FileNotFoundError: there is none; names the file that is missing.
      ValueError: a file that is shown is damaged; names it.
    """
    folder = RunFolder(run)
    for file in (folder.config, folder.results):
        if not file.exists():
            raise FileNotFoundError(f"{run}: no finished run here ({file.name} is missing)")
    # Models are large, and neither they nor references are shown.
    manifest.check(folder, without=[BASE, RETRAINED, manifest.REFERENCES])
    models = files.read_json(folder.results, shapes.Results)["models"]
    if BASE not in models:
        raise ValueError(f"{folder.results}: models: no model {BASE!r}")
    for name, result in models.items():
        if ("steps" in result) != ("of_steps" in result):
            raise ValueError(f"{folder.results}: models.{name}: expected both steps and of_steps")
    return models, reader.load(folder.config)


def layer_groups(config: schema.Config, layers: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """{group: its layers} of the layers that have effects.

    Args:
      config: the run's configuration.
      layers: their names, in any number; `total` is none.
    """
    names = [name for name in dict.fromkeys(layers) if name != "total"]
    # All blocks have effects or, where their parameters are frozen, none has.
    cuts = config.measure.layer_cuts if any(map(decoder.is_block, names)) else None
    return decoder.layer_groups(names, cuts) if names else {}


def summary_table(run: Path, results: Mapping[str, Any]) -> TextTable:
    """NLL and ES of every model, the peaks of its G-effect, and the seconds it took.

    Args:
      run: the run's folder.
      results: from `read_run`.
    """
    totals, seconds = _totals(run), stage_seconds(run)
    rows = []
    for name, result in results.items():
        numbers = [result[k] for k in ("forget_nll", "forget_es", "retain_nll", "retain_es")]
        peaks = [_peak(totals.get((name, risk), [])) for risk in ("unlearn", "retain")]
        effects = [f"{two_digits(p.value)} ({p.step})" if p else "-" for p in peaks]
        time = f"{seconds[name]:.0f}" if name in seconds else "-"
        early = stopped(result)
        label = f"{name} (stopped at {result['steps']})" if early else shown_name(name)
        rows.append((label, *map(three_decimals, numbers), *effects, time))
    return TextTable(COLUMNS, rows)


def notes(config: schema.Config) -> tuple[str, ...]:
    """Sentences about a run below its summary: which parameters train, where not all do."""
    words = config.train.words
    if words is None:
        return ()
    return (f"trains: {words}. Effects are those on the parameters that train.",)


def effects_table(run: Path) -> TextTable | None:
    """The totals of the G-effect at their peak and at the last measured step; None without any.

    Args:
      run: the run's folder.
    """
    totals = _totals(run)
    if not totals:
        return None
    rows = []
    for objective in dict.fromkeys(name for name, _ in totals):
        curves = [totals.get((objective, risk), []) for risk in ("unlearn", "retain")]
        ends = [(_peak(curve), curve[-1] if curve else None) for curve in curves]
        rows.append((objective, *(_at(point) for points in ends for point in points)))
    columns = (
        "objective",
        *("e_u at its peak", "e_u at the last step", "e_r at its peak", "e_r at the last step"),
    )
    made = {point.how for curve in totals.values() for point in curve}
    notes = (
        "In brackets: the step, and the cosine of the gradients. Reduction and precision: "
        + "; ".join(sorted(made))
        + ".",
    )
    return TextTable(columns, rows, notes)


class _Point(NamedTuple):
    """A total G-effect at one step, and how it was computed."""

    step: int
    value: float
    cosine: float | None
    how: str


def _totals(run: Path) -> dict[tuple[str, str], list[_Point]]:
    """{(objective, risk): the total G-effect at every measured step}."""
    table = tables.read(run, "g_effect")
    names = ("objective", "risk", "layer", "step", "value", "cosine", "reduction", "precision")
    totals: dict[tuple[str, str], list[_Point]] = {}
    for objective, risk, layer, step, value, cosine, *how in zip(
        *(table[name] for name in names), strict=True
    ):
        if layer == "total":
            point = _Point(step, value, cosine, ", ".join(how))
            totals.setdefault((objective, risk), []).append(point)
    return totals


def _peak(curve: Sequence[_Point]) -> _Point | None:
    """The point of largest magnitude, the last one of equals; what is no number does not count."""
    best = None
    for point in curve:
        if abs(point.value) >= (0.0 if best is None else abs(best.value)):
            best = point
    return best


def _at(point: _Point | None) -> str:
    if point is None:
        return "-"
    cosine = "" if point.cosine is None else f", {point.cosine:.2f}"
    return f"{two_digits(point.value)} ({point.step}{cosine})"


def stage_seconds(run: Path) -> dict[str, float]:
    """The seconds of every stage; those of a stage that was resumed add up."""
    seconds: dict[str, float] = {}
    for record in files.records(RunFolder(run).timings, shapes.Timing):
        if record.get("part") is None:  # the parts of a stage are in its seconds
            seconds[record["stage"]] = seconds.get(record["stage"], 0.0) + record["seconds"]
    return seconds
