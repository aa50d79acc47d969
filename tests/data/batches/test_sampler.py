"""PaddedFrameBatches: its cap, its coverage, its order, resuming and ranks."""

import numpy as np
import pytest

from speechattn.data.batches.sampler import PaddedFrameBatches


def lengths(count: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 12.0, count)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("cap", [3.0, 24.5, 60.0, 1e6])
@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.9])
def test_cap_and_coverage(shuffle, cap, jitter):
    sizes = lengths()
    sampler = PaddedFrameBatches(sizes, cap, max_items=16, shuffle=shuffle, jitter=jitter)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert len(sampler) == len(batches)
    for batch in batches:
        assert 1 <= len(batch) <= 16
        assert len(batch) * sizes[batch].max() <= cap or len(batch) == 1


@pytest.mark.parametrize("count", [1000, 20000])
def test_padding_is_little(count):
    """Under 5 % with utterances as long as those of real corpora are."""
    sizes = np.random.default_rng(count).lognormal(np.log(4.0), 0.6, count).clip(1.0, 20.0)
    batches = list(PaddedFrameBatches(sizes, 60.0))
    padded = sum(len(batch) * sizes[batch].max() for batch in batches)
    assert sizes.sum() / padded > 0.95
    assert len(batches) < 1.15 * sizes.sum() / 60.0


def test_the_plan_is_of_the_epoch():
    """What is kept from one epoch is not used in another."""
    sampler = PaddedFrameBatches(lengths(), 30.0, seed=2)
    sizes, found = [], []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        sizes.append(len(sampler))
        found.append(list(sampler))
        assert sizes[-1] == len(found[-1])
    assert found[0] == found[2] != found[1]
    # Every utterance meets others: not the same neighbours each time.
    mates = [{i: set(b) - {i} for b in batches for i in b} for batches in found[:2]]
    assert np.mean([mates[0][i] != mates[1][i] for i in mates[0]]) > 0.9


def test_equal_lengths_fill_the_batch():
    batches = list(PaddedFrameBatches(np.full(40, 3.0), 24.5))
    assert sorted(map(len, batches)) == [8] * 5


def test_order_is_a_function_of_seed_and_epoch():
    def epoch(number: int, seed: int = 3) -> list[list[int]]:
        sampler = PaddedFrameBatches(lengths(), 30.0, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(0)
    assert epoch(1) != epoch(1, seed=4)
    # Not only the order of the batches: what is in them changes too.
    assert {frozenset(b) for b in epoch(1)} != {frozenset(b) for b in epoch(0)}


def test_items_of_equal_length_meet_others():
    sampler = PaddedFrameBatches(np.full(64, 3.0), 24.5, jitter=0.0)
    first = {frozenset(b) for b in sampler}
    sampler.set_epoch(1)
    assert first != {frozenset(b) for b in sampler}


def test_without_shuffling_longest_first():
    sizes = lengths()
    sampler = PaddedFrameBatches(sizes, 30.0, shuffle=False)
    batches = list(sampler)
    flat = sizes[[i for batch in batches for i in batch]]
    assert (np.diff(flat) <= 0).all()
    sampler.set_epoch(5)
    assert list(sampler) == batches


@pytest.mark.parametrize("consumed", [0, 1, 7])
def test_resuming_equals_the_tail(consumed):
    straight = PaddedFrameBatches(lengths(), 30.0, seed=1)
    straight.set_epoch(2)
    iterator = iter(straight)
    for _ in range(consumed):
        next(iterator)
    rest = list(iterator)

    resumed = PaddedFrameBatches(lengths(), 30.0, seed=1)
    resumed.epoch, resumed.position = 2, consumed
    resumed.set_epoch(2)  # the trainer's call does not lose the place
    assert len(resumed) == len(rest)
    assert list(resumed) == rest
    # The next epoch is whole again.
    resumed.set_epoch(3)
    straight.set_epoch(3)
    assert list(resumed) == list(straight)


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 50, 200])
def test_ranks_share_the_epoch_equally(world_size, count):
    ranks = [
        list(PaddedFrameBatches(lengths(count), 30.0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [i for batches in ranks for batch in batches for i in batch]
    assert set(seen) == set(range(count))
    whole = list(PaddedFrameBatches(lengths(count), 30.0))
    extra = sum(map(len, ranks)) - len(whole)
    assert 0 <= extra < world_size
    # Twice only what cannot be divided.
    if count >= world_size * len(ranks[0]):
        assert len(seen) == count


def test_nothing_to_sample():
    with pytest.raises(ValueError, match="nothing"):
        PaddedFrameBatches(np.array([]), 30.0)
