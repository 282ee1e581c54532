"""What the sections share: sizes, models, samples, and the peaks that MFU is relative to."""

import dataclasses
import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import train_lengths
from benchmarks.accelerator.ledger import NoMaterial, NotHere
from benchmarks.accelerator.material import Material
from benchmarks.train_lengths import Lengths
from jaxunlearn.core import files
from jaxunlearn.models import decoder, hf, sizes
from jaxunlearn.models.decoder import DecoderConfig

Counts = list[tuple[int, int]]
"""(tokens, labels) of samples."""

TOFU = "16 samples"  # a step of the paper's
LARGE = "64k tokens"
WIDEST = 1024  # tokens of a packed row: more would only add masked scores
HUB_NAMES = {"7b": "llama-2-7b", "1b": "llama-3.2-1b"}
EIGHT_BLOCKS = "7b, 8 of 32 blocks"  # for cards that cannot hold the state of the whole 7B
SMOLLM2 = "smollm2-135m"
_TINY = DecoderConfig(256, 32, 64, 2, 4, 2, 8, context=WIDEST, dtype="bfloat16")


class Kept:
    """The newest inputs of a section: those of the next model take their place in memory."""

    def __init__(self):
        self._key: Any = None
        self._value: Any = None

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, made where the key is another than the last one's."""
        if self._key != key:
            self.drop()
            self._value, self._key = make(), key
        return self._value

    def drop(self) -> None:
        """Frees the value."""
        self._key = self._value = None
        gc.collect()


@dataclasses.dataclass(frozen=True)
class Setting:
    """The setting of a section.

    Attributes:
      rehearsal: whether all sizes are tiny.
      out: the folder of the sections' files.
      work: a folder for everything else that is written.
      pack: the folder that `pack` filled.
      seconds: the time of the section.
      start: when it began, of `time.monotonic`.
      kept: the newest inputs.
    """

    rehearsal: bool
    out: Path
    work: Path
    pack: Path
    seconds: float
    start: float = dataclasses.field(default_factory=time.monotonic)
    kept: Kept = dataclasses.field(default_factory=Kept)

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return jax.default_backend() == "gpu"

    @property
    def rounds(self) -> int:
        """Timed calls of each of two things in turns."""
        return 2 if self.rehearsal else 5

    @functools.cached_property
    def material(self) -> Material:
        """What the pack holds."""
        return Material(self.pack, self.work)

    @functools.cached_property
    def lengths(self) -> Lengths:
        """Token counts of TOFU's samples: the pack's, else synthetic ones."""
        return train_lengths.load(self.material.find("lengths.json"))

    def check_lengths(self) -> None:
        """Reads the token counts, so that a bad file is an error of the section, not of each row.

        Raises:
          ValueError: the file has another form, or is not the one that was packed.
        """
        assert self.lengths.splits

    def left(self) -> float:
        """Seconds that the section has left."""
        return self.seconds - (time.monotonic() - self.start)

    def scaled(self, size: int, tiny: int) -> int:
        """A size, or the one of a rehearsal."""
        return tiny if self.rehearsal else size

    def model(self, name: str, **compute: Any) -> DecoderConfig:
        """The configuration of a model by its name here; its context is at most WIDEST.

        Args:
          name: "1b", "7b", EIGHT_BLOCKS or SMOLLM2.
          **compute: dtype, attention, remat of `DecoderConfig`.

        Raises:
          NotHere: cuDNN's attention without a GPU.
          NoMaterial: SMOLLM2, and its folder is not in the pack.
        """
        if compute.get("attention") == "cudnn" and not self.gpu:
            raise NotHere("cuDNN's attention needs a GPU")
        compute = {"dtype": "bfloat16"} | compute
        if self.rehearsal:
            return dataclasses.replace(_TINY, **compute)
        if name == SMOLLM2:
            config = hf.load_config(self.model_folder, **compute)
        elif name == EIGHT_BLOCKS:
            config = self.model("7b", **compute)
            return dataclasses.replace(config, num_layers=config.num_layers // 4)
        else:
            config = sizes.published_shape(HUB_NAMES[name], compute)
        return dataclasses.replace(config, context=min(config.context, WIDEST))

    @property
    def model_folder(self) -> Path:
        """The folder of SmolLM2, joined from its parts.

        Raises:
          NoMaterial: parts are missing.
        """
        folder = self.material.model
        if folder is None:
            raise NoMaterial(self.material.missing_model)
        return folder

    def parameters(self, name: str, model: DecoderConfig) -> Any:
        """Float32 parameters on the device: SmolLM2's own, random ones for the other models."""
        if name == SMOLLM2 and not self.rehearsal:
            return hf.load_params(self.model_folder, model)
        return decoder.init_params(jax.random.key(0), model)

    def counts(self, tokens: int) -> Counts:
        """Samples of TOFU's lengths, forget and retain, that have about so many tokens together."""
        pool = [pair for split in self.lengths.splits.values() for pair in split]
        mean = np.mean([pair[0] for pair in pool])
        return self.samples(max(1, round(tokens / mean)))

    def samples(self, number: int) -> Counts:
        """So many samples of TOFU's lengths, drawn in a fixed order, repeated where they end."""
        pool = [pair for split in self.lengths.splits.values() for pair in split]
        order = np.random.default_rng(0).permutation(len(pool))
        return [pool[order[i % len(pool)]] for i in range(number)]

    def batch_tokens(self, batch: str) -> int:
        """The tokens of a batch by its name here; of TOFU's 16 samples, the mean number."""
        large = self.scaled(2**16, 2**10)
        tofu = sum(tokens for tokens, _ in self.samples(16))
        return {LARGE: large, "16k tokens": large // 4, "2k tokens": large // 32, TOFU: tofu}[batch]

    def peak(self, model: DecoderConfig) -> float | None:
        """FLOPs per second of a large product in a model's arithmetic; None before it is known."""
        file = self.out / "machine.json"
        rows = files.read_json(file)["rows"] if file.exists() else {}
        return rows.get(f"product, {model.arithmetic}", {}).get("flops_per_s")

    def mfu(self, flops: float, seconds: float, model: DecoderConfig) -> float | None:
        """Share of the peak that these FLOPs in these seconds are; None where it is not known."""
        peak = self.peak(model)
        return None if peak is None else flops / seconds / peak
