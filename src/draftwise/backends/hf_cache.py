"""The keys and values of all slots in one growing buffer per layer: every slot owns one contiguous region of its rows.

Contiguous, because attention can then read a slot as a view: no copy of the cache, at any batch size. What a rejected draft leaves behind is
overwritten by the next tokens; only the accepted path of a *tree* is moved, a few rows. Nothing is ever evicted: sliding windows are
a matter of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_ROUND = 64  # regions and buffers grow in multiples of this many rows


@dataclass(slots=True)
class Region:
    """The rows ``start .. start+room-1`` of the buffers, of which the first `length` hold a slot's entries. `tree`: the parents (absolute
    entries) of the last tokens fed, if they branch; until `keep` has chosen a path nothing can be appended."""

    start: int
    room: int
    length: int = 0
    tree: tuple[int, ...] = ()

    def path(self, length: int, path: Sequence[int]) -> tuple[int, list[int]]:
        """What of ``keep(length, path)`` is a path from the first entry: (entries of the prefix, absolute entries after it)."""
        base = self.length - len(self.tree)
        length = min(length, self.length)
        for i in range(base, length):
            if self.tree[i - base] != i - 1:
                return i, []
        kept: list[int] = []
        for i in path:
            above = kept[-1] if kept else length - 1
            if not length <= i < self.length or (self.tree[i - base] if i >= base else i - 1) != above:
                break
            kept.append(i)
        return length, kept


class Move(NamedTuple):
    """Copy `rows` rows from `source` on to `target` on; the two do not overlap."""

    source: int
    target: int
    rows: int


class Regions:
    """Who owns which rows. Regions grow by half, in place where the rows behind them are free."""

    def __init__(self) -> None:
        self.slots: dict[int, Region] = {}

    @property
    def end(self) -> int:
        """Rows that the buffers must have."""
        return max((r.start + r.room for r in self.slots.values()), default=0)

    def reserve(self, slot: int, need: int) -> Move | None:
        """Makes room for `need` entries of a slot; the move of its rows that this takes, if any."""
        region = self.slots.setdefault(slot, Region(0, 0))
        if need <= region.room:
            return None
        room = -(-(need + need // 2) // _ROUND) * _ROUND
        if region.room and self._gap_after(region) >= room:
            region.room = room
            return None
        old, region.start, region.room = region.start, self._find(room), room
        return Move(old, region.start, region.length) if region.length else None

    def _gap_after(self, region: Region) -> float:
        return min((r.start for r in self.slots.values() if r.start > region.start), default=float("inf")) - region.start

    def _find(self, room: int) -> int:
        """The first row of the first gap of `room` rows, or the end."""
        start = 0
        for other in sorted((r for r in self.slots.values() if r.room), key=lambda r: r.start):
            if other.start - start >= room:
                break
            start = other.start + other.room
        return start


class Segment(NamedTuple):
    """One feed inside the packed row: inputs ``first .. first+n-1``, whose keys go to buffer rows ``start+past ..``, after `past` entries.
    `depths` int64 [n] and `seen` bool [n, n] describe a tree (on the host); None = a chain."""

    first: int
    n: int
    start: int
    past: int
    depths: Tensor | None
    seen: Tensor | None

    @property
    def positions(self) -> Tensor:
        """int64 [n], on the host."""
        return self.past + (torch.arange(self.n) if self.depths is None else self.depths)

    @property
    def among(self) -> Tensor:
        """Who of the feed's own tokens sees whom: bool [n, n], on the host."""
        return torch.ones(self.n, self.n, dtype=torch.bool).tril() if self.seen is None else self.seen


class PooledCache(Cache):  # type: ignore[misc]
    """What transformers' attention layers see as their cache. `plan` must be set before a forward. Buffers [1, heads, rows, width] are made
    by the first `update` of a layer, which alone knows their shape, dtype and device."""

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.plan: list[Segment] = []
        self._index: dict[torch.device, Tensor] = {}

    def begin(self, plan: list[Segment]) -> None:
        """Takes the plan of the next forward."""
        self.plan = plan
        self._index.clear()

    def fixed(self, rows: Tensor) -> None:
        """In the place of a plan: the next forward writes to the buffer rows that `rows` int64 [T] holds when it runs."""
        self.plan = []
        self._index = {rows.device: rows}

    def clear(self, start: int, rows: int) -> None:
        """Zeros rows: what attends to them with the weight 0 must find no infinity there."""
        for keys, values in self.buffers.values():
            keys[:, :, start : start + rows] = 0
            values[:, :, start : start + rows] = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new rows [1, heads, T, width] where the plan says; returns the whole buffers."""
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = (self._empty(key_states), self._empty(value_states))
        keys, values = self.buffers[layer_idx]
        if len(self.plan) == 1:
            at = self.plan[0].start + self.plan[0].past
            keys[:, :, at : at + self.plan[0].n] = key_states
            values[:, :, at : at + self.plan[0].n] = value_states
        else:
            index = self._rows(keys.device)
            keys.index_copy_(2, index, key_states)
            values.index_copy_(2, index, value_states)
        return keys, values

    def ready(self, layers: int, heads: int, width: int, dtype: torch.dtype) -> None:
        """Makes the buffers of layers that were not updated yet, for who writes into them without `update`; on the CPU."""
        for layer in range(len(self.buffers), layers):
            like = torch.empty(1, heads, 0, width, dtype=dtype)
            self.buffers[layer] = (self._empty(like), self._empty(like))

    def grow(self, rows: int) -> None:
        """Makes the buffers at least `rows` rows long."""
        if rows <= self.rows:
            return
        old, self.rows = self.rows, rows
        for layer, pair in list(self.buffers.items()):  # one layer at a time, so that the peak is one layer above the sum
            self.buffers[layer] = (self._longer(pair[0], old), self._longer(pair[1], old))

    def move(self, source: Tensor | slice, target: slice) -> None:
        """Copies rows; `source` is a slice apart from `target`, or row numbers int64 (on the host) that may lie within it."""
        for keys, values in self.buffers.values():
            index = source.to(keys.device) if isinstance(source, Tensor) else source
            keys[:, :, target] = keys[:, :, index]
            values[:, :, target] = values[:, :, index]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Entries before the first token of the plan; models ask only to make positions and masks, which we give them."""
        return self.plan[0].past if self.plan else 0

    def _rows(self, device: torch.device) -> Tensor:
        if device not in self._index:
            rows = [torch.arange(s.start + s.past, s.start + s.past + s.n) for s in self.plan]
            self._index[device] = torch.cat(rows).to(device, non_blocking=True)
        return self._index[device]

    def _empty(self, like: Tensor) -> Tensor:
        with torch.inference_mode(False):  # rows are moved outside of inference too
            return torch.zeros(1, like.shape[1], self.rows, like.shape[3], dtype=like.dtype, device=like.device)

    def _longer(self, buffer: Tensor, old: int) -> Tensor:
        longer = self._empty(buffer)
        longer[:, :, :old] = buffer
        return longer
