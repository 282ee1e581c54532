"""Batches that are made ahead: the same values, bounded, in order, and no thread left behind."""

import threading

import jax
import numpy as np
import pytest

from jaxunlearn.training.prefetch import DEPTH, Prefetch


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_inputs_come_in_order_from_another_thread():
    made = []

    def make(step):
        made.append((step, threading.current_thread().name))
        return step * step

    with Prefetch() as ahead:
        ahead.plan(range(7), make)
        assert [ahead.take(step) for step in range(7)] == [step * step for step in range(7)]
    assert [step for step, _ in made] == list(range(7))
    assert all(name.startswith("prefetch") for _, name in made)
    assert not alive()


def test_no_more_are_made_than_are_held():
    """The step after the held ones is begun only when one is taken."""
    made, begun = [], threading.Semaphore(0)

    def make(step):
        made.append(step)
        begun.release()

    with Prefetch() as ahead:
        ahead.plan(range(10), make)
        for _ in range(DEPTH):
            assert begun.acquire(timeout=10)
        assert not begun.acquire(timeout=0.05) and made == list(range(DEPTH))
        ahead.take(0)
        assert begun.acquire(timeout=10)
        assert not begun.acquire(timeout=0.05) and made == list(range(DEPTH + 1))


def test_an_error_comes_at_its_step():
    def make(step):
        if step == 2:
            raise ValueError("step 2 has no batch")
        return step

    with Prefetch() as ahead, pytest.raises(ValueError, match="step 2 has no batch"):
        ahead.plan(range(5), make)
        assert (ahead.take(0), ahead.take(1)) == (0, 1)
        ahead.take(2)
    assert not alive()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_thread_ends_with_the_loop_also_on_errors(error):
    with pytest.raises(error), Prefetch() as ahead:
        ahead.plan(range(1000), lambda step: step)
        ahead.take(0)
        raise error
    assert not alive()


def test_a_new_plan_drops_what_the_old_one_made():
    """New weights from step 3 on: no step gets an input that the old ones went into."""
    with Prefetch() as ahead:
        ahead.plan(range(3), lambda step: ("old", step))
        old = [ahead.take(step) for step in range(2)]
        ahead.plan(range(2, 5), lambda step: ("new", step))
        new = [ahead.take(step) for step in range(2, 5)]
    assert old == [("old", 0), ("old", 1)]
    assert new == [("new", 2), ("new", 3), ("new", 4)]


def test_steps_beyond_the_plan_are_errors():
    """A loop that forgets to plan again after a refresh stops, instead of using old weights."""
    with Prefetch() as ahead:
        ahead.plan(range(2), lambda step: step)
        with pytest.raises(KeyError, match="step 1 is not the next"):
            ahead.take(1)
        ahead.take(0), ahead.take(1)
        with pytest.raises(KeyError, match="step 2 is not the next"):
            ahead.take(2)


def test_waiting_is_counted():
    gate = threading.Event()
    with Prefetch() as ahead:
        ahead.plan(range(1), lambda step: gate.wait(10))
        threading.Timer(0.05, gate.set).start()
        assert ahead.take(0) and ahead.waited >= 0.02


def test_arrays_are_placed_on_a_mesh_from_the_thread():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.NamedSharding(mesh, jax.P("data"))
    place = lambda step: jax.make_array_from_callback(
        (8,), where, lambda index: np.arange(8)[index] + step
    )
    with jax.set_mesh(mesh), Prefetch() as ahead:
        ahead.plan(range(3), place)
        for step in range(3):
            array = ahead.take(step)
            assert array.sharding == where
            np.testing.assert_array_equal(array, np.arange(8) + step)
