"""The decoder's configuration, and the one table of its parameters.

Model families differ only in the values of `DecoderConfig`. The table lists the parameters that a
configuration has; how a family's files name them is written in `jaxunlearn.models.families`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from jaxunlearn.core import trees
from jaxunlearn.core.limits import SIZES


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's stretch of the slow rotary frequencies (rope_type "llama3").

    Attributes:
      factor: wavelengths of slow frequencies are multiplied by this.
      low_freq_factor: slow means a wavelength over original_context / low_freq_factor.
      high_freq_factor: frequencies of a wavelength under original_context / high_freq_factor stay.
      original_context: longest sequence of the pretraining before the stretch, in tokens.

    Raises:
      ValueError: a value that is not positive, or frequencies that would be slow and stay at once.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_positive(field.name, getattr(self, field.name))
        if not self.high_freq_factor > self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must be above "
                f"low_freq_factor={self.low_freq_factor}"
            )


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions that count for less (rope_type "linear"): all wavelengths become longer.

    Attributes:
      factor: wavelengths are multiplied by this.

    Raises:
      ValueError: a factor that is not positive.
    """

    factor: float

    def __post_init__(self):
        _check_positive("factor", self.factor)


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a block, which may have adapters."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): x W + (alpha / rank) (x A) B in the place of x W.

    Attributes:
      rank: r: A is [in, r] and B is [r, out].
      alpha: adapters are scaled by alpha / rank; positive.
      targets: the matrices of every block that have adapters, some of `MATRICES`.

    Raises:
      ValueError: a rank or alpha that is not positive, or targets that are none, no matrices of a
        block, or named twice.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = MATRICES

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1")
        _check_positive("lora.alpha", self.alpha)
        if not self.targets:
            raise ValueError(f"lora.targets is empty; name some of {', '.join(MATRICES)}")
        for target in self.targets:
            _check_choice("lora.targets", target, MATRICES)
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets={self.targets} names a matrix twice")

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of (x A) B."""
        return self.alpha / self.rank


class Leaf(NamedTuple):
    """One parameter of a model.

    Attributes:
      path: keys in the tree of parameters.
      dims: names of the logical dimensions, see `sharding.RULES`.
      shape: of the array; the parameters of all blocks are stacked along a first axis "layers".
      init: how a new model draws it: "normal", "ones", "zeros", or "kaiming", see
        `params.INITIALIZERS`.
    """

    path: tuple[str, ...]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    init: str

    @property
    def stacked(self) -> bool:
        """Whether the array holds one entry a block along its first axis."""
        return self.dims[0] == "layers"

    @property
    def transposed(self) -> bool:
        """Whether Hugging Face's files hold the transpose: they write linear maps as [out, in]."""
        return self.path[-1] == "kernel"

    @property
    def of_adapter(self) -> bool:
        """Whether it is one of the two matrices of an adapter."""
        return self.path[-1] in ADAPTER_KEYS

    def put(self, tree: dict[str, Any], value: Any) -> None:
        """Sets this leaf of a tree; creates the dictionaries on its path."""
        for key in self.path[:-1]:
            tree = tree.setdefault(key, {})
        tree[self.path[-1]] = value

    def get(self, tree: Mapping[str, Any]) -> Any:
        """Returns this leaf of a tree."""
        for key in self.path:
            tree = tree[key]
        return tree


class _Row(NamedTuple):
    """A row of the leaf table: path, logical dimensions, initial value, and who has the leaf.

    The initial value "scale" of a norm makes it the identity, see `DecoderConfig.norm_offset`.
    """

    path: str
    dims: str
    init: str
    present: Callable[["DecoderConfig"], bool] = lambda config: True


def _normalises_outputs(config: "DecoderConfig") -> bool:
    return config.norm_placement == "both"


_TABLE = (
    _Row("embed/embedding", "table width", "normal"),
    _Row("blocks/attn_norm/scale", "layers norm", "scale"),
    _Row("blocks/q/kernel", "layers embed heads", "normal"),
    _Row("blocks/q/bias", "layers heads", "zeros", lambda c: c.qkv_bias),
    _Row("blocks/q_norm/scale", "layers head", "scale", lambda c: c.qk_norm == "head"),
    _Row("blocks/q_norm/scale", "layers heads", "scale", lambda c: c.qk_norm == "projection"),
    _Row("blocks/k/kernel", "layers embed kv_heads", "normal"),
    _Row("blocks/k/bias", "layers kv_heads", "zeros", lambda c: c.qkv_bias),
    _Row("blocks/k_norm/scale", "layers head", "scale", lambda c: c.qk_norm == "head"),
    _Row("blocks/k_norm/scale", "layers kv_heads", "scale", lambda c: c.qk_norm == "projection"),
    _Row("blocks/v/kernel", "layers embed kv_heads", "normal"),
    _Row("blocks/v/bias", "layers kv_heads", "zeros", lambda c: c.qkv_bias),
    _Row("blocks/o/kernel", "layers heads_in width", "normal"),
    _Row("blocks/o/bias", "layers width", "zeros", lambda c: c.o_bias),
    _Row("blocks/attn_out_norm/scale", "layers norm", "scale", _normalises_outputs),
    _Row("blocks/mlp_norm/scale", "layers norm", "scale"),
    _Row("blocks/gate/kernel", "layers embed mlp", "normal"),
    _Row("blocks/gate/bias", "layers mlp", "zeros", lambda c: c.mlp_bias),
    _Row("blocks/up/kernel", "layers embed mlp", "normal"),
    _Row("blocks/up/bias", "layers mlp", "zeros", lambda c: c.mlp_bias),
    _Row("blocks/down/kernel", "layers mlp_in width", "normal"),
    _Row("blocks/down/bias", "layers width", "zeros", lambda c: c.mlp_bias),
    _Row("blocks/mlp_out_norm/scale", "layers norm", "scale", _normalises_outputs),
    _Row("norm/scale", "norm", "scale"),
    _Row("lm_head/kernel", "embed vocab", "normal", lambda c: not c.tied),
)

ADAPTER_KEYS = ("lora_a", "lora_b")
"""The keys of A and B beside the kernel that they adapt."""

STACKED = {"blocks": "block"}
"""The keys of the parameters whose leaves are stacked over layers, and what one layer is called."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder and how to compute it; hashable, a static argument of `jax.jit`.

    Attributes:
      vocab_size: entries of the vocabulary.
      hidden_size: width of the residual stream.
      intermediate_size: width of the MLP.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; a divisor of `num_heads`.
      head_dim: width of a head, even.
      context: longest sequence, in tokens.
      rope_theta: base of the rotary frequencies.
      rope_scaling: change of the rotary frequencies; None leaves them as they are.
      local_rope_theta: base of the rotary frequencies of layers with a window, which are not
        scaled; None: those of all layers are the same.
      norm_eps: added to the mean square in every norm.
      norm_offset: the norms' parameters are the differences of their scales from 1.
      tied: the unembedding is the embedding.
      scaled_embedding: the embedding's output is multiplied by sqrt(hidden_size), a factor that is
        rounded to `dtype`, as transformers rounds it to the type of a model's weights: in bfloat16
        55.5 for a width of 3072, and not 55.43. The unembedding of a tied model is not scaled.
      qkv_bias: the query, key and value projections add a bias.
      o_bias: the output projection of the attention adds a bias.
      mlp_bias: the three projections of the MLP add a bias.
      qk_norm: RMS norm of queries and keys before the rotation: "head" over each head by itself,
        with one scale [head_dim] for all of them; "projection" over all heads together.
      query_scalar: scores of attention are divided by its square root; None: by that of `head_dim`.
      attention_softcap: scores s become cap * tanh(s / cap), so that none exceeds the cap; None
        leaves them as they are.
      logit_softcap: the same of the logits.
      sliding_window: a token attends to this many tokens of its sequence, itself included; None:
        to all up to itself.
      full_layers: the layers, in order, that attend to all tokens in spite of a window that the
        others have.
      norm_placement: "pre" normalises the input of attention and MLP, x + f(norm(x)); "post" their
        output, x + norm(f(x)); "both" does both, x + norm'(f(norm(x))).
      activation: of the MLP's gate: "silu", or "gelu_tanh", the GELU in its form with a tanh.
      family: whose files the model is read from and written as, a key of `families.FAMILIES`. It
        changes nothing that is computed.
      dtype: of the computation; parameters may be wider. "float64" needs JAX's x64 mode.
      precision: of float32 matrix products, stated in the program whatever JAX's global flag says:
        "highest" is float32 everywhere. GPUs compute "high" and "default" with TF32 factors, TPUs
        "high" with three passes in bfloat16 and "default" with one; CPUs know float32 alone.
      reduce: the precision in which weight gradients of a bfloat16 computation leave their matrix
        product, and so are added up over devices. "bfloat16" halves that traffic.
      attention: "cudnn" is fused: bfloat16 on GPUs, and no forward mode.
      remat: what the reverse pass recomputes: "none", all but matrix products ("dots"), or blocks
        in "full".
      head_chunk: labels of a row per chunk of the head; 0 chooses.
      lora: the adapters of the blocks' matrices; None: there are none.

    Raises:
      ValueError: a value that is out of range or not one of those above, values that contradict
        each other, or float64 without x64.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    rope_theta: float = 10000.0
    rope_scaling: Llama3RopeScaling | LinearRopeScaling | None = None
    local_rope_theta: float | None = None
    norm_eps: float = 1e-5
    norm_offset: bool = False
    tied: bool = False
    scaled_embedding: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    norm_placement: Literal["pre", "post", "both"] = "pre"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    family: str = "llama"
    dtype: str = "float32"
    precision: Literal["highest", "high", "default"] = "highest"
    reduce: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["xla", "cudnn"] = "xla"
    remat: Literal["none", "dots", "full"] = "none"
    head_chunk: int = 0
    lora: Lora | None = None

    def __post_init__(self):
        _check_choice("attention", self.attention, ("xla", "cudnn"))
        _check_choice("remat", self.remat, ("none", "dots", "full"))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16", "float64"))
        _check_choice("precision", self.precision, ("highest", "high", "default"))
        _check_choice("reduce", self.reduce, ("float32", "bfloat16"))
        _check_choice("qk_norm", self.qk_norm, ("none", "head", "projection"))
        _check_choice("norm_placement", self.norm_placement, ("pre", "post", "both"))
        _check_choice("activation", self.activation, ("silu", "gelu_tanh"))
        trees.check_available("dtype", self.dtype)
        for name in SIZES:
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.head_chunk >= 0:
            raise ValueError(f"head_chunk={self.head_chunk} must be at least 1, or 0 to choose")
        for name in ("rope_theta", "norm_eps"):
            _check_positive(name, getattr(self, name))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(
                f"sliding_window={self.sliding_window} must be at least 1, or None for no window"
            )
        _check_full_layers(self)
        for name in ("local_rope_theta", "query_scalar", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive, or None")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError(f"attention='cudnn' needs dtype='bfloat16', not {self.dtype!r}")
        if self.attention == "cudnn" and self.attention_softcap is not None:
            raise ValueError(
                f"attention='cudnn' cannot compute attention_softcap={self.attention_softcap}; "
                "use attention='xla'"
            )

    @property
    def arithmetic(self) -> str:
        """How products are computed, for tables: "bfloat16", or "float32" and its precision."""
        return f"{self.dtype} {self.precision}" if self.dtype == "float32" else self.dtype

    @property
    def common_window(self) -> int | None:
        """The window that all layers have, None where a layer attends to all tokens."""
        return None if self.full_layers else self.sliding_window

    def with_forward_mode(self) -> "DecoderConfig":
        """Returns the same model computed by parts that `jax.jvp` can differentiate.

        Fused attention has no forward mode: it is a `jax.custom_vjp`. Plain attention computes the
        same function.
        """
        return dataclasses.replace(self, attention="xla")

    def leaves(self) -> tuple[Leaf, ...]:
        """The leaf table: shapes, initial values, shardings and files all follow from it."""
        sizes = {
            "layers": self.num_layers,
            "norm": self.hidden_size,
            "table": self.vocab_size,
            "width": self.hidden_size,
            "embed": self.hidden_size,
            "head": self.head_dim,
            "heads": self.num_heads * self.head_dim,
            "kv_heads": self.num_kv_heads * self.head_dim,
            "heads_in": self.num_heads * self.head_dim,
            "mlp": self.intermediate_size,
            "mlp_in": self.intermediate_size,
            "vocab": self.vocab_size,
            "rank": 0 if self.lora is None else self.lora.rank,
        }
        table = []
        for row in _rows(self):
            dims = tuple(row.dims.split())
            shape = tuple(sizes[dim] for dim in dims)
            identity = "zeros" if self.norm_offset else "ones"
            init = identity if row.init == "scale" else row.init
            table.append(Leaf(tuple(row.path.split("/")), dims, shape, init))
        return tuple(table)


def _rows(config: DecoderConfig) -> Iterator[_Row]:
    """The rows of the leaf table that a model has; an adapter's follow that of its matrix."""
    targets = () if config.lora is None else config.lora.targets
    adapted = {f"blocks/{target}/kernel" for target in targets}
    for row in _TABLE:
        if not row.present(config):
            continue
        yield row
        if row.path in adapted:
            layers, inputs, outputs = row.dims.split()
            a, b = (row.path.replace("kernel", key) for key in ADAPTER_KEYS)
            yield _Row(a, f"{layers} {inputs} rank", "kaiming")
            yield _Row(b, f"{layers} rank {outputs}", "zeros")


def _check_full_layers(config: DecoderConfig) -> None:
    full, layers = config.full_layers, config.num_layers
    if not full:
        return
    if config.sliding_window is None:
        raise ValueError(f"full_layers={full} needs a sliding_window, which the others have")
    some = list(full) == sorted(set(full)) and full[0] >= 0 and full[-1] < layers
    if not some or len(full) == layers:
        raise ValueError(
            f"full_layers={full} should be some of the {layers} layers 0..{layers - 1}, in order; "
            "for all of them leave it empty, with sliding_window=None"
        )


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be positive and finite")
