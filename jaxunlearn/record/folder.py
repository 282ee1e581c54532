"""The names of the files in a run's folder, and the names of models that are no objectives."""

import dataclasses
from pathlib import Path

from jaxunlearn.core.paths import user_path

BASE = "base"
"""Key and folder of the model before unlearning, theta_0: the fine-tuned model."""

RETRAINED = "retrained"
"""Key and folder of the model that was fine-tuned without the forget set."""

MODEL = "model"
"""Key of a model that no run made, where it is evaluated by itself."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run: where each of its files is, whether it exists yet or not.

    Models are named by `BASE`, `RETRAINED` or the name of an objective. Nothing here touches the
    disk.

    Attributes:
      path: the folder itself.
    """

    path: Path

    # ------------------------------------------------------------------ the run as a whole

    @property
    def config(self) -> Path:
        """The resolved configuration: running it again gives the same run."""
        return self.path / "config.yaml"

    @property
    def measured_as(self) -> Path:
        """The resolved configuration of measurements of models that no run made."""
        return self.path / "measured_as.yaml"

    @property
    def metrics(self) -> Path:
        """A JSON line for each training step and each evaluation of fine-tuning."""
        return self.path / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """A JSON line for each stage, with its wall-clock seconds."""
        return self.path / "timings.jsonl"

    @property
    def lock(self) -> Path:
        """The file that a process locks while it works on the run."""
        return self.path / ".lock"

    @property
    def owner(self) -> Path:
        """Who has locked it."""
        return self.path / ".owner.json"

    @property
    def inputs(self) -> Path:
        """Digests of the data and the model that the run reads."""
        return self.path / "inputs.json"

    @property
    def manifest(self) -> Path:
        """A JSON line for each finished stage, with the digests of its files."""
        return self.path / "manifest.jsonl"

    @property
    def starts(self) -> Path:
        """A JSON line for each start of the run: date, versions, devices."""
        return self.path / "starts.jsonl"

    @property
    def texts(self) -> Path:
        """Questions, answers and label tokens of the samples of both sets."""
        return self.path / "texts.parquet"

    @property
    def html(self) -> Path:
        """The report as one page."""
        return self.path / "report.html"

    @property
    def results(self) -> Path:
        """NLL, extraction strength and exact memorisation of every model."""
        return self.path / "results.json"

    @property
    def evaluation(self) -> Path:
        """The results of the evaluation suites, by model and suite."""
        return self.path / "evaluation.json"

    @property
    def summary(self) -> Path:
        """The tables of the report, in Markdown."""
        return self.path / "summary.md"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def profile(self) -> Path:
        """The folder of the profiler's traces."""
        return self.path / "profile"

    @property
    def memory(self) -> Path:
        """The folder of rows and models that came from the memory of a Python program."""
        return self.path / "memory"

    @property
    def tensorboard(self) -> Path:
        """The folder of the tracker TensorBoard, with a folder for each objective."""
        return self.path / "tensorboard"

    @property
    def references(self) -> Path:
        """The folder of cached outputs of the model before unlearning on the data."""
        return self.path / "reference"

    def reference(self, name: str) -> Path:
        """The cache of one set: "forget", "retain" or "substitute"."""
        return self.references / f"{name}.npz"

    # ------------------------------------------------------------------ tables

    def table(self, name: str) -> Path:
        """A merged table; `name` is a key of `record.tables.SCHEMAS`."""
        return self.path / f"{name}.parquet"

    @property
    def all_parts(self) -> Path:
        """The folder that holds a folder of parts for each table."""
        return self.path / "parts"

    def parts(self, table: str) -> Path:
        """The folder of a table's parts, from which `table(name)` is merged."""
        return self.all_parts / table

    def part(self, table: str, objective: str, step: int) -> Path:
        """The rows of a table that were measured at one step of one objective."""
        return self.parts(table) / f"{objective}-{step:06d}.parquet"

    # ------------------------------------------------------------------ models and objectives

    def model(self, name: str) -> Path:
        """The Hugging Face folder of `BASE` or of `RETRAINED`."""
        return self.path / name

    def finetune_checkpoints(self, model: str) -> Path:
        """The folder of the checkpoints from which fine-tuning `BASE` or `RETRAINED` resumes."""
        return self.path / "finetune" / model

    @property
    def objectives(self) -> Path:
        """The folder that holds a folder for each objective."""
        return self.path / "objectives"

    def objective(self, name: str) -> Path:
        """The folder of an objective."""
        return self.objectives / name

    def checkpoints(self, objective: str) -> Path:
        """The folder of an objective's checkpoints."""
        return self.objective(objective) / "checkpoints"

    def result(self, objective: str) -> Path:
        """NLL and memorisation after an objective's last step; it exists once that is done."""
        return self.objective(objective) / "result.json"

    def guide(self, objective: str) -> Path:
        """The folder of the weights that a guided objective computed."""
        return self.objective(objective) / "guide"

    def guide_weights(self, objective: str, step: int) -> Path:
        """The weights that were computed before a step and used from there on."""
        return self.guide(objective) / f"{step:06d}.npy"

    # ------------------------------------------------------------------ evaluation and attacks

    @property
    def tofu_logs(self) -> Path:
        """The folder of the logs in the format of TOFU's authors."""
        return self.path / "tofu_logs"

    def tofu_log(self, model: str) -> Path:
        """The TOFU log of a model, or of `NAME-STEP` where it was evaluated during unlearning."""
        return self.tofu_logs / f"{model}.json"

    @property
    def relearn(self) -> Path:
        """The summary of all relearning attacks."""
        return self.path / "relearn.json"

    @property
    def relearn_records(self) -> Path:
        """A JSON line for each evaluated step of each attack."""
        return self.path / "relearn.jsonl"

    @property
    def relearn_layers(self) -> Path:
        """A JSON line for each layer at each evaluated step of each attack."""
        return self.path / "relearn_layers.jsonl"

    @property
    def attacks(self) -> Path:
        """The folder of the attacks' results."""
        return self.path / "relearn"

    def attack(self, model: str, attack: str) -> Path:
        """The result of one model under one attack; names of models hold no dash."""
        return self.attacks / f"{model}-{attack}.json"


def of_seed(path: Path, seed: int) -> Path:
    """The folder of one run among those of several seeds in a folder."""
    return path / f"seed-{seed}"


def seeds(path: Path) -> list[Path]:
    """The runs of several seeds that a folder holds, by seed; none where it is a run itself."""
    if RunFolder(path).config.is_file() or not path.is_dir():
        return []
    found = {}
    for folder in path.iterdir():
        seed = folder.name.removeprefix("seed-")
        # As a run writes it: "seed-01" would be another folder of the same seed.
        written = seed.isdecimal() and folder.name == f"seed-{int(seed)}"
        if written and RunFolder(folder).config.is_file():
            found[int(seed)] = folder
    return [found[seed] for seed in sorted(found)]


def is_run(path: str | Path) -> bool:
    """Whether a path is the folder of a run, or of its seeds, rather than a model.

    A folder with a config.json is a model, whatever else it holds: a run's folder has none.

    Raises:
      FileNotFoundError: a folder that holds neither, or is not there.
    """
    folder = RunFolder(user_path(path))
    if (folder.path / "config.json").is_file():
        return False
    if folder.config.is_file() or seeds(folder.path):
        return True
    if str(path).startswith((".", "/", "~")) and not folder.path.exists():
        raise FileNotFoundError(f"{folder.path}: no such folder of a run or a model")
    if folder.path.is_dir() and not (folder.path / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{folder.path}: neither a run (config.yaml is missing) nor a model (config.json is"
            " missing)"
        )
    return False
