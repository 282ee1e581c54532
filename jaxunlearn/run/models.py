"""The models of a run: read back from where the run left them.

Of a checkpoint the parameters alone are read, and converted on the way: the optimiser's moments are
never in memory.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxunlearn import config as config_lib
from jaxunlearn.config import Config
from jaxunlearn.models import hf, sharding
from jaxunlearn.models.architecture import LlamaConfig, abstract_params
from jaxunlearn.run import summary
from jaxunlearn.run.checkpoint import newest, read_params
from jaxunlearn.run.prepare import Prepared

Tree = Any

STAGES = ("base", "retrained")  # models that a run writes as folders itself


def configuration(run: Path) -> Config:
    """The configuration of a run, finished or not.

    Raises:
      FileNotFoundError: there is no run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        missing = "config.yaml is missing" if run.is_dir() else "no such folder"
        raise FileNotFoundError(f"{run}: no run here ({missing})")
    return config_lib.load(file)


def on_mesh(config: Config, mesh: tuple[int, int, int] | None) -> Config:
    """The configuration on another mesh (data, fsdp, tensor), if one is given."""
    if mesh is None:
        return config
    data, fsdp, tensor = mesh
    compute = dataclasses.replace(config.compute, data=data, fsdp=fsdp, tensor=tensor)
    return dataclasses.replace(config, compute=compute)


def finished(run: Path, config: Config) -> tuple[str, ...]:
    """The objectives of a run whose final parameters are there, in the configuration's order.

    One that diverged has a result but no parameters after its last step: it is not among them.
    """

    def is_there(objective: str) -> bool:
        try:
            final_step(run, objective)
        except FileNotFoundError:
            return False
        return True

    return tuple(name for name in config.objectives if is_there(name))


def stage_params(run: Path, prepared: Prepared, name: str) -> Tree:
    """The parameters of a model of a run, float32, sharded over the run's mesh.

    Args:
      run: the run's folder.
      prepared: from `prepare.prepare`.
      name: `base` (theta_0), `retrained`, or an objective: after its last step.

    Raises:
      ValueError, FileNotFoundError: no such model, or one that is not finished.
    """
    if name == "base" and not prepared.config.finetune.epochs:
        return prepared.initial()
    shardings = sharding.param_shardings(prepared.model, prepared.mesh)
    return final_params(run, prepared.config, name, prepared.model, shardings)


def final_params(
    run: Path,
    config: Config,
    name: str,
    model: LlamaConfig,
    shardings: Tree,
    dtype: str = "float32",
) -> Tree:
    """The parameters of a model that a run made.

    Args:
      run: the run's folder.
      config: from `configuration`.
      name: `base`, `retrained` or an objective.
      model: of the run.
      shardings: where each parameter goes.
      dtype: what they are converted to while they are read.

    Raises:
      ValueError, FileNotFoundError: no such model, or one that is not finished.
    """
    check_name(run, config, name)
    if name in STAGES:
        folder = stage_folder(run, config, name)
        return hf.load_params(folder, model, shardings=shardings, dtype=dtype)
    give = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    wanted = jax.tree.map(give, abstract_params(model, jax.numpy.dtype(dtype)), shardings)
    return read_params(final_step(run, name), wanted)


def check_name(run: Path, config: Config, name: str) -> None:
    """Checks that a run has a model of this name, finished or not.

    Raises:
      ValueError: names those there are.
    """
    if name not in (*STAGES, *config.objectives):
        stages = [stage for stage in STAGES if (run / stage).is_dir()]
        names = [*stages, *config.objectives]
        raise ValueError(
            f"{run}: the run has no objective {name!r}; there are: {', '.join(names)}"
            + config_lib.nearest(name, names)
        )


def stage_folder(run: Path, config: Config, name: str) -> Path:
    """The folder of a model that the run wrote itself.

    Raises:
      FileNotFoundError: the run makes none, or has not made it yet.
    """
    if (run / name).is_dir():
        return run / name
    spec = config.finetune
    if not spec.epochs or (name == "retrained" and not spec.retrained):
        key = "finetune.retrained" if spec.epochs else "finetune.epochs"
        raise FileNotFoundError(f"{run}: the run makes no model {name!r} ({key} asks for none)")
    raise FileNotFoundError(f"{run}: {name!r} is not finished; run the configuration again")


def final_step(run: Path, objective: str) -> Path:
    """The checkpoint after an objective's last update.

    Raises:
      FileNotFoundError: it is not finished, or stopped before.
    """
    file = run / "objectives" / objective / "result.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{run}: {objective!r} is not finished; run the configuration again"
        )
    result = summary.read_json(file)
    folder = newest(run / "objectives" / objective / "checkpoints")
    found = "none" if folder is None else f"one after step {folder.name}"
    if folder is None or folder.name != str(result["of_steps"]):
        raise FileNotFoundError(
            f"{run}: {objective!r} has no checkpoint after its last step {result['of_steps']} but"
            f" {found}; it stopped after step {result['steps']}"
        )
    return folder
