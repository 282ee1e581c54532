"""Packing moves tokens and labels around and changes none of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data.encoding import encode_rows, load_tokenizer
from jaxunlearn.data.order import batch_ids, num_steps
from jaxunlearn.data.packing import (
    Packed,
    dataset_batches,
    pack_step,
    padded,
    real_token_share,
    unpack,
)
from jaxunlearn.data.planning import Plan, Sample, plan_any, plan_dataset, plan_steps
from jaxunlearn.data.sources import load_split

BAR = 0.95


def make(sizes):
    """Sequences of (prompt, answer) lengths; every token is found in one place only."""
    return [
        Sample(np.arange(p + a, dtype=np.int32) + 1 + 100 * i, p) for i, (p, a) in enumerate(sizes)
    ]


def contents(batches):
    """Per sample id, everything the packed rows say about it, read slot by slot."""
    result = {}
    for batch in batches:
        labels, at = np.asarray(unpack(batch.label_tokens, batch)), unpack(batch.label_at, batch)
        for b, sample in enumerate(batch.sample_ids.ravel()):
            row, slot = divmod(b, batch.sample_ids.shape[1])
            here = batch.segments[row] == slot
            mask = batch.mask[row, slot]
            if sample < 0:
                assert not here.any() and not mask.any() and not labels[b].any()
                continue
            first = int(np.argmax(here))
            result.setdefault(int(sample), []).append(
                (
                    batch.tokens[row, here].tolist(),
                    batch.positions[row, here].tolist(),
                    labels[b, mask].tolist(),
                    (np.asarray(at)[b, mask] - first).tolist(),
                )
            )
    return result


def expected(sequence):
    tokens, first_label = sequence
    size = len(tokens)
    return (
        tokens.tolist(),
        list(range(size)),
        tokens[first_label:].tolist(),
        list(range(first_label - 1, size - 1)),
    )


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None)
@given(SIZES, st.sampled_from([1, 2, 3]), st.randoms(use_true_random=False))
def test_every_sample_is_packed_once_whatever_the_plan_and_the_order(sizes, row_multiple, random):
    order = list(range(len(sizes)))
    random.shuffle(order)
    sequences = make(sizes)
    shuffled = [sequences[i] for i in order]
    plan = plan_dataset(shuffled, max_width=40, row_multiple=row_multiple, target_tokens=64)
    batches = dataset_batches(shuffled, plan, ids=order)
    assert contents(batches) == {i: [expected(s)] for i, s in enumerate(sequences)}
    assert plan.rows % row_multiple == 0
    for batch in batches:
        assert batch.tokens.shape == (plan.rows, plan.width)
        assert batch.mask.shape == (plan.rows, plan.slots, plan.answer)
        assert batch.label_at.shape == (plan.rows, plan.labels)
        padding = batch.segments < 0
        assert not batch.tokens[padding].any() and not batch.positions[padding].any()


@settings(max_examples=10, deadline=None)
@given(SIZES, st.data())
def test_one_plan_holds_every_training_step_and_repeated_ids(sizes, data):
    sequences = make(sizes)
    ids = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=6)
    steps = data.draw(st.lists(ids, min_size=1, max_size=4))
    plan = plan_steps(sequences, steps, max_width=40, row_multiple=2)
    for step in steps:
        batch = pack_step(sequences, step, plan)
        assert batch.tokens.shape == (plan.rows, plan.width)
        assert contents([batch]) == {i: step.count(i) * [expected(sequences[i])] for i in set(step)}


@settings(max_examples=30, deadline=None)
@given(SIZES, st.data())
def test_one_plan_holds_any_few_samples(sizes, data):
    sequences = make(sizes)
    count = data.draw(st.integers(1, len(sizes)))
    plan = plan_any(sequences, count, max_width=40, row_multiple=2)
    longest = max(len(s.tokens) for s in sequences)
    assert longest <= plan.width < longest + 8 and plan.rows == count + count % 2
    for _ in range(3):
        ids = data.draw(st.permutations(range(len(sizes))))[:count]
        batch = pack_step(sequences, ids, plan)
        assert contents([batch]) == {i: [expected(sequences[i])] for i in ids}
        (batch,) = dataset_batches([sequences[i] for i in ids], plan)
        assert (batch.sample_ids >= 0).sum() == count


def test_a_plan_for_any_few_samples_takes_no_more_room_than_they_can_need():
    sequences = make([(5, 7), (3, 2), (3, 2), (20, 4)])
    # Two of the shortest share a row of 24; the labels are those of the two longest answers.
    assert plan_any(sequences, 2, max_width=64) == Plan(2, 24, 2, 11, 7)
    assert plan_any(sequences, 1, max_width=64, row_multiple=4) == Plan(4, 24, 1, 7, 7)
    with pytest.raises(ValueError, match=r"over the width of 20 tokens"):
        plan_any(sequences, 2, max_width=20)


def test_a_wider_row_must_save_a_twentieth_of_the_tokens():
    """Attention costs more in wider rows, and `plan_dataset` and `plan_steps` agree on that."""
    sequences = make([(5, 15)] + 8 * [(5, 14)])
    options = {"max_width": 64, "width_step": 1, "row_multiple": 5}
    # 10 rows of 20 tokens or 5 of 38, each with room for two of 19: 190 of 200.
    for plan in (
        plan_dataset(sequences, **options, target_tokens=1000),
        plan_steps(sequences, [range(9)], **options),
    ):
        assert (plan.rows, plan.width) == (10, 20)
    # 5 of 36 are 180 of 190.
    sequences = make([(5, 14)] + 8 * [(5, 13)])
    for plan in (
        plan_dataset(sequences, **options, target_tokens=1000),
        plan_steps(sequences, [range(9)], **options),
    ):
        assert (plan.rows, plan.width) == (5, 36)


def test_the_step_plan_is_the_smallest_shape_that_fits():
    sequences = make([(5, 7)] * 4)
    steps = [[0, 1, 2], [3]]
    assert plan_steps(sequences, steps, max_width=64) == Plan(1, 40, 3, 24, 7)
    assert plan_steps(sequences, steps, max_width=64, row_multiple=2) == Plan(2, 24, 2, 16, 7)
    assert plan_steps(sequences, steps, max_width=16) == Plan(3, 16, 1, 8, 7)
    # Nearly all tokens of the rows are labels: there are never more of them than tokens.
    short = make([(1, 12)])
    assert plan_steps(short, [[0]], max_width=14, width_step=1) == Plan(1, 13, 1, 13, 12)


def test_draws_that_differ_by_a_few_labels_share_a_shape():
    """Without that, every seed of a run compiles its train step again."""
    sequences = make([(5, 7), (7, 5), (6, 6), (6, 6), (6, 5), (7, 4)])
    plans = {
        plan_steps(sequences, steps, max_width=64)
        for steps in ([[0, 1], [2, 4]], [[0, 2], [1, 3]], [[0, 4], [5, 1]])
    }
    assert len(plans) == 1


def test_padded_rows_keep_the_order_and_agree_with_packed_rows():
    sequences = make([(3, 2), (1, 0), (6, 5)])
    batch = padded(sequences, ids=[7, 8, 9])
    assert batch.tokens.shape == (3, 11) and batch.sample_ids.tolist() == [[7], [8], [9]]
    assert contents([batch]) == {7 + i: [expected(s)] for i, s in enumerate(sequences)}
    assert padded(sequences, width=16).tokens.shape == (3, 16)


def test_packing_is_repeatable():
    sequences = make([(4, 3)] * 5 + [(2, 6)] * 5)
    plan = plan_dataset(sequences, max_width=32)
    first, second = (dataset_batches(sequences, plan) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))


@pytest.fixture(scope="module")
def batch():
    sequences = make([(2, 5), (6, 1), (3, 1), (1, 0)])
    (batch,) = dataset_batches(sequences, plan_dataset(sequences, max_width=12, width=12))
    return batch


def test_unpack_under_jit_grad_and_jvp_ignores_what_no_label_owns(batch):
    owned = np.zeros(batch.label_tokens.shape, bool)
    for row, start in np.ndenumerate(batch.label_start):
        count = batch.mask[row].sum()
        owned[row[0], start : start + count] = True
    assert not owned.all()
    values = jnp.where(owned, 1.0 + np.arange(owned.size).reshape(owned.shape), jnp.nan)
    laid_out = jax.jit(unpack)(values, batch)
    assert laid_out.shape == (batch.mask.shape[0] * batch.mask.shape[1], batch.mask.shape[2])
    assert float(laid_out.sum()) == float(jnp.where(owned, values, 0).sum())
    grad = jax.jit(jax.grad(lambda v: (unpack(v, batch) ** 2).sum()))(values)
    np.testing.assert_array_equal(grad, np.where(owned, 2 * values, 0))
    _, tangent = jax.jvp(lambda v: unpack(v, batch), (values,), (values,))
    np.testing.assert_array_equal(tangent, laid_out)


def test_unpack_refuses_values_of_another_shape(batch):
    with pytest.raises(AssertionError, match="shape"):
        unpack(batch.tokens, batch)


def test_unpack_stays_on_the_device_that_holds_the_row():
    sequences = make([(2, 3), (1, 1)] * 8)
    batch = padded(sequences)
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sharded = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    program = jax.jit(unpack).lower(sharded.label_tokens, sharded).compile()
    communication = "all-gather|all-reduce|all-to-all|collective-permute"
    assert not re.search(communication, program.as_text())
    np.testing.assert_array_equal(
        program(sharded.label_tokens, sharded), unpack(batch.label_tokens, batch)
    )


def test_a_single_sample_and_more_rows_than_needed():
    sequences = make([(5, 3)])
    plan = plan_dataset(sequences, max_width=512, row_multiple=8)
    assert plan == Plan(rows=8, width=8, slots=1, labels=3, answer=3)
    (batch,) = dataset_batches(sequences, plan)
    assert contents([batch]) == {0: [expected(sequences[0])]}
    assert real_token_share([batch]) == 1 / 8
    assert plan_steps(sequences, [[0]], max_width=512, row_multiple=4).rows == 4


def test_rows_are_balanced_so_the_last_batch_is_not_mostly_empty():
    sequences = make([(4, 4)] * 33)
    plan = plan_dataset(sequences, max_width=8, target_tokens=32 * 8)
    batches = dataset_batches(sequences, plan)
    assert (plan.rows, len(batches)) == (17, 2)
    assert real_token_share(batches) == 33 / 34


def test_width_and_rows_can_be_given():
    sequences = make([(3, 2)] * 6)
    plan = plan_dataset(sequences, max_width=64, rows=4, width=11)
    assert (plan.rows, plan.width, plan.slots) == (4, 11, 2)
    assert len(dataset_batches(sequences, plan)) == 1


def test_a_context_that_is_no_multiple_of_eight_can_be_filled():
    sequences = make([(5, 4)])
    assert plan_dataset(sequences, max_width=10).width == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: plan_dataset([], max_width=8), "no sequences"),
        (lambda s: padded([]), "no sequences"),
        (lambda s: plan_steps(s, [], max_width=8), "id_lists is empty"),
        (lambda s: plan_steps(s, [[]], max_width=64), "no sequences"),
        (lambda s: plan_dataset(s, max_width=8), r"2 sequence\(s\) over the width of 8 .*\(1, 9\)"),
        (lambda s: plan_dataset(s, max_width=64, rows=3, row_multiple=2), "multiple of row_mul"),
        (lambda s: padded(s, ids=[1]), r"3 sequences but ids of shape \(1,\)"),
        (lambda s: padded(s, ids=[0, 1, -1]), "must not be negative"),
        (lambda s: pack_step(s, [-1], Plan(1, 16, 1, 8, 8)), r"ids \[-1\] are not in 0\.\.2"),
        (lambda s: pack_step(s, [0, 1], Plan(1, 16, 1, 8, 8)), "plan it again"),
        (lambda s: padded([Sample(np.arange(3), 0)]), "first_label=0 must be in 1..3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(make([(4, 3), (5, 4), (6, 6)]))


@pytest.mark.stories
@pytest.mark.parametrize("split", ["forget05", "retain_perturbed", "full"])
def test_dataset_passes_over_tofu_compute_few_padding_tokens(shared_data, split):
    sequences = tofu_sequences(shared_data, split)
    plan = plan_dataset(sequences, max_width=512)
    batches = dataset_batches(sequences, plan)
    assert real_token_share(batches) >= BAR
    assert {jax.tree.map(np.shape, batch) for batch in batches} == {shapes(plan)}
    ids = np.concatenate([batch.sample_ids.ravel() for batch in batches])
    assert sorted(ids[ids >= 0]) == list(range(len(sequences)))


@pytest.mark.stories
def test_train_steps_of_the_papers_run_share_one_shape(shared_data):

    sequences = tofu_sequences(shared_data, "forget05")
    steps = [batch_ids(0, step, 200, 16) for step in range(num_steps(200, 16, 5))]
    plan = plan_steps(sequences, steps, max_width=512)
    assert real_token_share([pack_step(sequences, ids, plan) for ids in steps]) >= 0.8


def tofu_sequences(shared_data, split):

    tokenizer = load_tokenizer(shared_data / "tokenizers/llama2")
    return encode_rows(tokenizer, load_split(shared_data / "tofu", split), context=512).sequences


def shapes(plan):
    rows, slots = plan.rows, plan.slots
    wide, listed = (rows, plan.width), (rows, plan.labels)
    mask = (rows, slots, plan.answer)
    return Packed(wide, wide, wide, listed, listed, (rows, slots), mask, (rows, slots))
