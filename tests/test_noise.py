"""The random streams: functions of (seed, stream, level, counter) and of nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from draftwise import noise
from draftwise.noise import ACCEPT, DRAFT, RACE, SAMPLE, Noise, uniforms


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 10_000), n=st.integers(0, 40), level=st.integers(0, 5))
def test_a_slice_is_a_slice_at_any_offset(seed: int, start: int, n: int, level: int) -> None:
    whole = uniforms(seed, SAMPLE, level, max(start - 7, 0), n + 20)
    skip = start - max(start - 7, 0)
    assert uniforms(seed, SAMPLE, level, start, n).tolist() == whole[skip : skip + n].tolist()


def test_one_number_at_a_time() -> None:
    assert [float(uniforms(3, DRAFT, 1, i, 1)[0]) for i in range(50)] == uniforms(3, DRAFT, 1, 0, 50).tolist()


def test_seeds_streams_and_levels_differ() -> None:
    seeds, streams, levels = (0, 1, 2**32, 2**64 - 1), (ACCEPT, SAMPLE, DRAFT, RACE), (0, 1, 2)
    found = [tuple(uniforms(*key, 0, 64)) for key in itertools.product(seeds, streams, levels)]
    assert len(set(itertools.chain(*found))) == 64 * len(found)


def test_the_numbers_are_uniform_and_double() -> None:
    found = uniforms(5, ACCEPT, 0, 0, 20_000)
    assert found.dtype == np.float64
    assert found.min() >= 0
    assert found.max() < 1
    assert kstest(found, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03


def test_fresh_numbers_are_counted_by_use() -> None:
    one = Noise(9)
    parts = [one.fresh(ACCEPT, 0, n).tolist() for n in (3, 0, 5, 1)]
    assert sum(parts, []) == uniforms(9, ACCEPT, 0, 0, 9).tolist()
    assert one.fresh(DRAFT, 0, 2).tolist() == uniforms(9, DRAFT, 0, 0, 2).tolist()  # a counter for each stream
    assert one.fresh(ACCEPT, 1, 2).tolist() == uniforms(9, ACCEPT, 1, 0, 2).tolist()  # and each level


def test_a_stopped_sequence_goes_on_where_it_was() -> None:
    one = Noise(4)
    one.fresh(ACCEPT, 0, 6)
    other = Noise(4, used=dict(one.used))
    assert one.fresh(ACCEPT, 0, 4).tolist() == other.fresh(ACCEPT, 0, 4).tolist()


def test_numbers_by_position_move_no_counter() -> None:
    one = Noise(4)
    first = one.at(SAMPLE, 0, 10, 5)
    one.race(0, 3, 2, 7)
    one.fresh(SAMPLE, 0, 2)
    assert one.at(SAMPLE, 0, 10, 5).tolist() == first.tolist()
    assert one.at(SAMPLE, 0, 12, 1).tolist() == first[2:3].tolist()
    assert one.used == {(SAMPLE, 0): 2}


def test_two_sequences_share_no_counter() -> None:
    one, other = Noise(1), Noise(1)
    one.fresh(ACCEPT, 0, 5)
    assert other.used == {}


@pytest.mark.parametrize("vocab", [1, 3, 8, 151])
def test_a_race_row_depends_on_its_position_only(vocab: int) -> None:
    whole = Noise(7).race(0, 0, 12, vocab)
    assert (whole.shape, whole.dtype) == ((12, vocab), torch.float64)
    for position, n in ((0, 1), (5, 3), (11, 1)):
        assert torch.equal(Noise(7, coupled=True).race(0, position, n, vocab), whole[position : position + n])
    assert not torch.equal(Noise(7).race(1, 0, 12, vocab), whole)
    assert Noise(7).race(0, 4, 0, vocab).shape == (0, vocab)


@pytest.mark.parametrize("edge", [0.0, 2.0**-53, 1 - 2.0**-53])
def test_gumbel_noise_is_finite_at_the_ends(edge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "uniforms", lambda *key: np.full(key[-1], edge))
    assert bool(torch.isfinite(Noise(0).race(0, 0, 1, 4)).all())


def test_the_race_is_won_with_the_laws_probabilities() -> None:
    """Gumbel-max with fixed seeds; the bound is the 1 - 1e-6 quantile."""
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    winners = (p.double().log() + Noise(2).race(0, 0, 20_000, 4)).argmax(-1)
    expected = 20_000 * p.double()
    statistic = float(((winners.bincount(minlength=4) - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(1 - 1e-6, 3)
