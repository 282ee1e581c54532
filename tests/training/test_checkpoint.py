"""Checkpoints: whole or absent, the newest wins, and a stranger's is refused by name."""

import threading
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.training import step
from jaxunlearn.training.checkpoint import CheckpointError, newest, open_checkpoints, read_params


def state(width=3, value=1.0):
    params = {"embed": {"w": jnp.full((2, width), value)}, "norm": {"scale": jnp.ones(width)}}
    return step.init_state(params, optax.adamw(1e-3))


def test_the_newest_is_restored_bit_for_bit(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(0, state(value=1.0))
        checkpoints.save(5, state(value=1 / 3))
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 5
        result = checkpoints.restore(state(value=0.0))
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(state(value=1 / 3)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(result) == jax.tree.structure(state())
    assert [p.name for p in tmp_path.iterdir()] == ["5"]  # one is kept


def test_another_shape_is_refused_by_name(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state(width=3))
        with pytest.raises(
            CheckpointError, match=r"embed\.w: expected float32\[2, 4\], found.*3\]"
        ):
            checkpoints.restore(state(width=4))


def test_another_tree_is_refused_by_name(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state())
        other = step.init_state({"embed": {"w": jnp.ones((2, 3))}}, optax.adamw(1e-3))
        with pytest.raises(CheckpointError, match=r"scale: expected nothing, found float32\[3\]"):
            checkpoints.restore(other)


def test_a_step_is_written_once(tmp_path):
    """A resumed run passes the step it resumed from: nothing is deleted to write it again."""
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(value=1.0))
        checkpoints.save(1, state(value=2.0))
        result = checkpoints.restore(state())
    np.testing.assert_array_equal(result.params["embed"]["w"], 1.0)


def test_parameters_alone(tmp_path):
    """The moments stay on disk: of what is read, the parameters are all; dtypes are converted."""
    wide = state(width=2**19, value=1 / 3)
    size = sum(x.nbytes for x in jax.tree.leaves(wide.params))
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, wide)
    folder = newest(tmp_path)
    assert folder == tmp_path / "7"
    like = lambda dtype: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), wide.params
    )
    read_params(folder, like(jnp.float32))
    tracemalloc.start()
    try:
        result = read_params(folder, like(jnp.float32))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size  # with both moments: 3
    finally:
        tracemalloc.stop()
    jax.tree.map(np.testing.assert_array_equal, result, wide.params)
    narrow = read_params(folder, like(jnp.bfloat16))
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide.params), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))
    other = state(width=4)
    with pytest.raises(CheckpointError, match=r"params\.embed\.w: expected float32\[2, 4\], found"):
        read_params(folder, other.params)


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "absent") is None
    assert not (tmp_path / "absent").exists()


def test_saves_leave_no_files_open_and_no_threads(tmp_path):
    """A long run must not end with "Too many open files"."""

    def held():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    with open_checkpoints(tmp_path) as checkpoints:
        after = []
        for step in range(30):
            checkpoints.save(step, {"w": jnp.full(4, step)})
            after.append(held())
    # A save under way holds more or less of them by chance; what is never given back adds to
    # every count, so to the least of ten too.
    early, late = (np.min(counts, axis=0) for counts in (after[:10], after[20:]))
    assert np.all(late <= early + 6), after
