"""The report of a run: its figures, `summary.md`, and the tables in the terminal; runs compared.

Everything is recomputed from the files in the run's folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.core import files
from jaxunlearn.core.paths import check_folder, user_path
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.record import attack_results, tables, texts
from jaxunlearn.record.folder import BASE, MODEL, RETRAINED, RunFolder
from jaxunlearn.reporting import (
    compare,
    evaluation_table,
    page,
    relearn_table,
    summary,
    terminal,
)
from jaxunlearn.reporting.compare import RANKING
from jaxunlearn.reporting.figures import draw, series
from jaxunlearn.reporting.page import source
from jaxunlearn.reporting.terminal import TextTable
from jaxunlearn.training.schedule import unlearning_steps, warmup_steps


def write_report(
    run: str | Path,
    console: Console | None = None,
    *,
    print_tables: bool = True,
    processes: int = 1,
) -> None:
    """Draws the figures of a finished run, writes its `summary.md`, and prints its tables.

    Args:
      run: the run's folder.
      console: for the tables; default: nothing is printed.
      print_tables: whether tables are printed, next to where the report is.
      processes: that draw figures at the same time, see `figures.draw.draw_all`.

    Raises:
      FileNotFoundError: the folder holds no finished run.
    """
    run, console = user_path(run), console or quiet_console()
    folder = RunFolder(run)
    results, config = summary.read_run(run)
    figure_tables = _figure_tables(run, config, results)
    # --- summary.md: the same tables as in the terminal -------------------------------------------
    overview = summary.summary_table(run, results)._replace(captions=summary.notes(config))
    evaluation = list(_evaluation_tables(run, config))
    effects = summary.effects_table(run)
    alone = compare.member(run, results, config, figure_tables["g_effect"])
    ranking = compare.ranking(compare.grouped([alone]))
    text_tables = [
        (f"{config.name}: summary", overview),
        *([] if effects is None else [(f"{config.name}: G-effect", effects)]),
        *evaluation,
        *([(f"{config.name}: {RANKING}", ranking)] if len(ranking.rows) > 1 else []),
    ]
    files.write_text(folder.summary, _markdown(text_tables))
    # --- report.html, while other processes have begun with the figures ---------------------------
    shown = source.read(run, config, results, figure_tables, text_tables)
    figures = draw.draw_all(
        figure_tables,
        folder.figures,
        processes=processes,
        meanwhile=lambda: page.write(shown, folder.html),
    )
    draw.remove_others(folder.figures, figures)
    # --- the terminal -----------------------------------------------------------------------------
    if print_tables:
        terminal.print_wide(terminal.rich_table(overview, config.name), console)
    if warning := figure_tables["meta"]["warning"]:
        say(console, f"warning: {warning}", style="yellow")
    where = f"report: {folder.html}" if page.is_installed() else page.MISSING
    say(console, f"{len(figures)} figures in {folder.figures}", where)
    if not print_tables:
        return
    attacks = attack_results.read(run)
    # A single attack has a column in the evaluation's table, where there is one.
    several = attacks and len(attack_results.fine_tuning_attacks(attacks)) > 1
    if attacks and (several or not evaluation):
        _print_attacks(attacks, config, console)
    print_evaluation(run, config, console)
    if len(ranking.rows) > 1:
        terminal.print_wide(terminal.rich_table(ranking, f"{config.name}: {RANKING}"), console)


def compare_runs(
    runs: Sequence[str | Path], out: str | Path, console: Console | None = None
) -> None:
    """Compares finished runs: prints tables, writes `comparison.md` and `comparison.html`.

    Args:
      runs: their folders; runs that differ in nothing but the seed are repeats of one another.
      out: where both files go.
      console: for the tables; default: nothing is printed.

    Raises:
      FileNotFoundError: a folder holds no finished run.
      ValueError: a file is in the place of `out`.
    """
    console, folder = console or quiet_console(), user_path(out)
    check_folder(folder)
    compared = compare.compare([compare.read(user_path(run)) for run in runs], folder)
    files.write_text(folder / "comparison.md", _markdown(compared.tables))
    for title, table in compared.tables:
        terminal.print_wide(terminal.rich_table(table, title), console)
    html = folder / "comparison.html"
    page.write_comparison(compared, html)
    say(console, f"comparison: {html}" if page.is_installed() else page.MISSING)


def print_evaluation(
    run: Path, config: Config, console: Console, names: Sequence[str] | None = None
) -> None:
    """Prints the evaluation of a run, if there is one.

    Args:
      run: the run's folder.
      config: its configuration.
      console: where it goes.
      names: the models to show; default: all that were evaluated.
    """
    titled = list(_evaluation_tables(run, config, names))
    if not titled:
        return
    for title, table in titled:
        terminal.print_wide(terminal.rich_table(table, title), console)
    reasons = evaluation_table.reasons(_evaluated_models(run, config, names))
    say(console, *reasons, f"all numbers are in {RunFolder(run).evaluation}")


def report_relearning(run: Path, config: Config, console: Console) -> None:
    """Draws the figure of relearning and prints its table, if a run was attacked.

    Args:
      run: the run's folder.
      config: its configuration.
      console: where the table goes.
    """
    if attacks := attack_results.read(run):
        figure_tables = relearn_table.figure_tables(run, config, attacks)
        draw.draw_all(figure_tables, RunFolder(run).figures)
        _print_attacks(attacks, config, console)


def _markdown(titled: Sequence[tuple[str, TextTable]]) -> str:
    """Tables below each other, each with its title."""
    return "\n".join(f"## {title}\n\n{terminal.markdown(table)}" for title, table in titled)


def _print_attacks(attacks: Mapping[str, Any], config: Config, console: Console) -> None:
    title = f"{config.name}: steps until half of the forgotten ES is back"
    table = relearn_table.relearn_table(attacks)
    terminal.print_wide(terminal.rich_table(table, title, two_line_heads=False), console)


def _figure_tables(run: Path, config: Config, results: Mapping[str, Any]) -> dict[str, Any]:
    """All tables that figures are drawn from, and `meta`: title, warning and layer groups."""
    stored = [name for name in tables.FIGURE_COLUMNS if name in tables.SCHEMAS]
    content: dict[str, Any] = {name: tables.read(run, name) for name in stored}
    layers = [*content["g_effect"]["layer"], *map(series.layer_of, content["pg_effect"]["layer"])]
    forget = [text for text in texts.read(run) if text.split == "forget"]
    meta = {
        "title": f"{config.name}, seed {config.seed}",
        "warning": summary.warning(results[BASE]),
        "groups": summary.layer_groups(config, layers),
        "warm_up": _warm_up(config, len(forget)),
    }
    content["texts"] = {
        key: [getattr(text, key) for text in forget] for key in ("sample", "tokens")
    }
    attacks = attack_results.read(run)
    if attacks is None:
        return content | {"meta": meta}
    relearning = relearn_table.figure_tables(run, config, attacks)
    return content | relearning | {"meta": relearning["meta"] | meta}


def _warm_up(config: Config, samples: int) -> int | None:
    """The steps in which learning rates rise; None where the forget samples are not known."""
    if not samples:
        return None
    return min(warmup_steps(config.unlearn, samples), unlearning_steps(config, samples))


def _evaluation_tables(
    run: Path, config: Config, names: Sequence[str] | None = None
) -> Iterator[tuple[str, TextTable]]:
    """The tables of an evaluation, with their titles."""
    models = _evaluated_models(run, config, names)
    if models:
        table = evaluation_table.evaluation_table(models, attack_results.read(run))
        yield f"{config.name}: evaluation", table
    steps = evaluation_table.read(run).get("steps", {})
    if best := {name: entry for name, entry in steps.items() if name in models}:
        yield f"{config.name}: best step", evaluation_table.best_steps_table(best)


def _evaluated_models(
    run: Path, config: Config, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The evaluated models in the order of the tables: base, retrained, the others."""
    models = evaluation_table.read(run)["models"]
    order = (BASE, RETRAINED, *config.objectives, MODEL)
    return {n: models[n] for n in order if models.get(n) and (names is None or n in names)}
