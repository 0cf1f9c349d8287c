"""Rows on the host against the plain formulas, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from draftwise import nucleus
from draftwise.hostrow import HostRow
from draftwise.types import Sampling

_HELD = 1e-30  # what is rarer may be 0 in float32, and is more than 0 in plain floats


def row(vocab: int, scale: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("vocab", [1, 2, 30, 8192, 16384])
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("forbidden", [0, 1, 5])
def test_figures(vocab: int, scale: float, forbidden: int) -> None:
    x = row(vocab, scale)
    x[1 : 1 + forbidden] = -math.inf
    p = x.double().softmax(-1)
    top = [*p.sort(descending=True).values.tolist(), 0.0]
    for token in {0, vocab - 1}:
        wanted = (float(p[token]), top[0], top[1], float(torch.special.entr(p).sum()))
        assert HostRow(x).figures(token) == pytest.approx(wanted, rel=1e-5, abs=2e-6)


def test_a_row_that_is_no_law_has_figures_that_are_none() -> None:
    for bad in (math.nan, math.inf):
        x = row(50, 1.0)
        x[7] = bad
        assert not math.isfinite(sum(HostRow(x).figures(3)))
    assert not math.isfinite(sum(HostRow(torch.full((50,), -math.inf)).figures(3)))


@given(
    st.integers(0, 2**32), st.sampled_from([0.05, 1.0, 6.0, 12.0]), st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
    st.sampled_from([0, 1, 5, 15, 16, 40]), st.sampled_from([0.05, 0.6, 0.95, 1.0]), st.sampled_from([0.0, 0.02, 1.0]), st.booleans(),
)  # fmt: skip
@example(seed=0, scale=12.0, temperature=0.3, top_k=0, top_p=1.0, min_p=0.0, read=False)  # a probability of 1e-65
@settings(max_examples=300, deadline=None)
def test_a_few_candidates_give_what_the_search_of_the_row_gives(
    seed: int, scale: float, temperature: float, top_k: int, top_p: float, min_p: float, read: bool
) -> None:
    sampling = Sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    x = row([12, 900, 8192][seed % 3], scale, seed)
    found = (HostRow(x).read(sampling) if read else HostRow(x)).support(sampling)
    if found is None:  # the candidates do not decide: that is for the search
        return
    wanted = nucleus.searched(x[None], sampling)
    ids, p = found
    size, kept = sum(some > _HELD for some in p), int((wanted.p[0] > _HELD).sum())
    near = abs(size - kept) <= 1 and min(p[size - 1], float(wanted.p[0, kept - 1])) < 1e-3  # a token on the very edge of top-p
    assert size == kept or near
    dense = torch.zeros(len(x)).index_put_((torch.tensor(ids),), torch.tensor(p))
    other = torch.zeros(len(x)).index_put_((wanted.ids[0],), wanted.p[0], accumulate=True)
    assert torch.allclose(dense, other, rtol=1e-4, atol=2e-3 if near and size != kept else 1e-7)


def test_usual_laws_are_decided_by_the_candidates() -> None:
    """Else the short way would be no way at all."""
    found = [HostRow(row(8192, 1.0, seed) + 12 * (torch.arange(8192) < 3)).support(Sampling(0.7, top_p=0.95)) for seed in range(20)]
    assert all(found)
