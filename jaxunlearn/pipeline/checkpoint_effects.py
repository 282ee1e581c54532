"""The command `effects`: what the step from one checkpoint to another does to both sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.core.names import nearest
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.measurement.statistics import Splits
from jaxunlearn.measurement.step_effects import StepTables, step_tables
from jaxunlearn.models import sharding
from jaxunlearn.objectives import REDUCTIONS
from jaxunlearn.pipeline import inputs, stored
from jaxunlearn.pipeline.evaluate import of_model
from jaxunlearn.pipeline.prepare import make_stages, prepare
from jaxunlearn.pipeline.resume import open_results
from jaxunlearn.pipeline.subject import check_shape, measured_on, model_folder, read_folder
from jaxunlearn.record import step_tables as record
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.reporting import terminal
from jaxunlearn.reporting.step_table import step_table


def checkpoint_effects(
    before: str | Path,
    after: str | Path,
    *,
    config: Config | None = None,
    out: str | Path | None = None,
    reduction: str = "sequence_sum",
    mesh: tuple[int, int, int] | None = None,
    console: Console | None = None,
    devices: Sequence[Any] | None = None,
) -> StepTables:
    """Measures what the step between two checkpoints of one architecture does, and prints it.

    With d = theta_after - theta_before: grad R(theta_before) . d by layer for the forget set and
    the retain set, the change of each risk to first order (arXiv 2502.19301, definition 1, with d
    for the objective's negative gradient), next to the real change; and grad log p(s) . d of every
    sample. The tables go to `g_effect.parquet`, `pg_effect.parquet` and `token_effect.parquet`.

    Args:
      before: a model's folder, or its name on the Hugging Face hub.
      after: the other one; tokenizer and prompts are those of `before`.
      config: data, mesh and precision, and in `measure` the settings `gradients` and `pg_by`;
        default: all defaults of `Config`.
      out: the folder of the tables; default: `effects/BEFORE-AFTER`, the last parts of the names.
      reduction: of the risks R, see `objectives.reduce_losses`.
      mesh: (data, fsdp, tensor), where it is not the configuration's.
      console: for progress and the table; default: nothing is printed.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.

    Returns:
      The rows of the tables, see `record.step_tables`.

    Raises:
      ValueError, OSError: no such model, models of different architectures, missing or bad data,
        or a folder that holds something else.
    """
    if reduction not in REDUCTIONS:
        known = ", ".join(REDUCTIONS)
        raise ValueError(
            f"reduction (--reduction): no {reduction!r}; there are: {known}"
            + nearest(reduction, REDUCTIONS)
        )
    folders = {"before": model_folder("before", before), "after": model_folder("after", after)}
    console = console or quiet_console()
    config = stored.on_mesh(of_model(config or Config(), before), mesh)
    name = f"{config.name}-{of_model(config, after).name}"
    folder = RunFolder(user_path(out or Path("effects") / name))
    prepared = prepare(config, devices, unlearns=False)
    check_shape("after", folders["after"], prepared)
    say(console, measured_on(config), *prepared.notes)
    digests = inputs.of_models(folders)
    layout, model = prepared.layout, prepared.model
    with open_results(folder, digests, config), jax.set_mesh(prepared.mesh):
        splits = Splits(layout.split(prepared.sets.forget), layout.split(prepared.retain_eval))
        with make_stages(prepared, folder, console).stage("effects") as stage:
            with stage.part("load"):
                place = sharding.param_shardings(model, layout.mesh)
                old, new = (read_folder(path, model, place) for path in folders.values())
            with stage.part("measure"):
                found = step_tables(old, new, splits, model, config.measure, reduction)
        record.write(folder.path, found._asdict())
    title = f"{before} to {after}"
    terminal.print_wide(terminal.rich_table(step_table(found.g_effect), title), console)
    say(console, f"the tables are in {folder.path}")
    return found
