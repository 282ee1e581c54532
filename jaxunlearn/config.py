"""The configuration: frozen dataclasses, read from YAML, written back resolved.

Every value has a default that runs. An error names the file, the line and the key, says what was
expected and gives the nearest right name.
"""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml


@dataclasses.dataclass(frozen=True)
class NewModel:
    """Sizes of a Llama with random weights, used where `model` is not given."""

    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    context: int = 256
    tied: bool = False
    vocab_size: int = 1024
    """Size of the byte-pair tokenizer trained on the data."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """Precision, memory and mesh; none of them changes what is computed."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the matrix products; parameters, losses and effects stay in float32."""
    attention: Literal["xla", "cudnn"] = "xla"
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes instead of storing."""
    batch_tokens: int = 16384
    """Tokens of a batch in passes over a dataset."""
    width_step: int = 8
    """Rows are a multiple of so many tokens wide; 128 suits the tiles of GPUs and TPUs."""
    offload: bool = False
    """Keep in host memory what a program of the run does not need: theta_0, theta_t and the risks'
    gradients between measurements, the optimiser's moments during one."""
    data: int = 1
    """Devices along the mesh axis `data`: whole copies of the parameters."""
    fsdp: int = 1
    """Devices along the mesh axis `fsdp`: batch and parameters sharded."""
    tensor: int = 1
    """Devices along the mesh axis `tensor`: each layer's matrices split."""


@dataclasses.dataclass(frozen=True)
class Fictional:
    """Sizes of the embedded data: fictional authors with questions and answers."""

    authors: int = 20
    questions: int = 10
    """Questions about each author."""
    forget_share: float = 0.1
    """Share of the authors to forget."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What to forget and what to retain."""

    source: str = "fictional"
    """`fictional`, a folder of JSONL files named after the splits, or locuslab/TOFU (the hub)."""
    forget: str = "forget"
    """Split to forget, D_u."""
    retain: str = "retain"
    """Split the retain term draws from; rows of `measured_retain` are left out."""
    measured_retain: str = "retain_perturbed"
    """Split on which retention is measured, D_r."""
    prompt: Literal["tofu", "chat"] = "tofu"
    """`[INST] question [/INST]answer`, or the tokenizer's chat template."""
    too_long: Literal["error", "drop"] = "error"
    """Rows longer than the model's context: refuse to run, or leave them out and say so."""
    fictional: Fictional = Fictional()


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Teaches the model the data before it is unlearned; 0 epochs: the model is taken as it is."""

    splits: tuple[str, ...] = ("full",)
    epochs: int = 0
    """At most this many epochs."""
    batch_size: int = 16
    lr: float = 1e-5
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    evaluate_every: int = 5
    """Epochs between evaluations on the data to forget."""
    target_nll: float | None = None
    """Stop at the first evaluation whose mean answer NLL (forget and retain) is below this."""
    patience: int | None = None
    """Stop when the forget ES has not risen by 0.01 for this many evaluations."""
    retrained: bool = False
    """Also train the yardstick: the same fine-tuning without the data to forget."""


@dataclasses.dataclass(frozen=True)
class Unlearn:
    """The schedule of unlearning; defaults are the paper's."""

    epochs: int = 5
    batch_size: int = 16
    lr: float = 1e-5
    warmup_epochs: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    """Parts of a batch whose gradients are added up one after the other; the update is the same."""
    keep_checkpoints: int = 1
    """Newest checkpoints kept of each objective: parameters and both moments; the last stays."""
    clip_norm: float | None = None
    """Clips the global norm of the gradient; none by default."""


@dataclasses.dataclass(frozen=True)
class Guide:
    """Weights from the PG-effects on the data to forget, for losses that take `guide`."""

    every: int = 5
    """Steps between refreshes, the first before the first update; each costs about a measurement
    with PG-effects."""
    by: Literal["token", "sample"] = "token"
    """One weight for each label token, or one for all tokens of a sample."""
    penalty: float = 3.0
    """What a token's reach along the gradient of the retain risk counts against that along the
    gradient of the forget risk; 0 weighs by removal alone."""
    power: float = 0.0
    """Exponent of the weights: 0 only chooses what removes more than it harms, 1 follows the
    effects, and so weighs most what is known worst."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective: L = gamma L_u + retain_weight L_r."""

    loss: str | None = None
    """A name of the catalogue, or `my_package.my_module:my_loss`; default: the entry's own name."""
    hyper: dict[str, bool | float] = dataclasses.field(default_factory=dict)
    """Hyper-parameters of the loss, such as {beta: 0.1}."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean"] = "sequence_sum"
    """How sequences are reduced, for the objective and for the risk it is measured with."""
    gamma: float = 1.0
    retain: Literal["gd", "kl", "rr"] | None = None
    """Retain term L_r on fresh retain samples; none by default."""
    retain_weight: float = 1.0
    spare: Literal["total", "layer"] | None = None
    """Keep the retain term out of L, and bend each update (or each layer's) so that to first order
    it does not raise the term: projection on A-GEM's half-space."""
    layer: int | None = None
    """rmu and rr: how many blocks the hidden state has passed; default: half of them."""
    scale: float = 5.0
    """rmu: the length c of the target c u."""
    unit_norm: bool = False
    """rmu: normalise the random direction u."""
    guide: Guide = Guide()
    """guided: where its weights come from."""
    lr: float | None = None
    """Learning rate of this objective; default: unlearn.lr."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured during unlearning, and when."""

    every: int = 5
    """Steps between measurements of the G-effect; 0 measures nothing."""
    steps: tuple[int, ...] | None = None
    """The steps to measure at, in place of `every`."""
    pg_steps: tuple[int, ...] = (5, 10, 15)
    """Steps that are measured with the PG-effect of every forget sample."""
    token_steps: tuple[int, ...] = ()
    """Of these, the steps whose PG-effects are kept by token."""
    layer_cuts: tuple[int, int] | None = None
    """First block of `middle` and of `deep` in figures; default: thirds."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How the models are measured when the objectives are done, and on the way."""

    suites: tuple[Literal["tofu", "memorization", "mia", "uwc"], ...] = ()
    """Suites that the run ends with; none by default."""
    generate: Literal["all"] | int = 40
    """Questions of each set answered in text, for ROUGE; a model utility needs all."""
    recite: Literal["all"] | int = 0
    """Questions of each set whose answers are continued word by word, for the memorization that is
    read off generated text: far slower than all else."""
    every: int = 0
    """Steps between evaluations during unlearning, by tofu and memorization; 0: none on the way."""
    retain_log: str | None = None
    """A log in the TOFU authors' format of a model that never saw the data to forget; default: that
    of the retrained model."""


@dataclasses.dataclass(frozen=True)
class Relearn:
    """Would the unlearned models learn it again? Fine-tunes them when the objectives are done."""

    samples: tuple[Literal["all"] | int, ...] = ()
    """Forget samples shown, in one attack each; none by default."""
    steps: int = 20
    lr: float | None = None
    """Learning rate of the attacks; default: unlearn.lr."""
    benign: bool = False
    """Also fine-tune on data to retain."""


def _six() -> dict[str, Objective]:
    return {name: Objective() for name in ("ga", "wga", "npo", "tnpo", "po", "rmu")}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: model, data, fine-tuning, objectives, measurements."""

    name: str = "run"
    seed: int = 0
    model: str | None = None
    """A folder or a hub id with safetensors; none: a new model of the sizes in `new_model`."""
    new_model: NewModel = NewModel()
    compute: Compute = Compute()
    data: Data = Data()
    finetune: FineTune = FineTune()
    unlearn: Unlearn = Unlearn()
    objectives: dict[str, Objective] = dataclasses.field(default_factory=_six)
    measure: Measure = Measure()
    evaluate: Evaluate = Evaluate()
    relearn: Relearn = Relearn()


class ConfigError(ValueError):
    """A configuration that cannot be read; the message names file, line and key."""


def load(path: str | Path) -> Config:
    """Reads a configuration from YAML.

    Args:
      path: file whose keys are the fields of `Config`; absent keys keep their defaults.

    Returns:
      The configuration.

    Raises:
      ConfigError: no such file, bad YAML, an unknown key or a value of the wrong type.
    """
    path = Path(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if node is None:
        raise ConfigError(f"{path}: the configuration is empty")
    return _Reader(str(path)).read(Config, node, "")


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def only(config: Config, names: typing.Sequence[str]) -> Config:
    """The configuration with some of its objectives alone, in the order given.

    Raises:
      ConfigError: a name that it does not have.
    """
    known = config.objectives
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"objectives: no {name!r}; there are: {', '.join(known)}{hint}")
    return dataclasses.replace(config, objectives={name: known[name] for name in names})


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """A hint such as "; perhaps you meant 'lr'", or nothing where no name is near."""
    close = difflib.get_close_matches(word, [str(w) for w in words], n=1, cutoff=0.5)
    return f"; perhaps you meant {close[0]!r}" if close else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


class _Reader:
    """Builds dataclasses from YAML nodes; keeps the lines for the errors."""

    def __init__(self, path: str):
        self.path = path

    def read(self, kind: Any, node: yaml.Node, key: str) -> Any:
        if dataclasses.is_dataclass(kind):
            return self._dataclass(typing.cast(type, kind), node, key)
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self._union(args, node, key)
        if origin is Literal:
            return self._choice(args, node, key)
        if origin is tuple:
            return self._tuple(args, node, key)
        if origin is dict:
            return self._mapping(args, node, key)
        return self._scalar(kind, node, key)

    def _dataclass(self, kind: type, node: yaml.Node, key: str) -> Any:
        hints = typing.get_type_hints(kind)
        fields = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
        values = {}
        for name, value in self._items(node, key):
            if name.value not in fields:
                self._fail(
                    name,
                    f"unknown key '{_join(key, name.value)}'; known here: {', '.join(fields)}"
                    + nearest(name.value, fields),
                )
            values[name.value] = self.read(fields[name.value], value, _join(key, name.value))
        return kind(**values)

    def _mapping(self, args: tuple[Any, ...], node: yaml.Node, key: str) -> dict[str, Any]:
        items = self._items(node, key)
        return {k.value: self._entry(args[1], v, _join(key, k.value)) for k, v in items}

    def _entry(self, kind: Any, node: yaml.Node, key: str) -> Any:
        """An entry without a value (`ga:`) takes the defaults."""
        if dataclasses.is_dataclass(kind) and _is_null(node):
            return typing.cast(type, kind)()
        return self.read(kind, node, key)

    def _items(self, node: yaml.Node, key: str) -> list[tuple[Any, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"'{key or 'the file'}' must be a mapping of keys to values")
        items = typing.cast(list, node.value)
        seen: set[str] = set()
        for name, _ in items:
            if name.value in seen:
                self._fail(name, f"key '{_join(key, name.value)}' is given twice")
            seen.add(name.value)
        return items

    def _union(self, args: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
        if type(None) in args and _is_null(node):
            return None
        *first, last = (a for a in args if a is not type(None))
        for kind in first:
            try:
                return self.read(kind, node, key)
            except ConfigError:
                continue
        words = [w for kind in first if typing.get_origin(kind) is Literal for w in kind.__args__]
        try:
            return self.read(last, node, key)
        except ConfigError as error:
            if not words:
                raise
            raise ConfigError(f"{error}; or write {', '.join(words)}") from error

    def _choice(self, choices: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        if value not in choices:
            options = ", ".join(map(str, choices))
            hint = nearest(str(value), choices)
            self._fail(node, f"'{key}' must be one of {options}, not {value!r}{hint}")
        return value

    def _tuple(self, args: tuple[Any, ...], node: yaml.Node, key: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, f"'{key}' must be a list")
        items = typing.cast(list, node.value)
        if args[-1] is not Ellipsis and len(items) != len(args):
            self._fail(node, f"'{key}' must be a list of {len(args)} values, not {len(items)}")
        return tuple(self.read(args[0], item, key) for item in items)

    def _scalar(self, kind: type, node: yaml.Node, key: str) -> Any:
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        try:
            if value is None or _is_null(node):
                raise ValueError
            if kind is bool:
                return {"true": True, "false": False}[value.lower()]
            return kind(value)
        except (ValueError, KeyError):
            found = "a list or mapping" if value is None else repr(value)
            self._fail(node, f"'{key}' must be {_spoken(kind)}, not {found}")

    def _fail(self, node: yaml.Node, message: str) -> typing.NoReturn:
        raise ConfigError(f"{self.path}:{node.start_mark.line + 1}: {message}")


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _spoken(kind: type) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, kind.__name__)
