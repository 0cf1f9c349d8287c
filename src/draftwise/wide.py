"""Searches over rows as wide as a vocabulary, block by block.

On a CPU a search that has to carry indices is not vectorised. The maxima of blocks are, and then only the blocks that matter need a search of
their own (``benchmarks/overhead.py --pieces`` prints both). Maxima of bfloat16 are not vectorised either: give float32. Rows that do not divide
into blocks are searched as a whole.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WIDTH = 128  # entries of a block
_WIDE = 64 * _WIDTH  # narrower rows gain nothing


def argmax(rows: Tensor) -> Tensor:
    """The index of the largest entry: int64 [n] of [n, V]. The first of equal ones; a NaN counts as largest."""
    if not _divides(rows):
        return rows.argmax(-1)
    blocks = rows.view(len(rows), -1, _WIDTH)
    best = blocks.amax(-1).argmax(-1)
    return best * _WIDTH + blocks[torch.arange(len(rows)), best].argmax(-1)


def largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries in falling order and their indices: two [n, k] of [n, V], as ``topk`` gives them."""
    if not _divides(rows) or k > rows.shape[-1] // _WIDTH // 4:
        values, ids = rows.topk(k, -1)
        return values, ids
    blocks = rows.view(len(rows), -1, _WIDTH)
    chosen = blocks.amax(-1).topk(k, -1).indices  # an entry elsewhere has k larger ones above it
    values, at = blocks.gather(1, chosen[..., None].expand(-1, -1, _WIDTH)).flatten(1).topk(k, -1)
    return values, chosen.gather(1, at // _WIDTH) * _WIDTH + at % _WIDTH


def peaks(row: Tensor) -> NDArray[np.float32] | None:
    """The maxima [V / 128] of the blocks of one row [V] on the host, which the searches below go by; None for a row that is not cut."""
    if not _divides(row[None]):
        return None
    found: NDArray[np.float32] = row.view(-1, _WIDTH).amax(-1).numpy()
    return found


def first(row: Tensor, peaks: NDArray[np.float32] | None) -> int:
    """`argmax` of one row [V] on the host."""
    if peaks is None:
        return int(row.argmax())
    start = int(peaks.argmax()) * _WIDTH
    return start + int(row.numpy()[start : start + _WIDTH].argmax())


def leading(row: Tensor, peaks: NDArray[np.float32] | None, k: int) -> tuple[list[float], list[int]]:
    """`largest` of one row [V] on the host, as plain numbers."""
    if peaks is None or k > len(peaks) // 4:
        values, ids = row.topk(k)
        return values.tolist(), ids.tolist()
    chosen = torch.from_numpy(peaks).topk(k).indices
    few, at = row.view(-1, _WIDTH).index_select(0, chosen).view(-1).topk(k)
    blocks = chosen.tolist()
    return few.tolist(), [blocks[i // _WIDTH] * _WIDTH + i % _WIDTH for i in at.tolist()]


def two(row: Tensor, peaks: NDArray[np.float32] | None) -> tuple[float, float]:
    """The largest and the second largest entry (-inf where V = 1) of one row [V] on the host. A NaN counts as largest."""
    if peaks is None:
        best, *rest = row.topk(min(2, len(row))).values.tolist()
        return best, rest[0] if rest else -math.inf
    best = int(peaks.argmax())
    inner = np.sort(row.numpy()[best * _WIDTH : (best + 1) * _WIDTH])
    others = max(peaks[:best].max(initial=-math.inf), peaks[best + 1 :].max(initial=-math.inf))
    return float(inner[-1]), float(max(inner[-2], others))


def second(row: Tensor, peaks: NDArray[np.float32] | None) -> int:
    """The index of the largest entry of one row [V], V > 1, on the host beside that of `first`."""
    top = first(row, peaks)
    return next(i for i in leading(row, peaks, 2)[1] if i != top)


def invert(weights: Tensor, u: Tensor) -> Tensor:
    """Where the cumulative sum of each row passes ``u * total``: int64 [n] of `weights` [n, V] >= 0 and `u` float64 [n] in [0, 1). Never an
    entry of weight 0."""
    if weights.shape[-1] % _WIDTH or weights.shape[-1] < _WIDE:
        return _passes(weights.double(), u, relative=True)[0]
    blocks = weights.view(len(weights), -1, _WIDTH)
    block, rest = _passes(blocks.sum(-1, dtype=torch.float64), u, relative=True)
    inner = blocks[torch.arange(len(weights), device=weights.device), block].double()
    return block * _WIDTH + _passes(inner, rest, relative=False)[0]


def _divides(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.shape[-1] >= _WIDE and rows.shape[-1] % _WIDTH == 0 and rows.is_contiguous()


def _passes(weights: Tensor, aim: Tensor, relative: bool) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative sum exceeds `aim` (`relative`: of the total), and by how much `aim` exceeds the sum before it."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    aim = torch.minimum(aim * total if relative else aim, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, aim[:, None], right=True)
    before = torch.where(index > 0, cumulative.gather(-1, (index - 1).clamp(min=0)), 0.0)
    return index[:, 0], aim - before[:, 0]
