"""A model of a run as a folder of Hugging Face's: for transformers, and whatever reads its files.

Everything happens on one device, the host where the caller chose no other.
"""

from pathlib import Path

import jax

from jaxunlearn.config import Config
from jaxunlearn.models import hf
from jaxunlearn.models.architecture import abstract_params
from jaxunlearn.run import models


def export(run: Path, objective: str, folder: Path, dtype: str = "float32") -> None:
    """Writes the final parameters of an objective as a folder that transformers loads.

    Args:
      run: the run's folder.
      objective: its name in the configuration, or `base` or `retrained`.
      folder: to be made; appears whole or not at all.
      dtype: of the tensors, "float32" as they were trained, or "bfloat16".

    Raises:
      ValueError, FileNotFoundError: no such run or objective, or one that is not finished.
      FileExistsError: the folder is not empty.
    """
    hf.check_free(folder)
    config = models.configuration(run)
    models.check_name(run, config, objective)
    source = _source(run, config)
    model = hf.load_config(source)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: place, abstract_params(model))
    params = models.final_params(run, config, objective, model, shardings, dtype)
    hf.save_params(folder, params, model, source=source)


def _source(run: Path, config: Config) -> Path:
    """The folder with the model's configuration, tokenizer and generation settings."""
    if config.model is not None:
        return hf.resolve(config.model)
    return models.stage_folder(run, config, "base")
