"""A model with its tokenizer, the data it is measured on, and the mesh: what a run begins with."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.config import Config, Data, validate
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import encoding, fictional
from jaxunlearn.data.encoder import Encoder
from jaxunlearn.data.prompts import Prompt
from jaxunlearn.data.rows import Columns
from jaxunlearn.data.sources import Sources
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.decoder import DecoderConfig, abstract_params
from jaxunlearn.record.folder import BASE, is_run
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.scope import Scope


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and its data, before any split is read.

    Attributes:
      config: the configuration that names them.
      layout: the mesh, and how samples become batches on it.
      tokenizer: of the model.
      model: the model's configuration.
      initial: makes the parameters of the model that the configuration names, sharded; those before
        fine-tuning where there is a run.
      sources: the rows of every split.
    """

    config: Config
    layout: Layout
    tokenizer: Any
    model: DecoderConfig
    initial: Callable[[], Tree]
    sources: Sources

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices."""
        return self.layout.mesh

    @property
    def encoder(self) -> Encoder:
        """Encodes rows for the model.

        Raises:
          ValueError: chunks that are longer than the model's context.
        """
        return make_encoder(self.config, self.tokenizer, self.model)


def open_subject(config: Config, devices: Sequence[Any] | None = None) -> Subject:
    """Reads the tokenizer and the configuration of a model, and opens its data; no weights yet.

    Args:
      config: names model, data and mesh.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.

    Raises:
      ValueError, OSError: the first problem; names the file and the key.
    """
    validate(config)
    mesh = make_mesh(config, devices)
    sources = open_sources(config)
    folder = None if config.model is None else model_folder("model", config.model, trains=True)
    tokenizer = _tokenizer(config, sources, folder)
    model = _model(config, tokenizer, folder)
    shardings = sharding.param_shardings(model, mesh)
    return Subject(
        config=config,
        layout=make_layout(config, mesh, model),
        tokenizer=tokenizer,
        model=model,
        initial=lambda: initial_params(config, model, shardings, Scope()),
        sources=sources,
    )


def model_folder(key: str, model: str | Path, *, trains: bool = False) -> Path:
    """The folder of a model that a user names, see `hf.resolve`.

    Args:
      key: what the model is given for, for the message.
      model: a folder, or a name of the Hugging Face hub.
      trains: whether a run is to train it, for the message.

    Raises:
      ValueError: it is the folder of a run, or an adapter.
      OSError: no such model.
    """
    if is_run(model):
        raise ValueError(
            f"{key}: {model} is a run; write one of its models with `jaxunlearn export {model}"
            f" OBJECTIVE FOLDER` and name that folder, or name the run's own folder {BASE}"
        )
    return hf.resolve(model, trains=trains)


def check_shape(key: str, folder: Path, subject: Subject) -> None:
    """Checks that a second model can be measured and mixed as the subject is.

    Args:
      key: what the model is given for, for the message.
      folder: of the model.
      subject: the first model.

    Raises:
      ValueError: another architecture; names the first setting that differs.
      OSError: no such model.
    """
    other = hf.load_config(folder, **compute_options(subject.config))
    for field in dataclasses.fields(other):
        found, expected = (getattr(model, field.name) for model in (other, subject.model))
        if found != expected:
            raise ValueError(
                f"{key}: {folder} has another architecture than {subject.config.model}:"
                f" {field.name} is {found!r}, not {expected!r}"
            )
    hf.check_params(folder, other)


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Makes the mesh of a configuration.

    A mesh of one device, the default, takes the first one where a process has several and none is
    named. Several processes compute together, and none of their devices may be left out.

    Raises:
      ValueError: another number of devices than there are; names the keys.
    """
    compute = config.compute
    shape = (compute.data, compute.fsdp, compute.tensor)
    if devices is None and shape == (1, 1, 1) and jax.process_count() == 1:
        devices = jax.devices()[:1]
    try:
        return sharding.make_mesh(*shape, devices)
    except ValueError as error:
        raise ValueError(f"compute.data, compute.fsdp, compute.tensor: {error}") from error


def idle_note(mesh: jax.sharding.Mesh, devices: Sequence[Any] | None) -> tuple[str, ...]:
    """A sentence on devices that a mesh of `make_mesh` leaves out, if there are any."""
    total = mesh.size if devices is not None else jax.device_count()
    if mesh.size == total:
        return ()
    return (f"{mesh.size} of {total} devices; compute.fsdp: {total} would use all",)


def measured_on(config: Config) -> str:
    """A sentence on the data of a measurement, which flags and defaults choose."""
    data = config.data
    return f"data: {data.source}, forget {data.forget}, retain {data.measured_retain}"


def make_layout(
    config: Config, mesh: jax.sharding.Mesh, model: DecoderConfig, *, abstract: bool = False
) -> Layout:
    """Makes the layout of a run's batches on a mesh."""
    compute = config.compute
    return Layout(
        mesh=mesh,
        context=model.context,
        width_step=compute.width_step,
        batch_tokens=compute.batch_tokens,
        abstract=abstract,
    )


def open_sources(config: Config) -> Sources:
    """The rows that a configuration names."""
    data = config.data
    return Sources(
        data.source,
        fictional=dataclasses.asdict(data.fictional),
        columns=columns_of(data),
    )


def columns_of(data: Data) -> Columns:
    """What the columns of the data are called."""
    return Columns(**{name: getattr(data, f"{name}_key") for name in Columns._fields})


def make_encoder(config: Config, tokenizer: Any, model: DecoderConfig) -> Encoder:
    """Makes what encodes the rows of a configuration for a model.

    Raises:
      ValueError: chunks that are longer than the model's context.
    """
    return Encoder(
        tokenizer,
        prompt=Prompt(**dataclasses.asdict(config.data.prompt)),
        context=model.context,
        too_long=config.data.too_long,
        chunk_tokens=config.data.chunk_tokens,
        vocab_size=model.vocab_size,
    )


def compute_options(config: Config) -> dict[str, Any]:
    """The fields of `DecoderConfig` that say how a model is computed."""
    return {
        "dtype": config.compute.dtype,
        "precision": config.compute.precision,
        "reduce": config.compute.reduce,
        "attention": config.compute.attention,
        "remat": config.compute.remat,
    }


def _tokenizer(config: Config, sources: Sources, folder: Path | None) -> Any:
    """The tokenizer of the model: from its folder, or trained for the new model."""
    if folder is not None:
        return encoding.load_tokenizer(str(folder))
    # A new model gets a tokenizer that is trained on all texts that the run may encode.
    refusals = [{"question": "", "answer": line} for line in sources.refusals()]
    splits = {
        config.data.forget: "data.forget",
        config.data.measured_retain: "data.measured_retain",
    }
    if config.finetune.epochs:
        splits |= dict.fromkeys(config.finetune.splits, "finetune.splits")
    rows = sources.corpus(splits) + refusals
    return fictional.train_tokenizer(rows, vocab_size=config.new_model.vocab_size)


def _model(config: Config, tokenizer: Any, folder: Path | None) -> DecoderConfig:
    """The configuration of the model: from its folder, or of the new model."""
    compute = compute_options(config)
    if folder is not None:
        model = hf.load_config(folder, **compute)
        hf.check_params(folder, model)
        return model
    sizes = dataclasses.asdict(config.new_model)
    sizes["vocab_size"] = len(tokenizer)
    sizes["head_dim"] = sizes["hidden_size"] // sizes["num_heads"]
    return DecoderConfig(**sizes, **compute)


def initial_params(config: Config, model: DecoderConfig, shardings: Tree, scope: Scope) -> Tree:
    """The parameters before fine-tuning: from the model's folder, or random ones.

    Args:
      config: names the model.
      model: the plain model.
      shardings: where each parameter goes.
      scope: says in which type each is kept, where there is no fine-tuning, which trains them all.
    """
    if config.model is not None:
        scope = Scope() if config.finetune.epochs else scope
        return read_folder(hf.resolve(config.model), model, shardings, scope)
    leaves, treedef = jax.tree.flatten(shardings)
    return _random_params(model, treedef, tuple(leaves))(jax.random.key(config.seed))


def read_folder(
    folder: Path, model: DecoderConfig, shardings: Tree, scope: Scope | None = None
) -> Tree:
    """The parameters of a model's folder.

    Args:
      folder: of the model.
      model: its configuration.
      shardings: where each parameter goes.
      scope: says in which type each is kept; default: all are float32.

    Raises:
      ValueError, OSError: files that cannot be read, or weights that are not all finite.
    """
    kept = (scope or Scope()).as_kept(abstract_params(model))
    dtypes = jax.tree.map(lambda x: x.dtype, kept)
    params = hf.load_params(folder, model, shardings=shardings, dtype=dtypes)
    _check_finite(params, folder)
    return params


@functools.cache
def _random_params(
    model: DecoderConfig, treedef: Any, shardings: tuple[jax.sharding.Sharding, ...]
) -> Callable[[jax.Array], Tree]:
    """(key) -> random parameters, sharded; all seeds of a process share what is compiled."""
    placed = jax.tree.unflatten(treedef, shardings)
    return jax.jit(lambda key: decoder.init_params(key, model), out_shardings=placed)


def _check_finite(params: Tree, folder: Path) -> None:
    """Refuses weights that are not finite: all that is measured of them would be NaN.

    Raises:
      ValueError: names the first parameter.
    """
    for path, whole in jax.tree_util.tree_leaves_with_path(_all_finite(params)):
        if not whole:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"{folder}: the weights of {name} are not all finite; download it again"
            )


@jax.jit
def _all_finite(params: Tree) -> Tree:
    """Whether each parameter has finite numbers alone, [] bool in its place."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)
