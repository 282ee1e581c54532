"""Which parameters of a run train, and in which type the others are kept."""

import dataclasses
import re
from typing import Any

import jax

from jaxunlearn import effects
from jaxunlearn.config import Train
from jaxunlearn.core.names import nearest
from jaxunlearn.core.trees import Tree
from jaxunlearn.models import decoder, hf
from jaxunlearn.models.decoder import DecoderConfig, Lora

ADAPTERS = r"\.lora_[ab]$"
"""The paths of the parameters of adapters."""

ALPHA_OF_RANK = 2
"""alpha / rank where the configuration names no alpha."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """Which parameters train.

    Attributes:
      patterns: regular expressions: a parameter trains if one of them is found in its path, such as
        `blocks.down.kernel`. None: all parameters train.
      frozen_dtype: the type in which the others are kept.
    """

    patterns: tuple[str, ...] | None = None
    frozen_dtype: str = "float32"

    @property
    def rule(self) -> effects.Trainable:
        """The argument `trainable` of all effects; None where all parameters train."""
        return None if self.patterns is None else self.trains

    def trains(self, path: str) -> bool:
        """Whether the parameter of a path trains."""
        return self.patterns is None or any(re.search(p, path) for p in self.patterns)

    def dtype(self, path: str) -> str:
        """The type in which a run keeps the parameter of a path while it unlearns."""
        return "float32" if self.trains(path) else self.frozen_dtype

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """Parameters as two trees, what trains and what is frozen, see `effects.partition`."""
        return effects.partition(params, self.rule)

    def as_kept(self, params: Tree) -> Tree:
        """Parameters in the types in which a run keeps them; those that are so stay themselves.

        Args:
          params: arrays, or `jax.ShapeDtypeStruct` with shardings.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _cast(leaf, self.dtype(_dotted(path))), params
        )


def _dotted(path: tuple[Any, ...]) -> str:
    """The keys of a path of the parameters, joined by dots, as patterns see it."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def make_scope(train: Train, model: DecoderConfig) -> Scope:
    """Which parameters of a model train.

    Args:
      train: the section `train` of a configuration.
      model: with the adapters of the run, see `with_adapters`.

    Raises:
      ValueError: a pattern that matches no parameter; names it and the nearest path.
    """
    if model.lora is not None:
        return Scope((ADAPTERS,), train.frozen_dtype)
    if not train.only:
        return Scope()
    paths = [".".join(leaf.path) for leaf in model.leaves()]
    for pattern in train.only:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"train.only: {pattern!r} is found in no parameter{nearest(pattern, paths)}; there"
                f" are: {', '.join(paths)} (the blocks' are stacked, and train in all blocks)"
            )
    scope = Scope(train.only, train.frozen_dtype)
    if all(map(scope.trains, paths)) and train.frozen_dtype != "float32":
        raise ValueError("train.frozen_dtype: train.only freezes no parameter; leave it out")
    return scope


def with_adapters(train: Train, model: DecoderConfig) -> DecoderConfig:
    """The model that unlearns: with the adapters that a configuration asks for, if it does.

    Args:
      train: the section `train` of a configuration.
      model: the plain model.

    Raises:
      FileNotFoundError, ValueError: `train.lora.start` names no adapter that is understood, or one
        of another rank, alpha or targets than the configuration's; names the key.
    """
    spec = train.lora
    if spec.start is not None:
        lora = hf.load_lora(hf.resolve_adapter(spec.start), model)
        _check_agrees(train, lora)
    elif spec.rank is not None:
        alpha = ALPHA_OF_RANK * spec.rank if spec.alpha is None else spec.alpha
        lora = Lora(spec.rank, float(alpha), spec.matrices or decoder.MATRICES)
    else:
        return model
    return dataclasses.replace(model, lora=lora)


def _check_agrees(train: Train, lora: Lora) -> None:
    """Checks that what the configuration says of an adapter is what its folder says."""
    spec = train.lora
    said = {"rank": spec.rank, "alpha": spec.alpha, "targets": tuple(sorted(spec.matrices)) or None}
    found = {"rank": lora.rank, "alpha": lora.alpha, "targets": tuple(sorted(lora.targets))}
    for key, value in said.items():
        if value is not None and value != found[key]:
            texts = [", ".join(x) if isinstance(x, tuple) else x for x in (value, found[key])]
            raise ValueError(
                f"train.lora.{key}: {texts[0]}, but the adapter of train.lora.start"
                f" ({spec.start}) has {texts[1]}; leave {key} out"
            )


def _cast(leaf: Any, dtype: str) -> Any:
    if leaf.dtype == dtype:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return leaf.astype(dtype)
