"""Reads the models of a run from its folder.

From a checkpoint only the parameters are read, so that the optimiser's moments are never in memory.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from jaxunlearn.config import Config, reader
from jaxunlearn.core import files, trees
from jaxunlearn.core.names import nearest
from jaxunlearn.core.trees import Tree
from jaxunlearn.models import hf, sharding
from jaxunlearn.models.decoder import DecoderConfig, abstract_params, merge_adapters
from jaxunlearn.pipeline.origin import starting_params
from jaxunlearn.pipeline.prepare import Prepared
from jaxunlearn.pipeline.subject import initial_params
from jaxunlearn.record import manifest, shapes
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder, seeds
from jaxunlearn.training.checkpoint import newest, read_params
from jaxunlearn.training.scope import make_scope, with_adapters

STAGES = (BASE, RETRAINED)
"""Models that a run writes as folders in the Hugging Face format."""


def configuration(folder: RunFolder) -> Config:
    """The configuration of a run, finished or not.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: the configuration is damaged; names what is wrong with it.
    """
    if not folder.config.is_file():
        missing = f"{folder.config.name} is missing" if folder.path.is_dir() else "no such folder"
        runs = "".join(f"; name one of its runs: {run}" for run in seeds(folder.path)[:1])
        raise FileNotFoundError(f"{folder.path}: no run here ({missing}){runs}")
    manifest.check(folder, only=[manifest.CONFIGURATION])
    return reader.load(folder.config)


def on_mesh(config: Config, mesh: tuple[int, int, int] | None) -> Config:
    """The configuration on another mesh (data, fsdp, tensor); None leaves it as it is."""
    if mesh is None:
        return config
    data, fsdp, tensor = mesh
    compute = dataclasses.replace(config.compute, data=data, fsdp=fsdp, tensor=tensor)
    return dataclasses.replace(config, compute=compute)


def finished(folder: RunFolder, config: Config) -> tuple[str, ...]:
    """The objectives whose final parameters are stored, in the configuration's order.

    An objective that diverged has a result but no parameters after its last step: it is not among
    them.
    """

    def is_there(objective: str) -> bool:
        try:
            final_step(folder, objective)
        except FileNotFoundError:
            return False
        return True

    return tuple(name for name in config.objectives if is_there(name))


def stage_params(folder: RunFolder, prepared: Prepared, name: str) -> Tree:
    """The parameters of a model of a run, float32, sharded over the run's mesh.

    Args:
      folder: of the run.
      prepared: from `prepare.prepare`.
      name: `BASE` (theta_0), `RETRAINED`, or an objective: its model after the last step.

    Raises:
      ValueError, FileNotFoundError: no such model, or one that is not finished.
    """
    config, place = prepared.config, partial(sharding.param_shardings, mesh=prepared.mesh)
    if name == BASE and not config.finetune.epochs:
        params = prepared.initial()
    else:
        params = final_params(folder, config, name, prepared.model, place)
    if name != BASE:
        return params
    # The objectives start from the base model as the run keeps it, with its adapters.
    theta_0 = starting_params(prepared, params)
    return merge_adapters(theta_0, prepared.unlearn_model, donate=True)


def final_params(
    folder: RunFolder,
    config: Config,
    name: str,
    model: DecoderConfig,
    place: Callable[[DecoderConfig], Tree],
    dtype: str = "float32",
) -> Tree:
    """The parameters of a model that a run made; adapters are merged into their matrices.

    Args:
      folder: of the run.
      config: from `configuration`.
      name: `BASE`, `RETRAINED` or an objective.
      model: of the run, without adapters.
      place: a model -> where each of its parameters goes.
      dtype: what they are converted to.

    Raises:
      ValueError, FileNotFoundError: no such model, or one that is not finished.
    """
    check_name(folder, config, name)
    if name in STAGES:
        source = stage_folder(folder, config, name)
        return hf.load_params(source, model, shardings=place(model), dtype=dtype)
    unlearn_model = with_adapters(config.train, model)
    scope = make_scope(config.train, unlearn_model)
    if scope.rule is None:
        abstract = abstract_params(model, jax.numpy.dtype(dtype))
        like = trees.with_shardings(abstract, place(model))
        return read_params(final_step(folder, name), like)
    # --- the frozen parameters are those of the model before unlearning ---------------------------
    own = trainable_params(folder, config, name, unlearn_model, place)
    if config.finetune.epochs:
        source = stage_folder(folder, config, BASE)
        base = hf.load_params(source, model, shardings=place(model))
    else:
        base = initial_params(config, model, place(model), scope)
    base, params = scope.as_kept(base), {}
    for leaf in unlearn_model.leaves():
        value = leaf.get(own)
        leaf.put(params, leaf.get(base) if value is None else value)
    merged = merge_adapters(params, unlearn_model, donate=True)
    return jax.tree.map(lambda x: x.astype(dtype), merged)


def trainable_params(
    folder: RunFolder,
    config: Config,
    name: str,
    unlearn_model: DecoderConfig,
    place: Callable[[DecoderConfig], Tree],
) -> Tree:
    """The final parameters of an objective that were trained, None in the places of frozen ones.

    Args:
      folder, config, place: as in `final_params`.
      name: an objective.
      unlearn_model: of the run, with its adapters.

    Returns:
      The parameters, float32.

    Raises:
      FileNotFoundError: the objective is not finished.
    """
    whole = trees.with_shardings(abstract_params(unlearn_model), place(unlearn_model))
    own, _ = make_scope(config.train, unlearn_model).split(whole)
    return read_params(final_step(folder, name), own)


def check_name(folder: RunFolder, config: Config, name: str) -> None:
    """Checks that a run has a model of this name, finished or not.

    Raises:
      ValueError: lists those there are.
    """
    if name not in (*STAGES, *config.objectives):
        stages = [stage for stage in STAGES if folder.model(stage).is_dir()]
        names = [*stages, *config.objectives]
        raise ValueError(
            f"{folder.path}: the run has no objective {name!r}; there are: {', '.join(names)}"
            + nearest(name, names)
        )


def stage_folder(folder: RunFolder, config: Config, name: str) -> Path:
    """The folder of a model that the run wrote in the Hugging Face format.

    Args:
      folder: of the run.
      config: from `configuration`.
      name: one of `STAGES`.

    Raises:
      FileNotFoundError: the run makes no such model, or has not made it yet.
    """
    if folder.model(name).is_dir():
        return folder.model(name)
    spec = config.finetune
    if not spec.epochs or (name == RETRAINED and not spec.retrained):
        key = "finetune.retrained" if spec.epochs else "finetune.epochs"
        raise FileNotFoundError(
            f"{folder.path}: the run makes no model {name!r} ({key} asks for none)"
        )
    raise _unfinished(folder, name)


def final_step(folder: RunFolder, objective: str) -> Path:
    """The checkpoint after an objective's last update.

    Raises:
      FileNotFoundError: the objective is not finished, or it diverged; says which.
    """
    file = folder.result(objective)
    if not file.is_file():
        raise _unfinished(folder, objective)
    result = files.read_json(file, shapes.ObjectiveResult)
    if result["steps"] < result["of_steps"]:
        raise FileNotFoundError(
            f"{folder.path}: {objective!r} diverged after step {result['steps']} of"
            f" {result['of_steps']} and has no final model; run it with a lower learning rate"
        )
    checkpoint = newest(folder.checkpoints(objective))
    if checkpoint is None or checkpoint.name != str(result["of_steps"]):
        newest_one = "none" if checkpoint is None else f"one after step {checkpoint.name}"
        raise FileNotFoundError(
            f"{folder.path}: {objective!r} has no checkpoint after its last step"
            f" {result['of_steps']} but {newest_one}; run the configuration again"
        )
    return checkpoint


def _unfinished(folder: RunFolder, name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder.path}: {name!r} is not finished; run the configuration again"
    )
