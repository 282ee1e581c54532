"""Rows and models from the memory of a Python program, as files that a configuration can name.

They are written into the folder of a run, so that the run can be resumed, evaluated, attacked and
reported like any other. The name of what is written holds a digest of its content: other rows or
weights never take the place of those that a run was begun with.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxunlearn.core import files
from jaxunlearn.core.paths import user_path
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import formats
from jaxunlearn.data.digests import of_parts
from jaxunlearn.data.rows import Columns, DataRows, normal_rows, raw_row
from jaxunlearn.models import hf
from jaxunlearn.models.decoder import DecoderConfig, abstract_params
from jaxunlearn.pipeline.inputs import of_files

TEXT = "text"
"""The column of documents where none is named."""

_DIGITS = 16  # of a digest in a name


def split_rows(name: str, data: Any, columns: Columns) -> tuple[DataRows, Columns]:
    """Reads the rows of a split from memory, and checks them.

    Args:
      name: of the split, for messages.
      data: a list of rows (mappings, or strings, which are documents), or a table of `datasets`,
        `pyarrow` or `pandas`.
      columns: what the columns are called.

    Returns:
      The rows in their normal form; and the columns, with `text` where the rows are documents.

    Raises:
      ValueError: names the row and the column.
    """
    if isinstance(data, list | tuple) and data and all(isinstance(row, str) for row in data):
        data = [{columns.text or TEXT: text} for text in data]
    wanted = [*columns.names, TEXT]
    raw = formats.of_memory(data, list(dict.fromkeys(wanted)), name)
    first = raw.rows[0] if raw.columns is None else raw.columns
    if columns.text is None and TEXT in first and columns.question not in first:
        columns = columns._replace(text=TEXT)
    return normal_rows(raw, columns), columns


def write_rows(parent: Path, splits: Mapping[str, DataRows], columns: Columns) -> Path:
    """Writes splits as a folder of JSON lines.

    Args:
      parent: the folder in which that folder is made, unless it has it.
      splits: {name: rows in their normal form}.
      columns: what the columns are to be called.

    Returns:
      The folder.
    """
    content = {
        name: "".join(f"{files.to_json(raw_row(row, columns))}\n" for row in rows)
        for name, rows in splits.items()
    }
    parts = (part.encode() for item in content.items() for part in item)
    target = parent / f"rows-{of_parts(parts)[:_DIGITS]}"
    if not target.is_dir():
        with files.new_folder(target) as folder:
            for name, text in content.items():
                files.write_text(folder / f"{name}.jsonl", text)
    return target


def name_rows(message: str, parent: Path) -> str:
    """A message with rows as their list or table has them, in the place of lines of our files.

    Args:
      message: of an error.
      parent: the folder of `write_rows`.
    """
    line = re.escape(str(parent)) + r"\W+rows-\w+\W+(\w+)\.jsonl:(\d+)"
    return re.sub(line, lambda found: f"{found[1]}: row {int(found[2]) - 1}", message)


def write_model(parent: Path, model: Any) -> Path:
    """Writes a model as a folder in the Hugging Face format.

    Args:
      parent: the folder in which that folder is made, unless it has it.
      model: (params, `DecoderConfig`, tokenizer).

    Returns:
      The folder.

    Raises:
      ValueError: something else, or parameters that are not those of the configuration.
    """
    params, config, tokenizer = _parts(model)
    new = parent / "new"
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    hf.save_params(new, params, config, tokenizer=tokenizer)
    content = sorted(path for path in new.rglob("*") if path.is_file())
    target = parent / f"model-{of_files(content)[:_DIGITS]}"
    if target.is_dir():
        files.remove_folder(new)
    else:
        new.rename(target)
    return target


def model_path(model: Any, parent: Path) -> str | None:
    """What a configuration calls a model: a name as it is, and a model in memory by its folder."""
    if model is None or isinstance(model, str):
        return model
    return str(user_path(model) if isinstance(model, Path) else write_model(parent, model))


def remove(paths: Iterable[Path]) -> None:
    """Removes folders of this module, and those above them that hold nothing else."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    above = [folder for path in paths for folder in (path.parent, path.parents[1])]
    for folder in dict.fromkeys(above):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _parts(model: Any) -> tuple[Tree, DecoderConfig, Any]:
    """The parts of a model in memory."""
    if not isinstance(model, tuple) or len(model) != 3 or not isinstance(model[1], DecoderConfig):
        raise ValueError(
            "model: expected a folder, a hub name such as owner/name, None for a new small model,"
            f" or (params, DecoderConfig, tokenizer), got {_shape_of(model)}"
        )
    params, config, _ = model
    expected = jax.tree.map(lambda x: x.shape, abstract_params(config))
    actual = jax.tree.map(jax.numpy.shape, params)
    if expected != actual:
        raise ValueError(
            "model: the shapes of params are not those of the DecoderConfig; take both from one"
            " model"
        )
    return model


def _shape_of(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__
