"""Label caches, partners and splits: what they say does not depend on the packing."""

import jax
import numpy as np
import pytest

from jaxunlearn.data import packing
from jaxunlearn.data.planning import Sample
from jaxunlearn.models import sharding
from jaxunlearn.training.batch import Batch, LabelCache, Rows, Split, partner_slots
from jaxunlearn.training.layout import Layout


def samples(*lengths):
    """Samples of so many tokens, of which all but the first two are labels."""
    return [Sample(np.arange(1, n + 1, dtype=np.int32), 2) for n in lengths]


def layout(devices=1, **changes):
    mesh = sharding.make_mesh(data=devices, devices=jax.devices()[:devices])
    options = {"context": 16, "width_step": 8, "batch_tokens": 32} | changes
    return Layout(mesh=mesh, **options)


def values_of(all_samples):
    """A value that names its sample and its place: 10 i + t."""
    return [10.0 * i + np.arange(s.labels, dtype=np.float32) for i, s in enumerate(all_samples)]


def cache_of(all_samples):
    parts = values_of(all_samples)
    return LabelCache(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))


class TestLabelCache:
    def test_laid_out_and_gathered_again_it_is_the_same(self):
        some = samples(5, 9, 4, 7)
        cache, split = cache_of(some), layout().split(some)
        rows = [cache.lay_out(packed) for packed in split.packed]
        again = LabelCache.gather(split.packed, rows, len(some))
        np.testing.assert_array_equal(again.values, cache.values)
        np.testing.assert_array_equal(again.offsets, cache.offsets)

    def test_padding_is_zero_and_labels_are_in_their_place(self):
        some = samples(5, 9)
        (packed,) = layout(batch_tokens=64).split(some).packed
        rows = cache_of(some).lay_out(packed)
        assert rows.sum() == sum(part.sum() for part in values_of(some))
        assert np.count_nonzero(rows) == np.count_nonzero(np.concatenate(values_of(some)))

    def test_ids_may_index_a_choice_of_samples(self):
        some = samples(5, 9, 4)
        packed = packing.padded([some[2], some[0]])
        rows = cache_of(some).lay_out(packed, np.array([2, 0]))
        np.testing.assert_array_equal(rows[0, :2], [20, 21])
        np.testing.assert_array_equal(rows[1, :3], [0, 1, 2])

    def test_a_sample_without_a_row_is_an_error(self):
        packed = packing.padded(samples(5))
        with pytest.raises(ValueError, match=r"no reference for samples \[1\]"):
            LabelCache.gather([packed], [np.zeros(packed.label_tokens.shape)], 2)

    def test_tables_by_sample_lose_their_padding(self):
        cache = LabelCache.of_table(np.array([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]), [2, 1])
        np.testing.assert_array_equal(cache.values, [1, 2, 3])
        np.testing.assert_array_equal(cache.offsets, [0, 2, 3])


def test_partners_are_found_across_packings():
    first, second = packing.padded(samples(5, 6, 7)), packing.padded(samples(4, 4, 4))
    second = second._replace(sample_ids=second.sample_ids[::-1])
    np.testing.assert_array_equal(partner_slots(first, second).ravel(), [2, 1, 0])
    empty = first._replace(sample_ids=np.array([[-1], [1], [2]], np.int32))
    assert partner_slots(empty, second)[0, 0] == 0


class TestLayout:
    def test_a_split_gives_values_back_in_sample_order(self):
        some = samples(5, 9, 4, 7, 12)
        split = layout().split(some)
        assert split.samples == 5 and len(split.packed) > 1
        firsts = [packed.sample_ids.reshape(-1) * 1.0 for packed in split.packed]
        np.testing.assert_array_equal(split.by_sample(firsts), range(5))

    def test_a_sample_of_no_batch_stays_zero(self):
        packed = packing.padded(samples(5))
        split = Split([Rows(packed)], [packed], 3)
        np.testing.assert_array_equal(split.by_sample([np.array([7.0])]), [7, 0, 0])

    def test_rows_are_split_and_constants_are_whole(self):
        on_two = layout(devices=2)
        rows = on_two.shard_rows(np.zeros((4, 3)))
        assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
        parts = on_two.shard_rows(np.zeros((2, 4, 3)), parts=2)
        assert {shard.data.shape for shard in parts.addressable_shards} == {(2, 2, 3)}
        whole = on_two.replicate(np.zeros((4, 3)))
        assert {shard.data.shape for shard in whole.addressable_shards} == {(4, 3)}

    def test_an_abstract_layout_places_nothing(self):
        split = layout(abstract=True).split(samples(5, 9), {"ref_logp": cache_of(samples(5, 9))})
        leaves = jax.tree.leaves(split.batches)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        assert all(leaf.sharding is not None for leaf in leaves)

    def test_one_shape_fits_every_group(self):
        groups = [samples(5, 9), samples(12), samples(4, 4, 4)]
        plan = layout().plan_groups(groups)
        for group in groups:
            packed = packing.pack_step(group, range(len(group)), plan)
            assert packed.tokens.shape == (plan.rows, plan.width)


def test_a_batch_lists_the_rows_that_are_there():
    rows = Rows(packing.padded(samples(5)))
    assert len(Batch(rows).packs) == 1
    assert len(Batch(rows, retain=rows, substitute=rows).packs) == 3
