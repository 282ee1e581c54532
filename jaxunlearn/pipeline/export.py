"""Writes a model of a run as a folder in the Hugging Face format, which transformers loads.

Everything runs on one device, the first of `jax.devices()`.
"""

from pathlib import Path

import jax
from rich.console import Console

from jaxunlearn.config import Config
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.progress import quiet_console, say
from jaxunlearn.models import hf
from jaxunlearn.models.decoder import DecoderConfig, abstract_params
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.resume import check_configuration, check_weights
from jaxunlearn.record import manifest
from jaxunlearn.record.folder import BASE, RunFolder
from jaxunlearn.training.scope import with_adapters

DTYPES = ("float32", "bfloat16")


def export(
    run: str | Path,
    objective: str,
    folder: str | Path,
    dtype: str = "float32",
    *,
    adapter: bool = False,
    console: Console | None = None,
) -> Path:
    """Writes the final parameters of an objective as a folder that transformers or PEFT loads.

    The adapters of a run with `train.lora` are merged into the model, unless they alone are asked
    for.

    Args:
      run: the run's folder.
      objective: its name in the configuration, or `base` or `retrained`.
      folder: the folder to make; it appears whole or not at all.
      dtype: of the tensors: "float32" as they were trained, or "bfloat16".
      adapter: write the adapters alone, as PEFT does.
      console: for a line about the result; default: nothing is printed.

    Returns:
      The folder.

    Raises:
      ValueError, FileNotFoundError: no such run, objective or dtype, one that is not finished, no
        adapters where they are asked for, a frozen model that is not what it was, or a folder of
        the run's.
      FileExistsError: the folder is not empty.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype (--dtype): {dtype!r} must be one of {', '.join(DTYPES)}")
    target, source_run = user_path(folder), RunFolder(user_path(run))
    hf.check_free(target)
    config = stored.configuration(source_run)
    if target.resolve().is_relative_to(source_run.path.resolve()):
        raise ValueError(
            f"{target}: is in the folder of the run, whose own models are there; choose another"
            " folder"
        )
    stored.check_name(source_run, config, objective)
    manifest.check(source_run, without=[manifest.REFERENCES])
    if config.train.words is not None:
        check_weights(source_run, config)  # what is frozen is not in the checkpoints
    else:
        check_configuration(source_run, config)  # it never is
    source = _source(source_run, config)
    model = hf.load_config(source)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda model: jax.tree.map(lambda _: device, abstract_params(model))
    if adapter:
        unlearn_model = _with_adapters(source_run, config, objective, model)
        own = stored.trainable_params(source_run, config, objective, unlearn_model, place)
        base = config.model
        # Adapters belong to the model that unlearning started from.
        if base is None or config.finetune.epochs:
            base = str(stored.stage_folder(source_run, config, BASE))
        hf.save_adapters(target, own, unlearn_model, base=base, dtype=dtype)
    else:
        params = stored.final_params(source_run, config, objective, model, place, dtype)
        hf.save_params(target, params, model, source=source)
    say(console or quiet_console(), f"{objective} of {source_run.path} is in {target}")
    return target


def _with_adapters(
    run: RunFolder, config: Config, objective: str, model: DecoderConfig
) -> DecoderConfig:
    """The model with the adapters of a run.

    Raises:
      ValueError: there are none.
    """
    if not config.train.lora.used:
        raise ValueError(f"{run.path}: the run has no adapters (train.lora); leave out --adapter")
    if objective in stored.STAGES:
        raise ValueError(f"{objective} has no adapters; name an objective, or leave out --adapter")
    return with_adapters(config.train, model)


def _source(run: RunFolder, config: Config) -> Path:
    """The folder with the model's configuration, tokenizer and generation settings."""
    if config.model is not None:
        return hf.resolve(config.model)
    return stored.stage_folder(run, config, BASE)
