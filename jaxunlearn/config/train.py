"""The section `train` of a configuration: the parameters that unlearning may change."""

import dataclasses
from typing import Literal

PROJECTION = "_proj"
"""The end of the names that PEFT and transformers give to the matrices: `q_proj` is `q`."""

Matrix = Literal[
    "q", "k", "v", "o", "gate", "up", "down",
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
]  # fmt: skip
"""A matrix of every block, by the decoder's name for it or by PEFT's."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA): a matrix W acts as W + (alpha / rank) A B, and A and B train."""

    rank: int | None = None
    """Columns of A and rows of B; default: no adapters, or those of `start`."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank; default: twice the rank."""
    targets: tuple[Matrix, ...] = ()
    """Matrices of every block that have adapters; default: all seven."""
    start: str | None = None
    """Folder of an adapter as PEFT writes it, or its name on the Hugging Face hub, to begin from:
    the model before unlearning is `model` with this adapter; default: a new one, which changes
    nothing."""

    @property
    def used(self) -> bool:
        """Whether the run has adapters."""
        return self.rank is not None or self.start is not None

    @property
    def matrices(self) -> tuple[str, ...]:
        """The targets by the decoder's own names, none twice."""
        return tuple(dict.fromkeys(name.removesuffix(PROJECTION) for name in self.targets))


@dataclasses.dataclass(frozen=True)
class Train:
    """The parameters that unlearning may change. Fine-tuning before it changes all of them."""

    lora: Lora = Lora()
    """Train adapters alone, and freeze the model itself."""
    only: tuple[str, ...] = ()
    """Train only the parameters in whose path one of these regular expressions is found, such as
    `blocks.down` or `norm`; default: all."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which frozen parameters are kept while the run unlearns; bfloat16 takes half the
    memory, and loses nothing of weights that were published in it."""

    @property
    def words(self) -> str | None:
        """What trains, for a report; None where all parameters do."""
        frozen = f"; all else is frozen, in {self.frozen_dtype}"
        if self.lora.used:
            parts = ["LoRA adapters"]
            parts += [] if self.lora.rank is None else [f"of rank {self.lora.rank}"]
            parts += [f"on {', '.join(self.lora.matrices)}"] if self.lora.targets else []
            parts += [] if self.lora.start is None else [f"from {self.lora.start}"]
            return " ".join(parts) + frozen
        return f"the parameters {', '.join(self.only)}{frozen}" if self.only else None
