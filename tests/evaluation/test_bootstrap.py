"""The interval against kaldialign's, a normal approximation, and blocks done by hand."""

import kaldialign
import numpy as np
import pytest

from speechattn.evaluation.bootstrap import BootstrapOptions, error_rate_interval


def sample(seed, count=200):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, count)
    return rng.binomial(lengths, 0.15), lengths


def test_agrees_with_kaldialign():
    errors, lengths = sample(0)
    # A hypothesis with exactly the wanted number of substitutions.
    refs = [["a"] * n for n in lengths]
    hyps = [["b"] * e + ["a"] * (n - e) for e, n in zip(errors, lengths, strict=True)]
    theirs = kaldialign.bootstrap_wer_ci(refs, hyps, replications=2000, seed=3)
    low, high = error_rate_interval(errors, lengths)
    assert low == pytest.approx(theirs["ci95min"], abs=0.004)
    assert high == pytest.approx(theirs["ci95max"], abs=0.004)


def test_width_is_that_of_the_ratio_estimator():
    errors, lengths = sample(1, 2000)
    rate = errors.sum() / lengths.sum()
    residual = errors - rate * lengths
    half = 1.96 * np.sqrt((residual**2).sum()) / lengths.sum()
    low, high = error_rate_interval(errors, lengths)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert low < rate < high


def test_seeded():
    errors, lengths = sample(2)
    options = BootstrapOptions(seed=5, replications=500)
    assert error_rate_interval(errors, lengths, options) == error_rate_interval(
        errors, lengths, options
    )
    other = BootstrapOptions(seed=6, replications=500)
    assert error_rate_interval(errors, lengths, options) != error_rate_interval(
        errors, lengths, other
    )


def test_blocks_are_drawn_whole():
    errors, lengths = sample(3, 120)
    speakers = [f"s{i % 12}" for i in range(120)]
    summed = [
        [values[np.array(speakers) == name].sum() for name in sorted(set(speakers))]
        for values in (errors, lengths)
    ]
    assert error_rate_interval(errors, lengths, blocks=speakers) == error_rate_interval(*summed)
    # Errors that go with the speaker make the interval wider than independent utterances would.
    errors = np.where(np.arange(120) % 12 < 2, lengths, 0)
    by_speaker = np.ptp(error_rate_interval(errors, lengths, blocks=speakers))
    assert by_speaker > 1.5 * np.ptp(error_rate_interval(errors, lengths))


def test_chunks_do_not_matter(monkeypatch):
    errors, lengths = sample(4, 50)
    whole = error_rate_interval(errors, lengths)
    monkeypatch.setattr("speechattn.evaluation.bootstrap._CHUNK", 777)
    assert error_rate_interval(errors, lengths) == pytest.approx(whole)


def test_nothing_to_draw():
    assert error_rate_interval(np.array([]), np.array([])) is None
    assert error_rate_interval(np.array([2]), np.array([0])) is None
    assert error_rate_interval(*sample(0), BootstrapOptions(replications=0)) is None
    # Empty references among others: replicates of only those have no rate and are left out.
    low, high = error_rate_interval(np.array([1, 0]), np.array([0, 4]))
    assert 0 <= low <= high < np.inf
    with pytest.raises(ValueError, match="level"):
        error_rate_interval(*sample(0), BootstrapOptions(level=95))
