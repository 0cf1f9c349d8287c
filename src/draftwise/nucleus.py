"""The truncation of laws: temperature, top-k, top-p and min-p, as transformers has them, without sorting a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftwise import wide
from draftwise.hostrow import HostRow, heat
from draftwise.types import Sampling, Sparse

_PREFIX = 64  # entries that are sorted first where a few candidates did not decide


def truncates(sampling: Sampling) -> bool:
    """Whether the request cuts the tail of a law."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def truncated(rows: Tensor, sampling: Sampling, known: HostRow | None = None) -> Sparse:
    """Temperature, top-k, top-p and min-p of float32 logits `rows` [n, V]: laws by their supports, likeliest token first. On the host each row is
    decided by a few candidates where that is possible. `known`: the only row, if it was looked at before."""
    if rows.device.type != "cpu" or not len(rows):
        return searched(rows, sampling)
    return joined([_one(row, sampling, known) for row in rows])


def _one(row: Tensor, sampling: Sampling, known: HostRow | None) -> Sparse:
    found = (known or HostRow(row)).support(sampling)
    return Sparse(torch.tensor([found[0]]), torch.tensor([found[1]])) if found else searched(row[None], sampling)


def searched(rows: Tensor, sampling: Sampling, prefix: int = _PREFIX) -> Sparse:
    """`truncated` by arrays: the `prefix` largest entries are looked at first, and the whole rows only where those do not decide."""
    vocab, warmth = rows.shape[-1], np.float32(heat(sampling))
    count = min(vocab, max(prefix, sampling.top_k + 1))
    found, ids = wide.largest(rows, count)
    values: NDArray[Any] = found.cpu().numpy() / warmth
    least = _weights(values).sum(-1, keepdims=True, dtype=np.float64)
    weights = _cut(values, least, sampling)
    if sampling.top_p < 1 and not sampling.top_k:
        most = least + (vocab - count) * _weights(values)[:, -1:]  # of the whole row: no entry left is larger than the last
        if (weights[:, -1] > 0).any() or not np.array_equal(weights, _cut(values, most, sampling)):
            least = _mass(rows, found[:, :1], float(warmth)).cpu().numpy()
            weights = _cut(values, least, sampling)
    if count < vocab and (weights[:, -1] > 0).any():  # the cut of a row lies further out
        values, ids = _candidates(rows, values, least, sampling)
        weights = _cut(values, least, sampling)
    with np.errstate(invalid="ignore"):  # a law without mass is NaN
        law = weights / weights.sum(-1, keepdims=True)
    return Sparse(ids, torch.from_numpy(law.astype(np.float32)).to(rows.device))


def _weights(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # -inf - -inf
        weights: NDArray[np.float32] = np.exp(values - values[:, :1])
    return weights


def _mass(rows: Tensor, top: Tensor, heat: float) -> Tensor:
    """The sum [n, 1] of all weights ``exp((row - top) / heat)``."""
    return ((rows - top) / heat).exp_().sum(-1, keepdim=True, dtype=torch.float64)


def _cut(values: NDArray[np.float32], mass: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """The weights ``exp(value - largest)`` [n, K] of the largest entries `values` [n, K] in falling order, 0 for those that fall away. `mass`
    [n, 1]: the sum of all weights of the rows; after top-k, of those that are left."""
    kept = values > -math.inf
    if 0 < sampling.top_k < values.shape[-1]:
        kept &= values >= values[:, sampling.top_k - 1 : sampling.top_k]  # ties stay, as in transformers
    weights = np.where(kept, _weights(values), 0).astype(np.float64)
    if sampling.top_p < 1:
        shares = weights / (weights.sum(-1, keepdims=True) if sampling.top_k else mass)
        kept &= shares.cumsum(-1) - shares < sampling.top_p
    if sampling.min_p > 0:
        kept &= values >= values[:, :1] + np.float32(math.log(sampling.min_p))
    kept[:, 0] = True
    return np.where(kept, weights, 0)


def _candidates(
    rows: Tensor, values: NDArray[np.float32], mass: NDArray[np.float64], sampling: Sampling
) -> tuple[NDArray[np.float32], Tensor]:
    """The largest tempered entries in falling order, as many as may be kept, and their indices: two [n, K]. Entries that each have less than a
    V-th of ``1 - top_p`` have less than that together, so none of them is in the nucleus. (A full sort of a wide row takes many times as long.)"""
    bound = np.full_like(values[:, :1], -math.inf)
    if sampling.top_k > 0:
        bound = np.maximum(bound, values[:, sampling.top_k - 1 : sampling.top_k])
    elif sampling.top_p < 1:
        bound = np.maximum(bound, values[:, :1] + np.log(mass * ((1 - sampling.top_p) / rows.shape[-1] / 2)))  # 2: for rounding
    if sampling.min_p > 0:
        bound = np.maximum(bound, values[:, :1] + math.log(sampling.min_p))
    warmth = np.float32(heat(sampling))
    ranked = []
    for row, low in zip(rows, bound[:, 0].tolist(), strict=True):
        tempered = row / warmth
        ids = (tempered >= low).nonzero()[:, 0]
        ranked.append((tempered[ids].sort(descending=True), ids))
    width, pad = max(len(ids) for _, ids in ranked), torch.nn.functional.pad
    return (
        torch.stack([pad(order.values, (0, width - len(ids)), value=-math.inf) for order, ids in ranked]).cpu().numpy(),
        torch.stack([pad(ids[order.indices], (0, width - len(ids))) for order, ids in ranked]),
    )


def joined(sparse: Sequence[Sparse]) -> Sparse:
    """The rows of all; supports of unequal width are filled up with probability 0."""
    if len(sparse) == 1:
        return sparse[0]
    width = max(some.p.shape[-1] for some in sparse)
    padded = [[torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in some] for some in sparse]
    return Sparse(torch.cat([ids for ids, _ in padded]), torch.cat([p for _, p in padded]))
