"""The shape of a Llama: its configuration and the one table of its parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Tree = Any


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's stretch of the slow rotary frequencies (rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


class Leaf(NamedTuple):
    """One row of the leaf table: all that is known of a parameter."""

    path: tuple[str, ...]
    dims: tuple[str, ...]  # logical dimensions, see sharding.RULES
    shape: tuple[int, ...]
    hf_name: str  # "{layer}" stands for the index of the block
    init: str  # "normal" or "ones"

    @property
    def stacked(self) -> bool:
        return self.dims[0] == "layers"

    @property
    def transposed(self) -> bool:
        """Hugging Face writes linear maps as [out, in]."""
        return self.path[-1] == "kernel"

    def put(self, tree: dict[str, Any], value: Any) -> None:
        for key in self.path[:-1]:
            tree = tree.setdefault(key, {})
        tree[self.path[-1]] = value

    def get(self, tree: Mapping[str, Any]) -> Any:
        for key in self.path:
            tree = tree[key]
        return tree


_BLOCK = "model.layers.{layer}."
# Path, logical dimensions, Hugging Face's name, initial value.
_TABLE = (
    ("embed/embedding", "table width", "model.embed_tokens.weight", "normal"),
    ("blocks/attn_norm/scale", "layers norm", _BLOCK + "input_layernorm.weight", "ones"),
    ("blocks/q/kernel", "layers embed heads", _BLOCK + "self_attn.q_proj.weight", "normal"),
    ("blocks/k/kernel", "layers embed kv_heads", _BLOCK + "self_attn.k_proj.weight", "normal"),
    ("blocks/v/kernel", "layers embed kv_heads", _BLOCK + "self_attn.v_proj.weight", "normal"),
    ("blocks/o/kernel", "layers heads_in width", _BLOCK + "self_attn.o_proj.weight", "normal"),
    ("blocks/mlp_norm/scale", "layers norm", _BLOCK + "post_attention_layernorm.weight", "ones"),
    ("blocks/gate/kernel", "layers embed mlp", _BLOCK + "mlp.gate_proj.weight", "normal"),
    ("blocks/up/kernel", "layers embed mlp", _BLOCK + "mlp.up_proj.weight", "normal"),
    ("blocks/down/kernel", "layers mlp_in width", _BLOCK + "mlp.down_proj.weight", "normal"),
    ("norm/scale", "norm", "model.norm.weight", "ones"),
    ("lm_head/kernel", "embed vocab", "lm_head.weight", "normal"),
)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama and how to compute it; hashable, a static argument of `jax.jit`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int  # longest sequence, in tokens
    rope_theta: float = 10000.0
    rope_scaling: Llama3RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False  # the unembedding is the embedding
    dtype: str = "float32"  # of the computation; parameters may be wider
    attention: Literal["xla", "cudnn"] = "xla"  # cudnn: bfloat16 on GPU, no forward mode
    remat: Literal["none", "dots", "full"] = "none"
    head_chunk: int = 0  # labels of a row per chunk of the head; 0 chooses

    def __post_init__(self):
        _choice("attention", self.attention, ("xla", "cudnn"))
        _choice("remat", self.remat, ("none", "dots", "full"))
        _choice("dtype", self.dtype, ("float32", "bfloat16", "float64"))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError(f"attention='cudnn' needs dtype='bfloat16', not {self.dtype!r}")

    def leaves(self) -> tuple[Leaf, ...]:
        """The leaf table: shapes, initial values, shardings and files all follow from it."""
        sizes = {
            "layers": self.num_layers,
            "norm": self.hidden_size,
            "table": self.vocab_size,
            "width": self.hidden_size,
            "embed": self.hidden_size,
            "heads": self.num_heads * self.head_dim,
            "kv_heads": self.num_kv_heads * self.head_dim,
            "heads_in": self.num_heads * self.head_dim,
            "mlp": self.intermediate_size,
            "mlp_in": self.intermediate_size,
            "vocab": self.vocab_size,
        }
        table = []
        for path, dims, hf_name, init in _TABLE:
            keys, names = tuple(path.split("/")), tuple(dims.split())
            shape = tuple(sizes[name] for name in names)
            table.append(Leaf(keys, names, shape, hf_name, init))
        return tuple(leaf for leaf in table if not (self.tied and leaf.path[0] == "lm_head"))


def abstract_params(config: LlamaConfig, dtype: Any = jnp.float32) -> Tree:
    """Shapes of the parameters, nothing allocated.

    Args:
      config: the model.
      dtype: of every leaf.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """
    tree: dict[str, Any] = {}
    for leaf in config.leaves():
        leaf.put(tree, jax.ShapeDtypeStruct(leaf.shape, dtype))
    return tree


def init_params(key: jax.Array, config: LlamaConfig, dtype: Any = jnp.float32) -> Tree:
    """Random parameters as Hugging Face draws them: normal(0, 0.02), norms 1.

    Args:
      key: a PRNG key.
      config: the model.
      dtype: of every leaf.

    Returns:
      The parameters.
    """
    tree: dict[str, Any] = {}
    leaves = config.leaves()
    for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        draw = nn.initializers.ones if leaf.init == "ones" else nn.initializers.normal(0.02)
        leaf.put(tree, draw(leaf_key, leaf.shape, dtype))
    return tree


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
