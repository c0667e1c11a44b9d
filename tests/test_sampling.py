"""Which pairs each update sees."""

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from src.data.sampling import batches

sizes = st.integers(1, 30)
seeds = st.integers(0, 2**32)


def flat(pairs, batch_size, sampling, seed, draws):
    """The first `draws` pairs in the order they are seen."""
    needed = -(-draws // batch_size)
    return np.concatenate(list(islice(batches(pairs, batch_size, sampling, seed), needed)))[:draws]


@given(pairs=sizes, batch_size=sizes, seed=seeds)
def test_shuffled_every_epoch_is_a_permutation_of_all_pairs_whatever_the_batch_size(pairs, batch_size, seed):
    epochs = flat(pairs, batch_size, "shuffle", seed, 3 * pairs).reshape(3, pairs)
    assert (np.sort(epochs, axis=1) == np.arange(pairs)).all()


@given(pairs=sizes, batch_size=sizes, seed=seeds)
def test_the_batch_size_does_not_change_the_order_in_which_pairs_are_seen(pairs, batch_size, seed):
    assert np.array_equal(flat(pairs, batch_size, "shuffle", seed, 50), flat(pairs, 1, "shuffle", seed, 50))


@given(pairs=sizes, batch_size=sizes, seed=seeds, sampling=st.sampled_from(["shuffle", "replacement", "sequential"]))
def test_every_batch_is_full_and_holds_pairs_that_exist(pairs, batch_size, seed, sampling):
    for batch in islice(batches(pairs, batch_size, sampling, seed), 5):
        assert batch.shape == (batch_size,)
        assert batch.dtype == np.int64
        assert ((batch >= 0) & (batch < pairs)).all()


@given(pairs=sizes, batch_size=sizes)
def test_sequentially_pairs_come_in_order_over_and_over(pairs, batch_size):
    assert np.array_equal(flat(pairs, batch_size, "sequential", 0, 2 * pairs), np.tile(np.arange(pairs), 2))


@given(pairs=sizes, seed=seeds, sampling=st.sampled_from(["shuffle", "replacement", "sequential"]))
def test_full_is_all_pairs_in_order_every_time(pairs, seed, sampling):
    for batch in islice(batches(pairs, "full", sampling, seed), 3):
        assert np.array_equal(batch, np.arange(pairs))


@given(seed=seeds, sampling=st.sampled_from(["shuffle", "replacement"]))
def test_a_runs_batches_are_the_same_whoever_draws_beside_it(seed, sampling):
    alone = list(islice(batches(20, 3, sampling, seed), 10))
    mates = [batches(20, 3, sampling, seed), batches(20, 3, sampling, seed + 1)]
    together = [first for first, _ in islice(zip(*mates, strict=True), 10)]
    assert np.array_equal(alone, together)


def test_another_seed_gives_another_order():
    assert not np.array_equal(flat(30, 1, "shuffle", 0, 30), flat(30, 1, "shuffle", 1, 30))


def test_with_replacement_draws_are_uniform():
    counts = np.bincount(flat(4, 7, "replacement", 0, 40_000), minlength=4)
    assert abs(counts - 10_000).max() < 4 * np.sqrt(40_000 * 0.25 * 0.75)
