"""The schema of a configuration: frozen dataclasses whose field docstrings are the help texts.

Every key has a default. `reader` reads and writes YAML, `validate` checks the values, and the
command line generates its flags from these classes. Mappings are read-only by convention: make a
changed configuration with `dataclasses.replace` instead.
"""

import dataclasses
from typing import ClassVar, Literal

from jaxunlearn.config.train import Train


class ConfigError(ValueError):
    """A configuration that cannot be read or used; the message names the key."""


@dataclasses.dataclass(frozen=True)
class NewModel:
    """Sizes of the Llama with random weights that a run starts from if `model` is not given."""

    hidden_size: int = 128
    """Width D of the hidden states."""
    intermediate_size: int = 352
    """Width of the feed-forward layers."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads; must divide hidden_size."""
    num_kv_heads: int = 2
    """Heads of keys and values (grouped-query attention); must divide num_heads."""
    context: int = 256
    """Longest sequence, in tokens."""
    tied: bool = False
    """Use the embedding matrix as the output layer too."""
    vocab_size: int = 1024
    """Size of the byte-pair tokenizer that is trained on the data, at least 259."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """Precision, memory and device mesh. Beyond rounding, they do not change what is computed."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the factors of matrix products. Losses, effects and the parameters that train are
    float32 in any case."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of float32 products: `highest` is float32 on every device. GPUs compute `high` and
    `default` with TF32 factors; TPUs `high` with three passes in bfloat16, `default` with one. CPUs
    know float32 alone."""
    reduce: Literal["float32", "bfloat16"] = "float32"
    """Precision in which weight gradients of a bfloat16 computation are added up over devices;
    `bfloat16` halves that traffic."""
    attention: Literal["xla", "cudnn"] = "xla"
    """Attention kernel of training steps; `cudnn` needs an NVIDIA GPU and bfloat16,
    and cannot cap scores as Gemma 2 does."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes to save memory: nothing, all but matrix products, or whole
    blocks."""
    batch_tokens: int = 16384
    """Tokens of a batch in passes over a whole dataset."""
    width_step: int = 8
    """Widths of packed rows are multiples of this many tokens; 128 suits the tiles of GPUs and
    TPUs."""
    offload: bool = False
    """Move idle arrays (theta_0, theta_t, gradients, Adam moments) to pinned host memory between
    programs."""
    save_minutes: float = 30.0
    """Save the state of a training again when so many minutes have passed since it was saved last.
    It is saved in any case at every evaluation of fine-tuning, and in unlearning at every
    measurement, or once an epoch where nothing is measured. From the first measurement of an
    objective on it is saved nowhere else: what one measurement starts the next one ends."""
    data: int = 1
    """Devices along the mesh axis `data`, each with whole copies of the parameters."""
    fsdp: int = 1
    """Devices along the mesh axis `fsdp`, which split both batch and parameters."""
    tensor: int = 1
    """Devices along the mesh axis `tensor`, which split the matrices of every layer."""


@dataclasses.dataclass(frozen=True)
class Fictional:
    """The embedded data: fictional authors with questions and answers."""

    authors: int = 20
    """Number of authors, at least 2."""
    questions: int = 10
    """Questions about each author, at most 20."""
    forget_share: float = 0.1
    """Share of the authors to forget; rounded to at least one author, and never all."""
    seed: int = 0
    """Which authors these are, whatever the seed of the run."""


@dataclasses.dataclass(frozen=True)
class Example:
    """An answered question that is shown before every question."""

    question: str
    """The user's turn."""
    answer: str
    """The assistant's turn."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How questions are written. In YAML the style alone may stand for it: `prompt: chat`."""

    BARE: ClassVar[str] = "style"
    """The field that a single value in YAML is read as."""

    style: Literal["tofu", "chat"] = "tofu"
    """`tofu`: `[INST] question [/INST]answer`, as in TOFU; `chat`: the chat template of the
    tokenizer. All that follows is for `chat`."""
    system: str | None = None
    """System prompt of rows that have none of their own; default: none."""
    date: str = "10 Apr 2025"
    """The date for chat templates that print one, as those of Llama 3 do."""
    examples: tuple[Example, ...] = ()
    """Answered questions before every question (few-shot), in YAML a list of
    {question: .., answer: ..}."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The data: where they are, what their columns are called, what is forgotten and retained.

    A split may be a part of one: `retain_perturbed[:80]` is its first 80 rows.
    """

    source: str = "fictional"
    """`fictional` (generated, embedded); a folder with a file SPLIT.jsonl, .json, .csv or .parquet,
    or a saved dataset, for every split; or a dataset on the Hugging Face hub such as
    locuslab/TOFU."""
    forget: str = "forget"
    """Split to forget: the forget set D_u."""
    retain: str = "retain"
    """Split from which retain terms draw; rows that are also in `measured_retain` are left out."""
    measured_retain: str = "retain_perturbed"
    """Split on which retention is measured: the retain set D_r."""
    question_key: str = "question"
    """Column of the questions."""
    answer_key: str = "answer"
    """Column of the answers."""
    paraphrased_question_key: str = "paraphrased_question"
    """Column of questions in other words, which the suite memorization asks too."""
    paraphrased_answer_key: str = "paraphrased_answer"
    """Column of answers in other words, for the suite tofu."""
    perturbed_answer_key: str = "perturbed_answer"
    """Column of lists of wrong answers, for the suite tofu."""
    messages_key: str = "messages"
    """Column of conversations, lists of {role, content}, which is read where there is no column of
    questions: the last turn is the answer, all before it the prompt."""
    text_key: str | None = None
    """Column of free text: all splits are then documents without questions, which are learned and
    forgotten token by token; default: the data are questions."""
    chunk_tokens: int | None = None
    """Most tokens of the chunks that documents are cut into, BOS included; default: the model's
    context."""
    prompt: Prompt = Prompt()
    """How questions are written."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to rows that are longer than the model's context: the run is refused, or the
    rows are left out with a note."""
    fictional: Fictional = Fictional()
    """What the data are if source is `fictional`."""


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Fine-tuning, which teaches the model the data before they are unlearned."""

    splits: tuple[str, ...] = ("full",)
    """Splits to train on, joined."""
    epochs: int = 0
    """Most passes over the data; 0 takes the model as it is."""
    batch_size: int = 16
    """Samples of a batch."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly from 0; then it falls linearly to 0."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    evaluate_every: int = 5
    """Epochs between evaluations on the forget set and the retain set."""
    target_nll: float | None = None
    """Stop at the first evaluation at which the mean negative log-likelihood of an answer token is
    below this, on both sets; default: train all epochs."""
    patience: int | None = None
    """Stop when the extraction strength of the forget set has not risen by 0.01 for this many
    evaluations; default: never."""
    retrained: bool = False
    """Also fine-tune a second model on the same data without the forget set: the retrained model,
    with which the unlearned ones are compared."""


@dataclasses.dataclass(frozen=True)
class Unlearn:
    """The schedule of unlearning; the defaults are those of arXiv 2502.19301."""

    epochs: int = 5
    """Passes over the forget set."""
    batch_size: int = 16
    """Forget samples of a batch."""
    lr: float = 1e-5
    """Peak learning rate of AdamW; an objective may have its own."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly from 0; then it falls linearly to 0."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    accumulate: int = 1
    """Split every batch into this many parts and add their gradients up, which saves memory. The
    update is the same. Must divide batch_size."""
    keep_checkpoints: int = 1
    """How many of the newest checkpoints of every objective stay on disk, each with parameters and
    both Adam moments."""
    clip_norm: float | None = None
    """Clip gradients to this global norm; default: no clipping."""


@dataclasses.dataclass(frozen=True)
class Guide:
    """How the weights of a guided loss are computed from PG-effects on the forget set.

    Read only by losses that take the argument `guide`, such as `guided`.
    """

    every: int = 5
    """Steps between two computations of the weights, of which the first comes before the first
    update. Each costs about as much as a measurement with PG-effects."""
    by: Literal["token", "sample"] = "token"
    """Whether every label token has a weight, or every sample one for all its tokens."""
    penalty: float = 3.0
    """How much harm to the retain set counts against removal from the forget set, both measured
    along the gradients of the risks; 0 looks at removal alone."""
    power: float = 0.0
    """Exponent of the weights, whose mean is 1: 0 makes those of all tokens equal that remove more
    than `penalty` times what they harm, 1 makes weights proportional to the effects, so that the
    tokens that are known worst weigh most."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective: minimise L = gamma L_u + retain_weight L_r."""

    loss: str | None = None
    """Unlearning loss L_u: a name such as npo, or `my_package.my_module:my_loss`
    for a function of your own; default: the name of the entry."""
    hyper: dict[str, bool | float] = dataclasses.field(default_factory=dict)
    """Hyper-parameters of the loss, such as {beta: 0.1}."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean"] = "sequence_sum"
    """How token losses become one number, in training and for the risk of this objective: the mean
    over sequences of sums, the mean over sequences of means, or the mean over all tokens. A retain
    term follows, unless it has one loss for a whole sequence, as `rr` has: then the mean over
    sequences."""
    gamma: float = 1.0
    """Weight of L_u."""
    retain: str | None = None
    """Retain term L_r on random retain samples: `gd`, `kl`, `rr`, or `my_package.my_module:my_term`
    for a function of your own; default: none."""
    retain_hyper: dict[str, bool | float] = dataclasses.field(default_factory=dict)
    """Hyper-parameters of the retain term."""
    retain_weight: float = 1.0
    """Weight of L_r."""
    spare: Literal["total", "layer"] | None = None
    """Leave the retain term out of L. Instead project every update (`total`), or the update of
    every layer (`layer`), so that to first order it does not raise the retain term (A-GEM)."""
    layer: int | None = None
    """For `rmu` and `rr`: the hidden state after this many blocks; default: half of the blocks."""
    scale: float = 5.0
    """For `rmu`: the factor c of the target c u. The entries of u are uniform in [0, 1), so the
    target's length is about c sqrt(hidden_size / 3)."""
    unit_norm: bool = False
    """For `rmu`: normalise the random direction u to length 1, so that the target's length is c."""
    guide: Guide = Guide()
    """For `guided`: how its weights are computed."""
    lr: float | None = None
    """Peak learning rate of this objective; default: unlearn.lr."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """The effects that are measured during unlearning, and the steps at which they are."""

    every: int = 5
    """Steps between two measurements of the G-effect; 0 measures nothing, not even at pg_steps."""
    steps: tuple[int, ...] | None = None
    """Measure the G-effect at these steps, from 0, and at pg_steps; default: as `every` says."""
    gradients: Literal["full", "gates"] = "full"
    """How the G-effect is computed. `full` forms both gradients, so it also knows their cosine and
    norms; `gates` differentiates one scalar a layer and stores no second gradient."""
    pg_steps: tuple[int, ...] = (5, 10, 15)
    """Steps at which the PG-effects of all forget samples are measured too."""
    pg_by: tuple[Literal["sample", "token", "layer", "tensor"], ...] = ("sample",)
    """The resolutions at which PG-effects are recorded: a number for every sample, label token,
    layer or parameter tensor."""
    token_steps: tuple[int, ...] = ()
    """Those of pg_steps at which the PG-effects of all label tokens are recorded."""
    layer_cuts: tuple[int, int] | None = None
    """First blocks of the groups `middle` and `deep` in figures; default: thirds."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits that suites read next to `data.forget` and `data.measured_retain`.

    A split that is named here must exist; without those of the default names numbers are null.
    """

    forget_perturbed: str | None = None
    """For tofu: the forget set with paraphrased and wrong answers; default: FORGET_perturbed."""
    retain_perturbed: str | None = None
    """For tofu: such a retain set; default: retain_perturbed."""
    real_authors_perturbed: str | None = None
    """For tofu: questions about real authors, with wrong answers; default:
    real_authors_perturbed."""
    world_facts_perturbed: str | None = None
    """For tofu: questions about the world, with wrong answers; default: world_facts_perturbed."""
    forget_paraphrased: str | None = None
    """For memorization: the forget set with paraphrased questions; default: data.forget if it has
    them, or else forget_perturbed."""
    retain_paraphrased: str | None = None
    """For memorization: the retain set with paraphrased questions; default: data.measured_retain if
    it has them, or else MEASURED_RETAIN_perturbed."""
    holdout: str | None = None
    """For mia: rows like the forget set's that no model of the run was trained on; default: the
    name of the forget set with `holdout` in the place of `forget`, or `holdout`."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How models are evaluated when the objectives are done, and during unlearning."""

    suites: tuple[str, ...] = ()
    """Suites with which a run ends: tofu, memorization, mia, uwc, or `all`; default: none.
    `jaxunlearn evaluate` takes those of the run, or all where it names none."""
    generate: Literal["all"] | int = 40
    """Questions of each set that are answered in text, for ROUGE, or `all`, which TOFU's model
    utility needs."""
    recite: Literal["all"] | int = 0
    """Answers of each set that are continued from every prefix, for memorization metrics of
    generated text, or `all`; far slower than everything else."""
    every: int = 0
    """Steps between evaluations during unlearning, with the suites tofu and memorization; 0
    evaluates at the end only."""
    retain_log: str | None = None
    """Log of a model that never saw the forget set, in the format of TOFU's authors or of
    OpenUnlearning; default: that of the retrained model."""
    splits: Splits = Splits()
    """The splits that suites read."""


@dataclasses.dataclass(frozen=True)
class Relearn:
    """Relearning attacks: how many steps of fine-tuning bring the forgotten data back."""

    samples: tuple[Literal["all"] | int, ...] = ()
    """Numbers of forget samples to fine-tune on, one attack each; default: no attacks. `jaxunlearn
    relearn` takes those of the run; where it names none (nor `benign`), those of 1, 5 and 20 that
    are fewer than all, and all."""
    steps: int = 20
    """Fine-tuning steps of every attack."""
    lr: float | None = None
    """Learning rate of the attacks; default: unlearn.lr."""
    benign: bool = False
    """Also attack by fine-tuning on retain samples alone."""


def _default_objectives() -> dict[str, Objective]:
    return {name: Objective() for name in ("ga", "wga", "npo", "tnpo", "po", "rmu")}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: model, data, fine-tuning, objectives, measurements, evaluation, attacks."""

    name: str = "run"
    """Name of the run, in titles and as its default folder runs/NAME."""
    seed: int = 0
    """Seed of all random draws; not negative."""
    model: str | None = None
    """A folder or a Hugging Face hub id with safetensors; default: a new model of the sizes in
    new_model."""
    new_model: NewModel = NewModel()
    """Sizes of a new model."""
    compute: Compute = Compute()
    """Precision, memory and device mesh."""
    data: Data = Data()
    """What is forgotten and what is retained."""
    finetune: FineTune = FineTune()
    """Fine-tuning before unlearning."""
    unlearn: Unlearn = Unlearn()
    """The schedule of unlearning."""
    train: Train = dataclasses.field(default_factory=Train)
    """The parameters that unlearning may change."""
    objectives: dict[str, Objective] = dataclasses.field(default_factory=_default_objectives)
    """The objectives by name; each one starts from the same model."""
    measure: Measure = Measure()
    """The effects that are measured."""
    evaluate: Evaluate = Evaluate()
    """How models are evaluated."""
    relearn: Relearn = Relearn()
    """Relearning attacks."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the numbers of every step too; their libraries are the extra `track`."""
