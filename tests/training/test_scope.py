"""What trains: the rule from the configuration, and train steps that leave the rest alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import effects
from jaxunlearn.config import Lora, Train
from jaxunlearn.models import decoder, hf
from jaxunlearn.training import step
from jaxunlearn.training.batch import Rows
from jaxunlearn.training.losses import FineTuning
from jaxunlearn.training.scope import Scope, make_scope, with_adapters
from tests.models.small_models import UNTIED, pack, random_params, random_sequences

ROWS = Rows(pack(random_sequences((5, 9, 7, 4), UNTIED.vocab_size)))
ADAPTED = dataclasses.replace(UNTIED, lora=decoder.Lora(2, 4.0, ("q", "down")))


def names(tree):
    return [".".join(str(key.key) for key in path) for path, _ in jax.tree.leaves_with_path(tree)]


# ---- the rule -----------------------------------------------------------------------------------


def test_everything_trains_unless_something_is_said():
    scope = make_scope(Train(), UNTIED)
    assert scope == Scope() and scope.rule is None and with_adapters(Train(), UNTIED) is UNTIED
    params = random_params(UNTIED)
    assert scope.split(params) == (params, None)
    kept = scope.as_kept(params)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (kept, params)), strict=True))


def test_patterns_choose_by_the_path():
    scope = make_scope(Train(only=("blocks.*down", "^norm"), frozen_dtype="bfloat16"), UNTIED)
    own, frozen = scope.split(random_params(UNTIED))
    assert names(own) == ["blocks.down.kernel", "norm.scale"]
    assert len(names(frozen)) == len(UNTIED.leaves()) - 2
    kept = scope.as_kept(random_params(UNTIED))
    types = {name: x.dtype.name for name, x in zip(names(kept), jax.tree.leaves(kept), strict=True)}
    assert types.pop("norm.scale") == types.pop("blocks.down.kernel") == "float32"
    assert set(types.values()) == {"bfloat16"}
    shapes = scope.as_kept(decoder.abstract_params(UNTIED))
    alike = lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype)
    assert jax.tree.all(jax.tree.map(alike, kept, shapes))


def test_adapters_alone_train():
    lora = Lora(rank=3, targets=("q_proj", "down", "q"))
    model = with_adapters(Train(lora=lora), UNTIED)
    assert model.lora == decoder.Lora(3, 6.0, ("q", "down"))
    own, _ = make_scope(Train(lora=lora), model).split(random_params(model))
    assert names(own) == [f"blocks.{name}.lora_{key}" for name in ("down", "q") for key in "ab"]
    assert with_adapters(Train(lora=Lora(rank=3, alpha=1)), UNTIED).lora == decoder.Lora(3, 1.0)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            Train(only=("norm", "blocks.w_down")),
            r"train\.only: 'blocks\.w_down' is found in no parameter; perhaps you meant"
            r" 'blocks\.down\.kernel'; there are: embed\.embedding, .*train in all blocks",
        ),
        (
            Train(only=(".",), frozen_dtype="bfloat16"),
            r"train\.frozen_dtype: train\.only freezes no parameter",
        ),
    ],
)
def test_patterns_without_effect_are_refused(train, message):
    with pytest.raises(ValueError, match=message):
        make_scope(train, UNTIED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    hf.save_adapters(folder, random_params(ADAPTED), ADAPTED, base="base")
    return folder


def test_an_adapter_to_begin_from_says_what_it_is(folder):
    start = str(folder)
    assert with_adapters(Train(lora=Lora(start=start)), UNTIED) == ADAPTED
    same = Lora(rank=2, alpha=4, targets=("down_proj", "q"), start=start)
    assert with_adapters(Train(lora=same), UNTIED) == ADAPTED
    for change, message in (
        ({"rank": 3}, r"train\.lora\.rank: 3, but the adapter .* has 2; leave rank out"),
        ({"alpha": 1.0}, r"train\.lora\.alpha: 1\.0, but the adapter .* has 4\.0"),
        ({"targets": ("q",)}, r"train\.lora\.targets: q, but the adapter .* has down, q"),
    ):
        with pytest.raises(ValueError, match=message):
            with_adapters(Train(lora=dataclasses.replace(same, **change)), UNTIED)
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        with_adapters(Train(lora=Lora(start="nowhere")), UNTIED)


# ---- train steps --------------------------------------------------------------------------------


def test_a_step_is_that_of_the_whole_model_on_what_trains():
    """One update of Adam on the chosen leaves, from a gradient that covers all of them."""
    params, loss, tx = random_params(ADAPTED), FineTuning(ADAPTED), step.optimizer()
    scope = make_scope(Train(lora=Lora(rank=2)), ADAPTED)
    own, frozen = scope.split(params)
    before = jax.tree.map(np.asarray, frozen)
    state = step.init_state(jax.tree.map(jnp.copy, own), tx)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(own))
    new, metrics = step.train_step(state, ROWS, 0.1, frozen, loss=loss, tx=tx)
    gradient = jax.jit(jax.grad(lambda p: loss(p, ROWS)[0]))(params)
    chosen = scope.split(gradient)[0]
    # The first step of Adam moves by the sign of the gradient.
    jax.tree.map(
        lambda x, y, g: np.testing.assert_allclose(
            x, y - 0.1 * g / (np.abs(g) + 1e-8), rtol=1e-4, atol=1e-5
        ),
        *(new.params, own, chosen),
    )
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(chosen)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    # Nothing frozen was donated or changed.
    jax.tree.map(np.testing.assert_array_equal, frozen, before)


def test_a_trainer_shows_all_parameters():
    params = random_params(ADAPTED)
    own, frozen = Scope((r"lora",)).split(params)
    tx = step.optimizer()
    state = step.init_state(jax.tree.map(jnp.copy, own), tx)
    trainer = step.Trainer(state, FineTuning(ADAPTED), tx, frozen=frozen)
    assert jax.tree.structure(trainer.params) == jax.tree.structure(params)
    assert trainer.params["embed"]["embedding"] is params["embed"]["embedding"]
    assert trainer.state.params["embed"]["embedding"] is None


WIDE = dataclasses.replace(
    UNTIED, hidden_size=128, intermediate_size=512, num_layers=6, head_dim=32, remat="full"
)


def step_memory(model, scope):
    tx = step.optimizer()
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
        scope.as_kept(decoder.abstract_params(model)),
    )
    own, frozen = scope.split(params)
    state = step.abstract_state(own, tx)
    lowered = step.train_step.lower(state, ROWS, 0.1, frozen, loss=FineTuning(model), tx=tx)
    return lowered.compile().memory_analysis(), lowered.as_text()


one = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.mark.cost
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_no_gradient_of_frozen_parameters_is_formed(dtype):
    """Gradients of its 6 MB would be temporaries; a third of that are one layer and activations."""
    adapted = dataclasses.replace(WIDE, lora=decoder.Lora(2, 4.0), dtype=dtype)
    size = sum(4 * np.prod(leaf.shape) for leaf in WIDE.leaves())
    memory, text = step_memory(adapted, Scope((r"lora_",), frozen_dtype=dtype))
    assert memory.temp_size_in_bytes < 0.4 * size
    assert memory.output_size_in_bytes < 0.2 * size
    assert memory.argument_size_in_bytes > 0.5 * size
    assert len(text) < 0.2 * size  # frozen arrays are no constants of the program
    whole, _ = step_memory(dataclasses.replace(adapted, lora=None), Scope())
    assert whole.temp_size_in_bytes > 0.9 * size  # the test would see a gradient


@pytest.mark.nightly
@pytest.mark.parametrize("by", ["total", "layer"])
def test_updates_spare_the_retain_term_on_what_trains(by):
    params = random_params(ADAPTED)
    own, frozen = Scope((r"lora",)).split(params)
    tx, loss = step.optimizer(spare=by), FineTuning(ADAPTED)
    state = step.init_state(jax.tree.map(jnp.copy, own), tx)
    new, _ = step.train_step(state, ROWS, 0.1, frozen, loss=loss, tx=tx, guard=loss)
    gradient = jax.grad(lambda p: loss(effects.combine(p, frozen), ROWS)[0])(own)
    moved = jax.tree.map(jnp.subtract, new.params, own)
    rise = jax.tree.map(lambda a, b: float((a * b).sum()), moved, gradient)
    assert sum(jax.tree.leaves(rise)) <= 1e-5
