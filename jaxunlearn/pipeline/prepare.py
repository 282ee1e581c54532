"""Reads and checks the inputs of a run before anything is written or computed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxunlearn.config import Config, Data, validate
from jaxunlearn.core.devices import peak_flops
from jaxunlearn.core.interrupts import Interrupts
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import encoding, fictional
from jaxunlearn.data.encoding import Encoder, Prompt
from jaxunlearn.data.planning import Sample
from jaxunlearn.data.refusals import Refusals
from jaxunlearn.data.rows import Columns, DataRows, row_key
from jaxunlearn.data.sources import Sources
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.decoder import DecoderConfig, abstract_params
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.stages import Stages
from jaxunlearn.training.layout import Layout
from jaxunlearn.training.schedule import measured_steps, unlearning_steps
from jaxunlearn.training.scope import Scope, make_scope, with_adapters
from jaxunlearn.training.sets import SampleSets
from jaxunlearn.training.tasks import Task, make_tasks


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The inputs of a run: a configuration, with the data and models that it names.

    Attributes:
      config: the configuration.
      layout: the mesh, and how samples become batches on it.
      tokenizer: of the model.
      model: the model's configuration.
      unlearn_model: that of the model that unlearns: with the adapters of `train.lora`, if any.
      scope: which of its parameters train.
      initial: makes the parameters of `model` before fine-tuning, sharded. Where there is none,
        frozen ones have the type in which the run keeps them.
      sources: the rows of every split.
      sets: the samples that unlearning draws from: D_u, the retain pool, substitute answers.
      retain_eval: the retain set D_r, on which retention is measured.
      forget_rows, retain_rows: the rows of `sets.forget` and of `retain_eval`.
      finetune: the samples to fine-tune the model on; empty without fine-tuning.
      retrain: the same without D_u, for the retrained model; empty if there is none.
      tasks: the objectives.
      notes: sentences for the user, for example about rows that were left out.
    """

    config: Config
    layout: Layout
    tokenizer: Any
    model: DecoderConfig
    unlearn_model: DecoderConfig
    scope: Scope
    initial: Callable[[], Tree]
    sources: Sources
    sets: SampleSets
    retain_eval: list[Sample]
    forget_rows: DataRows
    retain_rows: DataRows
    finetune: list[Sample]
    retrain: list[Sample]
    tasks: tuple[Task, ...]
    notes: tuple[str, ...]

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices."""
        return self.layout.mesh

    @property
    def steps(self) -> int:
        """Updates of unlearning."""
        return unlearning_steps(self.config, len(self.sets.forget))

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """The steps at which effects are measured."""
        return measured_steps(self.config, self.steps)


def prepare(
    config: Config, devices: Sequence[Any] | None = None, *, unlearns: bool = True
) -> Prepared:
    """Reads data, tokenizer and model configuration, and resolves the objectives.

    Args:
      config: what to run.
      devices: the devices of the mesh; default: all, or the first one for a mesh of one.
      unlearns: whether anything is unlearned. Models that are finished need no objectives: none is
        resolved then, so that no module of theirs is imported.

    Raises:
      ValueError, OSError: the first problem; names the file and the key.
    """
    validate(config)
    mesh = make_mesh(config, devices)
    # --- the model: its folder, tokenizer and configuration; no weights yet -----------------------
    sources = open_sources(config)
    folder = None if config.model is None else hf.resolve(config.model)
    tokenizer = _tokenizer(config, sources, folder)
    model = _model(config, tokenizer, folder)
    encoder = make_encoder(config, tokenizer, model)
    unlearn_model = with_adapters(config.train, model)
    scope = make_scope(config.train, unlearn_model)
    tasks = make_tasks(config, unlearn_model) if unlearns else ()
    _check_substitutes(config, tasks)

    # --- the data: D_u, D_r, and the pool of retain samples without the rows of D_r ---------------
    forget_rows = sources.require(config.data.forget, "data.forget")
    left_out = _LeftOut(forget_rows)
    eval_rows = left_out.retained(sources, "data.measured_retain", config.data.measured_retain)
    needs_pool = any(task.reads_retain for task in tasks)
    pool_rows = _pool(config, sources, left_out, eval_rows) if needs_pool else []
    forget, forget_ids = encoder.encode(forget_rows, f"data.forget ({config.data.forget})")
    retain, _ = encoder.encode(pool_rows, f"data.retain ({config.data.retain})")
    retain_eval, retain_ids = encoder.encode(eval_rows, config.data.measured_retain)

    # --- fine-tuning, only where the run fine-tunes -----------------------------------------------
    finetune_rows = _finetune_rows(config, sources)
    finetune, _ = encoder.encode(finetune_rows, "finetune.splits")
    retrain_rows = _without(finetune_rows, forget_rows) if config.finetune.retrained else []
    retrain, _ = encoder.encode(retrain_rows, "retraining")

    encoded_rows = [forget_rows[i] for i in forget_ids]
    refusals = Refusals(encoded_rows, sources.refusals(), encoder.one, config.seed)
    return Prepared(
        config=config,
        layout=make_layout(config, mesh, model),
        tokenizer=tokenizer,
        model=model,
        unlearn_model=unlearn_model,
        scope=scope,
        initial=lambda: initial_params(config, model, sharding.param_shardings(model, mesh), scope),
        sources=sources,
        sets=SampleSets(forget, retain, refusals),
        retain_eval=retain_eval,
        forget_rows=encoded_rows,
        retain_rows=[eval_rows[i] for i in retain_ids],
        finetune=finetune,
        retrain=retrain,
        tasks=tasks,
        notes=(*idle_note(mesh, devices), *left_out.notes, *encoder.notes),
    )


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


def make_stages(
    prepared: Prepared,
    folder: RunFolder,
    console: Console,
    peak: float | None = None,
    interrupts: Interrupts | None = None,
) -> Stages:
    """Makes what times the stages of a run.

    Args:
      prepared: the run.
      folder: its folder.
      console: for a line a stage, and for progress.
      peak: TFLOP/s of one device; default: the published peak, where it is known.
      interrupts: whether the run is asked to stop; default: it never is.
    """
    used = list(prepared.mesh.devices.flat)
    flops = peak_flops(used, prepared.config.compute.dtype, peak)
    return Stages(folder, console, used, flops, interrupts or Interrupts())


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


def _check_substitutes(config: Config, tasks: Sequence[Task]) -> None:
    """Refuses objectives that need another answer to a question where there are no questions."""
    if config.data.text_key is None:
        return
    for task in tasks:
        if "substitute" in task.needs:
            raise ValueError(
                f"objectives.{task.name}: {task.objective.name} needs questions with other answers,"
                " and free text (data.text_key) has no questions"
            )


class _LeftOut:
    """Takes the forget set out of sets to retain, and notes how many rows that were.

    An objective would raise the loss of these rows and lower it at once, and their retention would
    be measured against their removal.
    """

    def __init__(self, forget: DataRows):
        self._forget = forget
        self.notes: list[str] = []

    def retained(self, sources: Sources, key: str, split: str) -> DataRows:
        """The rows of a split that are not to be forgotten.

        Raises:
          ValueError: there are none; names the key.
        """
        rows = sources.require(split, key)
        kept = _without(rows, self._forget)
        if not kept:
            raise ValueError(
                f"{key}: every row of {split!r} is also in data.forget; name a split with"
                " other rows"
            )
        if len(kept) < len(rows):
            count = len(rows) - len(kept)
            self.notes.append(f"{key} ({split}): {count} rows of the forget set left out")
        return kept


def _pool(config: Config, sources: Sources, left_out: _LeftOut, eval_rows: DataRows) -> DataRows:
    """The rows that retain terms draw from, without those that retention is measured on."""
    rows = _without(left_out.retained(sources, "data.retain", config.data.retain), eval_rows)
    if not rows:
        raise ValueError(
            f"data.retain: every row of {config.data.retain!r} is also in data.measured_retain"
            f" ({config.data.measured_retain!r}), so there is nothing to draw from"
        )
    return rows


def _finetune_rows(config: Config, sources: Sources) -> DataRows:
    """The rows that the model is fine-tuned on; none where the model is taken as it is."""
    if not config.finetune.epochs:
        return []
    splits = config.finetune.splits
    return [row for split in splits for row in sources.require(split, "finetune.splits")]


def _without(rows: DataRows, others: DataRows) -> DataRows:
    """The rows that are not among others; of documents, whole documents are compared."""
    keys = {row_key(row) for row in others}
    return [row for row in rows if row_key(row) not in keys]


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
      config: of the run.
      model: the plain model.
      shardings: where each parameter goes.
      scope: says in which type each is kept, where there is no fine-tuning, which trains them all.
    """
    if config.model is not None:
        folder = hf.resolve(config.model)
        kept = abstract_params(model)
        if not config.finetune.epochs:
            kept = scope.as_kept(kept)
        dtypes = jax.tree.map(lambda x: x.dtype, kept)
        params = hf.load_params(folder, model, shardings=shardings, dtype=dtypes)
        _check_finite(params, folder)
        return params
    leaves, treedef = jax.tree.flatten(shardings)
    return _random_params(model, treedef, tuple(leaves))(jax.random.key(config.seed))


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
