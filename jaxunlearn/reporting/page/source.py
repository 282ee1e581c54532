"""What the page shows, read from a run's folder."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.config import Config, dump
from jaxunlearn.metrics import tofu_log
from jaxunlearn.record import attack_results, starts, texts
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.texts import SampleText
from jaxunlearn.reporting import summary
from jaxunlearn.reporting.terminal import TextTable


class Source(NamedTuple):
    """All that the page shows, read from a run's folder.

    Attributes:
      title: of the run.
      tables: {table: columns}, and "meta" as figures take it.
      models: results of every model.
      attacks: the summary of relearning, if any.
      text_tables: (title, table) of the summary and the evaluation.
      texts: of the samples.
      generated: {model: {question: (generated, truth)}}.
      config: the configuration as YAML.
      timings: (stage, seconds) in order.
      starts: see `record.starts`.
      command: that makes the run again.
    """

    title: str
    tables: Mapping[str, Any]
    models: Mapping[str, Any]
    attacks: Mapping[str, Any] | None
    text_tables: Sequence[tuple[str, TextTable]]
    texts: Sequence[SampleText]
    generated: Mapping[str, Mapping[str, tuple[str, str]]]
    config: str
    timings: Sequence[tuple[str, float]]
    starts: Sequence[Mapping[str, Any]]
    command: str


def read(
    run: Path,
    config: Config,
    models: Mapping[str, Any],
    figure_tables: Mapping[str, Any],
    text_tables: Sequence[tuple[str, TextTable]],
) -> Source:
    """Reads the rest of what the page shows.

    Args:
      run: the run's folder.
      config: its configuration.
      models: the results of every model.
      figure_tables: as the figures take them.
      text_tables: the summary and the evaluation, with their titles.
    """
    folder = RunFolder(run)
    return Source(
        title=f"{config.name}, seed {config.seed}",
        tables=figure_tables,
        models=models,
        attacks=attack_results.read(run),
        text_tables=text_tables,
        texts=texts.read(run),
        generated={name: _generated(folder.tofu_log(name)) for name in models},
        config=dump(config),
        timings=list(summary.stage_seconds(run).items()),
        starts=starts.read(folder),
        command=shlex.join(["jaxunlearn", "run", str(folder.config), "--out", f"{run}-again"]),
    )


def _generated(log: Path) -> dict[str, tuple[str, str]]:
    """{question: (generated, truth)} of the forget set, as far as a model's TOFU log has them."""
    if not log.exists():
        return {}
    found = tofu_log.read_log(log).get("forget")
    written = [] if found is None or found.texts is None else found.texts
    return {item[0]: (item[1], item[2]) for item in written if item is not None}
