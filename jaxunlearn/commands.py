"""The commands and their flags: the dataclasses that the command line is generated from."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from jaxunlearn.config import Compute, Data, Evaluate, Relearn


def _flag(metavar: str) -> Any:
    """Describes a flag whose help text says what it is by default."""
    return arg(metavar=metavar, help_behavior_hint="")


# A tuple, as tyro cannot leave out a positional path while it collects unknown flags.
ConfigFile = Annotated[Positional[tuple[Path, ...]], _flag("CONFIG")]
Switch = Annotated[bool, FlagCreatePairsOff]
Names = Annotated[tuple[str, ...], _flag("OBJECTIVE [OBJECTIVE ...]")]
LISTS = ("--only", "--sweep")
"""Flags that take several values after one mention."""

Mesh = Annotated[tuple[int, int, int] | None, _flag("DATA FSDP TENSOR")]


@dataclasses.dataclass(frozen=True)
class Processes:
    """Options of a run in several processes, one on each host."""

    distributed: Switch = False
    """Join a multi-process run; the cluster is detected (SLURM, TPU pods, ...)."""
    coordinator: Annotated[str | None, _flag("HOST:PORT")] = None
    """Address of process 0, where the cluster is not detected."""
    processes: Annotated[int | None, _flag("INT")] = None
    """Total number of processes."""
    process: Annotated[int | None, _flag("INT")] = None
    """Index of this process, from 0."""
    heartbeat: int = 100
    """Seconds of silence after which a process counts as dead."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of `run` and `demo`; all other flags override keys of the configuration."""

    out: Annotated[Path | None, _flag("FOLDER")] = None
    """Folder of the run; default: runs/NAME."""
    overwrite: Switch = False
    """Where the folder holds another run, remove the files of that run, nothing else in the folder,
    and begin anew. An earlier part of this very run stays, and the run goes on from there."""
    keys: Switch = False
    """List the keys of the configuration, which --KEY VALUE overrides, and exit."""
    only: Names = ()
    """Run only these objectives; default: all. With --sweep, one of the configuration means all its
    copies; a copy can be named too."""
    sweep: Annotated[tuple[str, ...], _flag("KEY=VALUE,VALUE [..]")] = ()
    """Run an objective once for every value of one of its keys, such as
    objectives.npo.hyper.beta=0.1,1; several keys make all combinations."""
    seeds: int = 1
    """Run with this many seeds, the configuration's and those that follow, in folders seed-N of the
    run's folder, and compare them there."""
    no_report: Switch = False
    """Write no figures and no report, which take half a minute; `jaxunlearn report RUN` does it
    later, on any machine."""
    profile: int = 0
    """Trace this many steps of the first objective with jax.profiler."""
    debug_nans: Switch = False
    """Where a loss stops being finite, take that step again without compilation, and name the
    operation and the line that first made a NaN or an infinity. Costs nothing before."""
    peak: Annotated[float | None, _flag("TFLOPS")] = None
    """Peak of one device in TFLOP/s, for the MFU; default: the published one, in bfloat16."""


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """Unlearn as a YAML configuration says; an interrupted run is resumed."""

    config: ConfigFile = ()
    """A YAML file, see configs/; comes before flags that override its keys."""
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    processes: OmitArgPrefixes[Processes] = Processes()


@dataclasses.dataclass(frozen=True)
class DemoCommand:
    """Unlearn embedded data with a small model, three times; nothing is downloaded."""

    run: OmitArgPrefixes[RunOptions] = RunOptions(seeds=3)
    processes: OmitArgPrefixes[Processes] = Processes()


@dataclasses.dataclass(frozen=True)
class ForecastCommand:
    """Forecast memory, FLOPs and seconds of a run without running it."""

    config: ConfigFile = ()
    """A YAML file, see configs/; comes before flags that override its keys."""
    memory: Annotated[float | None, _flag("GIB")] = None
    """Memory of one device in GiB; prints which settings fit it."""
    peak: Annotated[float | None, _flag("TFLOPS")] = None
    """Peak of one device in TFLOP/s, for the seconds; default: the published one in bfloat16, where
    JAX_PLATFORMS names an accelerator and it is known. Else forecasts use the CPU."""
    measure: Switch = False
    """Run a train step here instead, on the CPU unless JAX_PLATFORMS names an accelerator, and take
    its speed for all programs."""
    own_code: Switch = False
    """Import the losses of your own, module:NAME, that the configuration names. Their code runs."""
    keys: Switch = False
    """List the keys of the configuration, which --KEY VALUE overrides, and exit."""


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate the models of a run, or any model, with suites of metrics.

    Flags that are left out have the values of the run's configuration, or of --config. A run has
    its data and its precision; only a model takes --config, --out, --retrained, --base, --data.*
    and --compute.*. The key --every is for `jaxunlearn run` alone.
    """

    model: Annotated[Positional[str], arg(metavar="RUN|MODEL")]
    """Folder of a run; or a model: its folder, or its name on the Hugging Face hub."""
    configuration: OmitArgPrefixes[Evaluate] = dataclasses.field(default_factory=Evaluate)
    only: Names = ()
    """Of a run, evaluate only these objectives, next to the models they are compared with; default:
    all."""
    mesh: Mesh = None
    """Devices along each axis of the mesh; default: as in the configuration."""
    config: Annotated[Path | None, _flag("FILE")] = None
    """A YAML file with the configuration that a model is evaluated by; it may leave out the
    model."""
    out: Annotated[Path | None, _flag("FOLDER")] = None
    """Folder of a model's results; default: evaluations/NAME."""
    retrained: Annotated[str | None, _flag("MODEL")] = None
    """A model of the same architecture that never saw the forget set, to compare a model with."""
    base: Annotated[str | None, _flag("MODEL")] = None
    """The model before unlearning, for uwc."""
    data: Data = dataclasses.field(default_factory=Data)
    """What is forgotten and what is retained."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    """Precision, memory and device mesh."""
    processes: OmitArgPrefixes[Processes] = Processes()


@dataclasses.dataclass(frozen=True)
class EffectsCommand:
    """Measure what the step from one checkpoint to another does, to first order and really.

    Flags that are left out have the values of --config.
    """

    before: Annotated[Positional[str], arg(metavar="BEFORE")]
    """A model: its folder, or its name on the Hugging Face hub."""
    after: Annotated[Positional[str], arg(metavar="AFTER")]
    """A model of the same architecture."""
    by: Annotated[
        tuple[Literal["sample", "token", "layer", "tensor"], ...],
        arg(metavar="{sample,token,layer,tensor} [..]", help_behavior_hint=""),
    ] = ()
    """Resolutions at which the effect on log-likelihoods is recorded; default: measure.pg_by of
    --config, or by sample."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean"] = "sequence_sum"
    """How the risks are reduced: the mean over sequences of sums, the mean over sequences of means,
    or the mean over all tokens."""
    gradients: Annotated[Literal["full", "gates"] | None, _flag("{full,gates}")] = None
    """`full` also gives cosines, `gates` stores no gradient; default: measure.gradients of
    --config, or full."""
    config: Annotated[Path | None, _flag("FILE")] = None
    """A YAML file with the configuration to start from; it may leave out the model."""
    out: Annotated[Path | None, _flag("FOLDER")] = None
    """Folder of the tables; default: effects/BEFORE-AFTER."""
    mesh: Mesh = None
    """Devices along each axis of the mesh; default: as in the configuration."""
    data: Data = dataclasses.field(default_factory=Data)
    """What is forgotten and what is retained."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    """Precision, memory and device mesh."""
    processes: OmitArgPrefixes[Processes] = Processes()


@dataclasses.dataclass(frozen=True)
class RelearnCommand:
    """Attack the models of a run by fine-tuning, and count the steps until the data are back.

    Flags that are left out have the values of the run's configuration.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run."""
    configuration: OmitArgPrefixes[Relearn] = dataclasses.field(default_factory=Relearn)
    only: Names = ()
    """Attack only these objectives, next to the retrained model; default: all."""
    mesh: Mesh = None
    """Devices along each axis of the mesh; default: as in the run."""
    processes: OmitArgPrefixes[Processes] = Processes()


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Draw the figures and print the tables of a finished run again; or compare several."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Folders of runs, or of the seeds of a run. Those that differ in nothing but the seed are
    repeats."""
    out: Annotated[Path | None, _flag("FOLDER")] = None
    """Where a comparison is written; default: `comparison` next to the first run, or the folder of
    the seeds."""


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a model of a run as a folder that transformers loads."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run."""
    objective: Annotated[Positional[str], arg(metavar="OBJECTIVE")]
    """Objective whose final model is written; or `base`, or `retrained`."""
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder to write: absent or empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the tensors written."""
    adapter: Switch = False
    """Write the adapters of a run with train.lora alone, as a folder that PEFT loads."""


@dataclasses.dataclass(frozen=True)
class ObjectivesCommand:
    """List the objectives and retain terms: formulas, hyper-parameters, needs and papers."""

    names: Annotated[Positional[tuple[str, ...]], _flag("[NAME ...]")] = ()
    """Say everything about these, as the comments of a configuration that runs; also of a function
    of your own, my_package.my_module:NAME."""


Command = (
    Annotated[RunCommand, subcommand("run")]
    | Annotated[DemoCommand, subcommand("demo")]
    | Annotated[ForecastCommand, subcommand("forecast")]
    | Annotated[EvaluateCommand, subcommand("evaluate")]
    | Annotated[EffectsCommand, subcommand("effects")]
    | Annotated[RelearnCommand, subcommand("relearn")]
    | Annotated[ReportCommand, subcommand("report")]
    | Annotated[ExportCommand, subcommand("export")]
    | Annotated[ObjectivesCommand, subcommand("objectives")]
)
