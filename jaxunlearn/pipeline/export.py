"""Writes a model of a run as a folder in the Hugging Face format, which transformers loads.

Everything runs on one device, the first of `jax.devices()`.
"""

from pathlib import Path

import jax
from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console
from jaxunlearn.models import hf
from jaxunlearn.models.decoder import abstract_params
from jaxunlearn.pipeline import stored
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import BASE, RunFolder

DTYPES = ("float32", "bfloat16")


def export(
    run: str | Path,
    objective: str,
    folder: str | Path,
    dtype: str = "float32",
    *,
    console: Console | None = None,
) -> Path:
    """Writes the final parameters of an objective as a folder that transformers loads.

    Args:
      run: the run's folder.
      objective: its name in the configuration, or `base` or `retrained`.
      folder: the folder to make; it appears whole or not at all.
      dtype: of the tensors: "float32" as they were trained, or "bfloat16".
      console: for a line about the result; default: nothing is printed.

    Returns:
      The folder.

    Raises:
      ValueError, FileNotFoundError: no such run, objective or dtype, or one that is not finished.
      FileExistsError: the folder is not empty.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype (--dtype): {dtype!r} must be one of {', '.join(DTYPES)}")
    target, source_run = user_path(folder), RunFolder(user_path(run))
    hf.check_free(target)
    config = stored.configuration(source_run)
    stored.check_name(source_run, config, objective)
    manifest.check(source_run)
    source = _source(source_run, config)
    model = hf.load_config(source)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, abstract_params(model))
    params = stored.final_params(source_run, config, objective, model, shardings, dtype)
    hf.save_params(target, params, model, source=source)
    console = console or quiet_console()
    console.print(f"{objective} of {source_run.path} is in {target}", markup=False, highlight=False)
    return target


def _source(run: RunFolder, config: Config) -> Path:
    """The folder with the model's configuration, tokenizer and generation settings."""
    if config.model is not None:
        return hf.resolve(config.model)
    return stored.stage_folder(run, config, BASE)
