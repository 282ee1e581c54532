"""A model's folder: a local one, or the copy of one from the Hugging Face hub."""

from pathlib import Path

from jaxunlearn.core import files
from jaxunlearn.core.names import shortened
from jaxunlearn.core.paths import user_path

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
# No folders below, which hold the model in other formats, and no second copy of the weights in
# Mistral's own.
_NOT = ["*/*", "consolidated*"]


def resolve(model: str | Path, *, trains: bool = False) -> Path:
    """The local folder of a model, downloaded where `model` is a name of the Hugging Face hub.

    Args:
      model: a folder, or a name such as "meta-llama/Llama-2-7b-hf".
      trains: whether a run is to train it, which may begin with an adapter: for the message.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: neither a folder nor a name that the hub knows.
      PermissionError: a gated model whose licence is not accepted.
      ValueError: it is an adapter of a model; says what to write instead.
    """
    folder = resolve_adapter(model)
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not (folder / "config.json").is_file():
        content = files.read_json(adapter)
        named = content.get("base_model_name_or_path") if isinstance(content, dict) else None
        base = named or "BASE"
        start = (
            f"write model: {base} and train: {{lora: {{start: {model}}}}}, or " if trains else ""
        )
        raise ValueError(
            f"{model}: is a PEFT adapter of {base} and no model; {start}name a folder of the whole"
            " model: `jaxunlearn export` without --adapter writes one, and so does PEFT, by"
            " PeftModel.merge_and_unload and save_pretrained"
        )
    return folder


def resolve_adapter(model: str | Path) -> Path:
    """The local folder of an adapter as PEFT writes it, or of a model, see `resolve`.

    Raises:
      FileNotFoundError, PermissionError: as `resolve`.
    """
    folder = user_path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name}: no such folder (a hub model is called 'owner/name')")
    return _download(name)


def _download(name: str) -> Path:
    """The local copy of a hub model: that of earlier, or a new one; safetensors and no code.

    Raises:
      FileNotFoundError, PermissionError: as `resolve`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=_PATTERNS, ignore_patterns=_NOT
        )
    except errors.GatedRepoError:
        raise PermissionError(
            f"{name} is gated: accept its licence on https://huggingface.co/{name} and set HF_TOKEN"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise FileNotFoundError(
            f"{name}: no such folder, and no such model on the hub (for a private one set HF_TOKEN)"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such folder, not downloaded before, and the hub is out of reach; check the"
            " network and HF_HUB_OFFLINE, or give a folder"
        ) from None
    # What breaks on the way has no common base class.
    except Exception as error:
        raise FileNotFoundError(
            f"{name}: no such folder, and the download from the hub broke off"
            f" ({type(error).__name__}: {shortened(str(error))}); the same command goes on with it"
        ) from error
    return Path(folder)
