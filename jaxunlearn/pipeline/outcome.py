"""What a run found, in memory: models, tables, figures, and a summary for notebooks."""

import dataclasses
import functools
import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxunlearn.core.names import nearest
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.trees import Tree
from jaxunlearn.models import hf, sharding
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.export import DTYPES
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.record import attack_results, tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import evaluation_table, summary
from jaxunlearn.reporting.terminal import shown_name, three_decimals

if TYPE_CHECKING:
    import pyarrow

COLUMNS = {
    f"{split}_{metric}": f"{split} {metric.upper()}"
    for split in ("forget", "retain")
    for metric in ("nll", "es", "em")
}
"""{key of a summary: head of its column}, all of which `measurement.statistics` defines."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a run as a PNG image, which notebooks show.

    Attributes:
      name: of the figure.
      png: the bytes of the image.
    """

    name: str
    png: bytes = dataclasses.field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found. Everything is in memory, whether its folder stays or not.

    Attributes:
      params: {objective: the parameters after its last step}, float32, on the run's devices; an
        objective that diverged has none.
      model: the configuration of all these models.
      tokenizer: theirs.
      summary: {model: {"forget_nll", "forget_es", "forget_em", "retain_nll", ..}}, first of `base`,
        the model before unlearning, then of every objective after its last step: the mean NLL of an
        answer token in nats, extraction strength and exact memorisation, on both sets.
      stopped: {objective: the step after which it diverged}; its numbers in `summary` are those of
        that step, and it has no entry in `params`.
      tables: {name: the table}, see docs/tables.md; only those that something was measured for.
      evaluation: what the suites measured, as `evaluation.json`; None where none was asked for.
      relearning: what attacks found, as `relearn.json`; None where none was asked for.
      pictures: {name: figure}.
      source: the folder or hub name of the model that the run began with; None where it came from
        memory or was new.
      folder: the run's folder; None where it was a temporary one.
    """

    params: Mapping[str, Tree] = dataclasses.field(repr=False)
    model: DecoderConfig = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)
    summary: Mapping[str, Mapping[str, Any]]
    stopped: Mapping[str, int]
    tables: "Mapping[str, pyarrow.Table]" = dataclasses.field(repr=False)
    evaluation: Any = dataclasses.field(repr=False)
    relearning: Any = dataclasses.field(repr=False)
    pictures: Mapping[str, Picture] = dataclasses.field(repr=False)
    source: str | None
    folder: Path | None

    def pandas(self, name: str) -> Any:
        """A table as a `pandas.DataFrame`.

        Args:
          name: a key of `tables`.

        Raises:
          ValueError: no such table.
          ModuleNotFoundError: pandas is not installed.
        """
        table = _pick("table", name, self.tables)
        try:
            return table.to_pandas()
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a DataFrame needs pandas, which is not installed: pip install pandas; the same"
                f" table is tables[{name!r}]"
            ) from error

    def figure(self, name: str) -> Picture:
        """A figure, which a notebook shows; `png` holds its bytes.

        Args:
          name: a key of `pictures`, such as "g_effect" or "plane".

        Raises:
          ValueError: no such figure.
        """
        return _pick("figure", name, self.pictures)

    def save(
        self, folder: str | Path, objective: str | None = None, dtype: str = "float32"
    ) -> Path:
        """Writes the final model of an objective as a folder that transformers loads.

        Args:
          folder: the folder to make; it appears whole or not at all.
          objective: a key of `params`; not needed where there is one alone.
          dtype: of the tensors: "float32" as they were trained, or "bfloat16".

        Returns:
          The folder.

        Raises:
          ValueError: no such objective or dtype, or several objectives and none is named.
          FileExistsError: the folder is not empty.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype: {dtype!r} must be one of {', '.join(DTYPES)}")
        for name in self.stopped if objective is None and not self.params else [objective]:
            if name is not None and name in self.stopped:
                raise ValueError(
                    f"objective: {name!r} diverged after step {self.stopped[name]} and has no final"
                    " model; lower its learning rate"
                )
        if objective is None and len(self.params) != 1:
            raise ValueError(f"objective: name one of {', '.join(self.params) or 'none'}")
        name = next(iter(self.params)) if objective is None else objective
        target = user_path(folder)
        params = jax.tree.map(lambda x: x.astype(dtype), _pick("objective", name, self.params))
        companions: dict[str, Any] = {"tokenizer": self.tokenizer}
        if self.source is not None:
            companions = {"source": hf.resolve(self.source)}
        hf.save_params(target, params, self.model, **companions)
        return target

    def _repr_html_(self) -> str:
        """The summary as a table. All text is escaped: names may come from anywhere."""
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("model", *COLUMNS.values()))
        rows = "".join(
            f"<tr><td>{html.escape(self._label(name))}</td>"
            + "".join(f"<td>{three_decimals(numbers.get(key))}</td>" for key in COLUMNS)
            + "</tr>"
            for name, numbers in self.summary.items()
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"

    def _label(self, name: str) -> str:
        """What the summary calls a model."""
        stopped = f" (stopped at {self.stopped[name]})" if name in self.stopped else ""
        return shown_name(name) + stopped


def read(prepared: Prepared, folder: RunFolder, *, stays: bool, source: str | None) -> Result:
    """Reads what a finished run left in its folder.

    Args:
      prepared: the run.
      folder: its folder.
      stays: whether the folder is there when the result is used.
      source: the folder or hub name of the model that the run began with, unless it came from
        memory.
    """
    config, model = stored.configuration(folder), prepared.model
    place = functools.partial(sharding.param_shardings, mesh=prepared.mesh)
    names = [name for name in stored.finished(folder, config) if name in prepared.config.objectives]
    results, _ = summary.read_run(folder.path)
    # A table is missing where nothing of it was measured.
    files_of = {name: folder.table(name) for name in tables.SCHEMAS if folder.table(name).exists()}
    return Result(
        params={name: stored.final_params(folder, config, name, model, place) for name in names},
        model=model,
        tokenizer=prepared.tokenizer,
        summary={name: {k: numbers.get(k) for k in COLUMNS} for name, numbers in results.items()},
        stopped={
            name: numbers["steps"] for name, numbers in results.items() if summary.stopped(numbers)
        },
        tables={name: tables.read_parquet(file) for name, file in files_of.items()},
        evaluation=evaluation_table.read(folder.path) if folder.evaluation.is_file() else None,
        relearning=attack_results.read(folder.path),
        pictures={
            file.stem: Picture(file.stem, file.read_bytes())
            for file in sorted(folder.figures.glob("*.png"))
        },
        source=source,
        folder=folder.path if stays else None,
    )


def _pick(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """The entry of this name.

    Raises:
      ValueError: there is none; lists those there are.
    """
    if name not in known:
        there = ", ".join(known) or "none"
        raise ValueError(f"no {what} {name!r}; there are: {there}{nearest(name, known)}")
    return known[name]
