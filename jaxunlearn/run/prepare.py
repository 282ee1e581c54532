"""Everything a run needs, read and checked before anything is written or computed."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from jaxunlearn import config as config_lib
from jaxunlearn.config import Config
from jaxunlearn.data import order, packing, prompts, tofu
from jaxunlearn.models import hf, llama, sharding
from jaxunlearn.objectives import catalogue
from jaxunlearn.run import batches
from jaxunlearn.run.losses import Term, Unlearning

Rows = list[dict[str, Any]]
RESERVED = ("before", "base", "retrained")


@dataclasses.dataclass(frozen=True)
class Task:
    """One objective, ready to run."""

    name: str
    loss: Unlearning
    lr: float
    scale: float  # rmu: the target's length c
    unit_norm: bool  # rmu
    spare: Literal["total", "layer"] | None  # what updates are bent by, if at all
    guide: config_lib.Guide  # where the weights of a guided loss come from

    @property
    def needs(self) -> frozenset[str]:
        kept = self.loss.retain
        return self.loss.term.loss.needs | (kept.loss.needs if kept else frozenset())

    @property
    def reads_retain(self) -> bool:
        """Whether it reads data to retain: in a retain term, or to guide its weights."""
        return self.loss.retain is not None or "guide" in self.needs


@dataclasses.dataclass(frozen=True)
class Refusals:
    """Substitute answers: which line stands in for a sample, encoded with its question."""

    rows: Rows
    lines: list[str]
    encode: Callable[[str, str], packing.Sequence]
    seed: int
    cache: dict[tuple[int, int], packing.Sequence] = dataclasses.field(default_factory=dict)

    def draw(self, sample: int, epoch: int | None) -> packing.Sequence:
        """The substitute of a sample in an epoch (None: when measuring)."""
        line = tofu.refusal_index(self.seed, sample, epoch, len(self.lines))
        if (sample, line) not in self.cache:
            question = self.rows[sample]["question"]
            self.cache[sample, line] = self.encode(question, self.lines[line])
        return self.cache[sample, line]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked run."""

    config: Config
    mesh: jax.sharding.Mesh
    tokenizer: Any
    model: llama.LlamaConfig
    initial: Callable[[], Any]  # the parameters before fine-tuning, sharded
    forget: list[packing.Sequence]
    retain: list[packing.Sequence]  # what retain terms and guides draw from
    measured: list[packing.Sequence]  # D_r
    finetune: list[packing.Sequence]
    retrain: list[packing.Sequence]  # the fine-tuning data without D_u
    refusals: Refusals
    tasks: tuple[Task, ...]
    notes: tuple[str, ...]  # rows left out, and the like
    sketched: bool = False  # for a forecast: batches are shapes, and nothing is placed

    @property
    def row_multiple(self) -> int:
        return self.config.compute.data * self.config.compute.fsdp

    def place(self, batch: Any, parts: int = 1) -> Any:
        """A batch on the devices, see `batches.place`."""
        return (batches.shapes if self.sketched else batches.place)(batch, self.mesh, parts)


def prepare(config: Config, devices: Sequence[Any] | None = None) -> Prepared:
    """Reads data, tokenizer and model configuration, and resolves the objectives.

    Args:
      config: what to run.
      devices: the devices of the mesh; default: all.

    Raises:
      ValueError, FileNotFoundError: the first thing that is wrong, naming file and key.
    """
    mesh = make_mesh(config, devices)
    splits = Splits(config)
    folder = None if config.model is None else hf.resolve(config.model)
    tokenizer = _tokenizer(config, splits, folder)
    model = _model(config, tokenizer, folder)
    encoder = _Encoder(config, tokenizer, model.context)
    forget_rows = splits.rows("forget", config.data.forget)
    measured_rows = splits.rows("measured_retain", config.data.measured_retain)
    measured_keys = {_key(row) for row in measured_rows}
    specs = config.objectives.items()
    tasks = tuple(make_task(name, spec, model, config) for name, spec in specs)
    needs_pool = any(task.reads_retain for task in tasks)
    retain_rows = _pool(config, splits, measured_keys) if needs_pool else []
    finetune_rows = [r for s in config.finetune.splits for r in splits.rows("finetune.splits", s)]
    forgotten = {_key(row) for row in forget_rows}
    forget, kept = encoder.encode(forget_rows, f"data.forget ({config.data.forget})")
    return Prepared(
        config=config,
        mesh=mesh,
        tokenizer=tokenizer,
        model=model,
        initial=lambda: _parameters(config, model, mesh, folder),
        forget=forget,
        retain=encoder.encode(retain_rows, f"data.retain ({config.data.retain})")[0],
        measured=encoder.encode(measured_rows, config.data.measured_retain)[0],
        finetune=encoder.encode(finetune_rows, "finetune.splits")[0],
        retrain=encoder.encode(
            [row for row in finetune_rows if _key(row) not in forgotten], "retraining"
        )[0],
        refusals=Refusals(
            [forget_rows[i] for i in kept], splits.refusals(), encoder.one, config.seed
        ),
        tasks=tasks,
        notes=tuple(encoder.notes),
    )


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh that a configuration asks for.

    Raises:
      ValueError: another number of devices than there are; names the keys.
    """
    compute = config.compute
    try:
        return sharding.make_mesh(compute.data, compute.fsdp, compute.tensor, devices)
    except ValueError as error:
        raise ValueError(f"compute.data, compute.fsdp, compute.tensor: {error}") from error


class Splits:
    """Rows by split name, from the embedded generator or TOFU-shaped files."""

    def __init__(self, config: Config):
        self._source = config.data.source
        self._made: Mapping[str, Rows] | None = None
        if self._source == "fictional":
            from jaxunlearn.data import fictional

            sizes = dataclasses.asdict(config.data.fictional)
            self._made = fictional.generate(config.seed, **sizes)

    def find(self, split: str) -> Rows | None:
        """The rows of a split, None where there is none of this name."""
        if self._made is not None:
            return self._made.get(split)
        try:
            return list(tofu.load_split(self._source, split))  # pyright: ignore[reportReturnType]
        except FileNotFoundError:
            return None

    def rows(self, key: str, split: str) -> Rows:
        """The rows of a split that must be there and hold some."""
        if self._made is None:
            rows = list(tofu.load_split(self._source, split))
        elif split in self._made:
            rows = list(self._made[split])
        else:
            names = ", ".join(self._made)
            raise ValueError(
                f"data: {key}: the embedded data has no split {split!r}; there are: {names}"
                + config_lib.nearest(split, self._made)
            )
        if not rows:
            raise ValueError(f"data: {key}: split {split!r} of {self._source} is empty")
        return rows  # pyright: ignore[reportReturnType]

    def refusals(self) -> list[str]:
        has_own = self._made is None and (Path(self._source) / tofu.REFUSAL_FILE).is_file()
        return tofu.load_refusals(self._source if has_own else None)

    def corpus(self, config: Config) -> Rows:
        """Every row a new tokenizer should know."""
        if self._made is not None:
            return [row for rows in self._made.values() for row in rows]
        names = (config.data.forget, config.data.measured_retain, *config.finetune.splits)
        return [row for name in dict.fromkeys(names) for row in self.rows("data", name)]


class _Encoder:
    """Encodes splits and collects what was left out."""

    def __init__(self, config: Config, tokenizer: Any, context: int):
        self._data, self._tokenizer, self._context = config.data, tokenizer, context
        self.notes: list[str] = []

    def encode(self, rows: Rows, source: str) -> tuple[list[packing.Sequence], list[int]]:
        if not rows:
            return [], []
        encoded = prompts.encode_rows(
            self._tokenizer,
            rows,
            style=self._data.prompt,
            context=self._context,
            too_long=self._data.too_long,
            source=source,
        )
        if encoded.dropped:
            count = len(encoded.dropped)
            self.notes.append(f"{source}: {count} rows over {self._context} tokens left out")
        if not encoded.sequences:
            raise ValueError(f"{source}: no row fits the context of {self._context} tokens")
        return encoded.sequences, encoded.kept_ids.tolist()

    def one(self, question: str, answer: str) -> packing.Sequence:
        return prompts.encode(self._tokenizer, question, answer, style=self._data.prompt)


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["question"], row["answer"]


def _pool(config: Config, splits: Splits, measured: set[tuple[str, str]]) -> Rows:
    """What is drawn to be retained, without the rows that retention is measured on."""
    rows = splits.rows("retain", config.data.retain)
    pool = [row for row in rows if _key(row) not in measured]
    if not pool:
        raise ValueError(
            f"data.retain: every row of {config.data.retain!r} is also in data.measured_retain"
            f" ({config.data.measured_retain!r}), so there is nothing to draw from"
        )
    return pool


def _tokenizer(config: Config, splits: Splits, folder: Path | None) -> Any:
    if folder is not None:
        return prompts.load_tokenizer(str(folder))
    from jaxunlearn.data import fictional

    refusals = [{"question": "", "answer": line} for line in splits.refusals()]
    rows = splits.corpus(config) + refusals
    return fictional.train_tokenizer(rows, vocab_size=config.new_model.vocab_size)


def compute_options(config: Config) -> dict[str, Any]:
    """How to compute a model, as fields of `LlamaConfig`."""
    return {
        "dtype": config.compute.dtype,
        "attention": config.compute.attention,
        "remat": config.compute.remat,
    }


def _model(config: Config, tokenizer: Any, folder: Path | None) -> llama.LlamaConfig:
    compute = compute_options(config)
    if folder is not None:
        model = hf.load_config(folder, **compute)
        hf.check_params(folder, model)
        return model
    sizes = dataclasses.asdict(config.new_model)
    sizes["vocab_size"] = len(tokenizer)
    sizes["head_dim"] = sizes["hidden_size"] // sizes["num_heads"]
    return llama.LlamaConfig(**sizes, **compute)


def _parameters(config: Config, model: llama.LlamaConfig, mesh: Any, folder: Path | None) -> Any:
    shardings = sharding.param_shardings(model, mesh)
    if folder is not None:
        return hf.load_params(folder, model, shardings=shardings)
    key = jax.random.key(config.seed)
    return jax.jit(lambda k: llama.init_params(k, model), out_shardings=shardings)(key)


def make_task(
    name: str, spec: config_lib.Objective, model: llama.LlamaConfig, config: Config
) -> Task:
    """One objective of a configuration, its loss resolved and checked.

    Raises:
      ValueError: names the key that is wrong.
    """
    where = f"objectives.{name}"
    if name in RESERVED or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise ValueError(
            f"{where}: names are letters, digits, '_' and '.', and none of {', '.join(RESERVED)}"
        )
    if spec.spare is not None and spec.retain is None:
        raise ValueError(f"{where}.spare: needs a retain term to spare; set {where}.retain: gd")
    layer = model.num_layers // 2 if spec.layer is None else spec.layer
    if not 0 <= layer <= model.num_layers:
        raise ValueError(f"{where}.layer: {layer} is not in 0..{model.num_layers}")
    try:
        loss = catalogue.get(spec.loss or name, **spec.hyper)
        loss.check_reduction(spec.reduction)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    term = Term(loss, model, spec.reduction, layer, "forget")
    return Task(
        name=name,
        loss=Unlearning(
            term,
            spec.gamma,
            _retain_term(spec, model, layer),
            spec.retain_weight,
            spec.spare is not None,
        ),
        lr=config.unlearn.lr if spec.lr is None else spec.lr,
        scale=spec.scale,
        unit_norm=spec.unit_norm,
        spare=spec.spare,
        guide=spec.guide,
    )


def _retain_term(spec: config_lib.Objective, model: llama.LlamaConfig, layer: int) -> Term | None:
    if spec.retain is None:
        return None
    loss = catalogue.get_retain(spec.retain)
    how = spec.reduction if loss.token_additive else "sequence_sum"
    return Term(loss, model, how, layer, "retain")


def steps_of(config: Config, samples: int) -> int:
    """Updates of an unlearning run over `samples` forget samples."""
    return order.num_steps(samples, config.unlearn.batch_size, config.unlearn.epochs)


def measured_steps(config: Config, steps: int) -> tuple[int, ...]:
    """The steps at which effects are measured, before the update of that step."""
    measure = config.measure
    if measure.steps is None and not measure.every:
        return ()
    regular = range(0, steps, measure.every) if measure.steps is None else measure.steps
    return tuple(sorted({s for s in (*regular, *measure.pg_steps) if s < steps}))
