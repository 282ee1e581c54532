"""Digests of what a run reads, so that a run that is resumed goes on with the same inputs."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from jaxunlearn import objectives
from jaxunlearn.config import Config
from jaxunlearn.core import files
from jaxunlearn.data.digests import of_parts, of_samples
from jaxunlearn.models import hf
from jaxunlearn.pipeline.prepare import Prepared


def digests(prepared: Prepared) -> dict[str, str]:
    """The SHA-256 of every input, by the key of the configuration that names it.

    Data are digested as they are encoded, which covers tokenizer, prompt and chunks too; a model by
    its files.

    Args:
      prepared: the run.
    """
    config = prepared.config
    found = {
        "data.forget": of_samples(prepared.sets.forget),
        "data.measured_retain": of_samples(prepared.retain_eval),
        "substitute answers": of_parts(text.encode() for text in prepared.sources.refusals()),
    }
    # What only some objectives or settings read is compared where it was read before.
    optional = {"data.retain": prepared.sets.retain, "finetune.splits": prepared.finetune}
    found |= {key: of_samples(samples) for key, samples in optional.items() if samples}
    return found | of_weights(config)


def of_weights(config: Config) -> dict[str, str]:
    """The SHA-256 of the model and the adapter that a run begins with, by their keys."""
    found: dict[str, str] = {}
    if config.model is not None:
        found["model"] = of_files(_model_files(hf.resolve(config.model)))
        found |= of_configuration(config)
    if config.train.lora.start is not None:
        adapter = hf.resolve_adapter(config.train.lora.start)
        found["train.lora.start"] = of_files(_model_files(adapter))
    return found


def of_functions(prepared: Prepared) -> dict[str, str]:
    """The SHA-256 of what objectives of the user's own compute, by their keys.

    Those of the registry belong to a version of this package. Versions of JAX trace a function
    differently, so that each has a key of its own: a run that is resumed with another one is not
    compared.
    """
    found = {}
    for task in prepared.tasks:
        spec = prepared.config.objectives[task.name]
        functions = {"loss": task.objective}
        if spec.retain is not None:
            functions["retain"] = objectives.get_retain(spec.retain, **spec.retain_hyper)
        for role, function in functions.items():
            if ":" in function.name:
                key = f"objectives.{task.name}.{role} (as jax {jax.__version__} traces it)"
                found[key] = of_parts(text.encode() for text in function.programs())
    return found


def of_configuration(config: Config) -> dict[str, str]:
    """The SHA-256 of the configuration of the model that a run begins with; none of a new one."""
    if config.model is None:
        return {}
    return {"the model's config.json": of_files([hf.resolve(config.model) / "config.json"])}


def of_models(folders: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of models' files, by the name of the model; see `digests`."""
    return {name: of_files(_model_files(folder)) for name, folder in folders.items()}


def changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The keys of inputs that are not what they were."""
    return [key for key in new if key in old and old[key] != new[key]]


def of_files(paths: Iterable[Path]) -> str:
    """The SHA-256 of the digests of some files, in their order."""
    digest = hashlib.sha256()
    for file in paths:
        digest.update(bytes.fromhex(files.sha256(file)))
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    """The files of a model or of an adapter that its numbers depend on, in a fixed order."""
    described = [folder / name for name in ("config.json", "adapter_config.json")]
    return sorted([*filter(Path.is_file, described), *folder.glob("*.safetensors")])
