"""Searches by blocks against the plain ones, on rows wide enough to be cut."""

from __future__ import annotations

import pytest
import torch

from draftwise import wide

WIDTHS = [5, 128, 8192, 8193, 16384]


def rows(vocab: int, n: int = 5) -> torch.Tensor:
    return torch.randn(n, vocab, generator=torch.Generator().manual_seed(vocab)) * 3


@pytest.mark.parametrize("vocab", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax(vocab: int, dtype: torch.dtype) -> None:
    x = rows(vocab).to(dtype)
    assert torch.equal(wide.argmax(x), x.argmax(-1))  # bfloat16 rows are full of ties: the first of them
    x[2] = 1.5
    assert int(wide.argmax(x)[2]) == 0
    x[3, vocab // 2] = float("nan")
    assert int(wide.argmax(x)[3]) == vocab // 2
    x[4] = float("-inf")
    assert 0 <= int(wide.argmax(x)[4]) < vocab


@pytest.mark.parametrize("vocab", WIDTHS)
@pytest.mark.parametrize("k", [1, 2, 5, 64, 100])
def test_largest(vocab: int, k: int) -> None:
    if k > vocab:
        return
    x = rows(vocab)
    x[1, : vocab // 2] = float("-inf")
    x[2] = x[2].round()  # ties
    values, ids = wide.largest(x, k)
    assert torch.equal(values, x.topk(k, -1).values)
    assert torch.equal(x.gather(-1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("vocab", WIDTHS)
def test_invert(vocab: int) -> None:
    w = rows(vocab, 200).clamp(min=0)
    w[:, -1] += 1e-3
    u = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:4] = torch.tensor([0.0, 1 - 2**-53, 0.5, 1e-300], dtype=torch.float64)
    found = wide.invert(w, u)
    assert bool((w.gather(-1, found[:, None]) > 0).all())
    cumulative = w.double().cumsum(-1)
    aim = u * cumulative[:, -1]
    at = cumulative.gather(-1, found[:, None])[:, 0]
    slack = 1e-9 * cumulative[:, -1]
    assert bool((at > aim - slack).all())
    assert bool((at - w.double().gather(-1, found[:, None])[:, 0] <= aim + slack).all())


@pytest.mark.parametrize("vocab", WIDTHS)
def test_invert_of_a_certain_token(vocab: int) -> None:
    for token in {0, vocab // 3, vocab - 1}:
        w = torch.zeros(3, vocab)
        w[:, token] = 1e-20
        assert wide.invert(w, torch.tensor([0.0, 0.4, 1 - 2**-53], dtype=torch.float64)).tolist() == [token] * 3


@pytest.mark.parametrize("vocab", [1, 2, *WIDTHS])
def test_searches_of_one_row(vocab: int) -> None:
    for x in rows(vocab, 6), rows(vocab, 6).round():
        x[1, : vocab // 2] = float("-inf")
        for row in x:
            peaks = wide.peaks(row)
            assert wide.first(row, peaks) == int(row.argmax())
            assert wide.two(row, peaks) == tuple([*row.topk(min(2, vocab)).values.tolist(), float("-inf")][:2])
            values, ids = wide.leading(row, peaks, min(vocab, 16))
            assert values == row.topk(min(vocab, 16)).values.tolist() == row[ids].tolist() and len(set(ids)) == len(ids)
