"""The types of the JSON files in a run's folder, which `core.files` checks where it reads them.

A key that reports can do without, and that earlier versions did not write, is not required.
"""

from typing import Any, Literal, NotRequired, TypedDict

Digests = dict[str, str]
"""`inputs.json`: the SHA-256 of every input."""

PLACES = {
    "model": "model",
    "data.source": "data.forget",
    "train.lora.start": "train.lora.start",
}
"""Keys of a configuration that say where something is, each with the input whose digest tells
whether it is the same."""


class Start(TypedDict):
    """A line of `starts.jsonl`."""

    date: str
    python: str
    versions: dict[str, str | None]
    devices: int
    device: str
    processes: int


class Timing(TypedDict):
    """A line of `timings.jsonl`; of the whole stage `part` is null."""

    stage: str
    part: NotRequired[str | None]
    seconds: float


class Sealed(TypedDict):
    """A line of `manifest.jsonl`."""

    stage: str
    redo: str | None
    files: dict[str, str]
    before: NotRequired[int]
    records: NotRequired[str]


class Learned(TypedDict):
    """A line of `metrics.jsonl` of an evaluation of fine-tuning."""

    step: int
    objective: str
    forget_nll: float
    forget_es: float
    retain_nll: float


class Diverged(TypedDict):
    """The first state of a training at which the loss is not finite."""

    step: int
    layer: str | None
    sample: int | None
    samples: int
    operation: NotRequired[str | None]


class StartResult(TypedDict):
    """NLL, extraction strength and exact memorisation of a model on both sets."""

    forget_nll: float | None
    forget_es: float
    forget_em: NotRequired[float]
    retain_nll: float | None
    retain_es: float
    retain_em: NotRequired[float]


class ModelResult(StartResult):
    """The same of any model; of one that an objective made, with its steps."""

    steps: NotRequired[int]
    of_steps: NotRequired[int]
    diverged: NotRequired[Diverged]


class ObjectiveResult(StartResult):
    """`objectives/NAME/result.json`."""

    steps: int
    of_steps: int
    diverged: NotRequired[Diverged]


class Results(TypedDict):
    """`results.json`."""

    models: dict[str, ModelResult]


class Metric(TypedDict):
    """A number of a suite, or the reason why there is none."""

    metric: str
    definition: str
    set: str | None
    value: float | None
    reason: NotRequired[str]
    by_sample: NotRequired[list[float] | None]


class SuiteResult(TypedDict):
    """What a suite measured on a model."""

    settings: NotRequired[dict[str, Any]]
    results: list[Metric]
    reason: NotRequired[str]


class LeastStep(TypedDict):
    """The step with the least forget ES."""

    step: int
    forget_es: float
    retain_es: float


class QualityStep(TypedDict):
    """The step with the best forget quality."""

    step: int
    value: float


class BestSteps(TypedDict):
    """The best steps of an objective that was evaluated during unlearning."""

    evaluated: list[int]
    last: int
    least_forget_es: LeastStep | None
    best_forget_quality: QualityStep | None


class Evaluations(TypedDict):
    """`evaluation.json`."""

    models: dict[str, dict[str, SuiteResult]]
    steps: NotRequired[dict[str, BestSteps]]


class Recovered(TypedDict):
    """How soon a model recovers, see `metrics.relearning.Recovery`."""

    status: Literal["recovered", "not recovered", "nothing forgotten", "diverged"]
    step: int | None
    tried: int
    target: float | None


class AttackSummary(TypedDict):
    """One attack on one model in `relearn.json`."""

    samples: int
    whole: Recovered
    unseen: Recovered | None
    final_forget_nll: float | None
    final_forget_es: float | None
    final_unseen_es: float | None


class AttackedModel(TypedDict):
    """A model in `relearn.json`."""

    forget_nll: float | None
    forget_es: float | None
    attacks: dict[str, AttackSummary]


class AttackSettings(TypedDict):
    """The settings in `relearn.json`."""

    steps: int
    lr: float
    batch_size: int


class Attacks(TypedDict):
    """`relearn.json`."""

    settings: AttackSettings
    models: dict[str, AttackedModel]


class AttackRow(TypedDict):
    """A line of `relearn.jsonl`; without training there is no effect."""

    model: str
    attack: str
    samples: int
    step: int
    forget_nll: float | None
    forget_es: float | None
    unseen_es: float | None
    effect: NotRequired[float | None]


class Before(TypedDict):
    """Extraction strengths of the model before unlearning."""

    forget_es: float | None
    unseen_es: float | None


class PartSettings(TypedDict):
    """The settings of one attack; `ids` are the samples that it shows, if it trains on any."""

    ids: NotRequired[list[int]]


class AttackPart(TypedDict):
    """`relearn/MODEL-ATTACK.json`."""

    settings: PartSettings
    before: Before
    records: list[AttackRow]
    layers: list[dict[str, Any]]
    sample_es: NotRequired[list[float]]
